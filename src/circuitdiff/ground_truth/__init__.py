"""Studies of planted models, whose circuit and whose cause of a gain are known: how often is an answer right?"""

from circuitdiff.ground_truth.asked import GroundTruth, ask
from circuitdiff.ground_truth.page import render_page
from circuitdiff.ground_truth.plantings import Planting, chosen

__all__ = ["GroundTruth", "Planting", "ask", "chosen", "render_page"]
