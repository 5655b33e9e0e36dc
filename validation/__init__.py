"""For developers: planted circuits, whose truth is known, and published tables, held against our methods."""

from validation.check import GroundTruth, Share, check_ground_truth
from validation.page import render_page
from validation.subjects import Sizes

__all__ = ["GroundTruth", "Share", "Sizes", "check_ground_truth", "render_page"]
