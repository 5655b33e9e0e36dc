"""What caused a variant's gain? Its weights in the base, part by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from circuitdiff import results as form
from circuitdiff.circuit import Circuit, Group
from circuitdiff.errors import InputError
from circuitdiff.evaluation.random_groups import random_group
from circuitdiff.evaluation.scores import SCORES
from circuitdiff.heads import Head
from circuitdiff.methods.graft import Graft, Part, graft, graft_alone
from circuitdiff.sections.cross_settings import GraftSettings
from circuitdiff.sections.entries import heads_entry, with_heads
from circuitdiff.sections.gains import (
    attribution_entry,
    control_entry,
    first_prompts,
    largest_part,
    random_entry,
    run_entry,
    score_entries,
)
from circuitdiff.shares import ALONE, needed_subsets
from circuitdiff.store import Record
from circuitdiff.workbench import Workbench

LAYERS = "layers"  # how the names of ranges of layers begin
_HEADS = ("heads", "also_touched")


def graft_section(bench: Workbench, variant: str, circuit: Circuit, settings: GraftSettings) -> dict[str, Any]:
    """The variant's weights grafted onto the base: groups of the circuit, then all else by kind.

    With random groups of the same layers beside the group that brings most, and its single heads; and ranges of whole
    layers.

    Raises: InputError if the circuit has no heads, a head's weights cannot be told from others', or a layer does not
    exist.
    """
    tested = with_heads(circuit)
    entry = grafted_entry(bench, variant, tested, settings)
    groups = {part: credits for part, credits in entry["scores"]["accuracy"]["parts"].items() if part in tested.groups}
    best = largest_part({"parts": groups}, ALONE)
    if settings.heads:
        entry["heads"] = {"group": best} | grafted_entry(bench, variant, tested.groups[best], settings)
    if settings.layers != ():
        ranges = layer_ranges(bench.subject(bench.base).model.n_layers, settings.layers)
        entry["layers"] = grafted_entry(bench, variant, ranges, settings)
    if settings.random_groups:
        entry["controls"] = {best: _controls(bench, variant, best, tested.groups[best], settings)}
    return {"graft": {variant: {"circuit": tested.to_dict()} | entry}}


def layer_ranges(n_layers: int, begins: Sequence[int] | None) -> dict[str, range]:
    """All layers in ranges that begin at these layers, and at 0; lower ones first. None: in the middle.

    Raises: InputError if a range has no layer.
    """
    inner = [n_layers // 2] if begins is None else list(begins)
    bounds = [0, *inner, n_layers]
    if any(first >= last for first, last in pairwise(bounds)):
        raise InputError(
            f"ranges of layers begin at rising layers between 1 and {n_layers - 1}; got {', '.join(map(str, inner))}"
        )
    return {f"{LAYERS} {first} to {last - 1}": range(first, last) for first, last in pairwise(bounds)}


def grafted_entry(
    bench: Workbench, variant: str, parts: Circuit | Group | Mapping[str, range], settings: GraftSettings
) -> dict[str, Any]:
    """Every run of a graft, and whose the gain is."""
    donor, recipient = bench.subject(variant), bench.subject(bench.base)
    pairs = first_prompts(recipient.splits.evaluation, settings.prompts)
    named, more = _named(parts)
    title = f"weights of {variant} in {bench.base}{more}"

    def compute() -> Record:
        found = graft(
            donor.model,
            recipient.model,
            parts,
            pairs,
            projections=settings.projections,
            per_head=isinstance(parts, Group),
            progress=lambda done, total: bench.monitor(title, done, total),
        )
        return graft_record(found)

    key = _key(bench, variant, settings, len(pairs)) | {"parts": named}
    return graft_entry(graft_from(recipient.stages.kept(title, key, compute)), variant, bench.base)


def _named(parts: Circuit | Group | Mapping[str, range]) -> tuple[Any, str]:
    """What the record depends on, and what is added to the title."""
    if isinstance(parts, Circuit):
        return parts.to_dict(), ""
    if isinstance(parts, Group):
        return [parts.at, heads_entry(parts.heads)], ", heads"
    return [[each.start, each.stop] for each in parts.values()], ", layers"


def graft_record(found: Graft) -> Record:
    """All answers prompt by prompt: the donor's, then each run's. Of the parts only which heads they are."""
    evaluations = form.evaluations_record([found.donor, *found.runs.values()])
    data = {
        "order": list(found.order),
        "parts": {n: {f: heads_entry(getattr(part, f)) for f in _HEADS} for n, part in found.parts.items()},
        "unchanged": list(found.unchanged),
        "whole_graft_error": found.whole_graft_error,
    }
    return Record(evaluations.tensors, [evaluations.data, data])


def graft_from(record: Record) -> Graft:
    n, data = record.data
    donor, *answers = form.evaluations_from(Record(record.tensors, n))
    order = tuple(data["order"])
    return Graft(
        order=order,
        parts={n: Part((), *(tuple(Head(*h) for h in heads[f]) for f in _HEADS)) for n, heads in data["parts"].items()},
        unchanged=tuple(data["unchanged"]),
        donor=donor,
        runs=dict(zip(needed_subsets(order), answers, strict=True)),
        whole_graft_error=data["whole_graft_error"],
    )


def graft_entry(found: Graft, donor: str, recipient: str) -> dict[str, Any]:
    """Plain numbers: scores of every run, and the shares of each score's gain."""
    return {
        "donor": donor,
        "recipient": recipient,
        "order": list(found.order),
        "n_prompts": len(found.donor.hits),
        "n_scenarios": len(found.donor.scenarios.unique()),
        "unchanged": list(found.unchanged),
        "also_touched": {n: heads_entry(p.also_touched) for n, p in found.parts.items() if p.also_touched},
        "whole_graft_error": found.whole_graft_error,
        "donor_scores": score_entries(found.donor),
        "runs": [run_entry(subset, answers, found.order) for subset, answers in found.runs.items()],
        "scores": {score: attribution_entry(found.attribution(score)) for score in SCORES},
    }


def _controls(bench: Workbench, variant: str, name: str, group: Group, settings: GraftSettings) -> dict[str, Any]:
    """Random heads of the same layers, and as many from any layer, grafted in the group's stead."""
    donor, recipient = bench.subject(variant), bench.subject(bench.base)
    pairs = first_prompts(recipient.splits.evaluation, settings.prompts)
    title = f"controls of {name}, weights of {variant} in {bench.base}"

    def compute() -> Record:
        model, g = recipient.model, torch.Generator().manual_seed(bench.settings.seed)
        drawn = [random_group(group, model.n_layers, model.n_heads, g) for _ in range(settings.random_groups)]
        anywhere = random_group(group, model.n_layers, model.n_heads, g, same_layers=False)
        found = graft_alone(
            donor.model,
            model,
            [group, anywhere, *drawn],
            pairs,
            projections=settings.projections,
            progress=lambda done, total: bench.monitor(title, done, total),
        )
        return form.evaluations_record([donor.stages.answers(pairs), recipient.stages.answers(pairs), *found])

    named = {"group": [group.at, heads_entry(group.heads)], "random": settings.random_groups}
    record = recipient.stages.kept(title, _key(bench, variant, settings, len(pairs)) | named, compute)
    theirs, nothing, real, anywhere, *drawn = form.evaluations_from(record)
    return {
        "random heads of any layer": control_entry(theirs, nothing, anywhere),
        "random heads of the same layers": random_entry(theirs, nothing, real, drawn),
    }


def _key(bench: Workbench, variant: str, settings: GraftSettings, n: int) -> dict[str, Any]:
    fingerprint = bench.subject(variant).model.provenance["fingerprint"]
    own = bench.subject(bench.base).stages.key("evaluation")
    return own | {"donor": fingerprint, "projections": list(settings.projections), "n": n}
