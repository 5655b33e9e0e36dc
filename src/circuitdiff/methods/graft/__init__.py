"""What caused the gain? Another model's weights in a group's heads."""

from circuitdiff.methods.graft.grafting import ALL_PROJECTIONS, Graft, Grafting, graft, graft_alone, graft_several
from circuitdiff.methods.graft.parts import KINDS, Grafted, Part, split

__all__ = [
    "ALL_PROJECTIONS",
    "KINDS",
    "Graft",
    "Grafted",
    "Grafting",
    "Part",
    "graft",
    "graft_alone",
    "graft_several",
    "split",
]
