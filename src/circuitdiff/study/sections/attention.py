"""Where does each head of a circuit attend, in base and variants? Shares by role, also weighted by values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from circuitdiff.circuit import Circuit
from circuitdiff.config.settings import Prompts
from circuitdiff.errors import InputError
from circuitdiff.methods.attention import AttentionToRoles
from circuitdiff.prompts import Pairs
from circuitdiff.readable import Readable
from circuitdiff.study.common_units import attended
from circuitdiff.study.estimates import Estimate, HeadPlace, estimate
from circuitdiff.study.preflight import check_known
from circuitdiff.study.section import Outlined, Part, PromptsOf, Section, Sizes, StudyContext
from circuitdiff.study.sections.discovery import Discovered, main_circuits
from circuitdiff.tasks import Task


@dataclass(frozen=True)
class AttentionOptions:
    """Where the heads of circuits attend, from their group's role.

    `roles`: that they may attend to; if none are named all of the task's but those of one segment, which have a dot.
    """

    prompts: Prompts = 100  # of the evaluation prompts
    roles: tuple[str, ...] = ()


@dataclass(frozen=True)
class AttentionShares:
    """Means, from 0 to 1, over the prompts in which the role is not after the query: `n_prompts`, of none undefined.

    `value_weighted`: each key counts by the length of what the head writes from it, too; see `methods.attention`.
    """

    n_prompts: int
    attention: Estimate
    value_weighted: Estimate


@dataclass(frozen=True)
class HeadAttention:
    """By role; `other`: to all tokens that have none of these. Roles that share a token each have all of its share."""

    head: HeadPlace
    to: dict[str, AttentionShares]
    other: AttentionShares


@dataclass(frozen=True)
class GroupAttention:
    at: str
    heads: tuple[HeadAttention, ...]


@dataclass(frozen=True, repr=False)
class CircuitAttention(Readable):
    """Of a circuit in a model, by group."""

    n_prompts: int
    n_scenarios: int
    groups: dict[str, GroupAttention]


async def run(study: StudyContext, options: AttentionOptions) -> dict[str, dict[str, CircuitAttention]]:
    """By circuit and model: the base's and those that the user gave in every model, a variant's own in the variant."""

    async def of(circuit: Discovered) -> dict[str, CircuitAttention]:
        models = study.settings.models if circuit.model == study.base else [circuit.model]
        return await study.by_item(models, lambda model: _attention(study, model, circuit.circuit, options))

    circuits = await main_circuits(study)
    return dict(zip(circuits, await study.each(circuits.values(), of), strict=True))


async def _attention(study: StudyContext, model: str, circuit: Circuit, options: AttentionOptions) -> CircuitAttention:
    prompts = PromptsOf("evaluation", first=options.prompts)
    pairs = await study.pairs(model, prompts)
    title, roles = f"attention to roles in {model}", roles_of(options, study.task, pairs)
    groups = await study.value(title, attended, model, prompts=prompts, circuit=circuit, roles=roles)
    return CircuitAttention(
        n_prompts=len(pairs),
        n_scenarios=len(pairs.scenarios.unique()),
        groups={name: group_attention(circuit.groups[name].at, each) for name, each in groups.items()},
    )


def roles_of(options: AttentionOptions, task: Task, pairs: Pairs) -> tuple[str, ...]:
    """Those that are asked for, as far as some prompt has them. Raises: InputError if none has any."""
    asked = options.roles or [role for role in task.roles if "." not in role]
    if there := tuple(role for role in asked if role in pairs.positions and bool((pairs.positions[role] >= 0).any())):
        return there
    raise InputError(f"attention.roles: no prompt has {' or '.join(asked)}; name other roles, or none for all")


def group_attention(at: str, found: AttentionToRoles) -> GroupAttention:
    plain, weighted, n_prompts = found.intervals(), found.intervals(weighted=True), found.n_prompts.tolist()

    def shares(head: int, column: int) -> AttentionShares:
        both = (estimate(each, (head, column)) for each in (plain, weighted))
        return AttentionShares(n_prompts[column], *both)

    return GroupAttention(
        at,
        tuple(
            HeadAttention(
                (head.layer, head.index),
                to={role: shares(i, j) for j, role in enumerate(found.roles)},
                other=shares(i, len(found.roles)),
            )
            for i, head in enumerate(found.heads)
        ),
    )


def cost(sizes: Sizes, options: AttentionOptions) -> Iterator[Part]:
    """A run of each circuit in each model; and an output projection, about square, of each head for each token."""
    n_circuits = sizes.n_models * (1 + len(sizes.settings.circuits)) + sizes.n_searched - 1
    n, projection = n_circuits * options.prompts, 2 * (sizes.base.n_heads * sizes.base.d_head) ** 2
    yield Part("attention to roles", n, sizes.passes(n) + n * sizes.length * sum(sizes.groups.values()) * projection)


def check(outlined: Outlined, options: AttentionOptions) -> None:
    check_known("attention.roles", options.roles, outlined.task.roles)


SECTION = Section("attention", AttentionOptions, dict[str, dict[str, CircuitAttention]], run, cost, check)
