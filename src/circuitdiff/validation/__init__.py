"""Discovery and evaluation held against planted circuits, whose truth is known."""

from circuitdiff.validation.check import GroundTruth, Share, check_ground_truth, compute_share
from circuitdiff.validation.page import render_page
from circuitdiff.validation.subjects import Sizes

__all__ = ["GroundTruth", "Share", "Sizes", "check_ground_truth", "compute_share", "render_page"]
