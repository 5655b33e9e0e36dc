"""Scenarios of a template task, drawn: which words fill the fields, what is asked, and which split that belongs to.

Every draw has a generator of its own name, so that a prompt depends on neither how many follow nor what is asked of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from circuitdiff.errors import InputError, choices
from circuitdiff.tasks.changes import Change, ChangeRule, draw_changes

SPLITS = ("train", "discovery", "replication", "mask", "evaluation")
MOST_DRAWS = 2000  # one in five hits its split; 0.8 ** 2000 is nothing, so failing means that none is left
_MOST_PROMPTS = 1_000_000  # hours to draw; more is a slip of the pen


@dataclass(frozen=True)
class Scenario:
    """The words of a prompt: of each item by field, of the single fields, and of things that changes put in."""

    wording: int
    items: tuple[tuple[str, ...], ...]  # [field][item]
    draws: tuple[str, ...]  # [single field]
    things: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()

    @property
    def words(self) -> list[str]:
        """What decides the split: the items' words in any order, or the single words where nothing is listed."""
        return [word for words in self.items for word in sorted(words)] if self.items else list(self.draws)

    @property
    def unordered(self) -> tuple[object, ...]:
        """The same for scenarios that only list their items in another order."""
        return (self.wording, frozenset(zip(*self.items, strict=True)), self.draws, self.changes)


@dataclass(frozen=True)
class Question:
    """A scenario, and which of its items is asked for."""

    scenario: Scenario
    asked: int  # the item; where `given` is a word of no item, the one that stands in
    other: int  # a wrong item, for controls
    given: str | None = None  # in place of the word that names the item asked for: a word that no item has


@dataclass(frozen=True)
class Pools:
    """The words to draw from: of each field of the items, and of each single field, with the fields' names.

    Fields of the same category get different words; `categories` names them, items' first.
    """

    n_items: int
    item_fields: tuple[str, ...]
    single_fields: tuple[str, ...]
    categories: tuple[str, ...]
    items: tuple[tuple[str, ...], ...]
    draws: tuple[tuple[str, ...], ...]
    n_wordings: int = 1
    changes: ChangeRule | None = None

    def without(self, scenario: Scenario) -> Pools:
        """The same without the words of a scenario."""
        used = {word for words in scenario.items for word in words} | {*scenario.draws, *scenario.things}
        left = [tuple(word for word in pool if word not in used) for pool in (*self.items, *self.draws)]
        return replace(self, items=tuple(left[: len(self.items)]), draws=tuple(left[len(self.items) :]))


def split_of(words: Sequence[str]) -> str:
    """The one split to which these words in this order belong; each gets about a fifth of all combinations."""
    digest = hashlib.sha256(",".join(words).encode()).digest()
    return SPLITS[int.from_bytes(digest[:8], "big") % len(SPLITS)]


def generator(*key: object) -> Random:
    """A random generator of its own for `key`: the same in every process, unlike Python's `hash`."""
    return Random("/".join(map(str, key)))


def check_options(n_prompts: int, split: str, n_queries: int, most_queries: int) -> None:
    """Raises: InputError if what a task's `sample` is asked for does not exist."""
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}{choices(split, SPLITS)}")
    if not 1 <= n_prompts <= _MOST_PROMPTS:
        raise InputError(f"n_prompts must be from 1 to {_MOST_PROMPTS:,}; got {n_prompts}")
    if not 1 <= n_queries <= most_queries:
        raise InputError(f"queries_per_scenario must be from 1 to {most_queries}; got {n_queries}")


def draw_questions(key: Sequence[object], split: str, pools: Pools, n_queries: int) -> Iterator[list[Question]]:
    """The questions of one scenario after another, without end; each item is asked for equally often."""
    scenarios = distinct_scenarios(key, split, pools)
    n = max(1, pools.n_items)
    asked = balanced(generator(*key, "queries"), n, n_queries)
    others = generator(*key, "others")
    changing = generator(*key, "changes")
    for scenario, items in zip(scenarios, asked, strict=False):
        if pools.changes is not None:
            scenario = _changed(changing, scenario, pools, items)
        yield [Question(scenario, i, other_item(others, i, n)) for i in items]


def distinct_scenarios(key: Sequence[object], split: str, pools: Pools) -> Iterator[Scenario]:
    """Scenarios of `split`, none of them twice, not even in another order.

    Raises: InputError if there are no more.
    """
    several = pools.n_wordings > 1
    random, seen = generator(*key, "scenes" if several else "contexts"), set[tuple[object, ...]]()
    for (wording,) in balanced(random, pools.n_wordings, 1) if several else _zeros():
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
        items = _draw_items(random, pools)
        if items:
            if split_of(Scenario(wording, items, ()).words) == split:
                return Scenario(wording, items, _draw_singles(random, pools, items))
        else:
            scenario = Scenario(wording, (), _draw_singles(random, pools, ()))
            if split_of(scenario.words) == split:
                return scenario
    sizes = ", ".join(
        f"{len(pool)} {name}" for pool, name in zip((*pools.items, *pools.draws), pools.categories, strict=True)
    )
    fewer = f"; {pools.n_items} items are listed" if pools.n_items else ""
    raise InputError(
        f"{sizes} leave no combination to split {split!r}{fewer}: give the task more words, or fewer items"
    )


def balanced(random: Random, n: int, n_together: int) -> Iterator[tuple[int, ...]]:
    """Numbers below `n`, `n_together` different ones at a time; each once in every block of `n`."""
    waiting: list[int] = []
    while True:
        chosen = waiting[:n_together]
        if len(chosen) < n_together:
            refill = random.sample(range(n), n)
            waiting = chosen + sorted(refill, key=lambda i: i in chosen)
            chosen = waiting[:n_together]
        waiting = waiting[n_together:]
        yield tuple(chosen)


def other_item(random: Random, item: int, n_items: int) -> int:
    """Another item; the same where there is one only."""
    return (item + random.randrange(1, n_items)) % n_items if n_items > 1 else item


def _zeros() -> Iterator[tuple[int, ...]]:
    while True:
        yield (0,)


def draw_again(random: Random, fields: Sequence[str], clean: Scenario, fresh: Pools) -> Scenario:
    """The scenario with other words in some fields, of any split."""
    items = _draw_items(random, fresh, clean.items, fields)
    things = clean.things
    if fresh.changes is not None and things and fresh.item_fields[fresh.changes.holds] in fields:
        things = _draw_things(random, fresh, items, len(things))
    return replace(clean, items=items, draws=_draw_singles(random, fresh, items, clean.draws, fields), things=things)


def _draw_items(
    random: Random, pools: Pools, kept: Sequence[tuple[str, ...]] = (), fields: Sequence[str] | None = None
) -> tuple[tuple[str, ...], ...]:
    """Words of each field of the items; of those that are not among `fields`, the words that are kept."""
    drawn: list[tuple[str, ...]] = []
    for i, pool in enumerate(pools.items):
        if fields is not None and pools.item_fields[i] not in fields:
            drawn.append(kept[i])
            continue
        left = _unused(pools, i, pool, drawn)
        if len(left) < pools.n_items:
            raise InputError(
                f"{len(left)} {pools.categories[i]} are too few for {pools.n_items} items: give more words"
            )
        drawn.append(tuple(random.sample(left, pools.n_items)))
    return tuple(drawn)


def _draw_singles(
    random: Random,
    pools: Pools,
    items: Sequence[tuple[str, ...]],
    kept: Sequence[str] = (),
    fields: Sequence[str] | None = None,
) -> tuple[str, ...]:
    drawn = list(items)
    for i, pool in enumerate(pools.draws):
        if fields is not None and pools.single_fields[i] not in fields:
            drawn.append((kept[i],))
            continue
        left = _unused(pools, len(items) + i, pool, drawn)
        if not left:
            raise InputError(f"no {pools.categories[len(items) + i]} are left to draw: give the task more words")
        drawn.append((random.choice(left),))
    return tuple(word for (word,) in drawn[len(items) :])


def _unused(pools: Pools, i: int, pool: tuple[str, ...], drawn: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The words of field `i` that no field of the same category has yet."""
    used = {word for k, words in enumerate(drawn) if pools.categories[k] == pools.categories[i] for word in words}
    return tuple(word for word in pool if word not in used) if used else pool


def _changed(random: Random, scenario: Scenario, pools: Pools, asked: Sequence[int]) -> Scenario:
    """The scenario with changes after which each item asked for holds one thing."""
    assert pools.changes is not None
    changes = draw_changes(random, pools.changes, pools.n_items, asked)
    n_new = sum(change.kind == "put" for change in changes)
    return replace(scenario, changes=changes, things=_draw_things(random, pools, scenario.items, n_new))


def _draw_things(random: Random, pools: Pools, items: Sequence[tuple[str, ...]], n: int) -> tuple[str, ...]:
    """Things to put in: words that no item holds at first."""
    assert pools.changes is not None
    holds = pools.changes.holds
    left = [word for word in pools.items[holds] if word not in items[holds]]
    if len(left) < n:
        raise InputError(f"{len(left)} {pools.categories[holds]} are left to put in; {n} are needed: give more words")
    return tuple(random.sample(left, n))
