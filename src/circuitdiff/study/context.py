"""What the sections of a study work with: settings, what is known of models and prompts, and records of units."""

from __future__ import annotations

import asyncio
import importlib.metadata
import platform
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Mapping
from contextvars import ContextVar
from functools import cache
from operator import itemgetter
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from circuitdiff.cache.code_digest import digest_of_computation
from circuitdiff.cache.records import Record, hashed
from circuitdiff.cache.store import FIRST_NOTICE, POLL, Store
from circuitdiff.config.settings import ModelSettings
from circuitdiff.errors import InputError
from circuitdiff.finetune.recipes import made_by
from circuitdiff.models.checks import Check, refuse_failures
from circuitdiff.models.family_registry import caution_about
from circuitdiff.prompts import Pairs
from circuitdiff.study.facts import ModelFacts, Speed, facts_of, speed_of
from circuitdiff.study.prompts import PromptsOf, PromptSource, TriplesOf
from circuitdiff.study.records import Deviation, value_of
from circuitdiff.study.settings import CommonSettings, plans_of, task_of
from circuitdiff.study.units import Unit, contents
from circuitdiff.study.workers import Monitor, Place, Rank, WorkerLost, Workers
from circuitdiff.triples import Triples

T = TypeVar("T")
Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)

_MOST_LOSSES = 3  # workers that one unit may cost

current_rank: ContextVar[Rank] = ContextVar("rank", default=())  # of what runs now, in the study's order


class StudyContext:
    """Sections ask it for records, at the same time where they do not need one another's.

    What they compute beyond that, statistics above all, runs in this process.
    """

    def __init__(self, settings: CommonSettings, store: Store, workers: Workers, monitor: Monitor) -> None:
        self.settings, self.store, self.monitor = settings, store, monitor
        self.task, self.plans = task_of(settings), plans_of(settings)
        self.base, *self.variants = settings.models
        self._workers = workers
        self._once: dict[Hashable, asyncio.Future[Any]] = {}
        self._running: dict[str, asyncio.Future[Record]] = {}  # by key
        self._prompts: dict[str, PromptSource] = {}
        self._checks: list[tuple[Rank, Check]] = []
        self._warnings: list[tuple[Rank, str]] = []

    # What sections run

    async def part(self, section: Any) -> Any:
        """A section's part of the results; None if the study leaves it out."""
        return await self.once(_part, section)

    async def each(self, items: Iterable[Item], work: Callable[[Item], Awaitable[T]]) -> list[T]:
        """`work` on every item, at the same time; in the order of the items, which is that of their units, too."""
        above = current_rank.get()

        async def ranked(i: int, item: Item) -> T:
            current_rank.set((*above, i))
            return await work(item)

        tasks = [asyncio.ensure_future(ranked(i, item)) for i, item in enumerate(items)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def by_item(self, items: Iterable[Key], work: Callable[[Key], Awaitable[T]]) -> dict[Key, T]:
        """What `each` gives, by item."""
        items = list(items)
        return dict(zip(items, await self.each(items, work), strict=True))

    def once(
        self, work: Callable[..., Coroutine[Any, Any, T]], *arguments: Hashable, rank: Rank | None = None
    ) -> asyncio.Future[T]:
        """`work(self, *arguments)`, the same for all who ask for it.

        `rank`: its place in the study's order, whoever asks first; the sections' are (0,), (1,), ...
        """

        async def ranked() -> T:
            current_rank.set(current_rank.get() if rank is None else rank)
            return await work(self, *arguments)

        key = (work, *arguments)
        if key not in self._once:
            self._once[key] = asyncio.ensure_future(ranked())
        return self._once[key]

    async def value(self, title: str, run: Callable[..., T], /, *models: str, **arguments: Any) -> T:
        """What the unit of these returns: from its record in the run folder if it is there, else a worker runs it."""
        return value_of(await self.record(Unit(title, run, models, arguments)))

    async def record(self, unit: Unit) -> Record:
        key = await self.key(unit)
        if key not in self._running:
            self._running[key] = asyncio.ensure_future(self._record(unit, key))
        return await self._running[key]

    async def check_executors(
        self, title: str, detail: str, run: Callable[..., Deviation], /, *models: str, **arguments: Any
    ) -> None:
        """Check 3, of the first model: what a unit measured against what it allows. Raises: CheckError."""
        measured = await self.value(f"check of {title}", run, *models, **arguments)
        self.add_checks([checked("window executor vs full executor", models[0], *measured, detail)])

    def add_checks(self, checks: Iterable[Check]) -> None:
        """Puts checks into the results. Raises: CheckError if one failed."""
        checks = list(checks)
        self._checks += [(current_rank.get(), check) for check in checks]
        refuse_failures(checks)

    def warn(self, text: str) -> None:
        """Something that the reader must know before the numbers."""
        self._warnings.append((current_rank.get(), text))

    def close(self) -> None:
        """Looks at what failed beside the first failure, which was raised; asyncio complains otherwise."""
        for task in (*self._once.values(), *self._running.values()):
            if task.done() and not task.cancelled():
                task.exception()

    @property
    def checks(self) -> list[Check]:
        """In the study's order, whatever was finished first."""
        return [check for _, check in sorted(self._checks, key=itemgetter(0))]

    @property
    def warnings(self) -> list[str]:
        return list(dict.fromkeys(text for _, text in sorted(self._warnings, key=itemgetter(0))))

    # What is known of models and prompts

    async def facts(self, name: str) -> ModelFacts:
        """Of a model of the study, which a worker loads for it."""
        return await self.once(_facts, name, rank=(-2, [*self.settings.models].index(name)))

    async def speed(self) -> Speed:
        """Of the base, on a worker's machine."""
        return await self.ask(speed_of, self.base)

    async def pairs(self, model: str, of: PromptsOf) -> Pairs:
        """In the model's tokens."""
        return (await self.prompts_of(model)).pairs(of)

    async def triples(self, model: str, of: TriplesOf) -> Triples:
        return (await self.prompts_of(model)).triples(of)

    async def key(self, unit: Unit) -> str:
        """The hash of all that a unit's record depends on, by content."""
        settings = self.settings
        return hashed(
            {
                "contents": await self._contents(unit),
                "versions": dict(versions()),
                "needs": {name: await self.key(needed) for name, needed in unit.needs.items()},
                "dtype": settings.dtype,
                "device": torch.device(settings.device[0]).type,
                "executor": settings.executor,
                "memory_gb": settings.memory_gb,
            }
        )

    async def _contents(self, unit: Unit) -> list[str]:
        fingerprints = [(await self.facts(name)).fingerprint for name in unit.models]
        return contents(unit, fingerprints, await self.prompts_of(unit.models[0]))

    async def prompts_of(self, model: str) -> PromptSource:
        """The study's prompts in the model's tokens."""
        if model not in self._prompts:
            self._prompts[model] = PromptSource(self.settings, model, (await self.facts(model)).tokenizer)
        return self._prompts[model]

    async def source(self, name: str) -> ModelSettings:
        """Where a model is; one of a recipe is made first."""
        return await self.once(_source, name)

    async def _sources(self, names: Iterable[str]) -> dict[str, ModelSettings]:
        """Of these models and the base, beside which a worker loads them."""
        return {name: await self.source(name) for name in {self.base, *names}}

    async def ask(self, question: Callable[..., T], name: str) -> T:
        """What a function says of the model, as a worker has loaded it; nothing that is kept."""

        async def asked(place: Place) -> T:
            return await place.worker.call("ask", question, name, await self._sources((name,)))

        return await self._on_worker((name,), asked)

    async def _record(self, unit: Unit, key: str) -> Record:
        try:
            record = self.store.read(key)
            if record is None:
                record = await self._made_or_awaited(unit, key)
            self.monitor(unit.title, 1, 1)
            return record
        finally:
            del self._running[key]

    async def _made_or_awaited(self, unit: Unit, key: str) -> Record:
        """By a worker, unless another process that fills the same folder makes it, or has made it, meanwhile."""
        for needed in unit.needs.values():
            await self.record(needed)
        begin, notice = time.monotonic(), FIRST_NOTICE
        while (record := await self._on_worker(unit.models, lambda place: self._made(place, unit, key))) is None:
            await asyncio.sleep(POLL)
            notice = self.store.told_of_waiting(unit.title, time.monotonic() - begin, notice)
        return record

    async def _made(self, place: Place, unit: Unit, key: str) -> Record | None:
        """None if another process is at it."""
        with self.store.locked(key) as ours:
            if not ours:
                return None
            record = self.store.read(key, self.store.notify)  # somebody was faster
            return self.store.keep(key, await self._computed(place, unit)) if record is None else record

    async def _computed(self, place: Place, unit: Unit) -> bytes:
        self.monitor(unit.title, 0, 1)
        begin = time.perf_counter()
        needs = {argument: await self.key(needed) for argument, needed in unit.needs.items()}
        if not set(needs.values()) <= set(place.given):
            for key in needs.values():
                await place.worker.call("give", key, self.store.content(key))
                place.gets(key)
        expected = await self._contents(unit)
        content = await place.worker.call("run", unit, await self._sources(unit.models), needs, expected)
        self.store.log(unit.title, time.perf_counter() - begin)
        return content

    async def _on_worker(self, models: tuple[str, ...], work: Callable[[Place], Awaitable[T]]) -> T:
        for loss in range(_MOST_LOSSES):
            async with self._workers.free(models, current_rank.get()) as place:
                try:
                    return await work(place)
                except WorkerLost as error:
                    place.forget()
                    self.store.notify(f"{error}; what it was at is computed again")
                    if loss == _MOST_LOSSES - 1:
                        raise InputError(
                            f"{_MOST_LOSSES} workers died at the same work ({error}); give fewer --workers, or a "
                            f"smaller memory_gb"
                        ) from error
        raise AssertionError  # the last loss raises


async def _part(study: StudyContext, section: Any) -> Any:
    options = getattr(study.settings, section.name, None)
    return None if options is False else await section.run(study, options)


async def _facts(study: StudyContext, name: str) -> ModelFacts:
    facts = await study.ask(facts_of, name)
    study.add_checks(facts.checks)
    if caution := caution_about((await study.source(name)).source):
        study.warn(caution)
    return facts


async def _source(study: StudyContext, name: str) -> ModelSettings:
    model = study.settings.models[name]
    if model.recipe is None:
        return model
    source, adapters = made_by(model.recipe, study.monitor)
    return ModelSettings(source=source, adapters=adapters)


def checked(name: str, model: str, value: float, allowed: float, detail: str) -> Check:
    return Check(name, model, value, allowed, value <= allowed, detail)


@cache
def versions() -> Mapping[str, str]:
    """What computes our numbers: packages, and our own code by what is in it."""
    packages = ("circuitdiff", "torch", "transformers", "peft", "numpy", "scipy")
    of_packages = {name: importlib.metadata.version(name) for name in packages}
    return MappingProxyType({"python": platform.python_version(), **of_packages, "code": digest_of_computation()})
