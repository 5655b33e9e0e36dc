"""How much of the behaviour does a circuit do alone? Every circuit in every model, and what it is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from circuitdiff.circuit import Circuit, total_overlap
from circuitdiff.config.settings import Draws
from circuitdiff.evaluation import Evaluation, all_heads, moved
from circuitdiff.readable import Readable
from circuitdiff.stats.intervals import normalised_ratio_interval
from circuitdiff.study.checks import FEW, executors_on_circuits
from circuitdiff.study.common_units import EVALUATION, attribution_cost, circuit_answers, means_of, model_answers
from circuitdiff.study.estimates import (
    Estimate,
    Ratio,
    Share,
    accuracy,
    estimate,
    faithfulness,
    mean_logit_difference,
    share,
)
from circuitdiff.study.plan import DISTINCT
from circuitdiff.study.section import Part, PromptsOf, Section, Sizes, StudyContext
from circuitdiff.study.sections.accuracy import Accuracy, accuracy_of
from circuitdiff.study.sections.discovery import circuits, discovered
from circuitdiff.study.sections.faithfulness_controls import N_KINDS, ControlCircuit, RandomCircuits, controls
from circuitdiff.tasks import Task

TOO_FAITHFUL = 1.1
_RANK_P = 0.05  # of a circuit among random ones, above which that is a caution
_ROWS, _ROWS_AT_HOME = 6, 9  # the circuit and its references, and its controls, under two kinds of means


@dataclass(frozen=True)
class FaithfulnessOptions:
    """How many random circuits each circuit is held against, where it was found and in the base; fewer have no rank."""

    random_circuits: Draws = 100


@dataclass(frozen=True)
class Row:
    """One way of ablating: which heads are kept, and by which means all others are replaced."""

    kept: str  # model, circuit, every_segment, wrong_segment (if they differ), all_heads (at its roles), nothing
    mean_by: str | None  # slot or kind; None: nothing is ablated
    accuracy: Share
    faithfulness: Ratio
    logit_difference: Estimate


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
    controls: tuple[ControlCircuit, ...]  # where the circuit was found, and in the base


async def run(study: StudyContext, options: FaithfulnessOptions) -> dict[str, dict[str, CircuitInModel]]:
    """By circuit and model. Where it was found also its heads at other segments; there and in the base its controls."""
    known = await circuits(study)
    cells = [(model, name) for model in study.settings.models for name in known]
    results = await study.by_item(cells, lambda cell: _evaluated(study, *cell, known[cell[1]], options))
    for text in cautions(results):
        study.warn(text)
    return {name: {model: results[model, name] for model in study.settings.models} for name in known}


def cautions(cells: Mapping[tuple[str, str], CircuitInModel]) -> Iterator[str]:
    """By model and circuit: what a reader must know of those too faithful, or surely no better than random ones."""
    above: dict[str, list[str]] = {}
    for (model, circuit), cell in cells.items():
        if cell.value is not None and cell.value > TOO_FAITHFUL:
            above.setdefault(model, []).append(f"{circuit} {cell.value:.3f}")
    for model, circuits_in_it in above.items():
        yield (
            f"Faithfulness in {model} is above {TOO_FAITHFUL} ({', '.join(circuits_in_it)}): there a circuit does "
            f"something that the whole model does not, which is unfaithful, too."
        )
    for (model, circuit), cell in cells.items():
        if cell.random is None:
            continue
        own, best, p = cell.circuit_accuracy.value or 0.0, max(cell.random.accuracies), cell.random.rank_p
        if own <= best if p is None else p > _RANK_P:
            rank = "" if p is None else f", p = {p:.2g}"
            yield (
                f"{circuit} in {model} is not surely better than random circuits of its size: it scores {own:.3f}, "
                f"the best of {len(cell.random.accuracies)} random ones {best:.3f}{rank}."
            )


async def _evaluated(
    study: StudyContext, model: str, name: str, circuit: Circuit, options: FaithfulnessOptions
) -> CircuitInModel:
    facts, found, nothing = await study.facts(model), await discovered(study, name), Circuit({})
    title, few = f"circuit {name} in {model}", PromptsOf("evaluation", first=FEW)
    detail = f"circuit {name} and nothing alone x {FEW} prompts, relative log probability"
    given = {"circuits": (circuit, nothing), "means": means_of(model), "by": "slot"}
    await study.check_executors(title, detail, executors_on_circuits, model, prompts=few, **given)
    kept = {"circuit": circuit}
    if model == found.model:
        kept |= _at_other_segments(circuit, study.task)
    kept |= {"all_heads": all_heads(facts.n_layers, facts.n_heads, circuit.roles), "nothing": nothing}
    answers: dict[tuple[str, str | None], Evaluation] = {("model", None): await model_answers(study, model)}
    for by in ("slot", "kind"):
        some = {key: each for key, each in kept.items() if (key, by) != ("wrong_segment", "kind")}
        came = await circuit_answers(study, model, f"{title}, {by} means", list(some.values()), by)
        answers |= {(key, by): each for key, each in zip(some, came, strict=True)}
    held_against = None, ()
    if model in (found.model, study.base):
        beside = answers["model", None], answers["circuit", "slot"]
        held_against = await controls(study, model, name, found, options.random_circuits, beside)
    alone = accuracy_of(answers["circuit", "slot"], await study.pairs(model, EVALUATION))
    return _result(answers, alone, *held_against)


def _at_other_segments(circuit: Circuit, task: Task) -> dict[str, Circuit]:
    """The controls; without those that are the circuit itself, as where no head sits in a segment."""
    others = {
        "every_segment": moved(circuit, task.every_segment),
        "wrong_segment": moved(circuit, lambda role: [task.wrong_segment(role)]),
    }
    return {name: each for name, each in others.items() if total_overlap(each, circuit).jaccard < 1}


def _result(
    answers: dict[tuple[str, str | None], Evaluation],
    alone: Accuracy,
    random: RandomCircuits | None,
    others: tuple[ControlCircuit, ...],
) -> CircuitInModel:
    model, circuit, ablated = answers["model", None], answers["circuit", "slot"], answers["nothing", "slot"]
    of_circuit, of_nothing, of_model = (each.hits.numpy() for each in (circuit, ablated, model))
    normalised = normalised_ratio_interval(of_circuit, of_nothing, of_model, model.scenarios.numpy())
    return CircuitInModel(
        **vars(faithfulness(circuit, model)),
        normalised=estimate(normalised),
        agreement=share(circuit.predictions == model.predictions, model.scenarios),
        circuit_accuracy=accuracy(circuit),
        model_accuracy=accuracy(model),
        ablated_accuracy=accuracy(ablated),
        circuit_answers=alone,
        rows=tuple(
            Row(kept, by, accuracy(each), faithfulness(each, model), mean_logit_difference(each))
            for (kept, by), each in answers.items()
        ),
        random=random,
        controls=others,
    )


def cost(sizes: Sizes, options: FaithfulnessOptions) -> Iterator[Part]:
    """Every circuit in every model: a token per role, and per segment in one row."""
    n = sizes.settings.prompts.evaluation
    n_circuits = len(sizes.plans) + sizes.n_searched - 1
    n_controls = (options.random_circuits + N_KINDS) * n * (n_circuits + sizes.n_searched - 1)
    rows = n_circuits * n * (_ROWS_AT_HOME + _ROWS * (sizes.n_models - 1))
    shared = sizes.n_models * 2 * n * sizes.length * DISTINCT
    flop = sizes.runs(rows + n_controls, sizes.n_roles) + sizes.runs(shared, 1)
    yield Part("every circuit in every model", rows + n_controls, flop)
    at = [frozenset(stage.at for stage in plan.stages) for plan in sizes.plans.values()]
    main, *others = dict.fromkeys(at)
    whole = [(main, sizes.n_searched, 1), *((roles, 1, 1) for roles in others)]
    held = [*((roles, 1, 1) for roles in at), (main, 2 * (sizes.n_searched - 1), 1)]  # a variant's also in the base
    yield attribution_cost("attribution", sizes, [*whole, *held])


SECTION = Section("faithfulness", FaithfulnessOptions, dict[str, dict[str, CircuitInModel]], run, cost)
