"""What can be refused before any weights are read: models that do not compare, files and names that do not fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from circuitdiff.circuit_files import read_circuit
from circuitdiff.errors import InputError, choices, naming
from circuitdiff.evaluation import check_groups
from circuitdiff.evaluation.roles import roles_everywhere
from circuitdiff.finetune.recipes import read_recipe
from circuitdiff.methods.discovery import Plan
from circuitdiff.methods.path_patching import check_reach
from circuitdiff.models.adapters import check_adapter
from circuitdiff.models.comparable import Shape, differences
from circuitdiff.models.family_registry import member_of
from circuitdiff.models.sources import Outline, read_outline
from circuitdiff.prompts import Pairs
from circuitdiff.study.settings import PURPOSES, SPLIT_OF, CommonSettings, expected, plans_of, task_of
from circuitdiff.tasks import Task
from circuitdiff.tasks.chat import OFF

_NEEDED = ("n_layers", "n_heads", "n_kv_heads", "d_head", "tokens")  # by all that holds a variant against the base
_N_PROMPTS = 64  # in whose tokens all models must agree; the study's own are compared once models are loaded


@dataclass(frozen=True)
class OutlinedModel:
    """A model of the study, and some of the study's prompts in its tokens."""

    outline: Outline
    shape: Shape
    pairs: Pairs
    chat: str


@dataclass(frozen=True)
class Outlined:
    """A study as it is known before weights are read; `plans`: the main one first."""

    settings: CommonSettings
    plans: Mapping[str, Plan]
    task: Task
    models: tuple[OutlinedModel, ...]  # the base first

    @property
    def base(self) -> OutlinedModel:
        return self.models[0]

    @property
    def main(self) -> Plan:
        return next(iter(self.plans.values()))

    @property
    def circuits(self) -> list[str]:
        """What circuits are called that there may be."""
        return [*self.settings.searched, *self.settings.circuits]


def outlined(settings: CommonSettings) -> Outlined:
    """The study's models and prompts. Raises: InputError naming the model that cannot be read."""
    task = task_of(settings)
    return Outlined(settings, expected(plans_of(settings), task), task, tuple(_outlined_models(settings)))


def check_prompts(study: Outlined) -> None:
    """Raises: InputError naming the number of prompts that the task cannot fill, and what it can."""
    sizes = study.settings.prompts
    searches = getattr(study.settings, "discovery", None) is not False
    used = {split for plan in study.plans.values() for stage in plan.stages for split in stage.splits if searches}
    for name in PURPOSES:
        if name in used | {"evaluation", "means"}:
            check_enough(f"prompts.{name}", study, getattr(sizes, name), SPLIT_OF.get(name, name))


def check_enough(where: str, study: Outlined, n: int, split: str = "evaluation", *, beyond: bool = False) -> None:
    """Raises: InputError if a split has not so many prompts; with `beyond`, beyond those for evaluation."""
    tokenizer, seed, sizes = study.base.outline.tokenizer, study.settings.seed, study.settings.prompts
    others = sizes.evaluation + sizes.queries_per_scenario if beyond else 0
    there = study.task.available(tokenizer, others + n, seed, split, sizes.queries_per_scenario)
    if there < others + n and not (beyond and there < sizes.evaluation):  # which `check_prompts` says
        of = f", {sizes.evaluation} of which prompts.evaluation takes" if beyond else ""
        none = "set prompts.evaluation lower" if beyond else "give the task more words or rows"
        lower = f"set it to {there - others} or fewer" if there > others else none
        raise InputError(f"{where} is {n}, and {study.task.name} has {there} prompts in split {split!r}{of}: {lower}")


def check_study(study: Outlined, mixing: Sequence[str]) -> None:
    """Holds circuit files, plans and variants against the base, and answers against what a study can compare.

    `mixing`: the sections that put a variant's activations or weights into the base: they need more in common.

    Raises: InputError naming the model and everything in which it differs, or the file or stage and what it names.
    """
    base, *variants = study.models
    for model in study.models:
        model.pairs.check_one_token("a study")
    check_prompts(study)
    for path in study.settings.circuits.values():
        circuit = read_circuit(path, roles_everywhere(base.pairs))
        with naming(path):
            check_groups(circuit, base.shape.n_layers, base.shape.n_heads, base.pairs)
    for stage in (stage for plan in study.plans.values() for stage in plan.stages):
        with naming(f"stage {stage.name!r}"):
            check_reach(base.pairs, stage.at, stage.via, stage.receivers_at)
    for variant in variants:
        found = differences(variant.shape, base.shape)
        if found and not mixing:
            found = {field: words for field, words in found.items() if field in _NEEDED}
        if variant.chat != base.chat and mixing:
            off = ", ".join(f"{section}: false" for section in mixing)
            raise InputError(
                f"variant {variant.shape.model!r} is asked with chat {variant.chat!r}, base {base.shape.model!r} with "
                f"{base.chat!r}: activations and weights are exchanged on the same tokens only; ask both alike, or set "
                f"{off}"
            )
        alike = [replace(each, pairs=_prompts(study.settings, each.outline, OFF)) for each in (base, variant)]
        if "tokens" not in found and (where := _first_other_token(*alike)):
            found["tokens"] = f"the tokens of the task's prompts ({where})"
        if found:
            raise InputError(
                f"variant {variant.shape.model!r} cannot be held against base {base.shape.model!r}: it differs in "
                f"{', '.join(found.values())}; choose models tuned from one base"
            )


def check_known(where: str, names: Iterable[str] | None, known: Iterable[str]) -> None:
    """Raises: InputError saying where a name stands that is none of those known, and which there are."""
    known = list(known)
    for name in names or ():
        if name not in known:
            raise InputError(f"{where} names {name!r}, which this study lacks{choices(name, known)}")


def check_scenarios(where: str, n_prompts: int, per_scenario: int, least: int) -> None:
    """Raises: InputError if so many prompts are of fewer than `least` scenarios, by which they are to be split."""
    n_scenarios = -(-n_prompts // per_scenario)
    if n_scenarios < least:
        raise InputError(
            f"{where} is {n_prompts}, with {per_scenario} prompts a scenario: {n_scenarios} scenarios, of at least "
            f"{least}; set it to {(least - 1) * per_scenario + 1} or more"
        )


def _outlined_models(settings: CommonSettings) -> Iterator[OutlinedModel]:
    """Each source is read once, however many models are tuned from it."""
    known: dict[object, tuple[Outline, Pairs]] = {}
    for name, model in settings.models.items():
        # weights that a recipe is yet to make have the shape of those that it starts from
        start = model if model.recipe is None else read_recipe(model.recipe).base
        chat = settings.chat_of(name)
        member = member_of(start.source)
        origin = (start.source if member is None else member.origin), start.tokenizer, chat
        if origin not in known:
            outline = read_outline(start.source, start.tokenizer)
            with naming(name):
                known[origin] = outline, _prompts(settings, outline, chat)
        outline, pairs = known[origin]
        for adapter in start.adapters:
            with naming(name):
                check_adapter(outline.config, adapter)
        _, base_pairs = next(iter(known.values()))
        yield OutlinedModel(outline, Shape.outlined(name, outline, base_pairs), pairs, chat)


def _prompts(settings: CommonSettings, outline: Outline, chat: str) -> Pairs:
    sizes = settings.prompts
    task, of = task_of(settings), (settings.seed, "evaluation", sizes.queries_per_scenario)
    n = max(1, task.available(outline.tokenizer, min(_N_PROMPTS, sizes.evaluation), *of))
    return task.sample(outline.tokenizer, n, *of, counterfactual=sizes.counterfactual, chat=chat)


def _first_other_token(base: OutlinedModel, variant: OutlinedModel) -> str:
    """Where the task's prompts come out as other tokens than the base's, in words; nothing if nowhere."""
    for kind in ("clean_prompts", "counterfactual_prompts"):
        rows = zip(*(getattr(model.pairs, kind).rows() for model in (base, variant)), strict=True)
        for row, (one, other) in enumerate(rows):
            if one != other:
                at = next(i for i, (a, b) in enumerate(zip_longest(one, other)) if a != b)
                actual, expected = (
                    model.outline.tokenizer.decode(ids[at : at + 1]) for model, ids in ((variant, other), (base, one))
                )
                return f"prompt {row}, place {at}: {actual!r}, not {expected!r}"
    return ""
