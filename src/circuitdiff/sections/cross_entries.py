"""What is kept of cross-model patching, and its entries in the results."""

from __future__ import annotations

from math import nan
from typing import Any

import torch

from circuitdiff import results as form
from circuitdiff.cache.store import Record
from circuitdiff.evaluation import Evaluation
from circuitdiff.evaluation.scores import SCORES
from circuitdiff.methods.cross_model import Controls, CrossPatch, Limits, Ran
from circuitdiff.methods.cross_model.hybrids import Basis
from circuitdiff.sections.gains import attribution_entry, control_entry, random_entry, run_entry, score_entries
from circuitdiff.stats.shapley import all_subsets, needed_subsets

_NAMED = ("nothing", "group", "any_layer", "elsewhere", "noise", "scaled")


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


def cross_from(record: Record, *, per_head: bool) -> CrossPatch:
    """`per_head`: whether it was a group's heads that were patched, of which not every subset is run."""
    n, data = record.data
    donor, *answers = form.evaluations_from(Record(record.tensors, n))
    order = tuple(data["order"])
    subsets = needed_subsets(order) if per_head else all_subsets(order)
    ran = [Ran(*each) for each in zip(answers, record.tensors["distances"], strict=True)]
    return CrossPatch(
        what=data["what"],
        order=order,
        donor=donor,
        runs=dict(zip(subsets, ran, strict=True)),
        bases={n: Basis(*(nan if each is None else each for each in basis)) for n, basis in data["bases"].items()},
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


def controls_record(donor: Evaluation, ran: Controls) -> Record:
    named: dict[str, Ran] = {name: each for name in _NAMED if (each := getattr(ran, name)) is not None}
    everything = [*named.values(), *ran.same_layers]
    evaluations = form.evaluations_record([donor, *(each.answers for each in everything)])
    distances = torch.stack([each.distance for each in everything])
    return Record({**evaluations.tensors, "distances": distances}, [evaluations.data, list(named)])


def controls_entry(record: Record, what: str, other_role: str | None, limits: Limits) -> dict[str, Any]:
    """By control, what it brings; one that ends far from clean runs has no share."""
    n, names = record.data
    donor, *answers = form.evaluations_from(Record(record.tensors, n))
    found, drawn = dict(zip(names, answers, strict=False)), answers[len(names) :]
    distances = record.tensors["distances"].mean(1).tolist()
    far = dict(zip(names, distances, strict=False))
    entry: dict[str, Any] = {"n_prompts": len(donor.hits), "other_role": other_role, "what": what}
    for name in names[1:]:
        incompatible = far[name] > limits.distance
        entry[name] = control_entry(donor, found["nothing"], found[name], compatible=not incompatible) | {
            "accuracy": form.share(found[name].hits, found[name].scenarios),
            "distance": far[name],
            "incompatible": incompatible,
        }
    if drawn:
        too_far = [i for i, distance in enumerate(distances[len(names) :]) if distance > limits.distance]
        entry["same_layers"] = random_entry(donor, found["nothing"], found["group"], drawn, too_far)
    return entry
