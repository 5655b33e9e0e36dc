"""What can be refused before any model is loaded: models that do not compare, files and names that do not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from circuitdiff.circuit import Circuit
from circuitdiff.config.settings import ModelSettings
from circuitdiff.errors import InputError
from circuitdiff.evaluation import check_groups
from circuitdiff.finetune.recipes import read_recipe
from circuitdiff.methods.discovery import Plan
from circuitdiff.methods.path_patching import check_reach
from circuitdiff.models.adapters import check_adapter
from circuitdiff.models.comparable import Shape, differences
from circuitdiff.models.family_registry import MEMBERS
from circuitdiff.models.sources import Outline, read_outline
from circuitdiff.prompts import Pairs
from circuitdiff.sections.preflight_names import check_names, groups_asked
from circuitdiff.sections.preflight_triples import check_triples
from circuitdiff.sections.whole_study import WholeStudy
from circuitdiff.tasks import Task, get_task

_NEEDED = ("n_layers", "n_heads", "n_kv_heads", "d_head", "tokens")  # by all that holds a variant against the base
_N_PROMPTS = 64  # in whose tokens all models must agree; the study's own are compared once models are loaded


def check_study(study: WholeStudy, plans: Mapping[str, Plan]) -> None:
    """Holds all variants against the base, and files and names in the settings, without reading any model's weights.

    Sections that put a variant's activations or weights into the base need more in common than the others.

    `plans`: the main one first.

    Raises: InputError naming the model and everything in which it differs; the file and what it names; or the setting
    and what this study lacks.
    """
    base, *variants = _outlined(study)
    for path in study.circuits.values():
        _check_file(str(path), base)
    for plan in plans.values():
        _check_stages(plan, base.pairs)
    task, main = get_task(study.task.name, **study.task.options), next(iter(plans.values()))
    check_names(study, main, task, base.shape.n_layers)
    if study.functions:
        groups = groups_asked(study, main)
        check_triples(study.functions, groups, task, base.outline.tokenizer, study.seed)
    if study.graft:
        _check_questions(study.graft.queries_per_scenario, study, task, base.outline)
    mixed = bool(study.cross_model or study.graft)
    for variant in variants:
        found = differences(variant.shape, base.shape)
        if found and not mixed:
            found = {field: words for field, words in found.items() if field in _NEEDED}
        if "tokens" not in found and (where := _first_other_token(base, variant)):
            found["tokens"] = f"the tokens of the task's prompts ({where})"
        if found:
            raise InputError(
                f"variant {variant.shape.model!r} cannot be held against base {base.shape.model!r}: it differs in "
                f"{', '.join(found.values())}; choose models tuned from one base"
            )


@dataclass(frozen=True)
class _Outlined:
    """A model of the study, and some of the study's prompts in its tokens."""

    outline: Outline
    shape: Shape
    pairs: Pairs


def _outlined(study: WholeStudy) -> Iterator[_Outlined]:
    """Each source is read once, however many models are tuned from it."""
    known: dict[object, tuple[Outline, Pairs]] = {}
    for name, model in study.models.items():
        start = _start(model)
        origin = (MEMBERS[start.source].origin if start.source in MEMBERS else start.source), start.tokenizer
        if origin not in known:
            outline = read_outline(start.source, start.tokenizer)
            known[origin] = outline, _prompts(study, name, outline)
        outline, pairs = known[origin]
        _check_adapters(name, start, outline)
        _, base_pairs = next(iter(known.values()))
        yield _Outlined(outline, Shape.outlined(name, outline, base_pairs), pairs)


def _start(model: ModelSettings) -> ModelSettings:
    """Where the weights come from; those that a recipe is yet to make have the shape of what it starts from."""
    return model if model.recipe is None else read_recipe(model.recipe).base


def _check_adapters(name: str, model: ModelSettings, outline: Outline) -> None:
    for adapter in model.adapters:
        try:
            check_adapter(outline.config, adapter)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error


def _prompts(study: WholeStudy, name: str, outline: Outline) -> Pairs:
    task, wanted = get_task(study.task.name, **study.task.options), study.prompts
    n = min(_N_PROMPTS, wanted.evaluation)
    each, kind = wanted.queries_per_scenario, wanted.counterfactual
    try:
        return task.sample(outline.tokenizer, n, study.seed, "evaluation", each, counterfactual=kind)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _check_questions(each: int | None, study: WholeStudy, task: Task, outline: Outline) -> None:
    try:
        task.sample(outline.tokenizer, each or 1, study.seed, "evaluation", each or 1)
    except InputError as error:
        raise InputError(f"graft: {error}") from error


def _first_other_token(base: _Outlined, variant: _Outlined) -> str:
    """Where the task's prompts come out as other tokens than the base's, in words; nothing if nowhere."""
    ours, theirs = base.pairs, variant.pairs
    both = ((ours.clean_prompts, theirs.clean_prompts), (ours.counterfactual_prompts, theirs.counterfactual_prompts))
    for first, second in both:
        for row, (one, other) in enumerate(zip(first.rows(), second.rows(), strict=True)):
            if one != other:
                at = next(
                    (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
                )
                tokens = [
                    each.outline.tokenizer.decode(ids[at : at + 1]) for each, ids in ((variant, other), (base, one))
                ]
                return f"prompt {row}, place {at}: {tokens[0]!r}, not {tokens[1]!r}"
    return ""


def _check_stages(plan: Plan, pairs: Pairs) -> None:
    for stage in plan.stages:
        try:
            check_reach(pairs, stage.at, stage.via, stage.receivers_at)
        except InputError as error:
            raise InputError(f"stage {stage.name!r}: {error}") from error


def _check_file(path: str, base: _Outlined) -> None:
    try:
        check_groups(Circuit.from_json(path), base.shape.n_layers, base.shape.n_heads, base.pairs)
    except InputError as error:
        raise InputError(str(error) if path in str(error) else f"{path}: {error}") from error
