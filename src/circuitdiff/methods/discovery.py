"""Finding a circuit: a plan of path-patching stages, each into heads that an earlier stage found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.config.settings import Count, Name
from circuitdiff.engine import Model
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB
from circuitdiff.engine.kept_runs import PairRuns
from circuitdiff.errors import InputError, choices
from circuitdiff.methods.path_patching import Path, PathEffects, Via, path_effects
from circuitdiff.methods.screening import Screen, Screened, screened_effects, standing_for
from circuitdiff.prompts import Pairs
from circuitdiff.readable import Plotted, Readable, data_frame
from circuitdiff.stats.metrics import Measured, MetricName, negligible
from circuitdiff.stats.selection import Discoveries, Sample, Selection, Stability, TopK, drop_shared, select, stability

Shared = Literal["later", "earlier", "both"]
Split = Literal["discovery", "replication"]


@dataclass(frozen=True, repr=False)
class Stage(Readable):
    """One sweep of path patching, and the rule that chooses a group of heads from it; see `discover`.

    The rule is `Discoveries` unless another is given, which may choose one head, or none; `TopK` is the paper's.
    """

    name: Name
    at: str  # the role at which heads are patched
    select: TopK | Discoveries = field(default_factory=Discoveries)
    via: Via | None = None  # of the receivers; None: straight into the logits
    receivers_from: str | None = None  # an earlier stage
    receivers_at: str | None = None  # the role at which receivers read k or v; None: every position
    screen: Screen | Literal["auto"] | None = None  # measure only heads of strong attribution; None: every head
    n_receivers: Count | None = None  # how many of its strongest heads later stages take as receivers; None: all chosen
    in_circuit: bool = True  # False: only tested, with its family; its heads are no group

    @property
    def splits(self) -> tuple[Split, ...]:
        """The prompts that its rule needs effects on."""
        second = isinstance(self.select, Discoveries) and self.select.replicated
        return ("discovery", "replication") if second else ("discovery",)

    @property
    def screened_by(self) -> Screen | None:
        return Screen() if self.screen == "auto" else self.screen

    def check_screen(self, screen: Screen) -> None:
        """Raises: InputError if it does not go with the stage's rule."""
        if isinstance(self.select, TopK) and screen.keep is None:
            raise InputError(f"stage {self.name!r}: TopK has no minimum to screen by; say `screen: {{keep: N}}`")
        if isinstance(self.select, Discoveries) and self.select.method == "max_t":
            raise InputError(f"stage {self.name!r}: max_t needs every head measured; use method bh, or no screen")

    def minimum(self, metric: str | Measured) -> float:
        """The size that an effect must have to be chosen, in the metric's unit; 0 for `TopK`."""
        if isinstance(self.select, TopK):
            return 0.0
        named = metric if isinstance(metric, str) else ""
        return negligible(named) if self.select.minimum is None else self.select.minimum


@dataclass(frozen=True, repr=False)
class Plan(Readable):
    """How a circuit is looked for: stages in order, each straight into the logits or into an earlier one's heads.

    `shared_heads`: which of two stages keeps a head that both choose at one role. `adjusted_over`: what is one family
    of tests: each stage alone; or all stages, one after the other, that patch into the same heads.
    """

    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    metric: MetricName = "logit_difference"
    shared_heads: Shared = "later"
    adjusted_over: Literal["stage", "receivers"] = "stage"

    @property
    def families(self) -> list[list[Stage]]:
        """The stages, in order, by the family of tests that each is of."""
        if self.adjusted_over == "stage":
            return [[stage] for stage in self.stages]
        return [list(family) for _, family in groupby(self.stages, lambda stage: stage.receivers_from)]

    @property
    def roles(self) -> list[str]:
        """Every role at which a stage patches or reads."""
        named = (role for stage in self.stages for role in (stage.at, stage.receivers_at) if role is not None)
        return list(dict.fromkeys(named))

    def check(self, roles: Sequence[str] | None = None) -> None:
        """Raises: InputError if a stage repeats a name, names none of `roles`, or reads from no earlier stage."""
        earlier: list[str] = []
        for stage in self.stages:
            if stage.name in earlier:
                raise InputError(f"two stages are called {stage.name!r}; give each its own name")
            for role in (stage.at, stage.receivers_at):
                if role is not None and roles is not None and role not in roles:
                    raise InputError(
                        f"stage {stage.name!r} names role {role!r}, which the task lacks{choices(role, roles)}"
                    )
            if (stage.receivers_from is None) != (stage.via is None):
                raise InputError(f"stage {stage.name!r}: receivers and via go together; name both, or neither")
            if stage.receivers_from is not None and stage.receivers_from not in earlier:
                raise InputError(
                    f"stage {stage.name!r} takes its receivers from {stage.receivers_from!r}, which is not an earlier "
                    f"stage{choices(stage.receivers_from, earlier)}"
                )
            if (screen := stage.screened_by) is not None:
                stage.check_screen(screen)
            earlier.append(stage.name)
        for family in self.families:
            rules = [stage.select for stage in family]
            if len(family) > 1 and not all(isinstance(rule, Discoveries) and rule.method == "bh" for rule in rules):
                raise InputError(
                    f"stages {', '.join(stage.name for stage in family)} are one family of tests, which takes the rule "
                    f"Discoveries with method bh; choose it, or set adjusted_over to stage"
                )


@dataclass(frozen=True)
class ChosenHead:
    """A head that a stage chose: its effect and 95 % interval where they are reported from, and p where it was chosen.

    `adjusted_p`: over its family of tests, see `Selection`.
    """

    head: Head
    effect: float
    low: float
    high: float
    adjusted_p: float

    def __str__(self) -> str:
        return f"{self.head} {self.effect:+.3f} [{self.low:+.3f}, {self.high:+.3f}] p {self.adjusted_p:.2g}"


@dataclass(frozen=True, repr=False)
class StageResult(Plotted):
    """What one stage measured and chose; `helping` and the like are shown with effects that are `reported`."""

    _shown = ("stage", "receivers", "split", "reported", "helping", "hurting", "not_replicated")

    stage: Stage
    receivers: tuple[Head, ...]
    found: PathEffects  # on the prompts that chose
    replication: PathEffects | None  # on others
    selection: Selection
    screened: Screened | None = None
    beside: tuple[PathEffects, ...] = ()  # of the other stages of its family of tests, on the prompts that chose

    @property
    def reported(self) -> PathEffects:
        """Effects on the prompts that did not choose the heads, where there are such.

        Those of chosen heads on the prompts that chose them are too large: of many heads the luckiest are taken.
        """
        return self.found if self.replication is None else self.replication

    @property
    def split(self) -> Split:
        """The prompts of `reported`."""
        return "discovery" if self.replication is None else "replication"

    @property
    def helping(self) -> tuple[ChosenHead, ...]:
        return self._chosen(self.selection.helping)

    @property
    def hurting(self) -> tuple[ChosenHead, ...]:
        return self._chosen(self.selection.hurting)

    @property
    def not_replicated(self) -> tuple[ChosenHead, ...]:
        return self._chosen(self.selection.not_replicated)

    def _chosen(self, heads: Sequence[Head]) -> tuple[ChosenHead, ...]:
        adjusted = self.selection.adjusted_p
        tables = [torch.as_tensor(each) for each in (*self.reported.intervals(), adjusted)] if heads else []
        return tuple(ChosenHead(h, *(float(table[h.layer, h.index]) for table in tables)) for h in heads)

    @property
    def able(self) -> Bool[Tensor, "layer head"]:
        """The heads that some receiver can see."""
        able = torch.zeros_like(self.found.effects, dtype=torch.bool)
        able[: max((head.layer for head in self.receivers), default=len(able))] = True
        return able

    def stability(self) -> Stability:
        """How like these heads are those that other scenarios would choose, with the receivers as they are.

        Of a screened stage see the `weights` of `stats.selection.stability`; nan if it measured none that it left out.
        """
        again = None if self.replication is None else sample_of(self.replication)
        others = [sample_of(each) for each in self.beside]
        screened = self.screened
        weights = None if screened is None else standing_for(self.able, screened.strongest, screened.sampled)
        if weights is not None and weights.sum() < self.able.sum() - 0.5:
            return Stability(*3 * [float("nan")])
        sample, floor = sample_of(self.found), self.found.noise_floor
        return stability(self.selection, sample, floor, again, beside=others, weights=weights)

    def to_pandas(self) -> Any:
        """A row for each head: its reported effect, p where heads were chosen, and what it was chosen as.

        Raises: InputError if there is no pandas.
        """
        chosen = self.selection
        kinds = {"helping": chosen.helping, "hurting": chosen.hurting, "not replicated": chosen.not_replicated}
        chosen_as = {head: kind for kind, heads in kinds.items() for head in heads}
        n_layers, n_heads = chosen.effects.shape
        heads = [Head(layer, i) for layer in range(n_layers) for i in range(n_heads)]
        own = ("effect", "low", "high", "adjusted_p")
        rows = (
            (each.head.layer, each.head.index, *(getattr(each, column) for column in own), chosen_as.get(each.head))
            for each in self._chosen(heads)
        )
        return data_frame(f"layer head {' '.join(own)} chosen_as", rows)

    @property
    def as_receivers(self) -> tuple[Head, ...]:
        """The heads that later stages patch into."""
        return self.selection.helping[: self.stage.n_receivers]


# The effects of one stage into the given receivers (None: the logits), on the split of that name, of these senders.
# Without senders all heads are measured, or, of a stage with a screen, those that come through it.
Measure = Callable[[Stage, Sequence[Head] | None, str, Sequence[Head] | None], PathEffects | Screened]


def discover(plan: Plan, measure: Measure) -> list[StageResult]:
    """Runs a plan's stages in order, each into heads that an earlier one chose.

    `measure` runs the model (see `measure_with`); a rule that wants its discoveries replicated asks it for the split
    "replication", too. A stage is left out of the results if the stage that it patches into chose no heads, or was
    left out itself: `gaps` says so in words.

    >>> task = cd.tasks.ioi()
    >>> pairs = task.sample(model.tokenizer, n_prompts=16, seed=0, split="discovery")
    >>> first = cd.Stage("mover", at="last", select=cd.TopK(top=3))
    >>> second = cd.Stage("feeder", at="last", via="q", receivers_from="mover", select=cd.TopK(top=2))
    >>> plan = cd.Plan((first, second))
    >>> results = cd.discover(plan, cd.measure_with(model, {"discovery": pairs}, roles=plan.roles))
    >>> circuit = cd.circuit_of(results, plan.shared_heads)
    >>> [result.stage.name for result in results], list(circuit.groups)
    (['mover', 'feeder'], ['mover', 'feeder'])

    The default rule, `cd.Discoveries()`, wants a second split of other prompts, "replication", too. A head that two
    stages choose at one role is in the later one's group, however weak there, unless the plan's `shared_heads` says
    otherwise.

    Raises: InputError if a stage takes its receivers from none before it.
    """
    plan.check()
    results: dict[str, StageResult] = {}
    for family in plan.families:
        results |= {each.stage.name: each for each in discover_family(family, measure, results)}
    return list(results.values())


def discover_family(family: Sequence[Stage], measure: Measure, results: Mapping[str, StageResult]) -> list[StageResult]:
    """Stages whose heads are one family of tests, into heads that the results have; without those that have none."""
    into = {stage: receivers_of(stage, results) for stage in family}
    first = {stage: measure(stage, to, "discovery", None) for stage, to in into.items() if to is None or to}
    found = []
    for stage, effects in first.items():
        beside = [measured_of(other) for each, other in first.items() if each is not stage]
        again = None
        if "replication" in stage.splits:
            again = measure(stage, into[stage], "replication", candidates(stage, effects, beside))
            assert isinstance(again, PathEffects), "only the first split is screened"
        found.append(stage_result(stage, into[stage], effects, again, beside))
    return found


def measured_of(found: PathEffects | Screened) -> PathEffects:
    return found.effects if isinstance(found, Screened) else found


def sample_of(effects: PathEffects) -> Sample:
    return Sample(effects.per_prompt, effects.scenarios)


def candidates(stage: Stage, first: PathEffects | Screened, beside: Sequence[PathEffects] = ()) -> list[Head] | None:
    """The heads to be measured again: what a screened stage's rule chooses but for a replication; None: all."""
    if not isinstance(first, Screened):
        return None
    assert isinstance(stage.select, Discoveries), "nothing else is replicated"
    once = replace(stage, select=replace(stage.select, replicated=False))
    chosen = stage_result(once, None, first, None, beside).selection
    return sorted([*chosen.helping, *chosen.hurting])


def measure_with(
    model: Model,
    splits: Mapping[str, Pairs],
    *,
    metric: str | Measured = "logit_difference",
    roles: Sequence[str] = (),
) -> Measure:
    """Path patching on `model`, with the prompts of each split; a metric that is a function sees rows of that split.

    Stages at `roles` (a plan's) make their clean and counterfactual runs once, as far as 1 GiB of memory allows.

    Raises: InputError, from what it returns, if a stage's rule wants a split that is not there.
    """
    runs = {split: PairRuns(model, pairs, roles, DEFAULT_MEMORY_GB) for split, pairs in splits.items()}

    def measure(
        stage: Stage, receivers: Sequence[Head] | None, split: str, senders: Sequence[Head] | None
    ) -> PathEffects | Screened:
        if split not in splits:
            raise InputError(
                f"stage {stage.name} wants a second split of prompts, to replicate its discoveries: give {split!r}, "
                f"too, or another rule, as cd.Discoveries(replicated=False)"
            )
        known = {stage.at, stage.receivers_at or stage.at} <= set(roles)
        shared, pairs = runs[split] if known else None, splits[split]
        path = Path(stage.at, None if receivers is None else tuple(receivers), stage.via, stage.receivers_at)
        if stage.screened_by is not None and senders is None:
            minimum = stage.minimum(metric)
            return screened_effects(model, pairs, path, stage.screened_by, minimum, metric=metric, shared=shared)
        return path_effects(
            model, pairs, path.at, path.receivers, path.via, path.receivers_at, senders, metric, shared=shared
        )

    return measure


def gaps(plan: Plan, results: Sequence[StageResult]) -> list[str]:
    """One line for each stage of the plan that chose no helping heads, and for each that `discover` left out."""
    found = {result.stage.name: result for result in results}
    lines = []
    for stage in plan.stages:
        if stage.name not in found:
            lines.append(f"stage {stage.name} was not run: {stage.receivers_from} has no heads to patch into")
        elif not found[stage.name].selection.helping:
            lines.append(f"no heads at stage {stage.name}; use more prompts or a rule that is less strict")
    return lines


def receivers_of(stage: Stage, results: Mapping[str, StageResult]) -> tuple[Head, ...] | None:
    """The heads that the stage patches into; None: the logits. With none, the stage cannot be run."""
    if stage.receivers_from is None:
        return None
    return results[stage.receivers_from].as_receivers if stage.receivers_from in results else ()


def stage_result(
    stage: Stage,
    receivers: tuple[Head, ...] | None,
    first: PathEffects | Screened,
    again: PathEffects | None = None,
    beside: Sequence[PathEffects] = (),
) -> StageResult:
    """With the heads that the stage's rule supports; `beside`: what the other stages of its family measured."""
    screened, found = first if isinstance(first, Screened) else None, measured_of(first)
    second, others = None if again is None else sample_of(again), [sample_of(each) for each in beside]
    chosen = select(
        found.per_prompt, found.scenarios, stage.select, found.noise_floor, second, beside=others, metric=found.metric
    )
    return StageResult(stage, receivers or (), found, again, chosen, screened, tuple(beside))


def circuit_of(results: Sequence[StageResult], shared: Shared) -> Circuit:
    """Each stage's helping heads as a group at the stage's role; two stages at one role do not share heads."""
    groups: dict[str, Group] = {}
    results = [result for result in results if result.stage.in_circuit]
    for i, result in enumerate(results):
        heads = list(result.selection.helping)
        others = {"later": results[i + 1 :], "earlier": results[:i], "both": []}[shared]
        for other in others:
            if other.stage.at == result.stage.at:
                heads = drop_shared(heads, other.selection.helping)
        groups[result.stage.name] = Group(result.stage.at, tuple(heads))
    return Circuit(groups)
