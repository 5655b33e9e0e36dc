"""Which of two models is the donor: the one that does the task better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from circuitdiff.prompts import Pairs
from circuitdiff.sections.entries import interval_entry
from circuitdiff.stats.intervals import difference_interval
from circuitdiff.workbench import Subject, Workbench


class Direction(NamedTuple):
    """Whose activations or weights go into which model."""

    donor: str
    recipient: str
    gains: bool  # the donor is surely better, so that there is a gain to share out


def direction_of(bench: Workbench, variant: str) -> Direction:
    """From the variant to the base, unless the variant is surely worse: then what does it lack?"""
    other, base = bench.subject(variant), bench.subject(bench.base)
    gain = gain_entry(other, base, base.splits.evaluation)
    if gain["high"] < 0:
        return Direction(bench.base, variant, gains=True)
    return Direction(variant, bench.base, gains=gain["low"] > 0)


def gain_entry(donor: Subject, recipient: Subject, pairs: Pairs) -> Mapping[str, Any]:
    """The paired gain in accuracy on all evaluation prompts."""
    first, second = (subject.stages.answers(pairs) for subject in (donor, recipient))
    gain = difference_interval(first.hits.numpy(), second.hits.numpy(), first.scenarios.numpy())
    return interval_entry(gain) | {"n_scenarios": len(first.scenarios.unique()), "n_prompts": len(first.hits)}
