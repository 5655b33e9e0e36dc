"""What moved between two runs: their results.json compared number by number, without a model.

A number with an interval has moved if neither run's value lies in the other's interval. Numbers without an interval are
not compared: nothing says how far they would move by themselves. One that is undefined in one of the runs is named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from fnmatch import fnmatchcase
from typing import Any

from circuitdiff.circuit import Head
from circuitdiff.config.validation import validated
from circuitdiff.errors import InputError, nearest
from circuitdiff.study.estimates import Number
from circuitdiff.study.gains import Credit
from circuitdiff.study.registry import SECTIONS, CommonResults, part_of, results_bytes
from circuitdiff.study.sections import cross_model, discovery, graft, verdict
from circuitdiff.study.sections.discovery import Sweep

Path = tuple[str, ...]
Table = tuple[str, tuple[str, ...], Sequence[tuple[str, ...]]]  # title, columns, rows

# The fields that tell rows of a list apart.
_NAMES = ("name", "mean_by", "parts", "query", "key", "head", "layer", "queried", "kind", "stage", "measure")
_NAMES += ("k", "group", "desideratum", "sender", "receiver", "via", "role", "penalty", "seed")
_NAMES_IF_TEXT = ("kept", "base", "variant")  # which heads, or groups, a row is of; elsewhere they are no names
_BOUNDED = ("value", "cost", "accuracy")  # what stands between "low" and "high"
_DRAWN = "random"  # parts of a circuit, which are others in every circuit


@dataclass(frozen=True)
class Bounds:
    """A number with its interval."""

    value: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """A mean over random draws may lie outside the draws' percentiles; what it is itself is never a move."""
        return min(self.low, self.value) <= value <= max(self.high, self.value)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Heads:
    """A group whose heads differ."""

    circuit: str
    group: str
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    both: int


@dataclass(frozen=True)
class Changed:
    """A number, setting, version, answer or check that differs; None where a run lacks it."""

    where: str
    first: Any
    second: Any


@dataclass(frozen=True)
class RunDiff:
    """All that differs between two runs."""

    moved: tuple[Changed, ...]  # numbers, beyond their intervals; the furthest first, in units of the wider half one
    n_compared: int
    undefined: tuple[Changed, ...]  # numbers with an interval in one run and undefined in the other
    heads: tuple[Heads, ...]
    answers: tuple[Changed, ...]  # of verdicts
    checks: tuple[Changed, ...]
    settings: tuple[Changed, ...]  # and versions
    only_first: tuple[str, ...]  # sections and numbers that the other run lacks
    only_second: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def diff_tables(found: RunDiff, first: str, second: str) -> list[Table]:
    """What differs as text: title, columns and rows of each table that has a row."""
    groups = []
    for each in found.heads:
        only = (", ".join(heads) or "none" for heads in (each.only_first, each.only_second))
        groups.append((f"{each.circuit} / {each.group}", *only, str(each.both)))
    tables: list[Table] = [
        ("what moved beyond its interval", ("number", first, second), _rows(found.moved)),
        ("what is undefined in one run", ("number", first, second), _rows(found.undefined, missing="undefined")),
        ("heads", ("group", f"only {first}", f"only {second}", "in both"), groups),
        ("verdicts", ("what", first, second), _rows(found.answers)),
        ("checks", ("what", first, second), _rows(found.checks)),
        ("settings", ("what", first, second), _rows(found.settings)),
        (f"measured in {first} only", ("what",), [(where,) for where in found.only_first]),
        (f"measured in {second} only", ("what",), [(where,) for where in found.only_second]),
    ]
    return [table for table in tables if table[2]]


def _rows(changes: Sequence[Changed], missing: str = "-") -> list[tuple[str, ...]]:
    rows = [(each.where, each.first, each.second) for each in changes]
    return [tuple(missing if value is None else str(value) for value in row) for row in rows]


def paired(first: CommonResults, second: CommonResults, pairs: Sequence[str]) -> CommonResults:
    """The second run's results with models renamed, "FIRST=SECOND" each, so that they stand beside the first run's.

    Raises: InputError if a run has no such model, or a model would stand for two.
    """
    names: dict[str, str] = {}
    for pair in pairs:
        old, _, new = pair.partition("=")
        for run, name, models in (("first", old, list(first.models)), ("second", new, list(second.models))):
            if name not in models:
                raise InputError(f"--pair {pair}: the {run} run has no model {name!r}; it has {', '.join(models)}")
        names[new] = old
    after = [names.get(name, name) for name in second.models]
    if twice := next((name for name in after if after.count(name) > 1), None):
        raise InputError(f"--pair: two models of the second run would be called {twice!r}; pair each with another one")
    data = json.loads(results_bytes(second))
    data |= {key: _renamed(value, names) for key, value in data.items() if key not in ("study", "versions")}
    return validated(type(second), data, "the second run's results")


def _renamed(data: Any, names: Mapping[str, str]) -> Any:
    if isinstance(data, Mapping):
        return {_new_name(key, names): _renamed(value, names) for key, value in data.items()}
    if isinstance(data, list):
        return [_renamed(value, names) for value in data]
    return _new_name(data, names) if isinstance(data, str) else data


def _new_name(name: str, names: Mapping[str, str]) -> str:
    """A circuit of a further plan is called "MODEL (PLAN)"."""
    model, bracket, plan = name.partition(" (")
    return names.get(name) or names.get(model, model) + bracket + plan


def diff_runs(first: CommonResults, second: CommonResults) -> RunDiff:
    """Everything that differs between two runs' results, as data.

    Gains that were looked for in opposite directions are named, and not compared.
    """
    turned, in_first, in_second = _all_numbers(first, second)
    both = [Changed(_joined(path), in_first[path], in_second[path]) for path in in_first if path in in_second]
    compared = [each for each in both if each.first and each.second]
    moved = [each for each in compared if _has_moved(each.first, each.second)]
    settings = [{"settings": each.study.settings, "versions": each.versions} for each in (first, second)]
    return RunDiff(
        moved=tuple(sorted(moved, key=lambda each: (-_distance(each.first, each.second), each.where))),
        n_compared=len(compared),
        undefined=tuple(each for each in both if (each.first is None) != (each.second is None)),
        heads=tuple(_heads(first, second)),
        answers=(
            *_changed(_answers(first), _answers(second)),
            *(Changed(_joined((*path, "recipient")), *recipients) for path, *recipients in turned),
        ),
        checks=tuple(_changed(_checks(first), _checks(second), both=True)),
        settings=tuple(_changed(*(dict(_leaves(each)) for each in settings))),
        only_first=_only(in_first, in_second),
        only_second=_only(in_second, in_first),
    )


def failures(first: CommonResults, second: CommonResults, wanted: Sequence[str]) -> list[str]:
    """A line for each of `wanted` by which a number moved: NAME (or a glob with * and ?) beyond its interval,
    NAME=0.05 by more than that, whatever its interval; "moved" is every name. One that is undefined in one of the runs
    has moved, too.

    Raises: InputError for a name that no number of both runs has.
    """
    _, in_first, in_second = _all_numbers(first, second)
    numbers = {_joined(path): (in_first[path], in_second[path]) for path in in_first if path in in_second}
    lines = []
    for each in wanted:
        name, limit = _name_and_limit(each, numbers)
        pattern = name.replace("[", "[[]")
        chosen = [where for where in numbers if name in ("moved", where) or fnmatchcase(where, pattern)]
        if not chosen and name != "moved":
            like = nearest(name, numbers) or f"; a name is like {next(iter(numbers), 'accuracy / MODEL / accuracy')!r}"
            raise InputError(f"--fail-on {each}: there is no number {name!r} that both runs have{like}")
        pairs = {where: numbers[where] for where in chosen if _has_moved(*numbers[where], limit)}
        shown = [f"{where} ({a or 'undefined'}, then {b or 'undefined'})" for where, (a, b) in pairs.items()]
        if shown:
            more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
            lines.append(f"--fail-on {each}: {'; '.join(shown[:3])}{more}")
    return lines


def _name_and_limit(wanted: str, numbers: Mapping[str, object]) -> tuple[str, float | None]:
    """Raises: InputError for a limit that is negative or not finite."""
    name, equals, number = wanted.rpartition("=")
    try:
        limit = float(number)
    except ValueError:
        return wanted, None
    if not equals or wanted in numbers:
        return wanted, None
    if not 0 <= limit < float("inf"):
        raise InputError(f"--fail-on {wanted}: expected a change of 0 or more after '='; got {number}")
    return name, limit


def _has_moved(one: Bounds | None, other: Bounds | None, limit: float | None = None) -> bool:
    """Beyond both intervals or, if there is a limit, by more than that."""
    if one is None or other is None:
        return one is not other
    if limit is not None:
        return abs(one.value - other.value) > limit
    return not one.holds(other.value) and not other.holds(one.value)


def _all_numbers(first: CommonResults, second: CommonResults) -> tuple[list[Any], dict[Path, Any], dict[Path, Any]]:
    """Gains in opposite directions, and all other numbers of the two runs."""
    turned = list(_turned(first, second))
    opposite = [path for path, *_ in turned]
    return turned, dict(_numbers_of(first, opposite)), dict(_numbers_of(second, opposite))


def _turned(first: CommonResults, second: CommonResults) -> Iterator[tuple[Path, str, str]]:
    """Where the better model of a pair is another one in each run, and which models the gain was brought into."""
    for section in (cross_model.SECTION, graft.SECTION):
        variants, others = (getattr(results, section.name) or {} for results in (first, second))
        for variant in (name for name in variants if name in others):
            before, after = variants[variant].recipient, others[variant].recipient
            if before != after:
                yield (section.name, variant), before, after


def _numbers_of(results: CommonResults, left_out: Sequence[Path]) -> Iterator[tuple[Path, Bounds | None]]:
    """Every number with an interval, by where it is. None stands for one that is undefined."""
    for section in SECTIONS:
        for name, value in part_of(results, section).items():
            if (section.name, name) not in left_out:
                yield from _numbers(value, (section.name, name))


def _numbers(data: Any, path: Path) -> Iterator[tuple[Path, Bounds | None]]:
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _numbers(value, (*path, str(key)))
    elif isinstance(data, tuple):
        for i, each in enumerate(data):
            if is_dataclass(each):
                yield from _numbers(each, (*path, _name(each, i)))
    elif is_dataclass(data):
        yield from _bounded(data, path)
        for name, value in vars(data).items():
            if name != _DRAWN:
                yield from _numbers(value, (*path, name))


def _bounded(data: Any, path: Path) -> Iterator[tuple[Path, Bounds | None]]:
    """A dataclass's own numbers: its value, its share of a gain, or a stage's effects."""
    if isinstance(data, Sweep):
        tables = (data.effects, data.low, data.high)
        for layer, rows in enumerate(zip(*tables, strict=True)):
            for index, bounds in enumerate(zip(*rows, strict=True)):
                yield (*path, f"head {Head(layer, index)}"), _bounds(*bounds)
    elif name := next((name for name in _BOUNDED if {name, "low", "high"} <= vars(data).keys()), None):
        yield path if name == "value" else (*path, name), _bounds(getattr(data, name), data.low, data.high)
    if isinstance(data, Credit):
        yield (*path, "share"), _bounds(data.share, data.share_low, data.share_high)


def _bounds(value: Number, low: Number, high: Number) -> Bounds | None:
    return None if value is None or low is None or high is None else Bounds(value, low, high)


def _name(row: Any, place: int) -> str:
    """What tells a row of a list from the others, in both runs."""
    names = []
    for name in (*_NAMES, *_NAMES_IF_TEXT):
        value = getattr(row, name, None)
        if isinstance(value, str if name in _NAMES_IF_TEXT else str | int | float | tuple):
            if isinstance(value, tuple):
                value = str(Head(*value)) if name == "head" else " + ".join(value) or "none"
            names.append(f"{name} {value}")
    return ", ".join(names) or f"number {place + 1}"


def _distance(first: Bounds, second: Bounds) -> float:
    """In units of the wider half interval."""
    half = max(each.high - each.low for each in (first, second)) / 2
    return abs(second.value - first.value) / half if half > 0 else float("inf")


def _heads(first: CommonResults, second: CommonResults) -> Iterator[Heads]:
    before, after = (part_of(results, discovery.SECTION) for results in (first, second))
    for name in [name for name in before if name in after]:
        groups, others = before[name].groups, after[name].groups
        for group in dict.fromkeys([*groups, *others]):
            one, other = (set(each[group].heads) if group in each else set() for each in (groups, others))
            if one != other:
                gone, new = (tuple(str(Head(*place)) for place in sorted(each)) for each in (one - other, other - one))
                yield Heads(name, group, gone, new, len(one & other))


def _answers(results: CommonResults) -> dict[Path, Any]:
    verdicts = part_of(results, verdict.SECTION)
    return {(name, sentence.claim): sentence.answer for name, each in verdicts.items() for sentence in each.sentences}


def _checks(results: CommonResults) -> dict[Path, Any]:
    """Whether all checks of a name passed, by model."""
    passed: dict[Path, bool] = {}
    for check in results.checks:
        path = (check.model, check.name)
        passed[path] = passed.get(path, True) and check.passed
    return passed


def _leaves(data: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(data, Mapping) and data:
        for key, value in data.items():
            yield from _leaves(value, (*path, str(key)))
    else:
        yield path, data


def _changed(first: Mapping[Path, Any], second: Mapping[Path, Any], *, both: bool = False) -> Iterator[Changed]:
    """What differs, in the first run's order; with `both`, only what both runs have."""
    for path in dict.fromkeys([*first, *second]):
        if first.get(path) != second.get(path) and (not both or (path in first and path in second)):
            yield Changed(_joined(path), first.get(path), second.get(path))


def _only(here: Mapping[Path, Bounds | None], there: Mapping[Path, Bounds | None]) -> tuple[str, ...]:
    """Where one run has numbers and the other none: the shortest path that says so."""
    shared = {path[:n] for path in there for n in range(len(path) + 1)}
    missing = [path for path, bounds in here.items() if bounds and path not in there]
    lengths = [next((n for n in range(1, len(path)) if path[:n] not in shared), len(path)) for path in missing]
    shortest = dict.fromkeys(path[:n] for path, n in zip(missing, lengths, strict=True))
    return tuple(_joined(path) for path in shortest)


def _joined(path: Path) -> str:
    return " / ".join(path)
