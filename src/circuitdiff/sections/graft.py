"""What caused a gain? The better model's weights in the worse one, part by part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from circuitdiff import results as form
from circuitdiff.cache.store import Record
from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.errors import InputError
from circuitdiff.evaluation import Evaluation
from circuitdiff.evaluation.random_groups import random_group
from circuitdiff.evaluation.scores import SCORES
from circuitdiff.methods.graft import Graft, Grafting, Part, graft_alone, graft_several
from circuitdiff.prompts import Pairs
from circuitdiff.sections.cross_settings import GraftSettings
from circuitdiff.sections.directions import Direction, direction_of
from circuitdiff.sections.entries import heads_entry, with_heads
from circuitdiff.sections.further_prompts import evaluation_questions
from circuitdiff.sections.gains import (
    attribution_entry,
    control_entry,
    largest_part,
    random_entry,
    run_entry,
    score_entries,
)
from circuitdiff.stats.shapley import ALONE, needed_subsets
from circuitdiff.verdict import SHARED
from circuitdiff.workbench import Subject, Workbench

LAYERS = "layers"  # how the names of ranges of layers begin
_HEADS = ("heads", "also_touched")


def graft_section(bench: Workbench, variant: str, circuit: Circuit, settings: GraftSettings) -> dict[str, Any]:
    """The better model's weights grafted onto the worse one: groups of the base's circuit, then all else by kind.

    The variant is the donor unless it is surely worse than the base. With ranges of whole layers; single heads of the
    group that brings most; and, where there is a gain to share out, random groups in that group's stead. Without a gain
    fewer prompts are run.

    Raises: InputError if the circuit has no heads, a head's weights cannot be told from others', or a layer does not
    exist.
    """
    tested, between = with_heads(circuit), direction_of(bench, variant)
    grafts = _Grafts(bench, between, settings)
    asked: dict[str, Circuit | Mapping[str, range]] = {"": tested}
    if settings.layers != ():
        asked["layers"] = layer_ranges(bench.subject(bench.base).model.n_layers, settings.layers)
    found = grafts.several(asked)
    entry = {"circuit": tested.to_dict()} | graft_entry(found[""], between.donor, between.recipient)
    groups = {part: credits for part, credits in entry["scores"]["accuracy"]["parts"].items() if part in tested.groups}
    best = largest_part({"parts": groups}, ALONE)
    if settings.heads:
        heads = grafts.several({"heads": tested.groups[best]})["heads"]
        entry["heads"] = {"group": best} | graft_entry(heads, between.donor, between.recipient)
    if "layers" in found:
        entry["layers"] = graft_entry(found["layers"], between.donor, between.recipient)
    if settings.random_groups and between.gains:
        entry["controls"] = {best: grafts.controls(best, tested.groups[best], found[""])}
    return {"graft": {variant: entry}}


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


@dataclass(frozen=True)
class _Grafts:
    """Weights of one model in another."""

    bench: Workbench
    between: Direction
    settings: GraftSettings

    @property
    def _subjects(self) -> tuple[Subject, Subject]:
        return self.bench.subject(self.between.donor), self.bench.subject(self.between.recipient)

    def _prompts(self, wanted: int) -> Pairs:
        each = self.settings.queries_per_scenario
        return evaluation_questions(self.bench, self._subjects[1], min(wanted, self.settings.prompts), each)

    def several(self, asked: Mapping[str, Circuit | Group | Mapping[str, range]]) -> dict[str, Graft]:
        """Each division of the weights into parts, by name. Those that are not kept yet run together."""
        donor, recipient = self._subjects
        pairs = self._prompts(self.settings.prompts if self.between.gains else self.settings.without_gain)
        title = f"weights of {self.between.donor} in {self.between.recipient}"
        divisions = [Grafting(p, self.settings.projections, per_head=isinstance(p, Group)) for p in asked.values()]
        ran: list[Graft] = []

        def compute(i: int) -> Record:
            if not ran:
                ran.extend(
                    graft_several(
                        donor.model,
                        recipient.model,
                        divisions,
                        pairs,
                        progress=lambda done, total: self.bench.monitor(title, done, total),
                    )
                )
            return graft_record(ran[i])

        def record(i: int, name: str, parts: Circuit | Group | Mapping[str, range]) -> Record:
            key = self._key("weight grafts", pairs, parts=_named(parts))
            return recipient.stages.kept(title + (name and f", {name}"), key, lambda: compute(i))

        return {name: graft_from(record(i, name, parts)) for i, (name, parts) in enumerate(asked.items())}

    def controls(self, name: str, group: Group, known: Graft) -> dict[str, Any]:
        """Random heads of the same layers, as many from any layer, and those that share the group's keys and values.

        Each is grafted in the group's stead, on fewer prompts. `known`: the graft of the group itself.
        """
        _, recipient = self._subjects
        pairs = self._prompts(self.settings.control_prompts)
        title = f"controls of {name}, weights of {self.between.donor} in {self.between.recipient}"
        touched = known.parts[name].also_touched

        def random_groups() -> list[Group]:
            model, g = recipient.model, torch.Generator().manual_seed(self.bench.settings.seed)

            def draw(**how: Any) -> Group:  # heads that read the group's own keys and values would not be a control
                return random_group(group, model.n_layers, model.n_heads, g, besides=touched, **how)

            drawn = [draw() for _ in range(self.settings.random_groups)]
            return [draw(same_layers=False), *drawn]

        named = {"group": [group.at, heads_entry(group.heads)], "besides": heads_entry(touched)}
        named |= {"random": self.settings.random_groups, "seed": self.bench.settings.seed}
        anywhere, *drawn = self._alone(title, random_groups, named, pairs)
        runs = (known.donor, known.recipient, known.runs[frozenset([name])])
        theirs, nothing, real = (each.select(torch.arange(len(pairs))) for each in runs)
        entry = {
            "random heads of any layer": control_entry(theirs, nothing, anywhere),
            "random heads of the same layers": random_entry(theirs, nothing, real, drawn),
        }
        if touched:
            besides = Group(group.at, touched)
            [readers] = self._alone(f"{title}, {SHARED}", lambda: [besides], {"parts": _named(besides)}, pairs)
            entry[SHARED] = control_entry(theirs, nothing, readers)
        return entry

    def _alone(
        self, title: str, groups: Callable[[], list[Group]], named: dict[str, Any], pairs: Pairs
    ) -> list[Evaluation]:
        """Each group's weights grafted, one group at a time; `named` is what the groups depend on."""
        donor, recipient = self._subjects

        def compute() -> Record:
            found = graft_alone(
                donor.model,
                recipient.model,
                groups(),
                pairs,
                projections=self.settings.projections,
                progress=lambda done, total: self.bench.monitor(title, done, total),
            )
            return form.evaluations_record(found)

        return form.evaluations_from(recipient.stages.kept(title, self._key("grafted groups", pairs, **named), compute))

    def _key(self, unit: str, pairs: Pairs, **arguments: Any) -> dict[str, Any]:
        donor, recipient = self._subjects
        known = {"donor": donor.model.provenance["fingerprint"], "projections": list(self.settings.projections)}
        return recipient.stages.key(unit, pairs, **known, **arguments)


def _named(parts: Circuit | Group | Mapping[str, range]) -> Any:
    """What the record depends on."""
    if isinstance(parts, Circuit):
        return parts.to_dict()
    if isinstance(parts, Group):
        return [parts.at, heads_entry(parts.heads)]
    return [[each.start, each.stop] for each in parts.values()]


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
