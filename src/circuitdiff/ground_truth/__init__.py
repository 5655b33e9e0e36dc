"""Discovery and evaluation held against planted circuits, whose truth is known."""

from circuitdiff.ground_truth.check import check_ground_truth
from circuitdiff.ground_truth.page import render_page
from circuitdiff.ground_truth.result import GroundTruth
from circuitdiff.ground_truth.subjects import Sizes

__all__ = ["GroundTruth", "Sizes", "check_ground_truth", "render_page"]
