"""How well does each model do the task? In all, by queried index, and what is answered instead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Bool, Int
from torch import Tensor

from circuitdiff.errors import InputError
from circuitdiff.evaluation import Evaluation
from circuitdiff.models.comparable import other_settings
from circuitdiff.prompts import Pairs
from circuitdiff.readable import Readable
from circuitdiff.study.checks import BATCH, batching
from circuitdiff.study.common_units import EVALUATION, model_answers
from circuitdiff.study.context import checked
from circuitdiff.study.estimates import Estimate, Share, accuracy, mean_logit_difference, printed, share
from circuitdiff.study.evidence import Ability
from circuitdiff.study.facts import ModelFacts
from circuitdiff.study.section import Part, PromptsOf, Section, Sizes, StudyContext
from circuitdiff.tasks.soundness import guessing

_FEW_SCENARIOS = 50


@dataclass(frozen=True)
class QueriedShare(Share):
    queried: int  # index of the queried item, from zero


@dataclass(frozen=True)
class ErrorShare(Share):
    kind: str  # "before", "after" (the neighbours in the list), "other", or "none" of those listed


@dataclass(frozen=True, repr=False)
class Accuracy(Readable):
    """What a model, or a circuit alone, answers to the evaluation prompts."""

    accuracy: Share
    logit_difference: Estimate
    accuracy_by_queried: tuple[QueriedShare, ...]
    errors: tuple[ErrorShare, ...]


async def run(study: StudyContext, _: None) -> dict[str, Accuracy]:
    """Of each model, after checks 4 and 6."""
    return await study.by_item(study.settings.models, lambda name: _accuracy(study, name))


async def _accuracy(study: StudyContext, name: str) -> Accuracy:
    facts, pairs = await study.facts(name), await study.pairs(name, EVALUATION)
    if name != study.base:
        await _hold_against_base(study, facts, pairs)
    worst = await study.value(f"batches of {name}", batching, name, prompts=PromptsOf("evaluation", first=BATCH))
    held = {"together": "batch of one vs batch of many", "padded": "our buckets vs the model's padded batch"}
    study.add_checks([checked(held[how], name, worst[how], worst["allowed"], "logits") for how in held])
    answers = await model_answers(study, name)
    n_scenarios = len(answers.scenarios.unique())
    if n_scenarios < _FEW_SCENARIOS:
        study.warn(
            f"{name} was evaluated on {n_scenarios} scenarios only; below {_FEW_SCENARIOS} intervals are too narrow"
        )
    return accuracy_of(answers, pairs)


async def ability_of(study: StudyContext, model: str) -> Ability:
    """How well the model does the task on all evaluation prompts."""
    return ability(await model_answers(study, model), await study.pairs(model, EVALUATION))


def ability(answers: Evaluation, pairs: Pairs) -> Ability:
    return Ability(accuracy(answers), mean_logit_difference(answers), guessing(pairs))


async def stop_unless_able(study: StudyContext) -> None:
    """Raises: InputError if the base does not do the task, and the study does not go on all the same (`force`)."""
    found = await ability_of(study, study.base)
    if not (study.settings.force or found.does_it):
        raise InputError(
            f"{study.base} does not do the task {study.task.name}: accuracy {printed(found.accuracy)} where guessing "
            f"gives {found.guessing:.2f}, logit difference {printed(found.logit_difference)}; there is no behaviour "
            f"whose circuit could be found: ask another model or task, or go on all the same with --force (force: true)"
        )


async def _hold_against_base(study: StudyContext, facts: ModelFacts, pairs: Pairs) -> None:
    """Check 6: the variant's tokens and shapes are the base's. Raises: CheckError."""
    base = await study.facts(study.base)
    base_pairs = await study.pairs(study.base, EVALUATION)
    shapes = (("layers", "n_layers"), ("heads", "n_heads"), ("key/value heads", "n_kv_heads"), ("head size", "d_head"))
    differing = [
        f"{what} {getattr(facts, field)} instead of {getattr(base, field)}"
        for what, field in shapes
        if getattr(facts, field) != getattr(base, field)
    ]
    rows, base_rows = ([each.clean_prompts.rows(), each.counterfactual_prompts.rows()] for each in (pairs, base_pairs))
    alike = study.settings.chat_of(facts.name) == study.settings.chat_of(study.base)
    differing += ["another tokenizer output"] if alike and rows != base_rows else []
    detail = "; ".join(differing) or ("same tokens, same shapes" if alike else "same shapes; asked with another chat")
    study.add_checks([checked("base and variant have the same shape", facts.name, len(differing), 0.0, detail)])
    if other := other_settings(base.config, facts.config):
        study.warn(f"{facts.name} and {base.name} differ in more than weights: {other}")


def accuracy_of(answers: Evaluation, pairs: Pairs) -> Accuracy:
    queried = by_queried(answers.hits, answers.scenarios, pairs.queried)
    errors = [
        ErrorShare(**vars(share(rows, answers.scenarios)), kind=kind) for kind, rows in _errors(answers, pairs).items()
    ]
    return Accuracy(accuracy(answers), mean_logit_difference(answers), queried, tuple(errors))


def by_queried(
    hits: Bool[Tensor, " prompt"], scenarios: Int[Tensor, " prompt"], queried: Int[Tensor, " prompt"]
) -> tuple[QueriedShare, ...]:
    """Accuracy by the index of the item that is asked for; none where it is not known (-1)."""
    return tuple(
        QueriedShare(**vars(share(hits[rows], scenarios[rows])), queried=index)
        for index in queried.unique().tolist()
        for rows in [queried == index]
        if index >= 0
    )


def _errors(answers: Evaluation, pairs: Pairs) -> dict[str, Bool[Tensor, " prompt"]]:
    """The wrong answers by kind; neighbours in the list where one answer is right, and there are more than two others.

    Of an answer of several tokens by the first; "none" where it is right and a later one is not.
    """
    is_answer = pairs.foils == answers.predictions[:, None]
    listed, place = is_answer.any(1), is_answer.int().argmax(1)
    none = {"none": ~answers.hits & ~listed}
    if is_answer.shape[1] <= 2 or pairs.right is not None:
        return {"other": listed} | none
    before, after = (listed & (place == pairs.queried + step) for step in (-1, 0))  # the answer is not among them
    return {"before": before, "after": after, "other": listed & ~before & ~after} | none


def cost(sizes: Sizes, _: None) -> Iterator[Part]:
    n = sizes.n_models * (sizes.settings.prompts.evaluation + sizes.settings.prompts.means)
    yield Part("accuracy and means", n, sizes.passes(n))


SECTION = Section("accuracy", None, dict[str, Accuracy], run, cost)
