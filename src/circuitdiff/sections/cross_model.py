"""Where is a variant's gain visible? Its activations in the base, and the base's in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

from circuitdiff import results as form
from circuitdiff.circuit import Circuit, Group
from circuitdiff.engine import Model
from circuitdiff.evaluation.scores import SCORES
from circuitdiff.methods.cross_model import (
    Carrier,
    Controls,
    CrossPatch,
    Limits,
    Ran,
    control_groups,
    patch_across,
    read_activations,
    run_controls,
)
from circuitdiff.methods.cross_model.compatibility import Basis
from circuitdiff.prompts import Pairs
from circuitdiff.sections.cross_checks import FEW, check_executors, check_itself
from circuitdiff.sections.cross_settings import CrossModelSettings
from circuitdiff.sections.entries import heads_entry, interval_entry, with_heads
from circuitdiff.sections.gains import (
    attribution_entry,
    control_entry,
    first_prompts,
    largest_part,
    random_entry,
    run_entry,
    score_entries,
)
from circuitdiff.shares import IN_ORDER, needed_subsets
from circuitdiff.shares import all_subsets as every_subset
from circuitdiff.statistics import difference_interval
from circuitdiff.store import Record
from circuitdiff.workbench import Subject, Workbench


def cross_model_section(
    bench: Workbench, variant: str, circuit: Circuit, settings: CrossModelSettings
) -> dict[str, Any]:
    """Every subset of a circuit's groups patched from the variant into the base, and back.

    With controls of each group, the single heads of the group that shows most, and donors that did not improve.

    Raises: InputError if the circuit has no heads or more than six groups, or the models do not fit together.
    """
    tested, what = with_heads(circuit), settings.what
    donor, recipient = bench.subject(variant), bench.subject(bench.base)
    forward = {each: patched_entry(bench, donor, recipient, tested, each, settings) for each in what}
    entry: dict[str, Any] = {"circuit": tested.to_dict(), "to_base": forward}
    if settings.both_directions:
        entry["to_variant"] = {each: patched_entry(bench, recipient, donor, tested, each, settings) for each in what}
    best = largest_part(forward[what[0]]["scores"]["accuracy"], IN_ORDER)
    if settings.heads:
        group = tested.groups[best]
        entry["heads"] = {"group": best} | patched_entry(bench, donor, recipient, group, what[0], settings)
    if settings.random_groups:
        entry["controls"] = {
            name: _controls(bench, donor, recipient, name, group, settings) for name, group in tested.groups.items()
        }
    for name in settings.null_donors:
        null = patched_entry(bench, bench.subject(name), recipient, tested, what[0], settings)
        entry.setdefault("null_donors", {})[name] = null
    return {"cmap": {variant: entry}}


def patched_entry(
    bench: Workbench,
    donor: Subject,
    recipient: Subject,
    group: Circuit | Group,
    what: str,
    settings: CrossModelSettings,
) -> dict[str, Any]:
    """One donor, one recipient, one kind of activation: every run, and whose the gain is."""
    pairs = first_prompts(recipient.splits.evaluation, settings.prompts)
    title = f"{what} of {donor.model.name} in {recipient.model.name}" + (", heads" if isinstance(group, Group) else "")

    def run(on: Pairs, executor: str) -> CrossPatch:
        return patch_across(
            donor.model,
            recipient.model,
            group,
            on,
            what=cast(Carrier, what),
            per_head=isinstance(group, Group),
            executor=executor,
            memory_gb=bench.settings.memory_gb,
            progress=lambda done, total: bench.monitor(title, done, total),
        )

    parts = {"group": [group.at, heads_entry(group.heads)]} if isinstance(group, Group) else group.to_dict()
    key = _key(donor.model, recipient, what, len(pairs)) | {"parts": parts}
    few = first_prompts(pairs, FEW)
    check_executors(bench, recipient, title, key, lambda name: [ran.answers for ran in run(few, name).runs.values()])
    found = cross_from(recipient.stages.kept(title, key, lambda: cross_record(run(pairs, bench.settings.executor))))
    check_itself(bench, recipient, title, found.noise_floor, found.recipient)
    return cross_entry(found, donor.model.name, recipient.model.name, settings.limits)


def cross_record(found: CrossPatch) -> Record:
    """All answers prompt by prompt: the donor's, then each run's."""
    evaluations = form.evaluations_record([found.donor, *(ran.answers for ran in found.runs.values())])
    distances = torch.stack([ran.distance for ran in found.runs.values()])
    data = {
        "what": found.what,
        "order": list(found.order),
        "bases": {name: list(basis) for name, basis in found.bases.items()},
        "noise_floor": found.noise_floor,
    }
    return Record({**evaluations.tensors, "distances": distances}, [evaluations.data, data])


def cross_from(record: Record) -> CrossPatch:
    n, data = record.data
    donor, *answers = form.evaluations_from(Record(record.tensors, n))
    order = tuple(data["order"])
    subsets = every_subset(order) if len(answers) == 2 ** len(order) else needed_subsets(order)
    ran = [Ran(*each) for each in zip(answers, record.tensors["distances"], strict=True)]
    return CrossPatch(
        what=data["what"],
        order=order,
        donor=donor,
        runs=dict(zip(subsets, ran, strict=True)),
        bases={name: Basis(*basis) for name, basis in data["bases"].items()},
        noise_floor=data["noise_floor"],
    )


def cross_entry(found: CrossPatch, donor: str, recipient: str, limits: Limits) -> dict[str, Any]:
    """Plain numbers: scores of every run, and the shares of each score's gain."""
    far = found.incompatible(limits)
    return {
        "donor": donor,
        "recipient": recipient,
        "what": found.what,
        "order": list(found.order),
        "n_prompts": len(found.donor.hits),
        "n_scenarios": len(found.donor.scenarios.unique()),
        "noise_floor": found.noise_floor,
        "bases": {name: basis._asdict() for name, basis in found.bases.items()},
        "limits": limits._asdict(),
        "donor_scores": score_entries(found.donor),
        "runs": [
            run_entry(subset, ran.answers, found.order)
            | {"distance": float(ran.distance.mean()), "incompatible": far.get(subset)}
            for subset, ran in found.runs.items()
        ],
        "scores": {score: attribution_entry(found.attribution(score, limits)) for score in SCORES},
    }


def _controls(
    bench: Workbench, donor: Subject, recipient: Subject, name: str, group: Group, settings: CrossModelSettings
) -> dict[str, Any]:
    """A group's controls, on fewer prompts, by the first kind of activation."""
    pairs, what = first_prompts(recipient.splits.evaluation, settings.control_prompts), settings.what[0]
    title = f"controls of {name}, {donor.model.name} in {recipient.model.name}"
    role = _other_role(bench, pairs, group.at)

    def compute() -> Record:
        model, seed = recipient.model, bench.settings.seed
        n_random = settings.random_groups
        chosen = control_groups(group, model.n_layers, model.n_heads, n_random=n_random, other_role=role, seed=seed)
        kept = read_activations(donor.model, pairs, [group, *chosen], cast(Carrier, what))
        ran = run_controls(
            kept,
            model,
            group,
            chosen,
            pairs,
            seed=seed,
            executor=bench.settings.executor,
            memory_gb=bench.settings.memory_gb,
            progress=lambda done, total: bench.monitor(title, done, total),
        )
        return _controls_record(kept.answers, ran)

    key = _key(donor.model, recipient, what, len(pairs)) | {
        "group": [group.at, heads_entry(group.heads)],
        "other_role": role,
        "random": settings.random_groups,
    }
    return _controls_entry(recipient.stages.kept(title, key, compute), role, settings.limits)


_NAMED = ("nothing", "group", "any_layer", "elsewhere", "noise", "scaled")


def _controls_record(donor, ran: Controls) -> Record:
    named: dict[str, Ran] = {name: each for name in _NAMED if (each := getattr(ran, name)) is not None}
    everything = [*named.values(), *ran.same_layers]
    evaluations = form.evaluations_record([donor, *(each.answers for each in everything)])
    distances = torch.stack([each.distance for each in everything])
    return Record({**evaluations.tensors, "distances": distances}, [evaluations.data, list(named)])


def _controls_entry(record: Record, other_role: str | None, limits: Limits) -> dict[str, Any]:
    n, names = record.data
    donor, *answers = form.evaluations_from(Record(record.tensors, n))
    found, drawn = dict(zip(names, answers, strict=False)), answers[len(names) :]
    far = dict(zip(names, record.tensors["distances"].mean(1).tolist(), strict=False))
    entry: dict[str, Any] = {"n_prompts": len(donor.hits), "other_role": other_role}
    for name in names[1:]:
        entry[name] = control_entry(donor, found["nothing"], found[name]) | {
            "accuracy": form.share(found[name].hits, found[name].scenarios),
            "distance": far[name],
            "incompatible": far[name] > limits.distance,
        }
    if drawn:
        entry["same_layers"] = random_entry(donor, found["nothing"], found["group"], drawn)
    return entry


def _other_role(bench: Workbench, pairs: Pairs, role: str) -> str | None:
    """The same kind of role where it does not belong; for the last token, the one before it."""
    other = bench.task.wrong_segment(role)
    if other != role:
        return other
    before = [name for name, at in pairs.positions.items() if bool((at == pairs.positions[role] - 1).all())]
    return before[0] if before else None


def _key(donor: Model, recipient: Subject, what: str, n: int) -> dict[str, Any]:
    fingerprint = donor.provenance["fingerprint"]
    return recipient.stages.key("evaluation") | {"donor": fingerprint, "what": what, "n": n}


def gain_entry(donor: Subject, recipient: Subject, pairs: Pairs) -> Mapping[str, Any]:
    """The paired gain in accuracy on all evaluation prompts."""
    first, second = (subject.stages.answers(pairs) for subject in (donor, recipient))
    gain = difference_interval(first.hits.numpy(), second.hits.numpy(), first.scenarios.numpy())
    return interval_entry(gain) | {"n_scenarios": len(first.scenarios.unique()), "n_prompts": len(first.hits)}
