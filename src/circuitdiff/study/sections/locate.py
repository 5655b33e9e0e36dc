"""Where does it happen in a model? By layer and role of the prompt, before any head is chosen; off unless asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from circuitdiff.config.settings import Count, Prompts
from circuitdiff.evaluation import By, Evaluation
from circuitdiff.evaluation.roles import roles_everywhere
from circuitdiff.methods.knockout import has_random_keys, roles_before
from circuitdiff.methods.locate import DIRECTIONS, ResidualPatching, RoleCeiling, residual_patching, role_ceiling
from circuitdiff.prompts import Pairs, halves
from circuitdiff.readable import Readable
from circuitdiff.stats.intervals import mean_interval, normalised_ratio_interval
from circuitdiff.stats.metrics import MetricName
from circuitdiff.study.checks import FEW, executors_on_residuals
from circuitdiff.study.common_units import means_of
from circuitdiff.study.estimates import Estimate, Share, accuracy, estimate
from circuitdiff.study.preflight import check_known, check_scenarios
from circuitdiff.study.section import LoadedModel, Needed, Outlined, Part, PromptsOf, Section, Sizes, StudyContext
from circuitdiff.study.sections.knockout import Matrix, avoided_roles, knocked_out, matrix_of, with_random

_MOST_LAYERS = 12  # each is a run of all layers above it, for each role
_MARGIN = 0.05  # of the matrix, as in `knockout`
_FEWEST_SCENARIOS = 4  # of which half choose roles


@dataclass(frozen=True)
class LocateOptions:
    """Residual streams exchanged by layer and role, attention blocked between roles, all heads of a few roles alone.

    `roles`: if none are named, those that every prompt and counterfactual has, but for those of one segment, which have
    a dot. `layer_step`: None: the smallest for 12 layers at most.
    """

    prompts: Prompts = 100  # of the evaluation prompts
    roles: tuple[str, ...] = ()
    layer_step: Count | None = None
    metric: MetricName = "logit_difference"  # of the residual streams' effects


@dataclass(frozen=True)
class ResidualEffect:
    """Of the residual stream that enters a layer at a role, in the metric's unit; and as a share of the distance."""

    layer: int
    role: str
    effect: Estimate
    share: Estimate


@dataclass(frozen=True)
class ResidualMap:
    """Effects by layer and role; see `methods.locate`. `distance`: the clean run's metric less the counterfactual's.

    `restore`: above zero where the clean prompt's residual stream brings the answer into the counterfactual run.
    `remove`: below zero where the counterfactual's takes it from the clean run.
    """

    metric: str
    layers: tuple[int, ...]
    distance: Estimate
    restore: tuple[ResidualEffect, ...]
    remove: tuple[ResidualEffect, ...]


@dataclass(frozen=True)
class CeilingStep:
    """Accuracies with all heads kept at `role`, and at those of the steps before; None: at none.

    Every other head is at its mean, by slot or by kind. `normalised`: by slot, 0 = no role, 1 = the whole model.
    """

    role: str | None
    by_slot: Share
    by_kind: Share
    normalised: Estimate


@dataclass(frozen=True)
class Ceiling:
    """Roles in the order in which they were chosen, by slot means, on `n_choosing` prompts that are not among these."""

    n_choosing: int
    model: Share
    steps: tuple[CeilingStep, ...]


@dataclass(frozen=True, repr=False)
class Location(Readable):
    """Of a model."""

    n_prompts: int
    n_scenarios: int
    roles: tuple[str, ...]
    residuals: ResidualMap
    matrix: Matrix
    ceiling: Ceiling


async def run(study: StudyContext, options: LocateOptions) -> dict[str, Location]:
    """By model."""
    return await study.by_item(study.settings.models, lambda model: _location(study, model, options))


async def _location(study: StudyContext, model: str, options: LocateOptions) -> Location:
    """Raises: InputError if some prompt or counterfactual lacks a role that is named."""
    facts, prompts = await study.facts(model), PromptsOf("evaluation", first=options.prompts)
    pairs, few = await study.pairs(model, prompts), PromptsOf("evaluation", first=min(FEW, options.prompts))
    roles, layers = roles_of(options, pairs), layers_of(facts.n_layers, options)
    checked, title = layers[:: max(1, len(layers) // 2)], f"residual streams in {model}"
    detail = f"{title}: {len(checked)} layers x {len(roles)} roles x {FEW} prompts, relative log probability"
    places = {"roles": roles, "layers": checked}
    await study.check_executors(title, detail, executors_on_residuals, model, prompts=few, **places)
    places = {"roles": roles, "layers": layers, "metric": options.metric}
    patched = await study.value(title, exchanged, model, prompts=prompts, **places)
    avoided = avoided_roles(study.task, pairs)
    cells = cells_of(pairs, roles, avoided)
    blocked = {"cells": cells, "query_roles": avoided, "seed": study.settings.seed}
    blocked |= {"curves": (), "layers": (0,), "upward": True}
    title = f"attention between all roles in {model}"
    clean, in_cells, _ = await study.value(title, knocked_out, model, prompts=prompts, **blocked)
    given = {"roles": roles, "means": means_of(model)}
    alone = await study.value(f"ceiling of roles in {model}", ceiling_of_roles, model, prompts=prompts, **given)
    return Location(
        n_prompts=len(pairs),
        n_scenarios=len(pairs.scenarios.unique()),
        roles=roles,
        residuals=residual_map(patched),
        matrix=matrix_of(roles, clean, in_cells, _MARGIN),
        ceiling=ceiling(alone, len(pairs) - len(alone.model.hits)),
    )


def roles_of(options: LocateOptions, pairs: Pairs) -> tuple[str, ...]:
    """Those that are asked for; or all that can be, in the prompts' order."""
    return tuple(dict.fromkeys(options.roles or roles_everywhere(pairs)))


def layers_of(n_layers: int, options: LocateOptions) -> tuple[int, ...]:
    return tuple(range(0, n_layers, options.layer_step or math.ceil(n_layers / _MOST_LAYERS)))


def cells_of(pairs: Pairs, roles: Sequence[str], avoided: tuple[str, ...]) -> tuple[tuple[str, str | None], ...]:
    """Each role with those before it, and with a random key; not where no position is left for one."""
    return with_random([pair for pair in roles_before(pairs, roles) if has_random_keys(pairs, pair[0], avoided)])


def exchanged(
    subject: LoadedModel, *, prompts: PromptsOf, roles: tuple[str, ...], layers: tuple[int, ...], metric: str
) -> dict[str, ResidualPatching]:
    """By direction."""
    pairs, how = subject.pairs(prompts), {"layers": layers, "metric": metric, **subject.how}
    return {each: residual_patching(subject.model, pairs, roles, direction=each, **how) for each in DIRECTIONS}


def ceiling_of_roles(subject: LoadedModel, *, prompts: PromptsOf, roles: tuple[str, ...], means: Needed) -> RoleCeiling:
    kinds: tuple[By, ...] = ("slot", "kind")
    by_name = {by: subject.means(means, by) for by in kinds}
    return role_ceiling(subject.model, subject.pairs(prompts), by_name, roles, **subject.how)


def residual_map(patched: Mapping[str, ResidualPatching]) -> ResidualMap:
    any_of = patched[DIRECTIONS[0]]
    distance = mean_interval(any_of.distance.numpy(), any_of.scenarios.numpy())
    return ResidualMap(
        any_of.metric, any_of.layers, estimate(distance), **{name: _effects(each) for name, each in patched.items()}
    )


def _effects(patched: ResidualPatching) -> tuple[ResidualEffect, ...]:
    effects, shares = patched.intervals(), patched.shares()
    return tuple(
        ResidualEffect(patched.layers[i], patched.roles[j], estimate(effects, (i, j)), estimate(shares, (i, j)))
        for i, j in np.ndindex(len(patched.layers), len(patched.roles))
    )


def ceiling(found: RoleCeiling, n_choosing: int) -> Ceiling:
    by_slot, by_kind = found.alone["slot"], found.alone["kind"]

    def step(n: int) -> CeilingStep:
        normalised = _normalised(by_slot[n], by_slot[0], found.model)
        return CeilingStep(found.roles[n - 1] if n else None, accuracy(by_slot[n]), accuracy(by_kind[n]), normalised)

    return Ceiling(n_choosing, accuracy(found.model), tuple(map(step, range(len(by_slot)))))


def _normalised(alone: Evaluation, nothing: Evaluation, model: Evaluation) -> Estimate:
    circuit, ablated, whole = (each.hits.numpy() for each in (alone, nothing, model))
    return estimate(normalised_ratio_interval(circuit, ablated, whole, model.scenarios.numpy()))


def cost(sizes: Sizes, options: LocateOptions) -> Iterator[Part]:
    n_layers, n = sizes.base.n_layers, sizes.n_models * options.prompts
    pairs = sizes.prompts.pairs(PromptsOf("evaluation", first=options.prompts))
    roles, layers = roles_of(options, pairs), layers_of(n_layers, options)
    runs, depth = 2 * n * len(layers), sum(1 - layer / n_layers for layer in layers) / len(layers)
    windows = sum(sizes.runs(runs, sizes.width(role), layers=depth) for role in roles)
    yield Part("residual streams exchanged", 4 * n + runs * len(roles), sizes.passes(4 * n) + windows)
    cells = cells_of(pairs, roles, avoided_roles(sizes.task, pairs))
    blocked = sizes.passes(n) + sum(sizes.runs(n, sizes.width(query)) for query, _ in cells)
    yield Part("attention between all roles", n * (1 + len(cells)), blocked)
    yield _ceiling_cost(sizes, pairs, roles)


def _ceiling_cost(sizes: Sizes, pairs: Pairs, roles: Sequence[str]) -> Part:
    """Half of the prompts choose: at each step the circuit so far runs at all K roles, and each role that is left from
    its own place on, (K + 1) / 2 places on average. The others: under both means K + 1 nested circuits, the middle one
    at all roles, and one that differs from it at d of them at d / (d + 1) of the places from the end.
    """
    k, half = len(roles), sizes.n_models * len(pairs) / 2
    branches = k * (k + 1) / 2 - 1
    away = [abs(size - k // 2) for size in range(k + 1)]
    tokens = k * k + branches * (k + 1) / 2 + 2 * (k + sum(k * d / (d + 1) for d in away))
    parts = halves(pairs)
    lone = sizes.n_models * sum(sizes.constant_tokens(each, roles=roles) for each in (parts, parts[1:]))
    n_runs = k + branches + 2 * (k + 1)
    flop = sizes.runs(half * n_runs, tokens / n_runs) + sizes.passes(half)
    layers = sizes.base.n_layers * sizes.speed.flop_of_layer
    return Part("ceiling of roles", half * (n_runs + 1), flop + lone * layers)


def check(outlined: Outlined, options: LocateOptions) -> None:
    check_known("locate.roles", options.roles, outlined.task.roles)
    per_scenario = outlined.settings.prompts.queries_per_scenario
    check_scenarios("locate.prompts", options.prompts, per_scenario, _FEWEST_SCENARIOS)


SECTION = Section("locate", LocateOptions, dict[str, Location], run, cost, check, by_default=False, of_circuits=False)
