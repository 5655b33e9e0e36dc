"""Where is a variant's gain visible? Its activations in the base, and the base's in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_fields
from typing import Any

from circuitdiff.cache.store import Record
from circuitdiff.circuit import Circuit, Group
from circuitdiff.engine import Model
from circuitdiff.methods.cross_model import (
    Activations,
    Carrier,
    ControlGroups,
    CrossPatch,
    control_groups,
    patch_across_several,
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
from circuitdiff.sections.directions import direction_of
from circuitdiff.sections.entries import heads_entry, with_heads
from circuitdiff.sections.gains import first_prompts, largest_part
from circuitdiff.stats.shapley import IN_ORDER
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
        key = (subject.model.provenance["fingerprint"], pairs.fingerprint(), tuple(whats), heads)
        if key not in self._known:
            self._known[key] = read_several(subject.model, pairs, wanted, whats)
        return self._known[key]


def cross_model_section(
    bench: Workbench,
    variant: str,
    circuit: Circuit,
    settings: CrossModelSettings,
    readings: Readings | None = None,
    *,
    controls_first: bool = False,
) -> dict[str, Any]:
    """Every subset of a circuit's groups patched from the variant into the base, and back.

    From the better model into the worse one, where there is a gain to share out, also the single heads of the group
    that shows most, and controls of each group; into the base also donors that did not improve. Without a gain fewer
    prompts are run. `controls_first`: for one of two processes on the same variant.

    Raises: InputError if the circuit has no heads or more than six groups, or the models do not fit together.
    """
    tested, between = with_heads(circuit), direction_of(bench, variant)
    patching = _Patching(bench, tested, settings, readings or Readings(), between.gains)
    if controls_first and settings.random_groups and between.gains:
        patching.controls(bench.subject(between.donor), bench.subject(between.recipient))
    entry: dict[str, Any] = {"circuit": tested.to_dict(), "recipient": between.recipient}  # of heads and controls
    for direction, donor, recipient in (("to_base", variant, bench.base), ("to_variant", bench.base, variant)):
        if settings.both_directions or recipient == between.recipient:
            entry[direction] = patching.entries(bench.subject(donor), bench.subject(recipient), settings.what)
    donor, recipient = bench.subject(between.donor), bench.subject(between.recipient)
    first, *_ = settings.what
    forward = entry["to_base" if between.recipient == bench.base else "to_variant"]
    best = largest_part(forward[first]["scores"]["accuracy"], IN_ORDER)
    if settings.heads and between.gains:
        heads = patching.entries(donor, recipient, [first], tested.groups[best])
        entry["heads"] = {"group": best} | heads[first]
    if settings.random_groups and between.gains:
        entry["controls"] = patching.controls(donor, recipient)
    del donor  # the workbench keeps two models, which must not be three
    for name in settings.null_donors if between.recipient == bench.base else ():
        found = with_fields(patching, gains=False).entries(bench.subject(name), recipient, [first])
        entry.setdefault("null_donors", {})[name] = found[first]
    return {"cmap": {variant: entry}}


@dataclass(frozen=True)
class _Patching:
    """A circuit's groups patched between pairs of models."""

    bench: Workbench
    circuit: Circuit
    settings: CrossModelSettings
    readings: Readings
    gains: bool  # else there is nothing to share out, and fewer prompts are enough

    def entries(
        self, donor: Subject, recipient: Subject, whats: Sequence[Carrier], group: Group | None = None
    ) -> dict[str, Any]:
        """One donor, one recipient, by kind of activation: every run, and whose the gain is.

        With a group, of its single heads. Kinds that are not kept yet run together.
        """
        bench, settings = self.bench, self.settings
        wanted = settings.prompts if self.gains else min(settings.without_gain, settings.prompts)
        pairs = first_prompts(recipient.splits.evaluation, wanted)
        of = f"of {donor.model.name} in {recipient.model.name}" + ("" if group is None else ", heads")

        def run(on: Pairs, executor: str, some: Sequence[Carrier]) -> dict[Carrier, CrossPatch]:
            theirs, own = self._read(donor, on), self._read(recipient, on)
            return patch_across_several(
                {what: theirs[what] for what in some},
                recipient.model,
                group or self.circuit,
                on,
                per_head=group is not None,
                own=own,
                executor=executor,
                memory_gb=bench.settings.memory_gb,
                progress=lambda done, total: bench.monitor(f"{', '.join(some)} {of}", done, total),
            )

        ran: dict[Carrier, CrossPatch] = {}

        def compute(what: Carrier) -> Record:
            if what not in ran:
                ran.update(run(pairs, bench.settings.executor, whats))
            return cross_record(ran[what])

        found = {}
        parts = self.circuit.to_dict() if group is None else {"group": [group.at, heads_entry(group.heads)]}
        for what in whats:
            title, arguments = f"{what} {of}", _arguments(donor.model, what) | {"parts": parts}
            if group is None:
                few = first_prompts(recipient.splits.evaluation, FEW)
                key = recipient.stages.key("check of cross-model patching", few, **arguments)
                self._check(recipient, title, key, lambda name, what=what, few=few: run(few, name, [what])[what])
            key = recipient.stages.key("cross-model patching", pairs, **arguments)
            record = recipient.stages.kept(title, key, lambda what=what: compute(what))
            each = cross_from(record, per_head=group is not None)
            check_itself(bench, recipient, title, each.noise_floor, each.recipient)
            found[what] = cross_entry(each, donor.model.name, recipient.model.name, settings.limits)
        return found

    def _check(self, recipient: Subject, title: str, key: Mapping[str, Any], run: Callable[[str], CrossPatch]) -> None:
        answers = lambda name: [ran.answers for ran in run(name).runs.values()]  # noqa: E731
        check_executors(self.bench, recipient, title, key, answers)

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
        what = self.settings.what[0]
        return {
            name: controls_entry(
                self._controls(donor, recipient, name, pairs, chosen), what, role, self.settings.limits
            )
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
        key = recipient.stages.key(
            "controls of cross-model patching",
            pairs,
            **_arguments(donor.model, what),
            group=[group.at, heads_entry(group.heads)],
            other_role=None if elsewhere is None else elsewhere.at,
            random=self.settings.random_groups,
            seed=bench.settings.seed,
        )
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


def _arguments(donor: Model, what: str) -> dict[str, Any]:
    return {"donor": donor.provenance["fingerprint"], "what": what}
