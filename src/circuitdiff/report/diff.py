"""What moved between two runs: their results.json compared number by number, without a model.

A number with an interval has moved if neither run's value lies in the other's interval. Numbers without an interval are
not compared: nothing says how far they would move by themselves. One that is undefined in one of the runs is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from circuitdiff.circuit import Circuit, Head
from circuitdiff.errors import InputError

Path = tuple[str, ...]
Results = Mapping[str, Any]
Table = tuple[str, tuple[str, ...], Sequence[tuple[str, ...]]]  # title, columns, rows

_NAMES = (
    "name",
    "row",
    "parts",
    "query",
    "key",
    "head",
    "layer",
    "queried",
    "claim",
    "stage",
    "k",
    "group",
    "sender",
    "receiver",
    "via",
    "role",
    "penalty",
    "seed",
)  # what tells rows of a list apart
_BOUNDS = ("value", "low", "high")
_SHARE = ("share", "share_low", "share_high")  # of a gain, beside what adds to it
_BOUNDED = ("value", "cost", "accuracy")  # what stands between "low" and "high"
_NAMES_IF_TEXT = ("base", "variant")  # two groups that are compared; elsewhere they are numbers
_DRAWN = "random"  # parts of a circuit, which are others in every circuit
_NOT_NUMBERS = ("study", "versions", "checks", "circuits", "example", "warnings", "matrix")  # the matrix repeats others


@dataclass(frozen=True)
class Estimate:
    """A number with its interval."""

    value: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """A mean over random draws may lie outside the draws' percentiles; what it is itself is never a move."""
        return min(self.low, self.value) <= value <= max(self.high, self.value)


@dataclass(frozen=True)
class Moved:
    """A number that both runs have and that differs beyond its intervals."""

    where: str
    first: Estimate
    second: Estimate


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
    """A setting, version, answer or check that differs; None where a run lacks it."""

    where: str
    first: Any
    second: Any


@dataclass(frozen=True)
class RunDiff:
    """All that differs between two runs."""

    moved: tuple[Moved, ...]  # the furthest first, in units of the wider half interval
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
    numbers = [(each.where, _shown(each.first), _shown(each.second)) for each in found.moved]
    undefined = [
        (each.where, *(_shown(run) if run else "undefined" for run in (each.first, each.second)))
        for each in found.undefined
    ]
    groups = [
        (f"{each.circuit} / {each.group}", _listed(each.only_first), _listed(each.only_second), str(each.both))
        for each in found.heads
    ]
    tables: list[Table] = [
        ("what moved beyond its interval", ("number", first, second), numbers),
        ("what is undefined in one run", ("number", first, second), undefined),
        ("heads", ("group", f"only {first}", f"only {second}", "in both"), groups),
    ]
    for title, rows in (("verdicts", found.answers), ("checks", found.checks), ("settings", found.settings)):
        tables.append((title, ("what", first, second), [(c.where, _shown(c.first), _shown(c.second)) for c in rows]))
    for name, rows in ((first, found.only_first), (second, found.only_second)):
        tables.append((f"measured in {name} only", ("what",), [(where,) for where in rows]))
    return [table for table in tables if table[2]]


def _shown(value: Any) -> str:
    if isinstance(value, Estimate):
        return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"
    return "-" if value is None else str(value)


def _listed(heads: Sequence[str]) -> str:
    return ", ".join(heads) or "none"


def paired(first: Results, second: Results, pairs: Sequence[str]) -> Results:
    """The second run's results with models renamed, "FIRST=SECOND" each, so that they stand beside the first run's.

    Raises: InputError if a run has no such model, or a model would stand for two.
    """
    names: dict[str, str] = {}
    for pair in pairs:
        old, _, new = pair.partition("=")
        for run, name, models in (("first", old, _models(first)), ("second", new, _models(second))):
            if name not in models:
                raise InputError(f"--pair {pair}: the {run} run has no model {name!r}; it has {', '.join(models)}")
        names[new] = old
    after = [names.get(name, name) for name in _models(second)]
    if twice := next((name for name in after if after.count(name) > 1), None):
        raise InputError(f"--pair: two models of the second run would be called {twice!r}; pair each with another one")
    untouched = ("study", "versions")
    return {key: value if key in untouched else _renamed(value, names) for key, value in second.items()}


def _models(results: Results) -> list[str]:
    return list(results.get("models") or {})


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


def diff_runs(first: Results, second: Results) -> RunDiff:
    """Everything that differs between two runs' results, as data.

    Gains that were looked for in opposite directions are named, and not compared.
    """
    turned = list(_turned(first, second))
    first, second = (_without(results, [path for path, *_ in turned]) for results in (first, second))
    ours, theirs = (dict(_estimates(results)) for results in (first, second))
    both = {path: (ours[path], theirs[path]) for path in ours if path in theirs}
    compared = [(path, one, other) for path, (one, other) in both.items() if one and other]
    moved = [
        Moved(_said(path), one, other)
        for path, one, other in compared
        if not one.holds(other.value) and not other.holds(one.value)
    ]
    return RunDiff(
        moved=tuple(sorted(moved, key=lambda each: (-_size(each), each.where))),
        n_compared=len(compared),
        undefined=tuple(Changed(_said(path), *pair) for path, pair in both.items() if sum(map(bool, pair)) == 1),
        heads=tuple(_heads(first, second)),
        answers=(
            *_changed(_answers(first), _answers(second)),
            *(Changed(_said((*path, "recipient")), ours, theirs) for path, ours, theirs in turned),
        ),
        checks=tuple(_changed(_checks(first), _checks(second), both=True)),
        settings=tuple(_changed(_settings(first), _settings(second))),
        only_first=_only(ours, theirs),
        only_second=_only(theirs, ours),
    )


def _turned(first: Results, second: Results) -> Iterator[tuple[Path, str, str]]:
    """Where the better model of a pair is another one in each run, and which models the gain was brought into."""
    for method in ("cmap", "graft"):
        ours, theirs = first.get(method) or {}, second.get(method) or {}
        for variant in ours:
            into, other = ((run.get(variant) or {}).get("recipient") for run in (ours, theirs))
            if into is not None and other is not None and into != other:
                yield (method, variant), into, other


def _without(results: Results, paths: Sequence[Path]) -> Results:
    left = {method: dict(results.get(method) or {}) for method, _ in paths}
    for method, variant in paths:
        left[method].pop(variant)
    return {**results, **left}


def _estimates(data: Any, path: Path = ()) -> Iterator[tuple[Path, Estimate | None]]:
    """Every number with an interval, by where it is: {"value", "low", "high"}, or a stage's tables of effects.

    None stands for one that is undefined.
    """
    if isinstance(data, Mapping):
        bounded = [name for name in _BOUNDED if {name, "low", "high"} <= data.keys()]
        for name in sorted(bounded, key=lambda name: data[name] is None)[:1]:
            yield path if name == "value" else (*path, name), _as_estimate(data, (name, "low", "high"))
        if data.keys() >= set(_SHARE):
            yield (*path, "share"), _as_estimate(data, _SHARE)
        if isinstance(data.get("effects"), list):
            yield from _effects(data, path)
        for key, value in data.items():
            if key != _DRAWN and (path or key not in _NOT_NUMBERS):
                yield from _estimates(value, (*path, str(key)))
    elif isinstance(data, Sequence) and not isinstance(data, str):
        for i, each in enumerate(data):
            if isinstance(each, Mapping):
                yield from _estimates(each, (*path, _name(each, i)))


def _effects(stage: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, Estimate | None]]:
    tables = [stage["effects"], stage.get("low") or [], stage.get("high") or []]
    for layer, rows in enumerate(zip(*tables, strict=False)):
        for index, bounds in enumerate(zip(*rows, strict=False)):
            yield (*path, f"head {Head(layer, index)}"), _as_estimate(dict(zip(_BOUNDS, bounds, strict=True)))


def _as_estimate(data: Mapping[str, Any], keys: Sequence[str] = _BOUNDS) -> Estimate | None:
    bounds = [data.get(key) for key in keys]
    known = all(isinstance(bound, int | float) and not isinstance(bound, bool) and bound == bound for bound in bounds)
    return Estimate(*(float(bound) for bound in bounds)) if known else None  # pyright: ignore[reportArgumentType]


def _name(row: Mapping[str, Any], place: int) -> str:
    """What tells a row of a list from the others, in both runs."""
    said = [f"{key} {_printed(row[key])}" for key in _NAMES if isinstance(row.get(key), str | int | float | list)]
    said += [f"{key} {row[key]}" for key in _NAMES_IF_TEXT if isinstance(row.get(key), str)]
    return ", ".join(said) or f"number {place + 1}"


def _printed(value: Any) -> str:
    return " + ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _size(moved: Moved) -> float:
    """How far it moved, in units of the wider half interval."""
    half = max(each.high - each.low for each in (moved.first, moved.second)) / 2
    return abs(moved.second.value - moved.first.value) / half if half > 0 else float("inf")


def _heads(first: Results, second: Results) -> Iterator[Heads]:
    ours, theirs = (_circuits(results) for results in (first, second))
    for name in ours:
        if name not in theirs:
            continue
        for group in dict.fromkeys([*ours[name].groups, *theirs[name].groups]):
            one, other = (
                set(circuits[name].groups[group].heads) if group in circuits[name].groups else set()
                for circuits in (ours, theirs)
            )
            if one != other:
                gone, new = (tuple(map(str, sorted(heads))) for heads in (one - other, other - one))
                yield Heads(name, group, gone, new, len(one & other))


def _circuits(results: Results) -> dict[str, Circuit]:
    return {name: Circuit.from_dict(circuit, name) for name, circuit in (results.get("circuits") or {}).items()}


def _answers(results: Results) -> dict[Path, Any]:
    return {
        (variant, sentence["claim"]): sentence["answer"]
        for variant, entry in (results.get("verdict") or {}).items()
        for sentence in entry.get("sentences") or []
    }


def _checks(results: Results) -> dict[Path, Any]:
    """Whether all checks of a name passed, by model."""
    found: dict[Path, bool] = {}
    for check in results.get("checks") or []:
        path = (str(check.get("model")), str(check.get("name")))
        found[path] = found.get(path, True) and check.get("passed") is True
    return found


def _settings(results: Results) -> dict[Path, Any]:
    settings = (results.get("study") or {}).get("settings") or {}
    return dict(_leaves({"settings": settings, "versions": results.get("versions") or {}}))


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
            yield Changed(_said(path), first.get(path), second.get(path))


def _only(ours: Mapping[Path, Estimate | None], theirs: Mapping[Path, Estimate | None]) -> tuple[str, ...]:
    """Where one run has numbers and the other none: the shortest path that says so."""
    shared = {path[:n] for path in theirs for n in range(len(path) + 1)}
    missing = [path for path, estimate in ours.items() if estimate and path not in theirs]
    lengths = [next((n for n in range(1, len(path)) if path[:n] not in shared), len(path)) for path in missing]
    found = dict.fromkeys(path[:n] for path, n in zip(missing, lengths, strict=True))
    return tuple(_said(path) for path in found)


def _said(path: Path) -> str:
    return " / ".join(path)
