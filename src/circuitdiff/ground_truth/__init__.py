"""Discovery and evaluation held against planted circuits, whose truth is known."""

from circuitdiff.ground_truth.check import check_ground_truth, compute_share
from circuitdiff.ground_truth.page import render_page
from circuitdiff.ground_truth.parts import Share
from circuitdiff.ground_truth.result import GroundTruth
from circuitdiff.ground_truth.subjects import Sizes

__all__ = ["GroundTruth", "Share", "Sizes", "check_ground_truth", "compute_share", "render_page"]
