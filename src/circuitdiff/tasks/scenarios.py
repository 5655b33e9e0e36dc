"""Scenarios of a template task, drawn: which words fill the fields, what is asked, and which split that belongs to.

Every draw has a generator of its own name, so that a prompt depends on neither how many follow nor what is asked of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from random import Random

from circuitdiff.errors import InputError
from circuitdiff.tasks.changes import Change, draw_changes
from circuitdiff.tasks.template_file import Changes

SPLITS = ("train", "discovery", "replication", "mask", "evaluation")
MOST_DRAWS = 2000  # one in five hits its split; 0.8 ** 2000 is nothing, so failing means that none is left


@dataclass(frozen=True)
class Scenario:
    """The words of a prompt: of each item by field, of the single fields, and of things that changes put in."""

    wording: int
    items: Mapping[str, tuple[str, ...]]  # field -> the word of each item
    draws: Mapping[str, str]  # single field -> its word
    things: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()

    @property
    def words(self) -> list[str]:
        """What decides the split: the items' words in any order, or the single words where nothing is listed."""
        return [word for words in self.items.values() for word in sorted(words)] or list(self.draws.values())

    @property
    def unordered(self) -> tuple[object, ...]:
        """The same for scenarios that only list their items in another order."""
        items = frozenset(zip(*self.items.values(), strict=True))
        return (self.wording, items, tuple(self.draws.values()), self.changes)


@dataclass(frozen=True)
class Question:
    """A scenario, and which of its items is asked for."""

    scenario: Scenario
    asked: int  # the item; where `given` is a word of no item, the one that stands in
    other: int  # a wrong item, for controls
    given: str | None = None  # in place of the word that names the item asked for: a word that no item has


@dataclass(frozen=True)
class Pools:
    """The words to draw from, by field: of the items, and of the single fields.

    Fields of the same category get different words.
    """

    n_items: int
    items: Mapping[str, tuple[str, ...]]
    draws: Mapping[str, tuple[str, ...]]
    categories: Mapping[str, str]  # of every field
    n_wordings: int = 1
    changes: Changes | None = None

    def without(self, scenario: Scenario) -> Pools:
        """The same without the words of a scenario."""
        used = {*chain.from_iterable(scenario.items.values()), *scenario.draws.values(), *scenario.things}
        return replace(self, items=_without(self.items, used), draws=_without(self.draws, used))


def _without(pools: Mapping[str, tuple[str, ...]], used: Container[str]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(word for word in pool if word not in used) for name, pool in pools.items()}


def split_of(words: Sequence[str]) -> str:
    """The one split to which these words in this order belong; each gets about a fifth of all combinations."""
    digest = hashlib.sha256(",".join(words).encode()).digest()
    return SPLITS[int.from_bytes(digest[:8], "big") % len(SPLITS)]


def generator(*key: object) -> Random:
    """A random generator of its own for `key`: the same in every process, unlike Python's `hash`."""
    return Random("/".join(map(str, key)))


def draw_questions(key: Sequence[object], split: str, pools: Pools, n_queries: int) -> Iterator[list[Question]]:
    """The questions of one scenario after another, without end; each item is asked for equally often."""
    n = max(1, pools.n_items)
    asked = balanced(generator(*key, "queries"), n, n_queries)
    others, changing = generator(*key, "others"), generator(*key, "changes")
    for scenario, items in zip(distinct_scenarios(key, split, pools), asked, strict=False):
        if pools.changes is not None:
            changes = draw_changes(changing, pools.changes, n, items)
            n_new = sum(change.kind == "put" for change in changes)
            things = _draw_things(changing, pools.changes, pools, scenario.items, n_new)
            scenario = replace(scenario, changes=changes, things=things)
        yield [Question(scenario, i, other_item(others, i, n)) for i in items]


def distinct_scenarios(key: Sequence[object], split: str, pools: Pools) -> Iterator[Scenario]:
    """Scenarios of `split`, none of them twice, not even in another order.

    Raises: InputError if there are no more.
    """
    several = pools.n_wordings > 1
    random, seen = generator(*key, "scenes" if several else "contexts"), set[tuple[object, ...]]()
    for (wording,) in balanced(random, pools.n_wordings, 1) if several else repeat((0,)):
        fresh = (draw_scenario(random, split, pools, wording) for _ in range(MOST_DRAWS))
        scenario = next((s for s in fresh if s.unordered not in seen), None)
        if scenario is None:
            raise InputError(f"split {split!r} has only some {len(seen)} scenarios: ask for fewer prompts")
        seen.add(scenario.unordered)
        yield scenario


def draw_scenario(random: Random, split: str, pools: Pools, wording: int) -> Scenario:
    """A scenario of `split`, all such scenarios equally likely.

    Raises: InputError if the words are too few to have one.
    """
    for _ in range(MOST_DRAWS):
        items = _draw_items(random, pools, {})
        singles = {} if items else _draw_singles(random, pools, items, {})
        if split_of(Scenario(wording, items, singles).words) == split:
            return Scenario(wording, items, singles or _draw_singles(random, pools, items, {}))
    sizes = ", ".join(f"{len(pool)} {pools.categories[name]}" for name, pool in {**pools.items, **pools.draws}.items())
    fewer = f"; {pools.n_items} items are listed" if pools.n_items else ""
    raise InputError(
        f"{sizes} leave no combination to split {split!r}{fewer}: give the task more words, or fewer items"
    )


def balanced(random: Random, n: int, n_together: int) -> Iterator[tuple[int, ...]]:
    """Numbers below `n`, `n_together` different ones at a time; each once in every block of `n`."""
    waiting: list[int] = []
    while True:
        if len(waiting) < n_together:
            waiting += sorted(random.sample(range(n), n), key=waiting.__contains__)
        yield tuple(waiting[:n_together])
        waiting = waiting[n_together:]


def other_item(random: Random, item: int, n_items: int) -> int:
    """Another item; the same where there is one only."""
    return (item + random.randrange(1, n_items)) % n_items if n_items > 1 else item


def draw_again(random: Random, fields: Sequence[str], clean: Scenario, fresh: Pools) -> Scenario:
    """The scenario with other words in some fields, of any split; `fresh` has none of the words that stay."""
    items = _draw_items(random, fresh, {name: words for name, words in clean.items.items() if name not in fields})
    things, changes = clean.things, fresh.changes
    if changes is not None and things and changes.holds in fields:
        things = _draw_things(random, changes, fresh, items, len(things))
    kept = {name: word for name, word in clean.draws.items() if name not in fields}
    return replace(clean, items=items, draws=_draw_singles(random, fresh, items, kept), things=things)


def _draw_items(random: Random, pools: Pools, kept: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    drawn = _draw_words(random, pools, pools.items, pools.n_items, kept)
    return {name: drawn[name] for name in pools.items}


def _draw_singles(
    random: Random, pools: Pools, items: Mapping[str, tuple[str, ...]], kept: Mapping[str, str]
) -> dict[str, str]:
    drawn = _draw_words(random, pools, pools.draws, 1, {**items, **{name: (word,) for name, word in kept.items()}})
    return {name: drawn[name][0] for name in pools.draws}


def _draw_words(
    random: Random, pools: Pools, fields: Mapping[str, tuple[str, ...]], n: int, kept: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """The words kept, and `n` for each other field: such as no field of its category has yet."""
    drawn, categories = dict(kept), pools.categories
    for name, pool in fields.items():
        if name in drawn:
            continue
        used = {word for field, words in drawn.items() if categories[field] == categories[name] for word in words}
        left = [word for word in pool if word not in used]
        if len(left) < n and n == 1:
            raise InputError(f"no {categories[name]} are left to draw: give the task more words")
        if len(left) < n:
            raise InputError(f"{len(left)} {categories[name]} are too few for {n} items: give more words")
        drawn[name] = tuple(random.sample(left, n))
    return drawn


def _draw_things(
    random: Random, changes: Changes, pools: Pools, items: Mapping[str, tuple[str, ...]], n: int
) -> tuple[str, ...]:
    """Things to put in: words that no item holds at first."""
    left = [word for word in pools.items[changes.holds] if word not in items[changes.holds]]
    if len(left) < n:
        category = pools.categories[changes.holds]
        raise InputError(f"{len(left)} {category} are left to put in; {n} are needed: give more words")
    return tuple(random.sample(left, n))
