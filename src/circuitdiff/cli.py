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
from pydantic import TypeAdapter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from typer.exceptions import TyperException

from circuitdiff.cache.files import write_whole
from circuitdiff.cache.store import REPORT, json_bytes
from circuitdiff.config.names import printable
from circuitdiff.config.reading import split_adapters
from circuitdiff.errors import InputError
from circuitdiff.finetune.recipes import run_recipe
from circuitdiff.models import load_model
from circuitdiff.models.sources import read_outline
from circuitdiff.report import write_report
from circuitdiff.report.diff import diff_runs, diff_tables, paired
from circuitdiff.study.accuracies import ModelAccuracy, accuracies
from circuitdiff.study.estimates import Estimate
from circuitdiff.study.plan import PlannedCost
from circuitdiff.study.ray_workers import ray_workers
from circuitdiff.study.registry import part_of, read_results, read_study, results_schema
from circuitdiff.study.results import CommonResults
from circuitdiff.study.runner import run_study
from circuitdiff.study.sections.discovery import SECTION as DISCOVERY
from circuitdiff.study.sections.faithfulness import SECTION as FAITHFULNESS
from circuitdiff.study.sections.faithfulness import RandomCircuits
from circuitdiff.study.sections.verdict import SECTION as VERDICT
from circuitdiff.study.settings import CommonSettings
from circuitdiff.study.workers import Monitor, Worker, local_workers
from circuitdiff.tasks import get_task
from circuitdiff.tasks.task import DescribedPrompt
from circuitdiff.validation import Share, check_ground_truth, compute_share, render_page
from circuitdiff.validation.conformance import conformance as check_conformance

app = typer.Typer(
    help="What did fine-tuning do to the circuit behind a behaviour?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 120)
SCHEMA = Path("docs/results.schema.json")
_ROWS = 40  # of a table that is printed
_INTERRUPTED = 130  # what typer returns after Ctrl-C

Adapters = Annotated[list[str], typer.Option("--adapter", help="PEFT adapter, merged in; repeat in order.")]
Pairings = Annotated[list[str], typer.Option("--pair", help="FIRST=SECOND: what one model is called in each run.")]


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="The study, a YAML file.")],
    folder: Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/NAME.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=1000, help="Processes that share the work.")] = 1,
    ray: Annotated[str | None, typer.Option(help="A Ray cluster to work on: its address, or local.")] = None,
) -> None:
    """Run a study; what the run folder has already is not computed again."""
    _run(read_study(study), folder, workers, ray)


@app.command()
def demo(folder: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("runs/demo")) -> None:
    """Find and evaluate the entity-tracking circuit of a small real model."""
    with as_file(files("circuitdiff") / "demo.yaml") as study:
        _run(read_study(study), folder)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="The folder of a finished run.")]) -> None:
    """Write a run's report again, without loading a model."""
    _say(f"report: {write_report(read_results(folder), folder / REPORT)}")


@app.command()
def schema(
    file: Annotated[Path, typer.Option("--out", help="Where it goes.")] = Path("docs/results.schema.json"),
) -> None:
    """Write the JSON schema of results.json."""
    _check_folder(file)
    write_whole(file, json_bytes(results_schema()))
    _say(f"schema: {file}")


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
    rows: list[ModelAccuracy] = []
    try:
        with _progress() as monitor:
            chosen = {"n_prompts": n, "split": split, "seed": seed, "dtype": dtype, "device": device}
            for row in accuracies(task.replace("-", "_"), models, **chosen, monitor=monitor):
                rows.append(row)  # shown even if a later model cannot be loaded
    finally:
        if rows:
            _show_accuracies(f"{task}, split {split}, seed {seed}: {n} prompts", rows)
        if rows and json_file:
            entries = TypeAdapter(list[ModelAccuracy]).dump_python(rows, mode="json")
            write_whole(json_file, json_bytes([{"model": model, **answers} for model, answers in entries]))


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


def _run(settings: CommonSettings, folder: Path | None, workers: int = 1, ray: str | None = None) -> None:
    folder = folder or Path("runs") / settings.name
    with _progress() as monitor, _workers(settings, workers, ray, monitor) as at_work:
        run_study(settings, folder, monitor, _show_plan, at_work, lambda text: _say(f"note: {text}"))
    results = read_results(folder)
    page = write_report(results, folder / REPORT)
    _show_results(results)
    _say(f"report: {page}")


@contextmanager
def _workers(settings: CommonSettings, n: int, ray: str | None, monitor: Monitor) -> Iterator[Sequence[Worker]]:
    if ray is None:
        yield local_workers(settings, n, monitor)
    else:
        with ray_workers(settings, ray, n) as workers:
            yield workers


def _show_plan(expected: PlannedCost) -> None:
    rows = [
        (part.what, f"{part.forwards:,}", f"{part.flop / 1e12:.1f}", f"{part.minutes:.1f}") for part in expected.parts
    ]
    minutes = sum(part.minutes for part in expected.parts)
    _show_table(("part", "plain forwards", "TFLOP", "minutes"), rows, "plan", numbers=True)
    _say(f"at most about {minutes:.0f} minutes and {expected.memory_gb:.1f} GB on this machine")
    out.print()


def _show_results(results: CommonResults) -> None:
    rows = []
    for name, models in (part_of(results, FAITHFULNESS) or {}).items():
        circuit = (part_of(results, DISCOVERY) or {})[name]
        n_heads = sum(len(group.heads) for group in circuit.groups.values())
        for model, entry in models.items():
            accuracies = (f"{each.value:.3f}" for each in (entry.circuit_accuracy, entry.model_accuracy))
            percentile = "-" if entry.random is None else _beaten(entry.random)
            rows.append((name, model, str(n_heads), *accuracies, _interval(entry), percentile))
    _show_table(("circuit", "in model", "heads", "accuracy", "of model's", "faithfulness", "percentile"), rows)
    for variant, verdict in (part_of(results, VERDICT) or {}).items():
        out.print()
        _say(f"{variant} against its base:")
        for sentence in verdict.sentences:
            _say(f"  {sentence.text}")
    for warning in results.warnings:
        _say(f"warning: {warning}")


def _beaten(drawn: RandomCircuits) -> str:
    n = len(drawn.accuracies)
    return f"{drawn.percentile * n / 100:g} of {n} random"


def _interval(estimate: Estimate, digits: int = 2) -> str:
    if estimate.value is None:
        return "undefined"
    value, low, high = (f"{each:.{digits}f}" for each in (estimate.value, estimate.low, estimate.high))
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


def _show_accuracies(title: str, rows: Sequence[ModelAccuracy]) -> None:
    cells = []
    for model, answers in rows:
        shares = " ".join(f"{share.value:.2f}" for share in answers.accuracy_by_queried)
        hits = f"{answers.accuracy.hits}/{answers.accuracy.n}"
        cells.append((model, hits, _interval(answers.accuracy, 3), _interval(answers.logit_difference), shares))
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
        _complained("interrupted; run again to go on, what is computed is kept")
    raise SystemExit(code)


def _complained(line: str) -> int:
    print(f"circuitdiff: {printable(line)}", file=sys.stderr)
    return 2
