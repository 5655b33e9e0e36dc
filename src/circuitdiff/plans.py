"""The discovery plans that come with a task."""

from __future__ import annotations

from circuitdiff.discovery import Plan, Stage
from circuitdiff.selection import TopK

# Prakash et al. 2024 (arXiv:2402.14811), section 3.2, with the k of its code's command line. Their structure readers
# are read from anywhere (`receivers_at=None`); the path one means ends at the query label.
_ENTITY_TRACKING = Plan(
    stages=(
        Stage("value_fetcher", "last", TopK(20)),
        Stage("position_transmitter", "last", TopK(5), via="q", receivers_from="value_fetcher"),
        Stage("position_detector", "query_label", TopK(10), via="v", receivers_from="position_transmitter"),
        Stage(
            "structure_reader",
            "previous_query_label",
            TopK(5),
            via="v",
            receivers_from="position_detector",
            receivers_at="query_label",
        ),
    ),
)

_PLANS = {"entity_tracking": {"paper": _ENTITY_TRACKING}}


def default_plans(task: str) -> dict[str, Plan]:
    """What a study of the task runs if it names no plan of its own."""
    return dict(_PLANS[task])
