"""What every section of a study works with: the settings, the run folder, the models and their prompts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from circuitdiff import results as form
from circuitdiff.cache.store import Store
from circuitdiff.engine import Model
from circuitdiff.evaluation import Means
from circuitdiff.finetune.recipes import made_by
from circuitdiff.models import load_model
from circuitdiff.models.checks import Check, refuse_failures
from circuitdiff.models.family_registry import caution_about
from circuitdiff.prompts import Pairs
from circuitdiff.settings import StudySettings
from circuitdiff.stages import Monitor, Stages
from circuitdiff.tasks import get_task

_MODELS_AT_ONCE = 2


@dataclass(frozen=True)
class Splits:
    """Prompts for each purpose; no two share a scenario."""

    discovery: Pairs
    replication: Pairs
    evaluation: Pairs
    means: Pairs


@dataclass(frozen=True)
class Subject:
    """A model with its prompts and what is computed on it."""

    model: Model
    splits: Splits
    stages: Stages

    @cached_property
    def means(self) -> Mapping[str, Means]:
        """Means by slot and by kind, over the study's prompts for means."""
        return self.stages.means(self.splits.means)


def sample_splits(settings: StudySettings, model: Model) -> Splits:
    """The study's prompts in this model's tokens."""
    task, wanted = get_task(settings.task.name, **settings.task.options), settings.prompts

    def sample(split: str, n_prompts: int, counterfactual: str) -> Pairs:
        return task.sample(
            model.tokenizer,
            n_prompts,
            settings.seed,
            split,
            wanted.queries_per_scenario,
            counterfactual=counterfactual,
        )

    return Splits(
        discovery=sample("discovery", wanted.discovery, wanted.counterfactual),
        replication=sample("replication", wanted.replication, wanted.counterfactual),
        evaluation=sample("evaluation", wanted.evaluation, wanted.counterfactual),
        means=sample("mask", wanted.means, "unrelated"),
    )


class Workbench:
    """Hands sections a model when they need it, and gathers their results. At most two models are in memory."""

    def __init__(self, settings: StudySettings, store: Store, monitor: Monitor) -> None:
        self.settings, self.store, self.monitor = settings, store, monitor
        self.task = get_task(settings.task.name, **settings.task.options)
        self.results: dict[str, Any] = form.header(settings)
        self._loaded: OrderedDict[str, Subject] = OrderedDict()
        self._splits: dict[str, Splits] = {}

    @property
    def base(self) -> str:
        """The base's name."""
        return next(iter(self.settings.models))

    @property
    def variants(self) -> list[str]:
        """The variants' names."""
        return list(self.settings.models)[1:]

    def subject(self, name: str) -> Subject:
        """The study's model of that name, loaded (which runs the checks at load) unless it still is."""
        if name not in self._loaded:
            while len(self._loaded) >= _MODELS_AT_ONCE:
                self._loaded.popitem(last=False)
            self._loaded[name] = self._load(name)
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def _load(self, name: str) -> Subject:
        wanted = self.settings.models[name]
        source, adapters = wanted.source, wanted.adapters
        if wanted.recipe is not None:
            source, adapters = made_by(wanted.recipe, self.monitor)
        self.monitor(f"load {name}", 0, 1)
        known = [subject.model for subject in self._loaded.values()]
        model = load_model(
            source,
            adapters,
            self.settings.dtype,
            self.settings.device,
            name=name,
            tokenizer=wanted.tokenizer,
            like=known,
        )
        self.monitor(f"load {name}", 1, 1)
        if name not in self.results["models"]:
            self.results["checks"] += model.provenance["checks"]
            self.results["models"][name] = form.model_entry(model, source, adapters)
            if caution := caution_about(source):
                self.warn(caution)
        if name not in self._splits:
            self._splits[name] = sample_splits(self.settings, model)
        splits = self._splits[name]
        return Subject(
            model, splits, Stages(self.settings, self.store, self.monitor, model, splits.means.fingerprint())
        )

    def keep(self, checks: Sequence[Check]) -> None:
        """Puts checks into the results; a failed one ends the study.

        Raises: CheckError.
        """
        self.results["checks"] += [check.to_dict() for check in checks]
        refuse_failures(list(checks))

    def warn(self, text: str) -> None:
        """Something that the reader must know before the numbers."""
        if text not in self.results["warnings"]:
            self.results["warnings"].append(text)

    def add(self, sections: dict[str, Any]) -> None:
        """Joins a section's results to the others'."""
        self.results = form.merged(self.results, sections)
