"""What a command prints, and how it ends: lines as they are, bars of progress, bad input in one line."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from typer.exceptions import TyperException

from circuitdiff.config.names import printable
from circuitdiff.errors import InputError
from circuitdiff.models.differences import ModelDifferences
from circuitdiff.report import locate, weights
from circuitdiff.study.accuracies import ModelAccuracy
from circuitdiff.study.estimates import Estimate
from circuitdiff.study.plan import PlannedCost
from circuitdiff.study.registry import cells_of, part_of
from circuitdiff.study.results import CommonResults
from circuitdiff.study.sections import accuracy, discovery, faithfulness, overlap, verdict
from circuitdiff.study.sections.faithfulness_controls import RandomCircuits
from circuitdiff.study.workers import Monitor
from circuitdiff.tasks.task import DescribedPrompt

out = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 120)
_PAUSE = 30.0  # seconds between lines of progress in a pipe
_INTERRUPTED = 130  # what typer returns after Ctrl-C


def run_command(app: typer.Typer, command: str) -> None:
    """Runs the command; bad input, and what the system refuses, end in one line and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except InputError as error:
        code = _complained(command, str(error))
    except TyperException as error:
        code = _complained(command, f"{error.format_message().rstrip('.')}; see {command} --help")  # pyright: ignore
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        code = _complained(command, f"{where}{error.strerror or error}")
    if code == _INTERRUPTED:
        _complained(command, "interrupted; run again to go on, what is computed is kept")
    raise SystemExit(code)


def _complained(command: str, line: str) -> int:
    print(f"{command}: {printable(line)}", file=sys.stderr)
    return 2


def check_folder(path: Path | None) -> None:
    """Before the work: is there a place for its result?"""
    if path and not os.path.isdir(path.parent):
        raise InputError(f"there is no folder {path.parent} for {path.name}; make it, or name another file")
    if path and (os.path.isdir(path) or not os.access(path.parent, os.W_OK)):
        raise InputError(f"cannot write {path}: it is a folder, or its folder is read-only; name another file")


def say(line: str) -> None:
    """Prints a line as it is, whoever wrote it: nothing in it is markup, or obeyed by a terminal."""
    out.print(printable(line), soft_wrap=True)


@contextmanager
def progress() -> Iterator[Monitor]:
    """A bar per part of the work, with the time left; in a pipe, a line now and then."""
    if not out.is_terminal:
        yield _lines()
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=out) as bars:
        known: dict[str, int] = {}

        def monitor(title: str, done: int, total: int) -> None:
            if title not in known:
                known[title] = int(bars.add_task(printable(title), total=total))
            task = bars.tasks[known[title]]
            whole = max(total, int(task.total or 0))
            bars.update(task.id, completed=whole if done >= total else done, total=whole)

        yield monitor


def _lines() -> Monitor:
    """Says how far the work is, at once and then every half minute at most."""
    begin, said = time.monotonic(), -math.inf

    def monitor(title: str, done: int, total: int) -> None:
        nonlocal said
        if (now := time.monotonic()) - said >= _PAUSE:
            say(f"{(now - begin) / 60:.1f} min: {title}, {done} of {total}")
            said = now

    return monitor


def show_plan(expected: PlannedCost) -> None:
    rows = [("loading models", "", "", f"{expected.loading:.1f}")]
    for part in expected.parts:
        rows.append((part.what, f"{part.forwards:,}", f"{part.flop / 1e12:.1f}", f"{part.minutes:.1f}"))
    show_table(("part", "plain forwards", "TFLOP", "minutes"), rows, "plan", numbers=True)
    minutes = max(1, round(expected.minutes))
    say(
        f"about {minutes} minute{'s' if minutes > 1 else ''} to load and run the models (weights are compared, and "
        f"statistics made, beside that) and at most {expected.memory_gb:.1f} GB on this machine"
    )
    out.print()


def show_results(results: CommonResults) -> None:
    """The models' accuracies, whose heads are whose, every circuit in every model, where it happens, the verdicts, and
    warnings.
    """
    _show_models(results)
    _show_heads(results)
    rows = []
    for name, model, entry in cells_of(results, faithfulness.SECTION):
        n_heads = sum(len(group.heads) for group in part_of(results, discovery.SECTION)[name].groups.values())
        accuracies = (f"{each.value:.3f}" for each in (entry.circuit_accuracy, entry.model_accuracy))
        rows.append((name, model, str(n_heads), *accuracies, _interval(entry), _drawn(entry.random)))
    if rows:
        show_table(("circuit", "in model", "heads", "accuracy", "of model's", "faithfulness", "random circuits"), rows)
    for table in locate.tables(results):
        say(f"{table.caption}:")
        show_table(tuple(table.headings), [[str(each) for each in row.values()] for row in table.rows])
        out.print()
    for variant, each in part_of(results, verdict.SECTION).items():
        out.print()
        say(f"{variant} against its base:")
        for sentence in each.sentences:
            say(f"  {sentence.text}")
    for warning in results.warnings:
        say(f"warning: {warning}")


def _show_models(results: CommonResults) -> None:
    """Where there are variants: each model's accuracy, and the paired difference to the base."""
    if verdicts := part_of(results, verdict.SECTION):
        rows = [
            (name, _interval(each.accuracy), _interval(verdicts[name].behaviour.accuracy) if name in verdicts else "-")
            for name, each in part_of(results, accuracy.SECTION).items()
        ]
        show_table(("model", "accuracy", "less the base's (paired)"), rows)
        out.print()


def _show_heads(results: CommonResults) -> None:
    """How many heads the circuits of base and variant have in common, and how many only one has, by group."""
    rows = []
    for variant, each in part_of(results, overlap.SECTION).items():
        for group in each.groups or ():
            counts = group.common, group.variant - group.common, group.base - group.common
            rows.append((variant, group.group or "all", *map(str, counts)))
    if rows:
        show_table(
            ("circuit of", "group", "heads that the base has, too", "only in the variant", "only in the base"), rows
        )
        out.print()


def _drawn(random: RandomCircuits | None) -> str:
    """The best of them, and the p of the circuit's rank among them where they are enough for one."""
    if random is None:
        return "-"
    p = "" if random.rank_p is None else f", p = {random.rank_p:.2g}"
    return f"best of {len(random.accuracies)}: {max(random.accuracies):.3f}{p}"


def _interval(estimate: Estimate, digits: int = 2) -> str:
    if estimate.value is None:
        return "undefined"
    value, low, high = (f"{each:.{digits}f}" for each in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def show_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "", *, numbers: bool = False
) -> None:
    """Prints a table as `say` a line. `numbers`: all columns but the first are."""
    table = Table(*map(printable, columns), title=printable(title) or None, box=None)
    for column in table.columns[1:]:
        column.justify = "right" if numbers else "left"
    for row in rows:
        table.add_row(*map(printable, row))
    out.print(table)


def show_accuracies(title: str, rows: Sequence[ModelAccuracy]) -> None:
    cells = []
    for model, answers in rows:
        shares = " ".join(f"{share.value:.2f}" for share in answers.accuracy_by_queried)
        hits = f"{answers.accuracy.hits}/{answers.accuracy.n}"
        cells.append((model, hits, _interval(answers.accuracy, 3), _interval(answers.logit_difference), shares))
    show_table(("model", "hits", "accuracy", "logit difference", "by queried index"), cells, title)


def show_differences(found: ModelDifferences, adapters: Sequence[Mapping[str, Any]]) -> None:
    """`adapters`: whether each changed the logits."""
    out.print()
    for line in weights.in_words(found):
        say(line)
    if found.whole.n_changed:
        for table in (weights.by_kind(found), weights.by_layer(found)):
            rows = [[str(row[column]) for column in table.headings] for row in table.rows]
            show_table(tuple(table.headings.values()), rows, table.caption, numbers=True)
    idle = sum(not each["value"] for each in adapters)
    if found.same_weights:
        did = f"; {'its adapters' if idle > 1 else 'its adapter'} did nothing" if idle else ""
        say(f"note: {found.variant} is {found.base}, weight for weight{did}")
    elif idle:
        say(f"note: {idle} of {len(adapters)} adapters of {found.variant} changed no logit of random tokens")


def show_prompt(title: str, prompt: DescribedPrompt, answer: str | None) -> None:
    text = Text(f"{title}: ", style="bold")
    named = [[role for role in roles if "." not in role] for roles in prompt.roles]
    for token, roles in zip(prompt.tokens, named, strict=True):
        text.append(printable(token), style="reverse" if roles else "")
    text.append(f" -> {answer!r}" if answer else "   (no valid answer)", style="bold")
    out.print(text, soft_wrap=True)
    for place, (token, roles) in enumerate(zip(prompt.tokens, named, strict=True)):
        if roles:
            say(f"  {place:3d} {token!r:12} {', '.join(roles)}")
