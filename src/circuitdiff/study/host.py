"""What a worker holds in memory: at most two models, each with its prompts and what units on it have in common."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import TypedDict, TypeVar

from circuitdiff.cache.records import packed, unpacked
from circuitdiff.config.settings import ModelSettings
from circuitdiff.engine import Model
from circuitdiff.engine.kept_runs import PairRuns
from circuitdiff.errors import InputError
from circuitdiff.evaluation import By, Means, Shared
from circuitdiff.models import load_model
from circuitdiff.prompts import Pairs
from circuitdiff.study.kept import Kept
from circuitdiff.study.prompts import PromptsOf, PromptSource, TriplesOf
from circuitdiff.study.records import record_of, value_of
from circuitdiff.study.settings import CommonSettings
from circuitdiff.study.units import Needed, Unit, contents
from circuitdiff.triples import Triples

MODELS_AT_ONCE = 2
RECORDS_AT_ONCE = 4  # that units need; the larger ones are means
_KEPT = 2  # things of one kind, that units on a model have in common

T = TypeVar("T")
Progress = Callable[[int, int], None]  # done, of how many


class How(TypedDict):
    executor: str
    memory_gb: float
    progress: Progress


class LoadedModel:
    """A model with the study's prompts in its tokens. Units share `shared` and `cached`, which change no number."""

    def __init__(
        self,
        model: Model,
        settings: CommonSettings,
        progress: Progress,
        kept: Kept | None = None,
        name: str = "",
        load_seconds: float = 0.0,
    ) -> None:
        self.model, self.progress, self.load_seconds = model, progress, load_seconds
        self.executor, self.memory_gb = settings.executor, settings.memory_gb
        self.prompts = PromptSource(settings, name or settings.base.name, model.tokenizer)
        self._name, self._kept = name, kept or Kept(settings.memory_gb)

    @property
    def how(self) -> How:
        """How methods are to run it, as their arguments."""
        return {"executor": self.executor, "memory_gb": self.memory_gb, "progress": self.progress}

    @property
    def shared(self) -> Shared:
        """Of evaluations of circuits."""
        return self.cached("constants", None, Shared)

    def pairs(self, of: PromptsOf) -> Pairs:
        return self.prompts.pairs(of)

    def triples(self, of: TriplesOf) -> Triples:
        return self.prompts.triples(of)

    def means(self, needed: Needed, by: By) -> Means:
        """Means by slot or kind, of the unit of `common_units.means_of`, on the model's device."""

        def on_device() -> Means:
            means: Means = needed.value[by]
            return replace(means, values=means.values.to(self.model.device))

        return self.cached("means", (needed.key, by), on_device, n_kept=4)

    def pair_runs(self, of: PromptsOf, roles: tuple[str, ...]) -> PairRuns:
        """Clean and counterfactual runs that sweeps at these roles have in common."""
        return self.cached(
            "pair runs", (of, roles), lambda: PairRuns(self.model, self.pairs(of), roles, self.memory_gb)
        )

    def cached(self, kind: str, key: Hashable, make: Callable[[], T], n_kept: int = _KEPT) -> T:
        """What units on this model share, such as clean runs on the same prompts: the latest of each kind.

        See `Kept`, which holds what units on all models of this process share.
        """
        return self._kept.get(self._name, kind, key, make, n_kept=n_kept)


class Host:
    """Carries units out, one after the other. `monitor` is told what is done (title, done, of how many)."""

    def __init__(self, settings: CommonSettings, device: str, monitor: Callable[[str, int, int], None]) -> None:
        self._settings, self._device, self._monitor = settings, device, monitor
        self._loaded: OrderedDict[str, LoadedModel] = OrderedDict()
        self._kept = Kept(settings.memory_gb)
        self._needed: OrderedDict[str, Needed] = OrderedDict()
        self._title = ""

    def give(self, key: str, content: bytes) -> None:
        """A record that units will need; the latest few are held."""
        if key not in self._needed:
            while len(self._needed) >= RECORDS_AT_ONCE:
                self._needed.popitem(last=False)
            self._needed[key] = Needed(key, value_of(unpacked(content)))
        self._needed.move_to_end(key)

    def run(
        self, unit: Unit, sources: Mapping[str, ModelSettings], needs: Mapping[str, str], expected: Sequence[str]
    ) -> bytes:
        """The unit's record, packed. `sources`: where its models and the base come from; `needs`: keys of records given
        before; `expected`: what the unit's key was made of (`contents`).

        Raises: InputError if a model, a file or our own code is another here than where the key was made.
        """
        models = [self.loaded(name, sources) for name in unit.models]
        self._title = unit.title
        if contents(unit, [each.model.provenance["fingerprint"] for each in models], models[0].prompts) != expected:
            raise InputError(
                f"what {unit.title!r} depends on has changed since the study began (a model's weights, a file of "
                f"triples, or circuitdiff's code on another machine): run the study again"
            )
        needed = {argument: self._needed[key] for argument, key in needs.items()}
        value = unit.run(*models, **{**unit.arguments, **needed})
        self._kept.trim()
        return packed(record_of(value), unit.title)

    def ask(self, question: Callable[[LoadedModel], T], name: str, sources: Mapping[str, ModelSettings]) -> T:
        """What a function of a module says of a model: nothing that is kept."""
        return question(self.loaded(name, sources))

    def loaded(self, name: str, sources: Mapping[str, ModelSettings]) -> LoadedModel:
        """The study's model of that name, loaded (which runs the checks at load) unless it still is.

        A variant is loaded beside the base, with which it shares what its adapters leave alone: so its checks are the
        same in every worker.
        """
        if name not in self._loaded:
            base = self._settings.base.name
            like = [] if name == base else [self.loaded(base, sources).model]
            while len(self._loaded) >= MODELS_AT_ONCE:
                dropped, _ = self._loaded.popitem(last=False)
                self._kept.forget(dropped)
            self._loaded[name] = self._load(name, sources[name], like)
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def _load(self, name: str, source: ModelSettings, like: Sequence[Model]) -> LoadedModel:
        self._monitor(f"load {name}", 0, 1)
        begin, dtype, device = perf_counter(), self._settings.dtype, self._device
        model = load_model(
            source.source, source.adapters, dtype, device, name=name, tokenizer=source.tokenizer, like=like
        )
        seconds = perf_counter() - begin
        self._monitor(f"load {name}", 1, 1)

        def progress(done: int, total: int) -> None:
            self._monitor(self._title, done, total)

        return LoadedModel(model, self._settings, progress, self._kept, name, seconds)
