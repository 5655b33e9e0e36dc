"""The right answers and the foils of a question: as text, and as the tokens that follow its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuitdiff.errors import InputError
from circuitdiff.prompts import Pairs, PromptSet
from circuitdiff.tasks.markup import Part, parse, reference
from circuitdiff.tasks.scenarios import Question
from circuitdiff.tasks.template_file import Answer, AnyOf, TemplateFile
from circuitdiff.tasks.writing import Words

Categories = Mapping[str, tuple[tuple[str, ...], tuple[str, ...] | None]]


@dataclass(frozen=True)
class AnswerTexts:
    """What may follow a prompt, with the space before it: all that is right, and what is wrong though it was listed."""

    right: tuple[str, ...]
    foils: tuple[str, ...]


def answers_of(form: TemplateFile, words: Words, categories: Categories, question: Question) -> AnswerTexts | None:
    """The answers and foils of a question by its wording, or else by the task; None where it has no answer."""
    if question.given is not None:
        return None
    wording = form.written[question.scenario.wording]
    answer, foils = wording.answer or form.answer, wording.foils or form.foils
    assert answer is not None
    right = _texts(answer, words, categories, question)
    if foils is None:
        wrong = _others(answer, words, question)
    elif isinstance(foils, AnyOf):
        wrong = _texts(foils, words, categories, question)
    else:
        wrong = tuple(text for each in foils for text in _texts(each, words, categories, question))
    wrong = tuple(dict.fromkeys(text for text in wrong if text not in right))
    return AnswerTexts(right, wrong) if right else None


def _texts(answer: Answer, words: Words, categories: Categories, question: Question) -> tuple[str, ...]:
    if isinstance(answer, str):
        parts = parse(answer, "answer")
        if any(part.ref[:1] == ("held",) for part in parts) and len(words.held(question)) != 1:
            return ()
        return ("".join(part.space + (words.of(question, part.ref) if part.ref else part.text) for part in parts),)
    name, _, column = answer.any_of.partition(".")
    above, below, but = (
        None if field is None else _word(words, question, field) for field in (answer.above, answer.below, answer.but)
    )
    own, train = categories[name]
    listed = train if train and {above, below, but} & {*train} else own
    if missing := next((word for word in (above, below) if word is not None and word not in listed), None):
        raise InputError(f"any_of is compared with {missing!r}, and {name} lacks it: give {name} that word")
    low = 0 if above is None else listed.index(above) + 1
    high = len(listed) if below is None else listed.index(below)
    chosen = [word for word in listed[low:high] if word != but]
    columns = words.columns[name]
    return tuple(answer.text.replace("{}", columns[w][column] if column else w) for w in chosen)


def _word(words: Words, question: Question, written: str) -> str:
    """The word of a field, whichever column."""
    first, *rest = reference(written)
    item = {"asked": question.asked, "other": question.other}.get(first)
    if item is not None:
        return words.word(question, rest[0], item)
    return question.scenario.draws[words.single_fields.index(first)]


def _others(answer: Answer, words: Words, question: Question) -> tuple[str, ...]:
    """The same field of every other item, and of all that changes put in."""
    if not isinstance(answer, str):
        return ()
    parts = parse(answer, "answer")
    ref = next((part.ref for part in parts if part.ref[:1] in (("asked",), ("held",))), None)
    if ref is None:
        return ()
    n = len(question.scenario.items[0])
    if ref[0] == "held":
        kept = words.held(question)
        each = [words.thing(question, i) for i in range(n + len(question.scenario.things)) if i not in kept]
    else:
        each = [words.word(question, ref[1], i) for i in range(n) if i != question.asked]
    return tuple(_filled(parts, ref, words.column(ref[1], word, ref[2:])) for word in each)


def _filled(parts: Sequence[Part], ref: tuple[str, ...], text: str) -> str:
    return "".join(part.space + (text if part.ref == ref else part.text) for part in parts)


class AnswerTokens:
    """The tokens that an answer adds to a prompt, each asked of the tokenizer once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[tuple[str, str], tuple[int, ...]] = {}

    def of(self, prompt: str, answer: str, origin: str) -> tuple[int, ...]:
        """The answer's tokens after the prompt.

        Raises: InputError if the answer changes the prompt's own tokens, adds none, or has one that is unknown.
        """
        end = prompt[prompt.rstrip().rfind(" ") + 1 :]  # tokens do not reach across a space from behind
        if (end, answer) not in self._known:
            start, whole = self._tokenizer([end, end + answer], add_special_tokens=False)["input_ids"]
            added = whole[len(start) :]
            if whole[: len(start)] != start or not added or self._tokenizer.unk_token_id in added:
                came = ", ".join(map(repr, self._tokenizer.convert_ids_to_tokens(added))) or "no token"
                space = "" if answer[:1].isspace() else "; is the space before it missing?"
                raise InputError(
                    f"{origin}: the answer {answer!r} must be tokens of its own after {end!r}, all known; it came as "
                    f"{came}{space}"
                )
            self._known[end, answer] = tuple(added)
        return self._known[end, answer]


def pairs_of(
    tokenizer: PreTrainedTokenizerBase,
    prompts: tuple[PromptSet, PromptSet],
    texts: tuple[Sequence[str], Sequence[str]],
    answers: tuple[Sequence[AnswerTexts | None], Sequence[AnswerTexts | None]],
    *,
    scenarios: Sequence[int],
    queried: Sequence[int],
    origins: Sequence[str],
) -> Pairs:
    """Clean prompts and counterfactuals with the tokens of their answers.

    Raises: InputError if a clean prompt has no answer or no foil, or an answer is not one token after its prompt.
    """
    tokens = AnswerTokens(tokenizer)
    rows: list[tuple[int, list[int]]] = []
    for text, each, origin in zip(texts[0], answers[0], origins, strict=True):
        if each is None or not each.foils:
            lacking = "right answer" if each is None else "foil (`foils`, or other items)"
            raise InputError(f"{origin}: {text!r} has no {lacking}; give one")
        right = _one(tokens, text, each.right[0], origin)
        foils = [_one(tokens, text, foil, origin) for foil in each.foils]
        rows.append((right, [foil for foil in foils if foil != right]))
    new = [
        -1 if each is None else _one(tokens, text, each.right[0], origin)
        for text, each, origin in zip(texts[1], answers[1], origins, strict=True)
    ]
    if -1 in new and max(new) >= 0:
        row = new.index(-1)
        raise InputError(f"{origins[row]}: the counterfactual {texts[1][row]!r} has no answer, and others have one")
    most = max(len(foils) for _, foils in rows)
    return Pairs(
        clean_prompts=prompts[0],
        counterfactual_prompts=prompts[1],
        answers=torch.tensor([right for right, _ in rows]),
        alternatives=torch.tensor([[*foils, *[foils[-1]] * (most - len(foils))] for _, foils in rows]),
        counterfactual_answers=None if all(token < 0 for token in new) else torch.tensor(new),
        scenarios=torch.tensor(scenarios),
        queried=torch.tensor(queried),
    )


def _one(tokens: AnswerTokens, prompt: str, answer: str, origin: str) -> int:
    added = tokens.of(prompt, answer, origin)
    if len(added) != 1:
        raise InputError(f"{origin}: the answer {answer!r} is {len(added)} tokens; give answers of one")
    return added[0]


__all__ = ["AnswerTexts", "AnswerTokens", "Int", "Tensor", "answers_of", "pairs_of"]
