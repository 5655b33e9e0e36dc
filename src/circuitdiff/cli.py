"""The command line: arguments in, exit code out. The only file that prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from typer.exceptions import TyperException

from circuitdiff.accuracy import accuracies
from circuitdiff.cache.files import write_whole
from circuitdiff.cache.store import REPORT, json_bytes, read_results
from circuitdiff.config.names import printable
from circuitdiff.config.reading import split_adapters
from circuitdiff.errors import InputError, form_of_results
from circuitdiff.finetune.recipes import run_recipe
from circuitdiff.models import load_model
from circuitdiff.models.sources import read_outline
from circuitdiff.planning import Estimate
from circuitdiff.report import write_report
from circuitdiff.report.diff import diff_runs, diff_tables, paired
from circuitdiff.sections.whole_study import WholeStudy, read_study
from circuitdiff.stages import Monitor
from circuitdiff.study import run_study
from circuitdiff.tasks import get_task
from circuitdiff.tasks.describe import DescribedPrompt
from circuitdiff.validation import Share, check_ground_truth, compute_share, render_page
from circuitdiff.validation.conformance import conformance as check_conformance

app = typer.Typer(
    help="What did fine-tuning do to the circuit behind a behaviour?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 120)
_ROWS = 40  # of a table that is printed
_INTERRUPTED = 130  # what typer returns after Ctrl-C

Adapters = Annotated[list[str], typer.Option("--adapter", help="PEFT adapter, merged in; repeat in order.")]
Pairings = Annotated[list[str], typer.Option("--pair", help="FIRST=SECOND: what one model is called in each run.")]


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="The study, a YAML file.")],
    folder: Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/NAME.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=2, help="Processes that share the work, and the memory.")] = 1,
) -> None:
    """Run a study; finished stages are not run again."""
    _run(read_study(study), folder, workers)


@app.command()
def demo(folder: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("runs/demo")) -> None:
    """Find and evaluate the entity-tracking circuit of a small real model."""
    with as_file(files("circuitdiff") / "demo.yaml") as study:
        _run(read_study(study), folder)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="The folder of a finished run.")]) -> None:
    """Write a run's report again, without loading a model."""
    with form_of_results(f"results.json in {folder}"):
        _say(f"report: {write_report(read_results(folder), folder / REPORT)}")


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    second: Annotated[Path, typer.Argument(help="Another.")],
    pair: Pairings = [],  # noqa: B006 (typer wants a list)
    json_file: Annotated[Path | None, typer.Option("--json", help="Where everything goes, for machines.")] = None,
) -> None:
    """Show what moved between two runs beyond its interval, without loading a model."""
    _check_folder(json_file)
    ours, theirs = read_results(first), read_results(second)
    with form_of_results(f"results.json in {first} or {second}"):
        found = diff_runs(ours, paired(ours, theirs, pair))
        tables = diff_tables(found, str(first), str(second))
    if json_file:
        write_whole(json_file, json_bytes(found.to_dict()))
    for title, columns, rows in tables:
        _show_table(columns, rows[:_ROWS], title)
        if len(rows) > _ROWS:
            _say(f"and {len(rows) - _ROWS} more; --json has all")
            out.print()
    _say(f"{len(found.moved)} of {found.n_compared} numbers with an interval moved beyond it")


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="Hub id, folder, .gguf file or name; +ADAPTER merges one.")],
    adapter: Adapters = [],  # noqa: B006 (typer wants a list)
    tokenizer: Annotated[str | None, typer.Option(help="Another source whose tokenizer is taken.")] = None,
    dtype: str = "float32",
    device: str = "cpu",
) -> None:
    """Load a model and show its self-checks."""
    source, *adapters = split_adapters(model)
    loaded = load_model(source, [*adapters, *adapter], dtype, device, tokenizer=tokenizer)
    rows = []
    for row in loaded.provenance["checks"]:
        allowed = f"{'>' if row['above'] else '<='} {row['tolerance']:.1g}"
        rows.append((row["name"], f"{row['value']:.2g}", allowed, "ok" if row["passed"] else "FAILED", row["detail"]))
    size = f"{loaded.n_layers} layers x {loaded.n_heads} heads ({loaded.n_kv_heads} key/value heads)"
    _say(f"{loaded.name}: {type(loaded.module).__name__}, {size}, {dtype}")
    _show_table(("check", "value", "allowed", "result", "on"), rows)
    if defaults := loaded.provenance.get("left_to_defaults"):
        listed = ", ".join(f"{name} = {value!r}" for name, value in defaults.items())
        _say(f"config.json leaves to the architecture's defaults: {listed}")


@app.command()
def prompts(
    task: Annotated[str, typer.Argument(help="A built-in task, like entity-tracking.")],
    model: Annotated[str, typer.Option(help="Whose tokenizer to use.")] = "smollm2",
    n: Annotated[int, typer.Option("-n", help="How many pairs to show.")] = 3,
    seed: int = 0,
    split: str = "evaluation",
    counterfactual: str = "unrelated",
) -> None:
    """Show prompts with their roles marked, and each one's counterfactual under it."""
    built = get_task(task.replace("-", "_"))
    tokenizer = read_outline(model).tokenizer
    pairs = built.sample(tokenizer, n, seed, split, counterfactual=counterfactual)
    for i in range(n):
        pair = built.describe(pairs, i, tokenizer)
        out.rule(f"pair {i}, scenario {int(pairs.scenarios[i])}")
        _show_prompt("clean", pair.clean, pair.answer)
        _show_prompt("counterfactual", pair.counterfactual, pair.counterfactual_answer)


@app.command()
def accuracy(
    task: Annotated[str, typer.Argument(help="A built-in task, like entity-tracking.")],
    models: Annotated[list[str], typer.Argument(help="Models; SOURCE+ADAPTER merges an adapter.")],
    n: Annotated[int, typer.Option("-n", help="How many prompts, each a scenario of its own.")] = 500,
    split: str = "evaluation",
    seed: int = 100,
    dtype: str = "float32",
    device: str = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the table here.")] = None,
) -> None:
    """How often models are right, with intervals and by queried index."""
    _check_folder(json_file)
    rows: list[dict] = []
    try:
        with _progress() as monitor:
            chosen = {"n_prompts": n, "split": split, "seed": seed, "dtype": dtype, "device": device}
            for row in accuracies(task.replace("-", "_"), models, **chosen, monitor=monitor):
                rows.append(row)  # shown even if a later model cannot be loaded
    finally:
        if rows:
            _show_accuracies(f"{task}, split {split}, seed {seed}: {n} prompts", rows)
        if rows and json_file:
            write_whole(json_file, json_bytes(rows))


@app.command()
def finetune(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    folder: Annotated[Path | None, typer.Option("--out", help="Where the adapter goes; default runs/NAME.")] = None,
) -> None:
    """Fine-tune a model by a recipe; a killed run goes on where it was."""
    with _progress() as monitor:
        summary = run_recipe(recipe, folder, monitor)
    _say(f"{summary['steps_done']} steps, held-out accuracy {summary['held_out_accuracy']:.3f}")
    if "test" in summary:
        test = summary["test"]
        low, high = test["wilson_95"]
        _say(f"test accuracy {test['accuracy']:.3f} [{low:.3f}, {high:.3f}], {test['n_hits']} of {test['n_prompts']}")
    _say(", ".join(summary["files"]))


@app.command()
def conformance(table: Annotated[Path, typer.Argument(help="A published table, a JSON file.")]) -> None:
    """Do our selection rules come to a published circuit? Exit code 0 only if all six claims hold."""
    found = check_conformance(table)
    _say(f"published tables of {found.model}")
    for claim in found.claims:
        word = {True: "holds", False: "DOES NOT HOLD", None: "not checkable"}[claim.holds]
        _say(f"{claim.claim}: {word}; {claim.detail}")
    if not all(claim.holds for claim in found.claims):
        raise typer.Exit(1)


@app.command()
def ground_truth(
    page: Annotated[Path, typer.Option("--out", help="Where the page goes.")] = Path("docs/ground-truth.md"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Where the rows go, for machines.")] = None,
    plantings: Annotated[int, typer.Option(help="How many other plantings of the base.")] = 20,
    kept: Annotated[Path, typer.Option(help="Where finished parts go; a further run continues.")] = Path(
        "runs/ground-truth"
    ),
    share: Annotated[str, typer.Option(help="1/2 or 2/2: every second part only, and no page.")] = "",
) -> None:
    """Hold discovery and evaluation against planted circuits. Exit code 0 only if every claim holds."""
    if not share:
        _check_folder(page, json_file)
    with _progress() as monitor:
        if share:
            compute_share(kept, Share.read(share), plantings, monitor=monitor)
            raise typer.Exit
        truth = check_ground_truth(kept, plantings, monitor=monitor)
    write_whole(page, render_page(truth).encode())
    if json_file:
        write_whole(json_file, json_bytes(truth.to_dict()))
    for row in truth.rows:
        if not row.passed:
            claim = f"{row.model}, {row.claim}: {row.value:.3g}, expected {row.expectation}"
            _say(f"DOES NOT HOLD: {claim}; {row.detail}")
    _say(f"{sum(row.passed for row in truth.rows)} of {len(truth.rows)} claims hold; page: {page}")
    if not truth.passed:
        raise typer.Exit(1)


def _run(settings: WholeStudy, folder: Path | None, workers: int = 1) -> None:
    with _progress() as monitor:
        folder = folder or Path("runs") / settings.name
        path = run_study(settings, folder, monitor, _show_plan, workers, lambda text: _say(f"note: {text}"))
    _show_results(path.parent)
    _say(f"report: {path}")


def _show_plan(expected: Estimate) -> None:
    rows = [
        (part.what, f"{part.forwards:,}", f"{part.flop / 1e12:.1f}", f"{part.minutes:.1f}") for part in expected.parts
    ]
    minutes = sum(part.minutes for part in expected.parts)
    _show_table(("part", "plain forwards", "TFLOP", "minutes"), rows, "plan", numbers=True)
    _say(f"at most about {minutes:.0f} minutes and {expected.memory_gb:.1f} GB on this machine")
    out.print()


def _show_results(folder: Path) -> None:
    results = read_results(folder)
    rows = []
    for circuit, models in results["faithfulness"].items():
        n_heads = sum(len(group["heads"]) for group in results["circuits"][circuit]["groups"].values())
        for model, entry in models.items():
            drawn = results["random"].get(circuit, {}).get(model)
            accuracies = (f"{entry[whose]['value']:.3f}" for whose in ("circuit_accuracy", "model_accuracy"))
            percentile = "-" if drawn is None else _beaten(drawn)
            rows.append((circuit, model, str(n_heads), *accuracies, _interval(entry), percentile))
    _show_table(("circuit", "in model", "heads", "accuracy", "of model's", "faithfulness", "percentile"), rows)
    for variant, entry in (results.get("verdict") or {}).items():
        out.print()
        _say(f"{variant} against its base:")
        for sentence in entry["sentences"]:
            _say(f"  {sentence['text']}")
    for warning in results["warnings"]:
        _say(f"warning: {warning}")


def _beaten(drawn: dict) -> str:
    n = len(drawn["accuracies"])
    return f"{drawn['percentile'] * n / 100:g} of {n} random"


def _interval(entry: dict, digits: int = 2) -> str:
    if entry["value"] is None:
        return "undefined"
    value, low, high = (f"{entry[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _check_folder(*files: Path | None) -> None:
    """Before the work: is there a place for its results?"""
    for path in files:
        if path and not os.path.isdir(path.parent):
            raise InputError(f"there is no folder {path.parent} for {path.name}; make it, or name another file")
        if path and (os.path.isdir(path) or not os.access(path.parent, os.W_OK)):
            raise InputError(f"cannot write {path}: it is a folder, or its folder is read-only; name another file")


def _say(line: str) -> None:
    """Prints a line as it is, whoever wrote it: nothing in it is markup, or obeyed by a terminal."""
    out.print(printable(line), soft_wrap=True)


def _show_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "", *, numbers: bool = False
) -> None:
    """The same of a table. `numbers`: all columns but the first are."""
    table = Table(*map(printable, columns), title=printable(title) or None, box=None)
    for column in table.columns[1:]:
        column.justify = "right" if numbers else "left"
    for row in rows:
        table.add_row(*map(printable, row))
    out.print(table)


def _show_accuracies(title: str, rows: Sequence[dict]) -> None:
    cells = []
    for row in rows:
        shares = " ".join(f"{entry['value']:.2f}" for entry in row["accuracy_by_queried"])
        hits = f"{row['accuracy']['hits']}/{row['accuracy']['n']}"
        accuracy, difference = _interval(row["accuracy"], 3), _interval(row["logit_difference"])
        cells.append((row["model"], hits, accuracy, difference, shares))
    _show_table(("model", "hits", "accuracy", "logit difference", "by queried index"), cells, title)


def _show_prompt(title: str, prompt: DescribedPrompt, answer: str | None) -> None:
    text = Text(f"{title}: ", style="bold")
    for token, roles in zip(prompt.tokens, prompt.roles, strict=True):
        named = [role for role in roles if "." not in role]
        text.append(printable(token), style="reverse" if named else "")
    text.append(f" -> {answer!r}" if answer else "   (no valid answer)", style="bold")
    out.print(text, soft_wrap=True)
    for place, roles in enumerate(prompt.roles):
        named = [role for role in roles if "." not in role]
        if named:
            _say(f"  {place:3d} {prompt.tokens[place]!r:12} {', '.join(named)}")


@contextmanager
def _progress() -> Iterator[Monitor]:
    """A bar per part of the work, with the time left; in a pipe, a line per finished part."""
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


def main() -> None:
    """Runs the command; bad input, and what the system refuses, end in one line and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except InputError as error:
        code = _complained(str(error))
    except TyperException as error:
        code = _complained(f"{error.format_message().rstrip('.')}; see circuitdiff --help")  # pyright: ignore
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        code = _complained(f"{where}{error.strerror or error}")
    if code == _INTERRUPTED:
        _complained("interrupted; run again to go on, finished stages are kept")
    raise SystemExit(code)


def _complained(line: str) -> int:
    print(f"circuitdiff: {printable(line)}", file=sys.stderr)
    return 2
