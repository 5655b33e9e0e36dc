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
from circuitdiff.tasks.template_file import Answer, AnyOf, Scored, TemplateFile, each_of
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
    right = tuple(text for each in each_of(answer) for text in _texts(each, words, categories, question))
    if foils is None:
        wrong = _others(answer, words, question)
    else:
        wrong = tuple(text for each in each_of(foils) for text in _texts(each, words, categories, question))
    wrong = tuple(dict.fromkeys(text for text in wrong if text not in right))
    return AnswerTexts(right, wrong) if right else None


def _texts(answer: str | AnyOf, words: Words, categories: Categories, question: Question) -> tuple[str, ...]:
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
    """The tokens that an answer adds to a prompt, or the first of them; each asked of the tokenizer once.

    `space`: after a word an answer begins with a space, if it is a word of its own with it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, scored: Scored, space: bool = True) -> None:
        self._tokenizer, self._n, self._space = tokenizer, 1 if scored == "first" else None, space
        self._known: dict[tuple[str, str], tuple[int, ...]] = {}

    def of(self, prompt: str, answer: str, origin: str) -> tuple[int, ...]:
        """The answer's tokens after the prompt.

        Raises: InputError if the answer changes the prompt's own tokens, adds none, has one that is unknown, or lacks
        the space before it.
        """
        end = prompt[max(0, prompt.rstrip().rfind(" ")) :]  # from its last space on: a token may begin with that
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
            if self._space and self._lacks_space(end, start, answer):
                raise InputError(
                    f"{origin}: the answer {answer!r} has no space before it, and with one it is a token of its own "
                    f"after {end!r}; write {' ' + answer!r}, or set `space: false` if it is meant so"
                )
            self._known[end, answer] = tuple(added[: self._n])
        return self._known[end, answer]

    def _lacks_space(self, end: str, start: list[int], answer: str) -> bool:
        """After a letter or , . : ; it should begin with a space: with one, it is a single known token."""
        if answer[:1].isspace() or not (end[-1:].isalpha() or end[-1:] in {*",.:;"}):
            return False
        [spaced] = self._tokenizer([f"{end} {answer}"], add_special_tokens=False)["input_ids"]
        return spaced[:-1] == start and spaced[-1] != self._tokenizer.unk_token_id


def pairs_of(
    tokenizer: PreTrainedTokenizerBase,
    prompts: tuple[PromptSet, PromptSet],
    texts: tuple[Sequence[str], Sequence[str]],
    answers: tuple[Sequence[AnswerTexts | None], Sequence[AnswerTexts | None]],
    *,
    scenarios: Sequence[int],
    queried: Sequence[int],
    origins: Sequence[str],
    answer_tokens: Scored = "all",
    space: bool = True,
) -> Pairs:
    """Clean prompts and counterfactuals with the tokens of their answers; of foils the first ones.

    Foils that begin as a right answer does are left out.

    Raises: InputError if a clean prompt has no answer or no foil is left, an answer does not follow its prompt as
    tokens of its own, or one of several right answers has several tokens.
    """
    tokens = AnswerTokens(tokenizer, answer_tokens, space)
    right = [_right(tokens, *each) for each in zip(texts[0], answers[0], origins, strict=True)]
    answer, first = [row[0] for row in right], [[each[0] for each in row] for row in right]
    split = any(len(each) > 1 for each in answer)
    foils = [
        [token for foil in each.foils if (token := _first(tokens, text, foil, origin, split)) not in row]
        for text, each, origin, row in zip(texts[0], answers[0], origins, first, strict=True)
        if each is not None
    ]
    if [] in foils:
        row = foils.index([])
        raise InputError(
            f"{origins[row]}: {texts[0][row]!r} has no foil that begins otherwise than its answer; give one"
        )
    new = [
        -1 if each is None else _first(tokens, text, each.right[0], origin, split)
        for text, each, origin in zip(texts[1], answers[1], origins, strict=True)
    ]
    if -1 in new and max(new) >= 0:
        row = new.index(-1)
        raise InputError(f"{origins[row]}: the counterfactual {texts[1][row]!r} has no answer, and others have one")
    return Pairs(
        clean_prompts=prompts[0],
        counterfactual_prompts=prompts[1],
        answers=torch.tensor([row[0] for row in first]),
        foils=_filled_up(foils, [row[-1] for row in foils]),
        counterfactual_answers=None if all(token < 0 for token in new) else torch.tensor(new),
        scenarios=torch.tensor(scenarios),
        queried=torch.tensor(queried),
        right=_filled_up(first, [row[0] for row in first]) if max(map(len, first)) > 1 else None,
        continuations=_filled_up([each[1:] for each in answer], [-1] * len(answer)) if split else None,
    )


def _right(tokens: AnswerTokens, prompt: str, texts: AnswerTexts | None, origin: str) -> list[tuple[int, ...]]:
    """The tokens of each right answer, those that are the same once."""
    if texts is None or not texts.foils:
        lacking = "right answer" if texts is None else "foil (`foils`, or other items)"
        raise InputError(f"{origin}: {prompt!r} has no {lacking}; give one")
    by_tokens = {tokens.of(prompt, text, origin): text for text in texts.right}
    if len(by_tokens) > 1:
        for each, text in by_tokens.items():
            _check_whole(text, each, origin, f"one of {len(by_tokens)} right ones")
    return list(by_tokens)


def _first(tokens: AnswerTokens, prompt: str, answer: str, origin: str, split: bool) -> int:
    """The first token of an answer that is no clean prompt's: the only one, unless some of those are split, too."""
    added = tokens.of(prompt, answer, origin)
    if not split:
        _check_whole(answer, added, origin, "and every right answer is one")
    return added[0]


def _check_whole(answer: str, tokens: Sequence[int], origin: str, why: str) -> None:
    if len(tokens) > 1:
        raise InputError(
            f"{origin}: the answer {answer!r} is {len(tokens)} tokens, {why}; set `answer_tokens: first`, or give "
            f"answers of one token"
        )


def _filled_up(rows: Sequence[Sequence[int]], fill: Sequence[int]) -> Int[Tensor, "row most"]:
    most = max(map(len, rows))
    return torch.tensor([[*row, *[each] * (most - len(row))] for row, each in zip(rows, fill, strict=True)])
