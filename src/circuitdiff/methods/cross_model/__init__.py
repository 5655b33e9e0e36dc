"""Which part got better? Another model's activations at a group's heads."""

from circuitdiff.methods.cross_model.activations import Activations, Carrier, read_activations, read_several
from circuitdiff.methods.cross_model.hybrids import Ran
from circuitdiff.methods.cross_model.patching import (
    MOST_GROUPS,
    ControlGroups,
    Controls,
    CrossPatch,
    Limits,
    control_groups,
    patch_across,
    patch_across_several,
    run_controls,
)

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
