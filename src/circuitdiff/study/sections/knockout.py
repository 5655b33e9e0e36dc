"""Where does attention carry information in a model? Curves over layers and a role x role matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from circuitdiff.config.settings import Count, Prompts
from circuitdiff.evaluation import Evaluation
from circuitdiff.methods.knockout import attention_knockout, blocking, has_random_keys, roles_before
from circuitdiff.prompts import Pairs
from circuitdiff.readable import Readable
from circuitdiff.stats.proportions import difference_interval
from circuitdiff.study.checks import FEW, executors_agree
from circuitdiff.study.estimates import Estimate, Share, accuracy, estimate
from circuitdiff.study.judge import leaves_room
from circuitdiff.study.preflight import check_known
from circuitdiff.study.records import Deviation
from circuitdiff.study.section import LoadedModel, Outlined, Part, PromptsOf, Section, Sizes, StudyContext
from circuitdiff.study.sections.discovery import discovered
from circuitdiff.tasks import Task

_MOST_POINTS = 24  # of a curve; each is a run of all layers above it
_Pair = tuple[str, str | None]  # a query's role and a key's, or None: a random position before the query
Flow = Literal["yes", "no", "not established"]


@dataclass(frozen=True)
class KnockoutOptions:
    """Attention knockout; without roles, at the last token, the circuit's roles and where the answer itself stands."""

    prompts: Prompts = 200  # of the evaluation prompts
    roles: tuple[str, ...] = ()  # of the matrix
    curves: tuple[tuple[str, str], ...] | None = None  # (query, key); default: the matrix's pairs
    layer_step: Count | None = None  # None: the smallest for 24 points a curve at most, so 1 of up to 24 layers
    single_layers: bool = False  # curves of single layers instead of from a layer upward
    query_roles: tuple[str, ...] | None = None  # no random key is there; None: those of the task's question
    margin: Annotated[float, Field(gt=0)] = 0.05  # a loss of accuracy whose interval lies below it is none


@dataclass(frozen=True)
class Cell:
    """Does information flow from `key` to `query`?

    All but the names None: the key comes first in no or some prompts, or no position is left to hold it against.
    `loss` and `loss_beyond_random` are of accuracy, against the clean model and against a random position blocked.
    """

    query: str
    key: str
    answer: Flow | None
    accuracy: Share | None = None
    loss: Estimate | None = None
    loss_beyond_random: Estimate | None = None


@dataclass(frozen=True)
class Matrix:
    """Accuracies with attention blocked in all layers. `control`: by query, with a random position blocked."""

    roles: tuple[str, ...]
    clean: Share
    cells: tuple[Cell, ...]
    control: dict[str, Share]
    margin: float


@dataclass(frozen=True)
class Point(Share):
    layer: int


@dataclass(frozen=True)
class Curve:
    """Accuracies by the layer from which upward, or the single layer in which, attention is blocked."""

    query: str
    key: str | None  # None: a random position
    single_layers: bool
    clean: Share
    points: tuple[Point, ...]


@dataclass(frozen=True, repr=False)
class Knockouts(Readable):
    n_prompts: int
    n_scenarios: int
    matrix: Matrix
    curves: tuple[Curve, ...]


async def run(study: StudyContext, options: KnockoutOptions) -> dict[str, Knockouts]:
    """By model, between the roles of the settings, or those of the base's circuit and others; nothing without any."""
    of_circuit = () if options.roles else (await discovered(study, study.base)).circuit.roles
    if not (options.roles or of_circuit):
        return {}
    matrix = _roles(study.task, of_circuit, options)
    return await study.by_item(study.settings.models, lambda model: _knockouts(study, model, matrix, options))


def _roles(task: Task, of_circuit: Iterable[str], options: KnockoutOptions) -> list[str]:
    return list(options.roles or dict.fromkeys(["last", *of_circuit, *task.answer_roles]))


def layers_of(n_layers: int, options: KnockoutOptions) -> range:
    """From which a curve is blocked upward, or where alone."""
    return range(0, n_layers, options.layer_step or math.ceil(n_layers / _MOST_POINTS))


async def _knockouts(study: StudyContext, model: str, roles: list[str], options: KnockoutOptions) -> Knockouts:
    """Raises: InputError if a role does not exist."""
    facts, prompts = await study.facts(model), PromptsOf("evaluation", first=options.prompts)
    pairs = await study.pairs(model, prompts)
    avoided = avoided_roles(study.task, pairs, options.query_roles)
    before = roles_before(pairs, roles)
    if not options.roles:  # nobody chose a query that comes too early
        before = [pair for pair in before if has_random_keys(pairs, pair[0], avoided)]
    chosen = before if options.curves is None else options.curves
    random = {"cells": with_random(before), "query_roles": avoided, "seed": study.settings.seed}
    title, few = f"attention between roles in {model}", PromptsOf("evaluation", first=min(FEW, options.prompts))
    n_runs, n_few = len(random["cells"]) + 1, len(await study.pairs(model, few))
    detail = f"{title}: {n_runs} runs x {n_few} prompts, relative log probability"
    await study.check_executors(title, detail, executors_on_knockouts, model, prompts=few, **random)
    layers, curves = tuple(layers_of(facts.n_layers, options)), with_random(chosen)
    blocked = {"curves": curves, "layers": layers, "upward": not options.single_layers}
    clean, in_cells, by_layer = await study.value(title, knocked_out, model, prompts=prompts, **random, **blocked)
    return Knockouts(
        n_prompts=len(clean.scenarios),
        n_scenarios=len(clean.scenarios.unique()),
        matrix=matrix_of(roles, clean, in_cells, options.margin),
        curves=tuple(
            Curve(query, key, options.single_layers, accuracy(clean), points_of(layers, each))
            for (query, key), each in by_layer.items()
        ),
    )


def avoided_roles(task: Task, pairs: Pairs, asked: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Where no random key is: one that some prompts lack cannot be avoided there."""
    asked = task.question_roles if asked is None else asked
    return tuple(role for role in asked if bool((pairs.positions[role] >= 0).all()))


def with_random(pairs: Sequence[tuple[str, str]]) -> tuple[_Pair, ...]:
    """And each query with a random key."""
    return (*pairs, *((query, None) for query in dict.fromkeys(query for query, _ in pairs)))


def knocked_out(
    subject: LoadedModel,
    *,
    prompts: PromptsOf,
    cells: tuple[_Pair, ...],
    curves: tuple[_Pair, ...],
    layers: tuple[int, ...],
    upward: bool,
    query_roles: tuple[str, ...],
    seed: int,
) -> tuple[Evaluation, dict[_Pair, Evaluation], dict[_Pair, list[Evaluation]]]:
    """The clean model's answers; each cell's, with attention blocked in all layers; and each curve's, by layer."""
    pairs, how = subject.pairs(prompts), {"query_roles": query_roles, "seed": seed}
    everywhere = [blocking(pairs, *pair, **how) for pair in cells]
    by_layer = [blocking(pairs, *pair, layers, upward, **how) for pair in curves]
    clean, blocked = attention_knockout(subject.model, pairs, [*everywhere, *by_layer], **subject.how)
    in_cells = {pair: each for pair, [each] in zip(cells, blocked, strict=False)}
    return clean, in_cells, {pair: list(each) for pair, each in zip(curves, blocked[len(cells) :], strict=True)}


def executors_on_knockouts(
    subject: LoadedModel, *, prompts: PromptsOf, cells: tuple[_Pair, ...], query_roles: tuple[str, ...], seed: int
) -> Deviation:
    """Check 3 with attention blocked in all layers."""
    pairs = subject.pairs(prompts)

    def answers(executor: str) -> list[Evaluation]:
        blockings = [blocking(pairs, *pair, query_roles=query_roles, seed=seed) for pair in cells]
        memory_gb = subject.memory_gb
        clean, blocked = attention_knockout(subject.model, pairs, blockings, executor=executor, memory_gb=memory_gb)
        return [clean, *(each for curve in blocked for each in curve)]

    return executors_agree(subject.model, answers)


def matrix_of(roles: Sequence[str], clean: Evaluation, blocked: Mapping[_Pair, Evaluation], margin: float) -> Matrix:
    control = {query: each for (query, key), each in blocked.items() if key is None}
    return Matrix(
        roles=tuple(roles),
        clean=accuracy(clean),
        cells=tuple(
            cell_of(query, key, clean, blocked.get((query, key)), control.get(query), margin)
            for query in roles
            for key in roles
        ),
        control={query: accuracy(each) for query, each in control.items()},
        margin=margin,
    )


def cell_of(
    query: str, key: str, clean: Evaluation, blocked: Evaluation | None, control: Evaluation | None, margin: float
) -> Cell:
    """Does information flow from `key` to `query`?

    Yes: the 95 % intervals of what blocking it costs, and of that beyond blocking a random position, lie above zero.
    No: that of what it costs lies below the margin, and there is more than twice the margin to lose. None: it was not
    run.
    """
    if blocked is None or control is None:
        return Cell(query, key, None)
    scenarios = clean.scenarios.numpy()
    loss = difference_interval(clean.hits.numpy(), blocked.hits.numpy(), scenarios)
    beyond = difference_interval(control.hits.numpy(), blocked.hits.numpy(), scenarios)
    flows, room = loss.low > 0 and beyond.low > 0, leaves_room(accuracy(clean), margin)
    answer = "yes" if flows else "no" if loss.high < margin and room else "not established"
    return Cell(query, key, answer, accuracy(blocked), estimate(loss), estimate(beyond))


def points_of(layers: Sequence[int], blocked: Sequence[Evaluation]) -> tuple[Point, ...]:
    return tuple(Point(**vars(accuracy(each)), layer=layer) for layer, each in zip(layers, blocked, strict=True))


def cost(sizes: Sizes, options: KnockoutOptions) -> Iterator[Part]:
    roles = _roles(sizes.task, (stage.at for stage in sizes.main.stages), options)
    widths = sorted((sizes.width(role) for role in roles), reverse=True)
    points = len(layers_of(sizes.base.n_layers, options)) / 2  # curves run, on average, half of the layers
    cells = 1.0 if options.single_layers or options.curves is not None else 0.0  # else the curves hold the matrix's
    # a query sees the roles before it, and a random key
    rows = sum((i + 1) * width * (cells + points) for i, width in enumerate(widths) if i)
    n = sizes.n_models * options.prompts
    yield Part("knockouts", n * (1 + 2 * points) * len(roles), sizes.passes(n) + sizes.runs(n * rows, 1))


def check(outlined: Outlined, options: KnockoutOptions) -> None:
    curves = [role for curve in options.curves or () for role in curve]
    for where, roles in (("roles", options.roles), ("curves", curves), ("query_roles", options.query_roles)):
        check_known(f"knockout.{where}", roles, outlined.task.roles)


SECTION = Section("knockout", KnockoutOptions, dict[str, Knockouts], run, cost, check)
