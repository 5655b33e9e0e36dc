"""Component masks (DCM): which heads of a group carry what a desideratum asks for."""

from circuitdiff.methods.component_mask.fit import MaskFit, MaskOptions, Sweep, fit_mask, fit_shared
from circuitdiff.methods.component_mask.patching import SharedRuns
from circuitdiff.methods.component_mask.training import Mask, Training, kept, selected

__all__ = [
    "Mask",
    "MaskFit",
    "MaskOptions",
    "SharedRuns",
    "Sweep",
    "Training",
    "fit_mask",
    "fit_shared",
    "kept",
    "selected",
]
