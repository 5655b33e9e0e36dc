"""All masks of one circuit in one model, each computed when first asked for and kept in the run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitdiff.cache.store import Record
from circuitdiff.circuit import Circuit, Head
from circuitdiff.methods.component_mask import MaskOptions, SharedRuns, fit_shared
from circuitdiff.models.checks import Check, at_most, difference, log_prob_tolerance
from circuitdiff.prompts import Triples, split_by_scenario
from circuitdiff.sections.entries import heads_entry
from circuitdiff.sections.functions_entry import fit_record, redraw_entry, transfer_entry
from circuitdiff.sections.functions_settings import FILE, FunctionSettings
from circuitdiff.tasks import Task, read_triples
from circuitdiff.workbench import Subject, Workbench

_FEW = 2  # triples that the full executor runs; a check, not a measurement

Redrawn = Mapping[str, Mapping[str, dict[str, Any]]]  # by group and desideratum


def title_of(wanted: str) -> str:
    """A desideratum's name in the results: a file goes by its stem."""
    return Path(wanted).stem if wanted.endswith(FILE) else wanted


def main_desiderata(settings: FunctionSettings, task: Task) -> tuple[str, ...]:
    """Those that every group is tested with."""
    return task.desiderata if settings.desiderata is None else settings.desiderata


def wanted_of(group: str, settings: FunctionSettings, task: Task) -> tuple[str, ...]:
    """The desiderata of one group, each once."""
    return tuple(dict.fromkeys([*main_desiderata(settings, task), *settings.further.get(group, ())]))


class Cells:
    """Groups x desiderata. Runs that cells share are made once, and only if a cell needs them."""

    def __init__(
        self, bench: Workbench, model: str, name: str, circuit: Circuit, home: str, settings: FunctionSettings
    ) -> None:
        self.model, self._bench, self._name, self._circuit = model, bench, name, circuit
        self._home, self._settings = home, settings
        self._shared: dict[str, SharedRuns] = {}

    @property
    def all(self) -> list[tuple[str, str]]:
        """Group and desideratum, those with the same source prompts one after another.

        Further desiderata are tested in the circuit's own model alone.
        """
        main, at_home = main_desiderata(self._settings, self._bench.task), self.model == self._home
        wanted = {group: self._wanted(group) if at_home else main for group in self._circuit.groups}
        names = dict.fromkeys(name for names in wanted.values() for name in names)
        return [(group, name) for name in names for group in wanted if name in wanted[group]]

    def fit(self, group: str, wanted: str) -> Record:
        """One mask with its floors and controls."""
        options = self._options(group)
        title = f"what {group} of {self._name} encodes in {self.model}: {title_of(wanted)}"

        def compute() -> Record:
            fit = fit_shared(
                self._runs(wanted),
                group,
                self._triples(wanted),
                options,
                lambda done, total: self._bench.monitor(title, done, total),
            )
            return fit_record(fit)

        return self._subject.stages.kept(title, self._key("component mask", group, wanted), compute)

    def transferred(self, group: str, wanted: str, found: Record) -> dict[str, Any]:
        """The mask that was found in the circuit's own model, unchanged in this one."""
        title = f"mask of {group} of {self._name} from {self._home} in {self.model}: {title_of(wanted)}"
        heads, own = found.data["heads"], self.fit(group, wanted)

        def compute() -> Record:
            triples, test = self._triples(wanted), self._test_rows(wanted)
            answers = self._runs(wanted).patching(group, triples).answers(_heads(heads), test)
            entry = transfer_entry(heads, answers, triples.select(test), own.tensors)
            return Record({"answers": answers}, entry)

        key = self._key("transferred mask", group, wanted, heads=heads)
        return self._subject.stages.kept(title, key, compute).data | {"from": self._home}

    def redrawn(self, found: Mapping[tuple[str, str], Record]) -> Redrawn:
        """The heads found in the circuit's own model, patched here with sources drawn anew."""
        title = f"activation patching of {self._name} in {self.model}"
        heads = {cell: record.data["heads"] for cell, record in found.items()}
        names = list(dict.fromkeys(wanted for _, wanted in heads))
        key = self._subject.stages.key(
            "redrawn sources",
            *(self._triples(wanted) for wanted in names),
            *self._redrawn_triples(names, 1).values(),  # stands for all of them, which come of the same seed
            circuit=self._circuit.to_dict(),
            heads=[[*cell, places] for cell, places in heads.items()],
            redraw=self._settings.redraw.model_dump(),
            kept_runs_gb=self._settings.memory_gb,
            seed=self._bench.settings.seed,
        )
        record = self._subject.stages.kept(title, key, lambda: self._redraw(title, heads))
        home = {"from": self._home}
        return {group: {name: e | home for name, e in cells.items()} for group, cells in record.data.items()}

    def _redraw(self, title: str, heads: Mapping[tuple[str, str], Sequence[Sequence[int]]]) -> Record:
        times, hits = self._settings.redraw.times, {cell: [] for cell in heads}
        for redraw in range(1, times + 1):
            drawn = self._redrawn_triples(list(dict.fromkeys(wanted for _, wanted in heads)), redraw)
            for (group, wanted), places in heads.items():
                runs, rows, triples = self._runs(wanted), self._redraw_rows(wanted), drawn[wanted]
                answers = runs.redrawn(group, triples, rows).answers(_heads(places), rows)
                hits[group, wanted].append(answers == triples.targets)
            self._bench.monitor(title, redraw, times)
        stacked = {cell: torch.stack(each) for cell, each in hits.items()}
        entries: dict[str, dict[str, Any]] = {group: {} for group, _ in heads}
        for (group, wanted), each in stacked.items():
            entries[group][wanted] = redraw_entry(each, heads[group, wanted])
        return Record({f"{group}.{wanted}": each for (group, wanted), each in stacked.items()}, entries)

    def check(self, group: str) -> Check:
        """Check 3: half of the group's own value and half of the source's, by both executors."""
        title, wanted = f"check of masks of {group} of {self._name}", self._wanted(group)[0]

        def logits(executor: str) -> Tensor:
            few = self._triples(wanted).select(torch.arange(_FEW))
            groups = {group: self._circuit.groups[group]}
            runs = SharedRuns(self._subject.model, groups, few.base, n_random=0, executor=executor)
            patching, heads = runs.patching(group, few), self._circuit.groups[group].heads
            half, targets = torch.full((len(heads),), 0.5, device=runs.model.device), few.targets.to(runs.model.device)
            buckets = patching.buckets(torch.arange(_FEW), training=False)

            def target_logit(logits: Tensor, row: Tensor) -> Tensor:
                return logits.gather(1, targets[row][:, None])[:, 0]

            return torch.cat([patching.values(heads, half, bucket, target_logit) for bucket in buckets])

        def compute() -> Check:
            model = self._subject.model
            with torch.no_grad():
                worst = difference(logits("window"), logits("full"))
            detail = f"{title}: {_FEW} prompts, half patched, logit of the target"
            tolerance = log_prob_tolerance(model.dtype)
            return at_most("window executor vs full executor", model, worst, tolerance, detail)

        return self._subject.stages.check(title, self._key("check of masks", group, wanted), compute)

    @property
    def _subject(self) -> Subject:
        return self._bench.subject(self.model)

    @property
    def _total(self) -> int:
        return self._settings.train + self._settings.validation + self._settings.test

    def _options(self, group: str) -> MaskOptions:
        sweep = self._settings.sweep
        chosen = (sweep.group or next(iter(self._circuit.groups))) if sweep else None
        swept = group == chosen and self.model == self._home
        return self._settings.options(self._bench.settings.seed, swept=swept)

    def _wanted(self, group: str) -> tuple[str, ...]:
        return wanted_of(group, self._settings, self._bench.task)

    @cached_property
    def _sampled(self) -> dict[str, Triples]:
        """Triples of every desideratum of the task, on the same base prompts."""
        names = list(dict.fromkeys(wanted for _, wanted in self.all if not wanted.endswith(FILE)))
        tokenizer, seed = self._subject.model.tokenizer, self._bench.settings.seed
        return {each.name: each for each in self._bench.task.triples(tokenizer, names, self._total, seed)}

    @cached_property
    def _read(self) -> dict[str, Triples]:
        files = dict.fromkeys(wanted for _, wanted in self.all if wanted.endswith(FILE))
        return {file: read_triples(file, self._subject.model.tokenizer) for file in files}

    def _triples(self, wanted: str) -> Triples:
        return self._read[wanted] if wanted.endswith(FILE) else self._sampled[wanted]

    def _runs(self, wanted: str) -> SharedRuns:
        """One for all desiderata of the task, one for each file."""
        which = wanted if wanted.endswith(FILE) else ""
        if which not in self._shared:
            groups = self._circuit.groups
            self._shared[which] = SharedRuns(
                self._subject.model,
                {name: groups[name] for name in groups if not which or wanted in self._wanted(name)},
                self._triples(wanted).base,
                n_random=self._settings.random_groups,
                seed=self._bench.settings.seed,
                executor=self._bench.settings.executor,
                memory_gb=self._settings.memory_gb,
                asked=self._asked,
                progress=lambda done, total: self._bench.monitor(f"base prompts in {self.model}", done, total),
            )
        return self._shared[which]

    @property
    def _asked(self) -> dict[str, list[str]]:
        """By desideratum, the groups tested with it in this model."""
        return {title_of(wanted): [group for group, name in self.all if name == wanted] for _, wanted in self.all}

    def _test_rows(self, wanted: str) -> Tensor:
        sizes = (self._settings.train, self._settings.validation, self._settings.test)
        return split_by_scenario(self._triples(wanted).scenarios, sizes)[2]

    def _redraw_rows(self, wanted: str) -> Tensor:
        return self._test_rows(wanted)[: self._settings.redraw.triples]

    def _redrawn_triples(self, names: Sequence[str], redraw: int) -> dict[str, Triples]:
        """Other sources for some of the test triples; alike where they were alike."""
        tokenizer, seed = self._subject.model.tokenizer, self._bench.settings.seed
        drawn = self._bench.task.triples(tokenizer, names, self._total, seed, redraw)
        rows = self._redraw_rows(names[0])
        sources = {id(each.source): each.source.select(rows) for each in drawn}
        return {each.name: replace(each.select(rows), source=sources[id(each.source)]) for each in drawn}

    def _key(self, unit: str, group: str, wanted: str, **arguments: Any) -> dict[str, Any]:
        """What a cell depends on; the groups beside it only share its runs."""
        heads, options = self._circuit.groups[group], asdict(self._options(group))
        memory = self._settings.memory_gb
        known = {"group": [heads.at, heads_entry(heads.heads)], "options": options, "kept_runs_gb": memory}
        return self._subject.stages.key(unit, self._triples(wanted), **known, **arguments)


def _heads(places: Sequence[Sequence[int]]) -> list[Head]:
    return [Head(*place) for place in places]
