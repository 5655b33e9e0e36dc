"""Units of work of cross-model patching: the recipient, given what its heads carry in the donor."""

from __future__ import annotations

from collections.abc import Mapping

from circuitdiff.cache.records import Record
from circuitdiff.circuit import Circuit, Group
from circuitdiff.evaluation import Evaluation
from circuitdiff.methods.cross_model.activations import Activations, Carrier, read_several
from circuitdiff.methods.cross_model.patching import control_groups, patch_across, patch_across_several, run_controls
from circuitdiff.study.checks import executors_agree
from circuitdiff.study.host import LoadedModel
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.records import controls_record, patches_record


def executors_on_patches(
    recipient: LoadedModel, donor: LoadedModel, *, prompts: PromptsOf, circuit: Circuit, what: Carrier
) -> Record:
    """Check 3 for one kind of activation."""

    def run(executor: str) -> list[Evaluation]:
        pairs, memory_gb = recipient.pairs(prompts), recipient.memory_gb
        patch = patch_across(
            donor.model, recipient.model, circuit, pairs, what=what, executor=executor, memory_gb=memory_gb
        )
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
    heads_of: str | None = None,
) -> Record:
    """Every subset of the circuit's groups, or what is needed of single heads of one group.

    What the groups carry is read of all kinds that are ever patched (`read`), once for all units on these prompts.
    """
    pairs, groups = recipient.pairs(prompts), tuple(circuit.groups.values())

    def activations(model: LoadedModel) -> Mapping[Carrier, Activations]:
        key = (pairs.fingerprint(), groups, read)
        return model.cached("activations", key, lambda: read_several(model.model, pairs, groups, read))

    of_donor = activations(donor)
    return patches_record(
        patch_across_several(
            {kind: of_donor[kind] for kind in what},
            recipient.model,
            circuit if heads_of is None else circuit.groups[heads_of],
            pairs,
            per_head=heads_of is not None,
            own=activations(recipient),
            executor=recipient.executor,
            memory_gb=recipient.memory_gb,
            progress=recipient.progress,
        )
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
) -> Record:
    """One group's controls. What all groups' controls carry is read once."""
    model, pairs, groups = recipient.model, recipient.pairs(prompts), tuple(circuit.groups.values())
    chosen = {
        each: control_groups(
            group, model.n_layers, model.n_heads, n_random=n_random, other_role=other_roles[each], seed=seed
        )
        for each, group in circuit.groups.items()
    }

    def activations(of: LoadedModel, at: tuple[Group, ...]) -> Activations:
        key = (pairs.fingerprint(), at, (what,))
        return of.cached("activations", key, lambda: read_several(of.model, pairs, at, (what,)))[what]

    of_donor = activations(donor, (*groups, *(group for each in chosen.values() for group in each)))
    controls = run_controls(
        of_donor,
        model,
        circuit.groups[name],
        chosen[name],
        pairs,
        own=activations(recipient, groups),
        seed=seed,
        executor=recipient.executor,
        memory_gb=recipient.memory_gb,
        progress=recipient.progress,
    )
    return controls_record(of_donor.answers, controls)
