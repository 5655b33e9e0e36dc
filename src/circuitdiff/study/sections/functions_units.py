"""The units of work of `functions`: a mask, and answers with chosen heads patched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from circuitdiff.circuit import Group, Head
from circuitdiff.methods.component_mask.fit import MaskOptions, Sweep, fit_shared
from circuitdiff.methods.component_mask.patching import SharedRuns
from circuitdiff.prompts import PromptSet
from circuitdiff.study.host import How
from circuitdiff.study.prompts import TriplesOf
from circuitdiff.study.section import LoadedModel
from circuitdiff.triples import split_by_scenario


@dataclass(frozen=True)
class MaskRuns:
    """What it takes to share runs between the masks of one circuit and model that have their base prompts in common."""

    groups: tuple[tuple[str, Group], ...]
    random_groups: int
    seed: int
    memory_gb: float


@dataclass(frozen=True)
class Patched:
    """Heads of a group that take what they carry on the source prompts."""

    group: str
    triples: TriplesOf
    heads: tuple[Head, ...]


def learned_mask(
    subject: LoadedModel,
    *,
    group: str,
    triples: TriplesOf,
    tested: tuple[str, ...],
    options: MaskOptions,
    sweep: Sweep | None,
    shared: MaskRuns,
) -> dict[str, Any]:
    """A mask with its floors and controls. `tested`: the groups that are tested on the same source prompts."""
    chosen = subject.triples(triples)
    runs, seed = _runs(subject, shared, chosen.base), shared.seed
    fit = fit_shared(runs, group, chosen, options, sweep=sweep, seed=seed, tested=tested, progress=subject.progress)
    answers = dict(sorted(fit.answers.items()))  # the order in which means over random groups are summed
    return {**vars(fit), "answers": answers, "test": None}  # `functions` has the test triples


def answers_of_patched(
    subject: LoadedModel, *, triples: TriplesOf, patched: tuple[Patched, ...], tested: tuple[str, ...], shared: MaskRuns
) -> list[Int[Tensor, " triple"]]:
    """Answers to the test triples, or to the first of them where sources are drawn anew; of each that is patched."""
    whole = subject.triples(triples)
    runs, test = _runs(subject, shared, whole.base), split_by_scenario(whole.scenarios, triples.sizes)[2]
    answers = []
    for each in patched:
        chosen, rows = subject.triples(each.triples), test
        if each.triples.redraw:
            rows = test[: len(chosen)]
            patching = runs.redrawn(each.group, chosen, rows)
        else:
            patching = runs.patching(each.group, chosen, tested=tested)
        answers.append(patching.answers(each.heads, rows))
    return answers


def _runs(subject: LoadedModel, shared: MaskRuns, base: PromptSet) -> SharedRuns:
    """The latest alone is kept: it may take gigabytes."""

    how: How = {**subject.how, "memory_gb": shared.memory_gb}

    def make() -> SharedRuns:
        groups, n_random = dict(shared.groups), shared.random_groups
        return SharedRuns(subject.model, groups, base, n_random=n_random, seed=shared.seed, **how)

    same_base = id(base)  # desiderata of the task have theirs in common, as one object for as long as the model is here
    return subject.cached("runs of masks", (same_base, shared), make, n_kept=1)
