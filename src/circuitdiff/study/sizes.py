"""How large a study is: no section takes more prompts than the study does, and one number shrinks them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from circuitdiff.config.settings import COUNTS_DRAWS, COUNTS_PROMPTS
from circuitdiff.study.settings import PURPOSES, SPLIT_OF, CommonSettings, PromptSettings, task_of

# Below them little can be said. Of some 300 heads one alone is a discovery at p = 0.05 / 300 or less, which on 20
# prompts takes a mean effect of 1.04 standard deviations over prompts, on 50 of 0.58 and on 100 of 0.39.
FEWEST = PromptSettings(discovery=50, replication=50, evaluation=60, means=60)
_FEWEST_OF_SECTION = 50  # scenarios, below which the verdict says nothing
_FEWEST_DRAWS = 20  # of random circuits or groups; among fewer than 100 no rank is claimed
_SHARES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08)
QUICK = 0.12
_BEYOND = {"minimality": "prompts", "completeness": "greedy_prompts"}  # beyond the evaluation prompts
_LEFT_OUT_FIRST = ("functions", "completeness", "minimality", "knockout", "ablations")  # where time is short


def capped(settings: CommonSettings) -> CommonSettings:
    """Sizes of sections that nobody set take no more prompts than there are for evaluation."""
    most = settings.prompts.evaluation
    return _sized(settings, lambda n, default: min(n, max(most, 8)) if n == default else n, lambda n, _: n)


def fitted(settings: CommonSettings) -> CommonSettings:
    """The sizes of prompts that nobody set, no larger than the rows of a task's table allow.

    A quarter of its evaluation rows, at most, is left to the sections that take prompts beyond those for evaluation.
    """
    rows = _rows(settings)
    if rows is None:
        return settings
    beyond = {name: options for name in _BEYOND if (options := getattr(settings, name, None))}
    spare = max((getattr(options, _BEYOND[name]) for name, options in beyond.items()), default=0)
    most = rows["evaluation"] - min(spare, rows["evaluation"] // 4) - settings.prompts.queries_per_scenario
    chosen = settings.prompts.model_fields_set
    sizes = {name: min(n, getattr(settings.prompts, name)) for name, n in (rows | {"evaluation": most}).items()}
    sizes = {name: n for name, n in sizes.items() if name not in chosen and n > 0}
    prompts = settings.prompts.model_copy(update=sizes)
    left = rows["evaluation"] - prompts.evaluation - prompts.queries_per_scenario
    fewer = {
        name: replace(options, **{_BEYOND[name]: min(getattr(options, _BEYOND[name]), max(left, 1))})
        for name, options in beyond.items()
        if getattr(options, _BEYOND[name]) == getattr(type(options)(), _BEYOND[name])
    }
    return settings.model_copy(update={"prompts": prompts, **fewer})


def note_on_rows(settings: CommonSettings) -> str:
    """What to say of a study whose table is smaller than what is asked by default; nothing for any other."""
    rows, default = _rows(settings), PromptSettings()
    few = [name for name, n in (rows or {}).items() if n < getattr(default, name)]
    sizes = ", ".join(f"{name} {getattr(settings.prompts, name)}" for name in few)
    return sizes and f"{settings.task.name} has fewer rows than a study takes by default; prompts here: {sizes}"


def _rows(settings: CommonSettings) -> dict[str, int] | None:
    """By purpose, how many prompts the task's table has; None for a task that draws them."""
    if not Path(settings.task.name).is_file():
        return None
    task, each = task_of(settings), settings.prompts.queries_per_scenario
    rows = {name: task.n_prompts(SPLIT_OF.get(name, name), each) for name in PURPOSES}
    known = {name: n for name, n in rows.items() if n is not None}
    return known if len(known) == len(rows) else None


def shrunk(settings: CommonSettings, share: float) -> CommonSettings:
    """The study with a share of its prompts and random draws, but not fewer than can say something."""
    sizes = {
        name: min(n, max(getattr(FEWEST, name), round(share * n)))
        for name, n in settings.prompts.model_dump(include={*PURPOSES}).items()
    }
    fewer = settings.model_copy(update={"prompts": settings.prompts.model_copy(update=sizes)})
    return capped(
        _sized(
            fewer,
            lambda n, _: min(n, max(_FEWEST_OF_SECTION, round(share * n))),
            lambda n, _: min(n, max(_FEWEST_DRAWS, round(share * n))),
        )
    )


def ever_smaller(settings: CommonSettings) -> Iterator[CommonSettings]:
    """The study as it is, ever smaller, and then without the sections that take long."""
    yield from (shrunk(settings, share) for share in _SHARES)
    smallest = shrunk(settings, min(_SHARES))
    for n in range(1, len(_LEFT_OUT_FIRST) + 1):
        yield smallest.model_copy(update=dict.fromkeys(_LEFT_OUT_FIRST[:n], False))


def first_look(settings: CommonSettings) -> CommonSettings:
    """Minutes on a laptop: few prompts, and only what the verdict needs."""
    return shrunk(settings, QUICK).model_copy(update=dict.fromkeys(_LEFT_OUT_FIRST, False))


def _sized(
    settings: CommonSettings, prompts: Callable[[int, int], int], draws: Callable[[int, int], int]
) -> CommonSettings:
    """With other counts of prompts and of draws in each section; the functions are given a count and its default."""
    options = {name: getattr(settings, name) for name in type(settings).model_fields}
    changed = {name: _resized(each, prompts, draws) for name, each in options.items() if is_dataclass(each)}
    return settings.model_copy(update=changed)


def _resized(options: Any, prompts: Callable[[int, int], int], draws: Callable[[int, int], int]) -> Any:
    changed: dict[str, Any] = {}
    hints = get_type_hints(type(options), include_extras=True)
    for each in fields(options):
        value, marks = getattr(options, each.name), getattr(hints[each.name], "__metadata__", ())
        if is_dataclass(value):
            changed[each.name] = _resized(value, prompts, draws)
        elif isinstance(value, int) and COUNTS_PROMPTS in marks:
            changed[each.name] = prompts(value, _default(each))
        elif isinstance(value, int) and COUNTS_DRAWS in marks:
            changed[each.name] = draws(value, _default(each))
    return replace(options, **changed)


def _default(field: Any) -> int:
    return field.default if isinstance(field.default, int) else 0
