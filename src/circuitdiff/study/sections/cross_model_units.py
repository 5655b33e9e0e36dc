"""Units of work of cross-model patching: the recipient, given what its heads carry in the donor."""

from __future__ import annotations

from collections.abc import Mapping

from circuitdiff.circuit import Circuit, Group, Mlps
from circuitdiff.evaluation import Evaluation
from circuitdiff.methods.cross_model.activations import Activations, Carrier, read_several
from circuitdiff.methods.cross_model.patching import (
    Controls,
    CrossPatch,
    control_groups,
    patch_across,
    patch_across_several,
    run_controls,
)
from circuitdiff.prompts import Pairs
from circuitdiff.study.checks import executors_agree
from circuitdiff.study.records import Deviation
from circuitdiff.study.section import LoadedModel, PromptsOf


def executors_on_patches(
    recipient: LoadedModel, donor: LoadedModel, *, prompts: PromptsOf, circuit: Circuit, what: Carrier
) -> Deviation:
    """Check 3 for one kind of activation."""

    def run(executor: str) -> list[Evaluation]:
        models, pairs, memory_gb = (donor.model, recipient.model), recipient.pairs(prompts), recipient.memory_gb
        patch = patch_across(*models, circuit, pairs, what=what, executor=executor, memory_gb=memory_gb)
        return [ran.answers for ran in patch.runs.values()]

    return executors_agree(recipient.model, run)


def executors_on_mlps(
    recipient: LoadedModel,
    donor: LoadedModel,
    *,
    prompts: PromptsOf,
    circuit: Circuit,
    what: Carrier,
    roles: tuple[str, ...],
) -> Deviation:
    """Check 3 for groups and MLPs."""

    def run(executor: str) -> list[Evaluation]:
        pairs, parts = recipient.pairs(prompts), {**_mlps(recipient, roles), **circuit.groups}
        theirs = read_several(donor.model, pairs, parts.values(), [what])
        how = {"every_subset": False, "executor": executor, "memory_gb": recipient.memory_gb}
        patch = patch_across_several(theirs, recipient.model, parts, pairs, **how)[what]
        return [ran.answers for ran in patch.runs.values()]

    return executors_agree(recipient.model, run)


def patches(
    recipient: LoadedModel,
    donor: LoadedModel,
    *,
    prompts: PromptsOf,
    circuit: Circuit,
    read: tuple[Carrier, ...],
    what: tuple[Carrier, ...],
    parts: Circuit | Group,
    mlps_at: tuple[str, ...] = (),
) -> dict[Carrier, CrossPatch]:
    """Every subset of these groups, or what is needed of single heads of one, or of the groups and of MLPs at roles.

    What the whole circuit's groups carry is read of all kinds that are ever patched (`read`), once for all units on
    these prompts.
    """
    pairs, mlps = recipient.pairs(prompts), _mlps(recipient, mlps_at)
    groups = (*circuit.groups.values(), *mlps.values())
    of_donor = _activations(donor, pairs, groups, read)
    return patch_across_several(
        {kind: of_donor[kind] for kind in what},
        recipient.model,
        {**mlps, **parts.groups} if isinstance(parts, Circuit) else parts,
        pairs,
        per_head=isinstance(parts, Group),
        every_subset=not mlps,
        own=_activations(recipient, pairs, groups, read),
        **recipient.how,
    )


def patched_controls(
    recipient: LoadedModel,
    donor: LoadedModel,
    *,
    prompts: PromptsOf,
    circuit: Circuit,
    name: str,
    what: Carrier,
    other_roles: Mapping[str, str | None],
    n_random: int,
    seed: int,
) -> tuple[Evaluation, Controls]:
    """The donor's answers, and one group's controls. What all groups' controls carry is read once."""
    model, pairs, groups = recipient.model, recipient.pairs(prompts), tuple(circuit.groups.values())
    sizes = (model.n_layers, model.n_heads)
    chosen = {
        each: control_groups(group, *sizes, n_random=n_random, other_role=other_roles[each], seed=seed)
        for each, group in circuit.groups.items()
    }
    all_groups = (*groups, *(group for each in chosen.values() for group in each))
    of_donor = _activations(donor, pairs, all_groups, (what,))[what]
    own = _activations(recipient, pairs, groups, (what,))[what]
    group, drawn = circuit.groups[name], chosen[name]
    return of_donor.answers, run_controls(of_donor, model, group, drawn, pairs, own=own, seed=seed, **recipient.how)


def _mlps(of: LoadedModel, roles: tuple[str, ...]) -> dict[str, Group | Mlps]:
    """Of all layers, a part for each role; before the groups, so that they come last in the order of causes."""
    return {f"MLPs at {role}": Mlps(role, tuple(range(of.model.n_layers))) for role in roles}


def _activations(
    of: LoadedModel, pairs: Pairs, groups: tuple[Group | Mlps, ...], read: tuple[Carrier, ...]
) -> Mapping[Carrier, Activations]:
    key = (pairs.fingerprint(), groups, read)
    return of.cached("activations", key, lambda: read_several(of.model, pairs, groups, read))
