"""How much of the behaviour does a circuit do alone? Every circuit in every model, and what it is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from circuitdiff.circuit import Circuit, total_overlap
from circuitdiff.config.settings import Draws, Prompts
from circuitdiff.evaluation import Evaluation, all_heads, moved, random_circuit
from circuitdiff.readable import Readable
from circuitdiff.stats.intervals import mean_interval, normalised_ratio_interval, ratio_interval
from circuitdiff.study.checks import FEW, executors_on_circuits
from circuitdiff.study.common_units import EVALUATION, circuit_answers, means_of, model_answers
from circuitdiff.study.estimates import (
    Estimate,
    Number,
    Ratio,
    Share,
    estimate,
    mean_logit_difference,
    percentile_among,
    ratio,
    share,
)
from circuitdiff.study.plan import DISTINCT, Part, Sizes
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.section import Section, StudyContext
from circuitdiff.study.sections.accuracy import Accuracy, accuracy_of
from circuitdiff.study.sections.discovery import circuits, discovered
from circuitdiff.study.units import Unit
from circuitdiff.tasks import Task

_ROWS, _ROWS_AT_HOME = 6, 9  # the circuit and its references, and its controls, under two kinds of means


@dataclass(frozen=True)
class FaithfulnessOptions:
    """How many random circuits each circuit is held against, where it was found and in the base."""

    random_circuits: Draws = 100
    random_prompts: Prompts = 100  # random circuits see this many of the evaluation prompts


@dataclass(frozen=True)
class Row:
    """One way of ablating: which heads are kept, and by which means all others are replaced."""

    kept: str  # model, circuit, every_segment, wrong_segment (if they differ), all_heads (at its roles), nothing
    mean_by: str | None  # slot or kind; None: nothing is ablated
    accuracy: Share
    faithfulness: Ratio
    logit_difference: Estimate


@dataclass(frozen=True)
class RandomCircuits:
    """Accuracies of random circuits of the same shape; `low` and `high` bound their mean, over scenarios."""

    mean: Number
    low: Number
    high: Number
    percentile: float  # of the circuit among them
    circuit: float  # its accuracy on the same prompts
    n_prompts: int
    accuracies: tuple[float, ...]


@dataclass(frozen=True, repr=False)
class CircuitInModel(Readable, Ratio):
    """Faithfulness of a circuit in one model, by slot means: accuracy alone over the model's."""

    normalised: Estimate  # (circuit - ablated) / (model - ablated)
    agreement: Share  # of prompts on which circuit and model give the same answer
    circuit_accuracy: Share
    model_accuracy: Share
    ablated_accuracy: Share
    circuit_answers: Accuracy
    rows: tuple[Row, ...]
    random: RandomCircuits | None


async def run(study: StudyContext, options: FaithfulnessOptions) -> dict[str, dict[str, CircuitInModel]]:
    """By circuit and model. Where it was found also its heads at other segments; there and in the base random ones."""
    known = await circuits(study)
    cells = [(model, name) for model in study.settings.models for name in known]
    results = await study.by_item(cells, lambda cell: _evaluated(study, *cell, known[cell[1]], options))
    return {name: {model: results[model, name] for model in study.settings.models} for name in known}


async def _evaluated(
    study: StudyContext, model: str, name: str, circuit: Circuit, options: FaithfulnessOptions
) -> CircuitInModel:
    facts, home, nothing = await study.facts(model), (await discovered(study, name)).model, Circuit({})
    arguments = {"prompts": PromptsOf("evaluation", first=FEW), "circuits": (circuit, nothing), "by": "slot"}
    check = Unit(
        f"check of circuit {name} in {model}", executors_on_circuits, (model,), arguments, {"means": means_of(model)}
    )
    detail = f"circuit {name} and nothing alone x {FEW} prompts, relative log probability"
    await study.check("window executor vs full executor", check, detail)
    kept = {"circuit": circuit}
    if model == home:
        kept |= _at_other_segments(circuit, study.task)
    kept |= {"all_heads": all_heads(facts.n_layers, facts.n_heads, circuit.roles), "nothing": nothing}
    answers: dict[tuple[str, str | None], Evaluation] = {("model", None): await model_answers(study, model)}
    for by in ("slot", "kind"):
        some = {key: each for key, each in kept.items() if (key, by) != ("wrong_segment", "kind")}
        found = await circuit_answers(study, model, f"circuit {name} in {model}, {by} means", list(some.values()), by)
        answers |= {(key, by): each for key, each in zip(some, found, strict=True)}
    drawn = None
    if options.random_circuits and model in (home, study.base):
        drawn = await _random(study, model, name, circuit, options)
    return _result(answers, accuracy_of(answers["circuit", "slot"], await study.pairs(model, EVALUATION)), drawn)


def _at_other_segments(circuit: Circuit, task: Task) -> dict[str, Circuit]:
    """The controls; without those that are the circuit itself, as where no head sits in a segment."""
    controls = {
        "every_segment": moved(circuit, task.every_segment),
        "wrong_segment": moved(circuit, lambda role: [task.wrong_segment(role)]),
    }
    return {name: each for name, each in controls.items() if total_overlap(each, circuit).jaccard < 1}


async def _random(
    study: StudyContext, model: str, name: str, circuit: Circuit, options: FaithfulnessOptions
) -> RandomCircuits:
    """Random circuits of the same shape, and the circuit itself on the same prompts."""
    facts, g = await study.facts(model), torch.Generator().manual_seed(study.settings.seed)
    drawn = [random_circuit(circuit, facts.n_heads, g) for _ in range(options.random_circuits)]
    title, few = f"circuit {name} in {model}, random circuits", PromptsOf("evaluation", first=options.random_prompts)
    *random, own = await circuit_answers(study, model, title, [*drawn, circuit], "slot", few)
    return random_circuits(random, own)


def random_circuits(drawn: Sequence[Evaluation], own: Evaluation) -> RandomCircuits:
    hits = np.stack([each.hits.numpy().astype(float) for each in drawn])
    accuracies, circuit = hits.mean(1), float(own.hits.double().mean())
    mean = estimate(mean_interval(hits.mean(0), own.scenarios.numpy()))  # of these circuits; over scenarios
    percentile, values = percentile_among(circuit, accuracies), tuple(accuracies.tolist())
    return RandomCircuits(mean.value, mean.low, mean.high, percentile, circuit, len(own.hits), values)


def _result(
    answers: dict[tuple[str, str | None], Evaluation], alone: Accuracy, random: RandomCircuits | None
) -> CircuitInModel:
    model, circuit, ablated = answers["model", None], answers["circuit", "slot"], answers["nothing", "slot"]
    hits, scenarios = {key: each.hits.numpy() for key, each in answers.items()}, model.scenarios.numpy()
    normalised = normalised_ratio_interval(circuit.hits.numpy(), ablated.hits.numpy(), model.hits.numpy(), scenarios)
    ratios = {key: ratio(ratio_interval(each, model.hits.numpy(), scenarios)) for key, each in hits.items()}
    return CircuitInModel(
        **vars(ratios["circuit", "slot"]),
        normalised=estimate(normalised),
        agreement=share(circuit.predictions == model.predictions, model.scenarios),
        circuit_accuracy=share(circuit.hits, model.scenarios),
        model_accuracy=share(model.hits, model.scenarios),
        ablated_accuracy=share(ablated.hits, model.scenarios),
        circuit_answers=alone,
        rows=tuple(
            Row(kept, by, share(each.hits, each.scenarios), ratios[kept, by], mean_logit_difference(each))
            for (kept, by), each in answers.items()
        ),
        random=random,
    )


def cost(sizes: Sizes, options: FaithfulnessOptions) -> Iterator[Part]:
    """Every circuit in every model: a token per role, and per segment in one row."""
    n = sizes.settings.prompts.evaluation
    n_circuits = len(sizes.plans) + sizes.n_searched - 1
    n_random = options.random_circuits * min(options.random_prompts, n) * (n_circuits + sizes.n_searched - 1)
    rows = n_circuits * n * (_ROWS_AT_HOME + _ROWS * (sizes.n_models - 1))
    shared = sizes.n_models * 2 * n * sizes.length * DISTINCT
    flop = sizes.runs(rows + n_random, sizes.n_roles) + sizes.runs(shared, 1)
    yield Part("every circuit in every model", rows + n_random, flop)


SECTION = Section("faithfulness", FaithfulnessOptions, dict[str, dict[str, CircuitInModel]], run, cost)
