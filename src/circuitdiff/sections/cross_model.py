"""Where is a variant's gain visible? Its activations in the base, and the base's in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from circuitdiff.circuit import Circuit, Group
from circuitdiff.engine import Model
from circuitdiff.methods.cross_model import (
    Activations,
    Carrier,
    ControlGroups,
    CrossPatch,
    control_groups,
    patch_across,
    read_several,
    run_controls,
)
from circuitdiff.prompts import Pairs
from circuitdiff.sections.cross_checks import FEW, check_executors, check_itself
from circuitdiff.sections.cross_entries import (
    controls_entry,
    controls_record,
    cross_entry,
    cross_from,
    cross_record,
)
from circuitdiff.sections.cross_settings import CrossModelSettings
from circuitdiff.sections.entries import heads_entry, interval_entry, with_heads
from circuitdiff.sections.gains import first_prompts, largest_part
from circuitdiff.shares import IN_ORDER
from circuitdiff.statistics import difference_interval
from circuitdiff.store import Record
from circuitdiff.workbench import Subject, Workbench


class Readings:
    """What heads carry in each model, read once. Give one to all sections that compare the same models."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], dict[Carrier, Activations]] = {}

    def of(
        self, subject: Subject, pairs: Pairs, groups: Iterable[Group], whats: Sequence[Carrier]
    ) -> dict[Carrier, Activations]:
        """By kind, what the heads of the groups carry on the prompts, which are the first of the evaluation prompts."""
        wanted = list(groups)
        heads = json.dumps([[group.at, heads_entry(group.heads)] for group in wanted])
        key = (subject.model.provenance["fingerprint"], len(pairs), tuple(whats), heads)
        if key not in self._known:
            self._known[key] = read_several(subject.model, pairs, wanted, whats)
        return self._known[key]


def cross_model_section(
    bench: Workbench,
    variant: str,
    circuit: Circuit,
    settings: CrossModelSettings,
    readings: Readings | None = None,
) -> dict[str, Any]:
    """Every subset of a circuit's groups patched from the variant into the base, and back.

    With controls of each group, the single heads of the group that shows most, and donors that did not improve.

    Raises: InputError if the circuit has no heads or more than six groups, or the models do not fit together.
    """
    tested, what = with_heads(circuit), settings.what
    donor, recipient = bench.subject(variant), bench.subject(bench.base)
    patching = _Patching(bench, tested, settings, readings or Readings())
    forward = {each: patching.entry(donor, recipient, each) for each in what}
    entry: dict[str, Any] = {"circuit": tested.to_dict(), "to_base": forward}
    if settings.both_directions:
        entry["to_variant"] = {each: patching.entry(recipient, donor, each) for each in what}
    best = largest_part(forward[what[0]]["scores"]["accuracy"], IN_ORDER)
    if settings.heads:
        entry["heads"] = {"group": best} | patching.entry(donor, recipient, what[0], tested.groups[best])
    if settings.random_groups:
        entry["controls"] = patching.controls(donor, recipient)
    for name in settings.null_donors:
        entry.setdefault("null_donors", {})[name] = patching.entry(bench.subject(name), recipient, what[0])
    return {"cmap": {variant: entry}}


@dataclass(frozen=True)
class _Patching:
    """A circuit's groups patched between pairs of models."""

    bench: Workbench
    circuit: Circuit
    settings: CrossModelSettings
    readings: Readings

    def entry(self, donor: Subject, recipient: Subject, what: Carrier, group: Group | None = None) -> dict[str, Any]:
        """One donor, one recipient, one kind of activation: every run, and whose the gain is.

        With a group, of its single heads.
        """
        bench, settings = self.bench, self.settings
        pairs = first_prompts(recipient.splits.evaluation, settings.prompts)
        title = f"{what} of {donor.model.name} in {recipient.model.name}" + ("" if group is None else ", heads")

        def run(on: Pairs, executor: str) -> CrossPatch:
            return patch_across(
                self._read(donor, on)[what],
                recipient.model,
                group or self.circuit,
                on,
                what=what,
                per_head=group is not None,
                own=self._read(recipient, on)[what],
                executor=executor,
                memory_gb=bench.settings.memory_gb,
                progress=lambda done, total: bench.monitor(title, done, total),
            )

        parts = self.circuit.to_dict() if group is None else {"group": [group.at, heads_entry(group.heads)]}
        key = _key(donor.model, recipient, what, len(pairs)) | {"parts": parts}
        few = first_prompts(pairs, FEW)
        check_executors(
            bench, recipient, title, key, lambda name: [ran.answers for ran in run(few, name).runs.values()]
        )
        found = cross_from(recipient.stages.kept(title, key, lambda: cross_record(run(pairs, bench.settings.executor))))
        check_itself(bench, recipient, title, found.noise_floor, found.recipient)
        return cross_entry(found, donor.model.name, recipient.model.name, settings.limits)

    def controls(self, donor: Subject, recipient: Subject) -> dict[str, Any]:
        """Every group's controls, on fewer prompts, by the first kind of activation."""
        bench, n_random, model = self.bench, self.settings.random_groups, recipient.model
        pairs = first_prompts(recipient.splits.evaluation, self.settings.control_prompts)
        roles = {name: _other_role(bench, pairs, group.at) for name, group in self.circuit.groups.items()}
        chosen = {
            name: control_groups(
                group,
                model.n_layers,
                model.n_heads,
                n_random=n_random,
                other_role=roles[name],
                seed=bench.settings.seed,
            )
            for name, group in self.circuit.groups.items()
        }
        return {
            name: controls_entry(self._controls(donor, recipient, name, pairs, chosen), role, self.settings.limits)
            for name, role in roles.items()
        }

    def _controls(
        self, donor: Subject, recipient: Subject, name: str, pairs: Pairs, chosen: Mapping[str, ControlGroups]
    ) -> Record:
        bench, group, what = self.bench, self.circuit.groups[name], self.settings.what[0]
        title = f"controls of {name}, {donor.model.name} in {recipient.model.name}"
        everywhere = [*self.circuit.groups.values(), *(each for groups in chosen.values() for each in groups)]

        def compute() -> Record:
            kept = self.readings.of(donor, pairs, everywhere, [what])[what]
            ran = run_controls(
                kept,
                recipient.model,
                group,
                chosen[name],
                pairs,
                own=self._read(recipient, pairs)[what],
                seed=bench.settings.seed,
                executor=bench.settings.executor,
                memory_gb=bench.settings.memory_gb,
                progress=lambda done, total: bench.monitor(title, done, total),
            )
            return controls_record(kept.answers, ran)

        elsewhere = chosen[name].elsewhere
        key = _key(donor.model, recipient, what, len(pairs)) | {
            "group": [group.at, heads_entry(group.heads)],
            "other_role": None if elsewhere is None else elsewhere.at,
            "random": self.settings.random_groups,
        }
        return recipient.stages.kept(title, key, compute)

    def _read(self, subject: Subject, pairs: Pairs) -> dict[Carrier, Activations]:
        return self.readings.of(subject, pairs, self.circuit.groups.values(), self.settings.what)


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
