"""Which heads of a group carry what a desideratum asks for, and how surely: the mask, its floors and its controls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from pydantic import Field
from torch import Tensor

from circuitdiff.circuit import Group, Head
from circuitdiff.config.settings import Count, CountOrZero, Prompts
from circuitdiff.config.validation import check_fields
from circuitdiff.engine import Model
from circuitdiff.engine.executor import Progress
from circuitdiff.methods.component_mask.patching import MEMORY_GB, Patching, SharedRuns
from circuitdiff.methods.component_mask.training import Mask, Part, Training, train_mask
from circuitdiff.readable import Readable, data_frame
from circuitdiff.stats.intervals import Interval
from circuitdiff.stats.proportions import accuracy_interval, difference_interval
from circuitdiff.triples import Triples, split_by_scenario

Penalty = Annotated[float, Field(ge=0, le=1e6)]  # nats per patched head


@dataclass(frozen=True, repr=False)
class MaskOptions(Training):
    """What is fitted; the paper trained on 1000 triples, chose on 500 and tested on 500."""

    train: Prompts = 300
    validation: Prompts = 150
    test: Prompts = 300
    penalty: Penalty = 0.02
    minimum: Annotated[float, Field(ge=0)] = 0.05  # accuracy above the floor, below which a group carries nothing
    random_groups: CountOrZero = 3  # of the same number of heads
    control_triples: Prompts = 100  # of the test triples, for random, all and ranked heads; floors are tested on all

    @property
    def n_triples(self) -> tuple[int, int, int]:
        return self.train, self.validation, self.test


@dataclass(frozen=True)
class Sweep:
    """More masks of one group: several seeds, and several penalties for the trade-off of heads against accuracy."""

    penalties: tuple[Penalty, ...] = (0.002, 0.005, 0.05, 0.1, 0.2)
    seeds: Count = 3

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, repr=False)
class MaskFit(Readable):
    """A mask on test triples that it has not seen, beside its floors and controls on the same triples.

    `answers`, by what was patched: "mask", "nothing" (the floor), "shuffled", "all" heads of the group, "ranked" (its
    first heads, as many as the mask has), "random 0", ...

    "shuffled" is the trained floor: a mask learned and tested with the targets shuffled against the sources. Base and
    target still go together, the source says nothing of it: heads that merely unsettle the answer reach as much. It is
    learned only where the mask is at least `minimum` above "nothing": elsewhere the group carries nothing anyway, as
    the floor is the higher of the two.
    """

    desideratum: str
    group: Group
    mask: Mask
    shuffled: Mask | None  # None: not learned
    minimum: float
    others: tuple[Mask, ...]  # the other seeds, then the other penalties
    test: Triples
    answers: Mapping[str, Int[Tensor, " _some"]]  # of all test triples, or of the first ones: see `control_triples`
    other_answers: tuple[Int[Tensor, " test"], ...]  # of `others`

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads that carry what the desideratum asks for."""
        return self.mask.patched

    def to_pandas(self) -> Any:
        """A row for each head of the group. Raises: InputError if there is no pandas."""
        kept = zip(self.mask.heads, self.mask.keep.tolist(), strict=True)
        rows = ((head.layer, head.index, keep, head in self.heads) for head, keep in kept)
        return data_frame("layer head keep patched", rows)

    def hits(self, patched: str = "mask") -> Bool[Tensor, " some"]:
        answers = self.answers[patched]
        return answers == self.test.targets[: len(answers)]

    def accuracy(self, patched: str = "mask") -> Interval:
        """How often the target is the answer, with Wilson's interval."""
        hits = self.hits(patched)
        return accuracy_interval(hits.numpy(), self.test.scenarios[: len(hits)].numpy())

    @property
    def floor(self) -> str:
        """The higher of the two floors: "nothing" or, where it was learned, "shuffled"."""
        there = [name for name in ("nothing", "shuffled") if name in self.answers]
        return max(there, key=lambda name: int(self.hits(name).sum()))

    def above(self, patched: str) -> Interval:
        """Accuracy of the mask minus that of another patching, paired by triple."""
        second = self.hits(patched)
        first, scenarios = self.hits()[: len(second)], self.test.scenarios[: len(second)]
        return difference_interval(first.numpy(), second.numpy(), scenarios.numpy())

    @property
    def above_floor(self) -> Interval:
        """What counts."""
        return self.above(self.floor)

    @property
    def carries(self) -> bool:
        """Whether the group carries what is asked for: surely above both floors, and by at least `minimum`."""
        above = [self.above(name) for name in ("nothing", "shuffled") if name in self.answers]
        return all(each.low > 0 and each.value >= self.minimum for each in above)

    @property
    def n_random(self) -> int:
        return sum(name.startswith("random") for name in self.answers)

    @property
    def random_accuracy(self) -> float:
        """The mean over random groups; nan without any."""
        hits = [self.hits(name).double().mean() for name in self.answers if name.startswith("random")]
        return float(np.mean(hits)) if hits else np.nan

    def pointed(self, patched: str = "mask") -> dict[str, float]:
        """The share of answers by what points to them; the answer without any patch is "unpatched"."""
        given, kinds = self.answers[patched], {"unpatched": self.test.answers, **self.test.pointers}
        shares = {kind: float((given == tokens[: len(given)]).double().mean()) for kind, tokens in kinds.items()}
        return shares | {"other": 1 - sum(shares.values())} if self.test.pointers else shares

    def trade_off(self) -> list[tuple[Mask, Interval]]:
        """Every mask on true targets with its test accuracy, fewest heads first."""
        answers = [self.answers["mask"], *self.other_answers]
        scenarios = self.test.scenarios.numpy()
        found = [
            (mask, accuracy_interval((given == self.test.targets).numpy(), scenarios))
            for mask, given in zip([self.mask, *self.others], answers, strict=True)
        ]
        return sorted(found, key=lambda pair: (len(pair[0].patched), pair[0].penalty, pair[0].seed))


def fit_mask(
    model: Model,
    group: Group,
    triples: Triples,
    options: MaskOptions | None = None,
    *,
    sweep: Sweep | None = None,
    seed: int = 0,
    executor: str = "window",
    memory_gb: float = MEMORY_GB,
    progress: Progress | None = None,
) -> MaskFit:
    """Which heads of `group` to patch at its role so that each triple's target becomes the answer.

    `sweep`: fits further masks, for the trade-off; the best of its seeds counts. `seed`: of all that is drawn.

    Triples, as many as the options say in all, are split by scenario, in their order. A task samples those of its
    desiderata (`task.triples`); those of a file are read by `read_triples`.

    Raises: InputError, before any work, if the group has no heads, a head or role does not exist, a prompt lacks the
    role, or there are too few triples.
    """
    options = options or MaskOptions()
    triples.check_role(group.at)
    groups, n_random = {"group": group}, options.random_groups
    shared = SharedRuns(
        model, groups, triples.base, n_random=n_random, seed=seed, executor=executor, memory_gb=memory_gb
    )
    return fit_shared(shared, "group", triples, options, sweep=sweep, seed=seed, progress=progress)


def fit_shared(
    shared: SharedRuns,
    group: str,
    triples: Triples,
    options: MaskOptions,
    *,
    sweep: Sweep | None = None,
    seed: int = 0,
    tested: Collection[str] | None = None,
    progress: Progress | None = None,
) -> MaskFit:
    """`fit_mask` for one of several groups and desiderata with the same runs; `tested`: see `SharedRuns.patching`."""
    parts = split_by_scenario(triples.scenarios, options.n_triples)
    train, validation, test = (Part(rows, triples.targets[rows]) for rows in parts)
    patching, heads = shared.patching(group, triples, tested=tested), shared.groups[group].heads
    jobs, n_seeds = _jobs(options.penalty, sweep, seed), 1 if sweep is None else sweep.seeds
    n_steps, done = (len(jobs) + 1) * options.most_steps, count(1)

    def stepped() -> None:
        if progress:
            progress(next(done), n_steps)

    masks = [train_mask(patching, heads, train, validation, options, *job, stepped) for job in jobs]
    best = max(range(n_seeds), key=lambda i: (masks[i].validation_accuracy, -len(masks[i].patched), -i))
    others = tuple(mask for i, mask in enumerate(masks) if i != best)
    few = test.rows[: options.control_triples]
    answers, floor = _answers(patching, heads, masks[best].patched, shared.random[group], test.rows, few), None
    if _may_carry(answers, test.targets, options.minimum):
        mixed = shared.patching(group, triples, dealt_order(parts, len(triples), seed), tested=tested)
        floor = train_mask(mixed, heads, train, validation, options, options.penalty, seed, stepped)
        answers["shuffled"] = mixed.answers(floor.patched, test.rows)
    if progress:
        progress(n_steps, n_steps)  # what was not needed is done, too
    return MaskFit(
        desideratum=triples.name,
        group=shared.groups[group],
        mask=masks[best],
        shuffled=floor,
        minimum=options.minimum,
        others=others,
        test=triples.select(test.rows),
        answers=answers,
        other_answers=tuple(patching.answers(mask.patched, test.rows) for mask in others),
    )


def dealt_order(parts: Sequence[Int[Tensor, " _part"]], n_triples: int, seed: int) -> Int[Tensor, " triple"]:
    """Which triple's source each base prompt gets when targets are shuffled: never its own, always of the same part."""
    g, order = torch.Generator().manual_seed(seed), torch.arange(n_triples)
    for part in parts:
        mixed = part[torch.randperm(len(part), generator=g)]
        order[mixed] = mixed.roll(1)
    return order


def _may_carry(answers: Mapping[str, Int[Tensor, " test"]], targets: Int[Tensor, " test"], minimum: float) -> bool:
    """Whether a floor that is as low as can be, no head patched, would leave enough above it."""
    mask, nothing = ((answers[name] == targets).double() for name in ("mask", "nothing"))
    above = (mask - nothing).mean()
    return bool(above > 0 and above >= minimum)


def _jobs(penalty: float, sweep: Sweep | None, seed: int) -> list[tuple[float, int]]:
    """Penalty and seed of each training: every seed with the penalty, then the other penalties."""
    if sweep is None:
        return [(penalty, seed)]
    others = [other for other in dict.fromkeys(sweep.penalties) if other != penalty]
    return [(penalty, seed + i) for i in range(sweep.seeds)] + [(other, seed) for other in others]


def _answers(
    patching: Patching,
    heads: Sequence[Head],
    patched: Sequence[Head],
    random: Sequence[Sequence[Head]],
    test: Int[Tensor, " test"],
    few: Int[Tensor, " _some"],
) -> dict[str, Int[Tensor, " _any"]]:
    n = len(patched)
    controls = {"all": heads, "ranked": heads[:n]} | {f"random {i}": order[:n] for i, order in enumerate(random)}
    answers = {name: patching.answers(each, test) for name, each in (("mask", patched), ("nothing", ()))}
    on_all = {frozenset(patched): answers["mask"], frozenset[Head](): answers["nothing"]}  # `few` are the first of them
    return answers | {
        name: on_all[frozenset(each)][: len(few)] if frozenset(each) in on_all else patching.answers(each, few)
        for name, each in controls.items()
    }
