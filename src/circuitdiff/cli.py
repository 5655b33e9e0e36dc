"""The command line: arguments in, exit code out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter
from rich.table import Table
from rich.text import Text

from circuitdiff.cache.files import write_whole
from circuitdiff.cache.store import REPORT, json_bytes
from circuitdiff.config.names import printable
from circuitdiff.config.reading import split_adapters
from circuitdiff.engine import Model
from circuitdiff.finetune.recipes import run_recipe
from circuitdiff.models import load_model
from circuitdiff.models.adapters import CHANGES
from circuitdiff.models.differences import ModelDifferences, model_differences
from circuitdiff.models.sources import read_outline
from circuitdiff.report import weights, write_report
from circuitdiff.report.diff import diff_runs, diff_tables, failures, paired
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
from circuitdiff.terminal import check_folder, out, progress, run_command, say

app = typer.Typer(
    help="What did fine-tuning do to the circuit behind a behaviour?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
SCHEMA = Path("docs/results.schema.json")
_ROWS = 40  # of a table that is printed

Adapters = Annotated[list[str], typer.Option("--adapter", help="PEFT adapter, merged in; repeat in order.")]
FailOn = Annotated[
    list[str],
    typer.Option(
        "--fail-on", help="Exit with 1 if it moved: NAME or a glob, NAME=0.05 (by more), or moved (anything)."
    ),
]
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
    say(f"report: {write_report(read_results(folder), folder / REPORT)}")


@app.command()
def schema(
    file: Annotated[Path, typer.Option("--out", help="Where it goes.")] = Path("docs/results.schema.json"),
) -> None:
    """Write the JSON schema of results.json."""
    check_folder(file)
    write_whole(file, json_bytes(results_schema()))
    say(f"schema: {file}")


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    second: Annotated[Path, typer.Argument(help="Another.")],
    pair: Pairings = [],  # noqa: B006 (typer wants a list)
    fail_on: FailOn = [],  # noqa: B006
    json_file: Annotated[Path | None, typer.Option("--json", help="Where everything goes, for machines.")] = None,
) -> None:
    """Show what moved between two runs beyond its interval, without loading a model."""
    check_folder(json_file)
    ours = read_results(first)
    theirs = paired(ours, read_results(second), pair)
    found, failed = diff_runs(ours, theirs), failures(ours, theirs, fail_on)
    tables = diff_tables(found, str(first), str(second))
    if json_file:
        write_whole(json_file, json_bytes(found.to_dict()))
    for title, columns, rows in tables:
        _show_table(columns, rows[:_ROWS], title)
        if len(rows) > _ROWS:
            say(f"and {len(rows) - _ROWS} more; --json has all")
            out.print()
    say(f"{len(found.moved)} of {found.n_compared} numbers with an interval moved beyond it")
    for line in failed:
        say(line)
    if failed:
        raise typer.Exit(1)


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
    say(f"{loaded.name}: {type(loaded.module).__name__}, {size}, {dtype}")
    _show_table(("check", "value", "allowed", "result", "on"), rows)
    if defaults := loaded.provenance.get("left_to_defaults"):
        listed = ", ".join(f"{name} = {value!r}" for name, value in defaults.items())
        say(f"config.json leaves to the architecture's defaults: {listed}")


@app.command()
def models(
    base: Annotated[str, typer.Argument(help="A model; SOURCE+ADAPTER merges an adapter.")],
    variants: Annotated[list[str], typer.Argument(help="Those to hold against it.")],
    dtype: str = "float32",
    device: str = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="Where everything goes, for machines.")] = None,
) -> None:
    """Are models what they are said to be? Where variants differ from a base: settings, tokenizer, weights."""
    check_folder(json_file)
    first = _load(base, dtype, device)
    found: list[ModelDifferences] = []
    say(weights.CHECKED)
    for name in variants:
        variant = _load(name, dtype, device, [first])
        found.append(model_differences(first, variant))
        _show_differences(found[-1], [each for each in variant.provenance["checks"] if each["name"] == CHANGES])
    if json_file:
        write_whole(json_file, json_bytes(TypeAdapter(list[ModelDifferences]).dump_python(found, mode="json")))


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
    check_folder(json_file)
    rows: list[ModelAccuracy] = []
    try:
        with progress() as monitor:
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
    with progress() as monitor:
        summary = run_recipe(recipe, folder, monitor)
    say(f"{summary['steps_done']} steps, held-out accuracy {summary['held_out_accuracy']:.3f}")
    if "test" in summary:
        test = summary["test"]
        low, high = test["wilson_95"]
        say(f"test accuracy {test['accuracy']:.3f} [{low:.3f}, {high:.3f}], {test['n_hits']} of {test['n_prompts']}")
    say(", ".join(summary["files"]))


def _run(settings: CommonSettings, folder: Path | None, workers: int = 1, ray: str | None = None) -> None:
    folder = folder or Path("runs") / settings.name
    with progress() as monitor, _workers(settings, workers, ray, monitor) as at_work:
        run_study(settings, folder, monitor, _show_plan, at_work, lambda text: say(f"note: {text}"))
    results = read_results(folder)
    page = write_report(results, folder / REPORT)
    _show_results(results)
    say(f"report: {page}")


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
    say(f"at most about {minutes:.0f} minutes and {expected.memory_gb:.1f} GB on this machine")
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
        say(f"{variant} against its base:")
        for sentence in verdict.sentences:
            say(f"  {sentence.text}")
    for warning in results.warnings:
        say(f"warning: {warning}")


def _beaten(drawn: RandomCircuits) -> str:
    n = len(drawn.accuracies)
    return f"{drawn.percentile * n / 100:g} of {n} random"


def _interval(estimate: Estimate, digits: int = 2) -> str:
    if estimate.value is None:
        return "undefined"
    value, low, high = (f"{each:.{digits}f}" for each in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def _show_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "", *, numbers: bool = False
) -> None:
    """Prints a table as `say` a line. `numbers`: all columns but the first are."""
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


def _load(name: str, dtype: str, device: str, like: Sequence[Model] = ()) -> Model:
    source, *adapters = split_adapters(name)
    return load_model(source, adapters, dtype, device, name=name, like=like, idle_adapters=True)


def _show_differences(found: ModelDifferences, adapters: Sequence[Mapping[str, Any]]) -> None:
    """`adapters`: whether each changed the logits."""
    out.print()
    for line in weights.in_words(found):
        say(line)
    if found.whole.n_changed:
        for table in (weights.by_kind(found), weights.by_layer(found)):
            rows = [[str(row[column]) for column in table.columns] for row in table.rows]
            _show_table(tuple(table.columns.values()), rows, table.caption, numbers=True)
    idle = sum(not each["value"] for each in adapters)
    if found.same_weights:
        did = f"; {'its adapters' if idle > 1 else 'its adapter'} did nothing" if idle else ""
        say(f"note: {found.variant} is {found.base}, weight for weight{did}")
    elif idle:
        say(f"note: {idle} of {len(adapters)} adapters of {found.variant} changed no logit of random tokens")


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
            say(f"  {place:3d} {prompt.tokens[place]!r:12} {', '.join(named)}")


def main() -> None:
    """Runs the command."""
    run_command(app, "circuitdiff")
