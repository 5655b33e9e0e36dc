"""Which part got better? Another model's activations at a group's heads."""

from circuitdiff.methods.cross_model.activations import Activations, Carrier, read_activations, read_several
from circuitdiff.methods.cross_model.controls import ControlGroups, Controls, control_groups, run_controls
from circuitdiff.methods.cross_model.hybrids import Ran
from circuitdiff.methods.cross_model.patching import MOST_GROUPS, CrossPatch, Limits, patch_across, patch_across_several

__all__ = [
    "MOST_GROUPS",
    "Activations",
    "Carrier",
    "ControlGroups",
    "Controls",
    "CrossPatch",
    "Limits",
    "Ran",
    "control_groups",
    "patch_across",
    "patch_across_several",
    "read_activations",
    "read_several",
    "run_controls",
]
