"""What a circuit is held against: random circuits of its shape, and circuits of heads that may well do as much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from circuitdiff.circuit import Circuit, Group
from circuitdiff.evaluation import Evaluation
from circuitdiff.evaluation.roles import everywhere
from circuitdiff.evaluation.shapes import has_others, random_circuit, roles_rotated
from circuitdiff.stats.proportions import accuracy_interval
from circuitdiff.stats.selection import lowest
from circuitdiff.study.common_units import DISCOVERY, attribution_scores, circuit_answers
from circuitdiff.study.estimates import (
    Estimate,
    GroupHeads,
    Number,
    Ratio,
    Share,
    accuracy,
    estimate,
    faithfulness,
    groups_of,
    more_accurate_by,
    rank_p,
    with_heads,
)
from circuitdiff.study.section import StudyContext
from circuitdiff.study.sections.discovery import Discovered

Kind = Literal["next_best", "other_roles", "by_attribution", "rival"]
N_KINDS = 4


@dataclass(frozen=True)
class RandomCircuits:
    """Accuracies of random circuits of the same shape, with none of the circuit's heads; all on the circuit's prompts.

    `low` and `high` bound their mean, over scenarios. `rank_p`: of the circuit among them; None of fewer than 100.
    """

    mean: Number
    low: Number
    high: Number
    rank_p: Number
    n_prompts: int
    accuracies: tuple[float, ...]


@dataclass(frozen=True)
class ControlCircuit:
    """Another circuit of this size, on the same prompts. All is None where there is no such circuit.

    next_best: of each stage of the plan that found k heads those that help next, ranks k + 1 to 2 k, at the same role.
    other_roles: the circuit's heads, those of each role at the next one. by_attribution: at each role as many heads as
    the circuit has there, those of the lowest attribution (activation times gradient) in the model that is asked.
    rival: the same, of other heads only, in the model whose heads of the circuit are held at their slot means: is there
    a second circuit that does it as well?
    """

    kind: Kind
    groups: dict[str, GroupHeads]
    accuracy: Share | None
    faithfulness: Ratio | None
    difference: Estimate | None  # the circuit's accuracy less this one's
    note: str | None  # why there is none, or what it lacks


class Built(NamedTuple):
    circuit: Circuit
    note: str | None = None


async def controls(
    study: StudyContext, model: str, name: str, found: Discovered, n_random: int, answers: tuple[Evaluation, Evaluation]
) -> tuple[RandomCircuits | None, tuple[ControlCircuit, ...]]:
    """`answers`: of the whole model and of the circuit alone."""
    circuit, facts = found.circuit, await study.facts(model)
    g, drawn = torch.Generator().manual_seed(study.settings.seed), list[Circuit]()
    if all(has_others(circuit.heads_at(role), facts.n_layers, facts.n_heads) for role in circuit.roles):
        drawn = [random_circuit(circuit, facts.n_layers, facts.n_heads, g) for _ in range(n_random)]
    one_role = Built(Circuit({}), "all of its heads are at one role")
    built: dict[Kind, Built] = {
        "next_best": next_best(found),
        "other_roles": Built(roles_rotated(circuit)) if len(circuit.roles) > 1 else one_role,
        "by_attribution": await _by_attribution(study, model, circuit),
        "rival": await _by_attribution(study, model, circuit, held=True),
    }
    some = [each.circuit for each in built.values() if each.circuit.roles]
    every = await circuit_answers(study, model, f"circuit {name} in {model}, controls", [*drawn, *some], "slot")
    of_built = iter(every[len(drawn) :])
    rivals = (
        control_circuit(kind, each, next(of_built) if each.circuit.roles else None, answers)
        for kind, each in built.items()
    )
    random = random_circuits(every[: len(drawn)], answers[1]) if drawn else None
    return random, tuple(rivals)


def random_circuits(drawn: Sequence[Evaluation], own: Evaluation) -> RandomCircuits:
    hits = np.stack([each.hits.numpy().astype(float) for each in drawn])
    mean = estimate(accuracy_interval(hits.mean(0), own.scenarios.numpy()))  # of these circuits; over scenarios
    p = rank_p(float(own.hits.sum()), hits.sum(1))
    return RandomCircuits(mean.value, mean.low, mean.high, p, len(own.hits), tuple(hits.mean(1).tolist()))


def control_circuit(
    kind: Kind, built: Built, answers: Evaluation | None, beside: tuple[Evaluation, Evaluation]
) -> ControlCircuit:
    if answers is None:
        return ControlCircuit(kind, {}, None, None, None, built.note)
    model, own = beside
    numbers = accuracy(answers), faithfulness(answers, model), more_accurate_by(own, answers)
    return ControlCircuit(kind, groups_of(built.circuit), *numbers, note=built.note)


def next_best(found: Discovered) -> Built:
    """None of the circuit's heads at the stage's role, and none that does not help beyond the noise floor."""
    if not found.stages:
        return Built(Circuit({}), "the circuit was given, not found by a plan")
    groups, missing = {}, 0
    for result in found.stages:
        name, at = result.stage.name, result.stage.at
        k = len(found.circuit.groups[name].heads) if name in found.circuit.groups else 0
        effects = result.found.effects.clone()
        for head in found.circuit.heads_at(at):
            effects[head.layer, head.index] = torch.nan
        effects[effects.abs() <= result.found.noise_floor] = torch.nan
        groups[name] = Group(at, tuple(lowest(effects, k, helping_only=True)))
        missing += k - len(groups[name].heads)
    if not any(group.heads for group in groups.values()):
        return Built(Circuit({}), "no further head helps")
    return Built(Circuit(groups), f"{missing} heads fewer, for no others help" if missing else None)


async def _by_attribution(study: StudyContext, model: str, circuit: Circuit, held: bool = False) -> Built:
    """With `held` in the model without the circuit, whose heads score 0: only heads that help are chosen."""
    pairs = await study.pairs(model, DISCOVERY)
    if lacking := [role for role in circuit.roles if not everywhere(role, pairs)]:
        return Built(Circuit({}), f"some prompt or counterfactual has no {lacking[0]}")
    roles = tuple(sorted(circuit.roles))
    scores = await attribution_scores(study, model, roles, held=with_heads(circuit) if held else None)
    wanted = {role: len(circuit.heads_at(role)) for role in circuit.roles}
    groups = {role: Group(role, tuple(lowest(scores[role], k, helping_only=held))) for role, k in wanted.items()}
    missing = sum(wanted.values()) - sum(len(group.heads) for group in groups.values())
    return Built(Circuit(groups), f"{missing} heads fewer, for no others help" if missing else None)
