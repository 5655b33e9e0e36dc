"""How good is a ranking of heads? Faithfulness of ever larger circuits, by several rankings, in each searched model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.config.settings import Count, Prompts
from circuitdiff.evaluation import Evaluation
from circuitdiff.evaluation.roles import everywhere
from circuitdiff.readable import Readable
from circuitdiff.stats.curves import curve_areas
from circuitdiff.study.common_units import (
    DISCOVERY,
    attribution_cost,
    attribution_scores,
    circuit_answers,
    model_answers,
)
from circuitdiff.study.estimates import Estimate, estimate
from circuitdiff.study.plan import mean_first
from circuitdiff.study.section import Part, PromptsOf, Section, Sizes, StudyContext
from circuitdiff.study.sections.discovery import Discovered, discovered

Ranking = Literal["path", "attribution", "integrated", "random"]
Ablated = Literal["slot", "resample"]
Place = tuple[str, Head]
_RANDOM = 5  # orders


@dataclass(frozen=True)
class CurvesOptions:
    """Circuits of the first heads of a ranking, by role and head: see `Curve` in the results.

    `shares` of all heads at the main plan's roles; all of them are added.
    """

    prompts: Prompts = 100  # of the evaluation prompts
    ablated: tuple[Ablated, ...] = ("slot",)  # all other heads: their mean by slot, or the counterfactual's activation
    shares: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)] = (
        *(0.002, 0.005, 0.01, 0.02),
        *(0.05, 0.1, 0.2, 0.5),
    )
    steps: Count = 5  # of integrated gradients


@dataclass(frozen=True)
class CurvePoint:
    """A circuit of the first heads. `faithfulness`: normalised, in the logit difference; 1 = the whole model's."""

    n_heads: int
    share: float
    faithfulness: Estimate


@dataclass(frozen=True)
class Curve:
    """path: effects of path patching, a head's most negative at a role; attribution: gradient; integrated: its mean
    along the way; random: the mean of five orders, each with its own areas. First come the most negative scores, as in
    discovery (others rank by size for `cmd`). The areas are over shares from 0 to 1: `cpr` under the curve, `cmd`
    between it and 1.
    """

    ranking: Ranking
    ablated: Ablated
    points: tuple[CurvePoint, ...]
    cpr: Estimate
    cmd: Estimate


@dataclass(frozen=True, repr=False)
class RankingCurves(Readable):
    """Of a model. `roles`: whose heads are ranked; with all of them kept, all else is still ablated."""

    roles: tuple[str, ...]
    n_prompts: int
    n_scenarios: int
    curves: tuple[Curve, ...]


async def run(study: StudyContext, options: CurvesOptions) -> dict[str, RankingCurves]:
    """By searched model; none where its plan found nothing to rank, or a prompt lacks a role."""
    found = await study.by_item(study.settings.searched, lambda model: _of_model(study, model, options))
    return {model: each for model, each in found.items() if each is not None}


async def _of_model(study: StudyContext, model: str, options: CurvesOptions) -> RankingCurves | None:
    found, facts = await discovered(study, model), await study.facts(model)
    asked = await study.pairs(model, DISCOVERY)
    roles = tuple(sorted({result.stage.at for result in found.stages}))
    if not roles or not all(everywhere(role, asked) for role in roles):
        return None
    places = [(role, Head(i, j)) for role in roles for i in range(facts.n_layers) for j in range(facts.n_heads)]
    tables, metric = {"path": path_scores(found)}, found.stages[0].found.metric
    for name, steps in (("attribution", 1), ("integrated", options.steps)):
        tables[name] = await attribution_scores(study, model, roles, steps, metric=metric)
    orders: dict[str, list[list[Place]]] = {name: [ranked(places, table)] for name, table in tables.items()}
    g = torch.Generator().manual_seed(study.settings.seed)
    orders["random"] = [[places[i] for i in torch.randperm(len(places), generator=g).tolist()] for _ in range(_RANDOM)]
    sizes, prompts = sizes_of(options, len(places)), PromptsOf("evaluation", first=options.prompts)
    whole = await model_answers(study, model)
    whole = whole.select(torch.arange(min(options.prompts, len(whole.hits))))
    every, curves = [order for each in orders.values() for order in each], list[Curve]()
    nested = [circuit(order[:size]) for order in every for size in sizes[:-1]]
    for by in options.ablated:
        asked_of = [Circuit({}), circuit(places), *nested]
        nothing, full, *answers = await circuit_answers(study, model, f"curves in {model}, {by}", asked_of, by, prompts)
        rows, n = iter(answers), len(sizes) - 1
        for name, each in orders.items():
            of_orders = [[*(next(rows) for _ in range(n)), full] for _ in each]
            curves.append(_curve(name, by, sizes, of_orders, nothing, whole))  # pyright: ignore[reportArgumentType]
    return RankingCurves(roles, len(whole.hits), len(whole.scenarios.unique()), tuple(curves))


def _curve(
    ranking: Ranking,
    by: Ablated,
    sizes: list[int],
    orders: list[list[Evaluation]],
    nothing: Evaluation,
    whole: Evaluation,
) -> Curve:
    scores = np.array([[_scores(each) for each in order] for order in orders])
    shares = np.array(sizes) / sizes[-1]
    areas = curve_areas(scores, _scores(nothing), _scores(whole), shares, whole.scenarios.numpy())
    points = (
        CurvePoint(n, float(share), estimate(areas.faithfulness, i))
        for i, (n, share) in enumerate(zip(sizes, shares, strict=True))
    )
    return Curve(ranking, by, tuple(points), estimate(areas.cpr), estimate(areas.cmd))


def _scores(evaluation: Evaluation) -> np.ndarray:
    return evaluation.logit_differences.double().numpy()


def sizes_of(options: CurvesOptions, n_places: int) -> list[int]:
    """How many heads each circuit has, rising to all."""
    return sorted({*(max(1, round(share * n_places)) for share in options.shares), n_places})


def path_scores(found: Discovered) -> dict[str, Tensor]:
    """By role, each head's most negative effect over the stages there; 0 where none measured it."""
    scores: dict[str, Tensor] = {}
    for result in found.stages:
        effects = result.found.effects.nan_to_num()
        scores[result.stage.at] = torch.minimum(scores.get(result.stage.at, effects), effects)
    return scores


def ranked(places: Sequence[Place], scores: dict[str, Tensor]) -> list[Place]:
    """Most negative first: those help most."""
    return sorted(places, key=lambda place: float(scores[place[0]][place[1].layer, place[1].index]))


def circuit(places: Sequence[Place]) -> Circuit:
    roles = dict.fromkeys(role for role, _ in places)
    return Circuit({role: Group(role, tuple(head for at, head in places if at == role)) for role in roles})


def cost(sizes: Sizes, options: CurvesOptions) -> Iterator[Part]:
    """Nested circuits keep heads at the plan's roles; the plain gradient and the integrated one are two units."""
    roles = {stage.at for stage in sizes.main.stages}
    n_layers, n = sizes.base.n_layers, sizes.n_searched * options.prompts * len(options.ablated)
    *some, every = sizes_of(options, len(roles) * n_layers * sizes.base.n_heads)
    rows = [n * (3 + _RANDOM)] * len(some) + [2 * n]
    depths = [1 - mean_first(n_layers, size) / n_layers for size in (*some, every)]
    flop = sum(sizes.runs(each, len(roles), layers=depth) for each, depth in zip(rows, depths, strict=True))
    yield Part("curves of rankings", sum(rows), flop)
    known = getattr(sizes.settings, "faithfulness", None)  # which takes the plain gradient, too
    asked = [(roles, sizes.n_searched, steps) for steps in ((options.steps,) if known else (1, options.steps))]
    yield attribution_cost("rankings by gradient", sizes, asked)


SECTION = Section("curves", CurvesOptions, dict[str, RankingCurves], run, cost)
