"""What is asked of every planted model, and the rows that say what came: the same prompts, plan and rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator

from circuitdiff.circuit import Head
from circuitdiff.engine import Model
from circuitdiff.methods.discovery import Plan, Stage, StageResult, discover, measure_with
from circuitdiff.methods.path_patching import PathEffects
from circuitdiff.models import load_model
from circuitdiff.models.loading import as_model
from circuitdiff.planted import Planted, build_planted
from circuitdiff.prompts import Pairs
from circuitdiff.stats.selection import Discoveries
from circuitdiff.tasks import TemplateTask, entity_tracking

Number = Annotated[float, BeforeValidator(lambda value: np.nan if value is None else value)]  # nan is null in JSON


@dataclass(frozen=True)
class Row:
    """One claim, checked. The expectation follows from the wiring, never from what came."""

    model: str
    claim: str
    value: Number
    expectation: str
    passed: bool
    detail: str = ""


def exactly(model: str, claim: str, value: float, expected: float, detail: str = "", why: str = "") -> Row:
    return Row(model, claim, value, f"= {expected:.2f}{why and f': {why}'}", value == expected, detail)


def at_least(model: str, claim: str, value: float, lowest: float, detail: str = "") -> Row:
    return Row(model, claim, value, f"≥ {lowest:.2f}", value >= lowest, detail)


def at_most(model: str, claim: str, value: float, largest: float, detail: str = "") -> Row:
    return Row(model, claim, value, f"≤ {largest:g}", value <= largest, detail)


def between(model: str, claim: str, value: float, low: float, high: float, detail: str = "") -> Row:
    return Row(model, claim, value, f"{low:.3f} to {high:.3f}", low <= value <= high, detail)


MINIMUM = 0.05  # logits; a smaller effect is no discovery
RULE = Discoveries(minimum=MINIMUM)


@dataclass(frozen=True)
class Sizes:
    """How many prompts, circuits and so on; the defaults are those of the page."""

    # And as many again for the replication. Chosen for negative heads that helped on some prompts, as the first ones
    # did: a mean of 0.33 logits and a standard deviation of 0.83, which 70 prompts find at p = 0.003 (5 heads of 80 by
    # Benjamini and Hochberg) and again at p = 0.05 with a power of 0.58, 140 with 0.95. The present ones hurt on every
    # prompt (0.35 and 0.11 on 70). A multiple of the 7 boxes asked for.
    discovery: int = 140
    evaluation: int = 200  # and as many again for the means
    random_circuits: int = 30
    random_prompts: int = 70
    truth: int = 210  # other prompts whose mean effect stands for the true one; its own error is allowed for
    decoys: int = 5  # of each planting and stage, whose intervals are held against the truth


@dataclass(frozen=True)
class Subject:
    """A planted model as the engine sees it, the truth about it, and its prompts by split."""

    model: Model
    truth: Planted
    prompts: Mapping[str, Pairs]

    @property
    def decoys(self) -> frozenset[Head]:
        """Heads that play no part."""
        heads = {Head(layer, i) for layer in range(self.model.n_layers) for i in range(self.model.n_heads)}
        return frozenset(heads.difference(*self.truth.parts.values()))


# The plan of Prakash et al. 2024 (arXiv:2402.14811), section 3.2, without their numbers of heads. The path that they
# mean ends at the query label.
PLAN = Plan(
    stages=(
        Stage("value_fetcher", "last", RULE),
        Stage("position_transmitter", "last", RULE, "q", "value_fetcher"),
        Stage("position_detector", "query_label", RULE, "v", "position_transmitter"),
        Stage("structure_reader", "previous_query_label", RULE, "v", "position_detector", "query_label"),
    )
)

# One stage more, for what the paper's circuit does not have: heads that write at the label what fetchers read there.
NAME_BINDERS = Stage("name_binder", "previous_query_label", RULE, "v", "value_fetcher", "last")


def task() -> TemplateTask:
    return entity_tracking()


def named_subject(name: str, sizes: Sizes) -> Subject:
    """A planted model as users load it."""
    model = load_model(name)
    return Subject(model, build_planted(name), _prompts(model, sizes, seed=0))


def another_planting(name: str, seed: int, sizes: Sizes) -> Subject:
    """The model planted anew, with prompts of its own."""
    truth = build_planted(name, seed=seed)
    module = truth.model.eval().requires_grad_(False)
    model = as_model(module, truth.tokenizer, f"{name}, planting {seed}", {"kind": "built"})
    return Subject(model, truth, _prompts(model, sizes, seed))


def _prompts(model: Model, sizes: Sizes, seed: int) -> Mapping[str, Pairs]:
    wanted = {
        "discovery": sizes.discovery,
        "replication": sizes.discovery,
        "evaluation": sizes.evaluation,
        "mask": sizes.evaluation,
    }
    return {split: task().sample(model.tokenizer, n, seed, split) for split, n in wanted.items()}


def run_plan(subject: Subject, plan: Plan = PLAN) -> list[StageResult]:
    """The stages of the plan up to the first whose receivers are no heads at all."""
    measured: dict[tuple[str, str], PathEffects] = {}
    run = measure_with(subject.model, subject.prompts, roles=plan.roles)

    def measure(stage: Stage, receivers: Sequence[Head] | None, split: str) -> PathEffects:
        if (stage.name, split) not in measured:
            measured[stage.name, split] = run(stage, receivers, split)
        return measured[stage.name, split]

    results: list[StageResult] = []
    for n_stages, stage in enumerate(plan.stages, start=1):
        found = {result.stage.name for result in results if result.as_receivers}
        if stage.receivers_from is not None and stage.receivers_from not in found:
            return results
        results = discover(Plan(plan.stages[:n_stages], plan.metric, plan.shared_heads), measure)
    return results
