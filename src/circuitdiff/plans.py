"""The discovery plans that come with a task."""

from __future__ import annotations

from circuitdiff.discovery import Plan, Stage
from circuitdiff.errors import InputError, choices
from circuitdiff.selection import Discoveries, TopK

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

# Wang et al. 2022 (arXiv:2211.00593), section 3. We differ in the rule (they chose by eye the heads that stand out) and
# in where receivers read. Duplicate-token heads are found with the induction heads: both write at the second subject.
_STRONG = Discoveries(minimum=0.05)  # logits; the models' own logit difference is about 5
_INDIRECT_OBJECTS = Plan(
    stages=(
        Stage("name_mover", "last", _STRONG),
        Stage("s_inhibition", "last", _STRONG, via="q", receivers_from="name_mover"),
        Stage("induction", "s2", _STRONG, via="v", receivers_from="s_inhibition", receivers_at="last"),
        Stage("previous_token", "after_s1", _STRONG, via="k", receivers_from="induction", receivers_at="s2"),
    ),
)

_PLANS = {"entity_tracking": {"paper": _ENTITY_TRACKING}, "ioi": {"main": _INDIRECT_OBJECTS}}


def default_plans(task: str) -> dict[str, Plan]:
    """What a study of the task runs if it names no plan of its own.

    Raises: InputError if the task has none.
    """
    if task not in _PLANS:
        raise InputError(f"task {task!r} has no plan of its own{choices(task, _PLANS)}, or give `plans`")
    return dict(_PLANS[task])
