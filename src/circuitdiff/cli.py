"""The command line: arguments in, exit code out."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter

from circuitdiff import runs
from circuitdiff.cache.files import write_whole
from circuitdiff.cache.store import REPORT, json_bytes
from circuitdiff.circuit import Head
from circuitdiff.circuit_files import Form, written
from circuitdiff.config.reading import split_adapters
from circuitdiff.engine import Model
from circuitdiff.errors import InputError, choices
from circuitdiff.finetune.recipes import run_recipe
from circuitdiff.ground_truth import ask, chosen, render_page
from circuitdiff.models import load_model
from circuitdiff.models.adapters import CHANGES
from circuitdiff.models.differences import ModelDifferences, model_differences
from circuitdiff.models.sources import read_outline
from circuitdiff.report import weights, write_report
from circuitdiff.report.diff import diff_runs, diff_tables, failures, paired
from circuitdiff.study.accuracies import DEFAULT, ModelAccuracy, accuracies
from circuitdiff.study.comparison import STUDY_FILE, location, write_study
from circuitdiff.study.registry import read_results, read_study, results_schema
from circuitdiff.study.results import CommonResults
from circuitdiff.study.runner import plan_study
from circuitdiff.study.sections.discovery import FoundCircuit
from circuitdiff.study.settings import CommonSettings
from circuitdiff.study.settings_page import settings_page
from circuitdiff.study.task_check import ability_finding, plans_finding
from circuitdiff.tasks import get_task, new_task
from circuitdiff.tasks.chat import OFF
from circuitdiff.tasks.soundness import examine
from circuitdiff.terminal import (
    check_folder,
    out,
    progress,
    run_command,
    say,
    show_accuracies,
    show_differences,
    show_plan,
    show_prompt,
    show_results,
    show_table,
)

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
Force = Annotated[bool, typer.Option("--force", help="Go on though the base does not do the task.")]
Pairings = Annotated[list[str], typer.Option("--pair", help="FIRST=SECOND: what one model is called in each run.")]


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="The study, a YAML file.")],
    folder: Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/NAME.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=1000, help="Processes that share the work.")] = 1,
    ray: Annotated[str | None, typer.Option(help="A Ray cluster to work on: its address, or local.")] = None,
    force: Force = False,
) -> None:
    """Run a study; what the run folder has already is not computed again."""
    settings = read_study(study)
    _run(settings.model_copy(update={"force": settings.force or force}), folder, workers, ray)


@app.command()
def plan(
    study: Annotated[Path, typer.Argument(help="The study, a YAML file.")],
    workers: Annotated[int, typer.Option(min=1, max=1000, help="Processes that would share the work.")] = 1,
) -> None:
    """Show what a study would take on this machine, without running it."""
    with progress() as monitor:
        _, cost = plan_study(read_study(study), monitor, workers)
    show_plan(cost)


@app.command()
def compare(
    models: Annotated[list[str], typer.Argument(help="The base, then its variants; SOURCE+ADAPTER merges an adapter.")],
    task: Annotated[str, typer.Option(help="A built-in task, or a task file (YAML, JSONL, CSV).")],
    folder: Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/NAME.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Sizes for a first look.")] = False,
    minutes: Annotated[float | None, typer.Option(min=1, help="At most about so long on this machine.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=1000, help="Processes that share the work.")] = 1,
    chat: Annotated[str, typer.Option(help="A chat template before each prompt: off, auto, or a file.")] = OFF,
    dtype: str = "float32",
    device: str = "cpu",
    force: Force = False,
) -> None:
    """What did fine-tuning do to the circuit? Plan, run, verdict and report of a base and its variants."""
    with progress() as monitor:
        options = {"quick": quick, "minutes": minutes, "dtype": dtype, "device": device, "chat": chat, "force": force}
        told = {"monitor": monitor, "announce": show_plan, "notify": _note}
        results = runs.compare(*models, task=task, folder=folder, workers=workers, **options, **told)
    folder = folder or Path("runs") / results.study.name
    _show(results, folder)
    say(f"study: {folder / STUDY_FILE}, which can be edited and run again")


@app.command()
def locate(
    task: Annotated[str, typer.Argument(help="A built-in task, or a task file (YAML, JSONL, CSV).")],
    model: Annotated[str, typer.Argument(help="A model; SOURCE+ADAPTER merges an adapter.")],
    n: Annotated[int, typer.Option("-n", help="How many prompts, each a scenario of its own.")] = 60,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    role: Annotated[list[str], typer.Option(help="Only this role; repeat for more.")] = [],  # noqa: B006
    folder: Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/NAME.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=1000, help="Processes that share the work.")] = 1,
    chat: Annotated[str, typer.Option(help="A chat template before each prompt: off, auto, or a file.")] = OFF,
    dtype: str = "float32",
    device: str = "cpu",
    force: Force = False,
) -> None:
    """Where in a model does it happen? By layer and role of the prompt, before any head is looked for."""
    options = {"chat": chat, "dtype": dtype, "device": device, "force": force}
    settings = location(model, task, n_prompts=n, seed=seed, roles=role, **options)
    written = write_study(settings, folder or Path("runs") / settings.name)
    _run(settings, folder, workers)
    say(f"study: {written}, which can be edited and run again")


@app.command()
def demo(folder: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("runs/demo")) -> None:
    """What did tuning do to the circuit? tracker-base, a small model that tracks entities, against tracker-plus."""
    with as_file(files("circuitdiff") / "demo.yaml") as study:
        _run(read_study(study), folder)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    file: Annotated[Path, typer.Argument(help="Where the circuit goes.")],
    circuit: Annotated[str | None, typer.Option(help="Which; default the base's.")] = None,
    form: Annotated[Form, typer.Option(help='[[9, 6], ...], ["a9.h6", ...], or a graph with scores.')] = "graph",
) -> None:
    """Write a circuit as other tools read it: heads without roles."""
    results = read_results(folder)
    found: dict[str, FoundCircuit] = results.discovery or {}
    name = next(iter(found), None) if circuit is None else circuit
    if name not in found:
        raise InputError(f"{folder} has no circuit {name!r}{choices(str(name), found)}")
    heads = [Head(*head) for group in found[name].groups.values() for head in group.heads]
    model = results.models[found[name].model]
    write_whole(file, written(form, heads, model.n_layers, model.n_heads, found[name].scores))
    say(f"circuit {name}, {len(set(heads))} heads: {file}")


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="The folder of a finished run.")]) -> None:
    """Write a run's report again, without loading a model."""
    say(f"report: {write_report(read_results(folder), folder / REPORT)}")


@app.command()
def schema(
    file: Annotated[Path, typer.Option("--out", help="Where it goes.")] = SCHEMA,
    settings: Annotated[Path, typer.Option(help="Where the page of settings goes.")] = Path("docs/settings.md"),
) -> None:
    """Write the JSON schema of results.json, and a page of all settings of a study."""
    for path, content in ((file, json_bytes(results_schema())), (settings, settings_page().encode())):
        check_folder(path)
        write_whole(path, content)
    say(f"schema: {file}; settings: {settings}")


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
        show_table(columns, rows[:_ROWS], title)
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
    show_table(("check", "value", "allowed", "result", "on"), rows)
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
        show_differences(found[-1], [each for each in variant.provenance["checks"] if each["name"] == CHANGES])
    if json_file:
        write_whole(json_file, json_bytes(TypeAdapter(list[ModelDifferences]).dump_python(found, mode="json")))


@app.command()
def prompts(
    task: Annotated[str, typer.Argument(help="A built-in task, like entity-tracking, or a task file.")],
    model: Annotated[str, typer.Option(help="Whose tokenizer to use.")] = "smollm2",
    n: Annotated[int, typer.Option("-n", help="How many pairs to show.")] = 3,
    seed: int = 0,
    split: str = "evaluation",
    counterfactual: str | None = None,
) -> None:
    """Show prompts with their roles marked, and each one's counterfactual under it."""
    built = get_task(task)
    tokenizer = read_outline(model).tokenizer
    pairs = built.sample(tokenizer, n, seed, split, counterfactual=counterfactual)
    for i in range(n):
        pair = built.describe(pairs, i, tokenizer)
        out.rule(f"pair {i}, scenario {int(pairs.scenarios[i])}")
        show_prompt("clean", pair.clean, pair.answer)
        show_prompt("counterfactual", pair.counterfactual, pair.counterfactual_answer)


tasks_app = typer.Typer(help="Tasks of your own: files from which prompts are drawn.", no_args_is_help=True)
app.add_typer(tasks_app, name="task")


@tasks_app.command("new")
def new(file: Annotated[Path, typer.Argument(help="Where the file goes.")]) -> None:
    """Write a commented task file to start from."""
    check_folder(file)
    if file.exists():
        raise InputError(f"{file} is there already: name another file")
    write_whole(file, new_task().encode())
    say(f"task: {file}; edit it, then: circuitdiff task check {file} --model MODEL")


@tasks_app.command("check")
def check_task(
    task: Annotated[str, typer.Argument(help="A task file, or a built-in task.")],
    model: Annotated[str, typer.Option(help="Whose tokenizer to use.")] = "smollm2",
    n: Annotated[
        int, typer.Option("-n", min=4, help="How many prompts of each split to look at; of a table all are.")
    ] = 100,
    seed: int = 0,
    run: Annotated[bool, typer.Option("--run", help="Also load the model: can it do the task?")] = False,
    at_least: Annotated[float, typer.Option(min=0, max=1, help="Accuracy below which it cannot (--run).")] = 0.2,
) -> None:
    """Is a task sound in a model's tokens, and can a study ask it? Exit code 2 if not. Only --run reads weights."""
    built = get_task(task)
    outline = read_outline(split_adapters(model)[0])
    findings = [*examine(built, outline.tokenizer, n, seed), plans_finding(built, outline.tokenizer, seed)]
    if run and all(each.passed is not False for each in findings):
        with progress() as monitor:
            findings.append(ability_finding(built, model, at_least, n_prompts=n, seed=seed, monitor=monitor))
    marks = {True: "ok", False: "FAILED", None: ""}
    rows = [(each.what, each.found, marks[each.passed], each.detail) for each in findings]
    show_table(("check", "found", "result", "detail"), rows, f"{built.name} in the tokens of {model}")
    if failed := [f"{each.what}: {each.detail or each.found}" for each in findings if each.passed is False]:
        more = f" (and {len(failed) - 1} more, above)" if len(failed) > 1 else ""
        raise InputError(f"{task} is not sound for {model}: {failed[0]}{more}")


@app.command()
def accuracy(
    task: Annotated[str, typer.Argument(help="A built-in task, like entity-tracking, or a task file.")],
    models: Annotated[list[str], typer.Argument(help="Models; SOURCE+ADAPTER merges an adapter.")],
    n: Annotated[
        int | None,
        typer.Option("-n", help="How many prompts, each a scenario of its own; default 500, or all that there are."),
    ] = None,
    split: str = "evaluation",
    seed: int = 100,
    chat: Annotated[list[str], typer.Option(help="Chat template: off, auto, or a file; repeat to compare.")] = [OFF],  # noqa: B006
    dtype: str = "float32",
    device: str = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the table here.")] = None,
) -> None:
    """How often models are right, with intervals and by queried index."""
    check_folder(json_file)
    rows: list[ModelAccuracy] = []
    try:
        with progress() as monitor:
            chosen = {"n_prompts": n, "split": split, "seed": seed, "chats": chat, "dtype": dtype, "device": device}
            for row in accuracies(task, models, **chosen, monitor=monitor):
                rows.append(row)  # shown even if a later model cannot be loaded
    finally:
        if rows:
            there = rows[0].answers.accuracy.n
            few = ", which are all" if n is None and there < DEFAULT else ""
            show_accuracies(f"{task}, split {split}, seed {seed}: {there} prompts{few}", rows)
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


@app.command()
def ground_truth(
    folder: Annotated[Path, typer.Option("--out", help="Where the studies go; a further run continues.")] = Path(
        "runs/ground-truth"
    ),
    page: Annotated[Path | None, typer.Option(help="Where the page goes; default ground-truth.md there.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=1000, help="Processes that share the work.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Three planted models only.")] = False,
) -> None:
    """Ask models whose circuit and cause are known, and count how often answers are right."""
    check_folder(page)
    with progress() as monitor:
        truth = ask(chosen(quick=quick), folder, workers, monitor)
    page = page or folder / "ground-truth.md"
    write_whole(page, render_page(truth).encode())
    wrong, opened = (sum(each.right is value for each in truth.statements) for value in (False, None))
    exact = sum(each.exact for each in truth.heads)
    for line in truth.failed:
        say(f"no answers: {line}")
    say(f"{len(truth.statements)} answers: {wrong} wrong, {opened} open; {exact} of {len(truth.heads)} groups exact")
    say(f"page: {page}")


def _run(settings: CommonSettings, folder: Path | None, workers: int = 1, ray: str | None = None) -> None:
    folder = folder or Path("runs") / settings.name
    with progress() as monitor:
        told = {"monitor": monitor, "announce": show_plan, "notify": _note}
        results = runs.run_to_report(settings, folder, workers, ray, **told)
    _show(results, folder)


def _note(text: str) -> None:
    say(f"note: {text}")


def _show(results: CommonResults, folder: Path) -> None:
    show_results(results)
    say(f"report: {folder / REPORT}")


def _load(name: str, dtype: str, device: str, like: Sequence[Model] = ()) -> Model:
    source, *adapters = split_adapters(name)
    return load_model(source, adapters, dtype, device, name=name, like=like, idle_adapters=True)


def main() -> None:
    """Runs the command."""
    run_command(app, "circuitdiff")
