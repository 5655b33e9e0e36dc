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

# category -> its words, and those of the split `train`
Categories = Mapping[str, tuple[tuple[str, ...], tuple[str, ...] | None]]


@dataclass(frozen=True)
class AnswerTexts:
    """What may follow a prompt, with the space before it: all that is right, and what is wrong though it was listed."""

    right: tuple[str, ...]  # none, where the prompt has no answer
    foils: tuple[str, ...] = ()


@dataclass(frozen=True)
class PairTexts:
    """A prompt and its counterfactual as text, with what may follow each."""

    clean: str
    counterfactual: str
    answers: AnswerTexts
    new_answers: AnswerTexts  # of the counterfactual
    origin: str  # where it was written, as errors name it
    scenario: int
    queried: int


def answers_of(form: TemplateFile, words: Words, categories: Categories, question: Question) -> AnswerTexts:
    """The answers and foils of a question by its wording; nothing where it has no answer."""
    if question.given is not None:
        return AnswerTexts(())
    wording = form.written[question.scenario.wording]
    right, wrong = (
        tuple(text for each in each_of(answers) for text in _texts(each, words, categories, question))
        for answers in (wording.answer, wording.foils)
    )
    wrong = _others(wording.answer, words, question) if wording.foils is None else wrong
    return AnswerTexts(right, tuple(text for text in dict.fromkeys(wrong) if text not in right) if right else ())


def _texts(answer: str | AnyOf, words: Words, categories: Categories, question: Question) -> tuple[str, ...]:
    if isinstance(answer, str):
        parts = parse(answer, "answer")
        if any(part.ref[:1] == ("held",) for part in parts) and len(words.held(question)) != 1:
            return ()
        return ("".join(part.space + (words.of(question, part.ref) if part.ref else part.text) for part in parts),)
    name, _, column = answer.any_of.partition(".")
    above, below, but = (
        None if field is None else words.word(question, reference(field))[1]
        for field in (answer.above, answer.below, answer.but)
    )
    own, train = categories[name]
    listed = train if train and {above, below, but} & {*train} else own
    if missing := next((word for word in (above, below) if word is not None and word not in listed), None):
        raise InputError(f"any_of is compared with {missing!r}, and {name} lacks it: give {name} that word")
    low = 0 if above is None else listed.index(above) + 1
    high = len(listed) if below is None else listed.index(below)
    columns = words.columns[name]
    texts = [columns[word][column] if column else word for word in listed[low:high] if word != but]
    return tuple(answer.text.replace("{}", text) for text in texts)


def _others(answer: Answer | None, words: Words, question: Question) -> list[str]:
    """The answer as it is for every other item, or for all else that changes put in."""
    parts = parse(answer, "answer") if isinstance(answer, str) else ()
    of = next((part.ref[0] for part in parts if part.ref[:1] in (("asked",), ("held",))), None)
    if of is None:
        return []
    items, right = question.scenario.items, [question.asked]
    if of == "held":
        assert words.changes is not None
        items, right = {words.changes.holds: words.things(question)}, words.held(question)

    def written(part: Part, i: int) -> str:
        if part.ref[:1] == (of,):
            _, field, *column = part.ref
            return words.column(field, items[field][i], column)
        return words.of(question, part.ref) if part.ref else part.text

    n = len(next(iter(items.values())))
    return ["".join(part.space + written(part, i) for part in parts) for i in range(n) if i not in right]


class AnswerTokens:
    """The tokens that an answer adds to a prompt, or the first of them; each asked of the tokenizer once.

    `space`: after a word an answer begins with a space, if it is a word of its own with it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, scored: Scored, space: bool = True) -> None:
        self._tokenizer, self._n, self._space = tokenizer, 1 if scored == "first" else None, space
        self._known: dict[tuple[str, str], tuple[int, ...]] = {}

    def of(self, prompt: str, answer: str, origin: str, called: str = "answer") -> tuple[int, ...]:
        """The answer's tokens after the prompt; `called`: what it is, in an error.

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
                    f"{origin}: the {called} {answer!r} must be tokens of its own after {end!r}, all known; it came as "
                    f"{came}{space}"
                )
            if self._space and self._lacks_space(end, start, answer):
                raise InputError(
                    f"{origin}: the {called} {answer!r} has no space before it, and with one it is a token of its own "
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
    prompts: PromptSet,
    rows: Sequence[PairTexts],
    answer_tokens: Scored = "all",
    space: bool = True,
) -> Pairs:
    """All clean prompts, then all counterfactuals, with the tokens of their answers; of foils the first ones.

    Foils that begin as a right answer does are left out.

    Raises: InputError if a clean prompt has no answer or no foil is left, an answer does not follow its prompt as
    tokens of its own, or one of several right answers has several tokens.
    """
    tokens = AnswerTokens(tokenizer, answer_tokens, space)
    right = [_right(tokens, row) for row in rows]
    answer, first = [each[0] for each in right], [[ids[0] for ids in each] for each in right]
    split = any(len(each) > 1 for each in answer)
    foils = [
        [
            token
            for foil in row.answers.foils
            if (token := _first(tokens, row.clean, foil, row, split, "foil")) not in taken
        ]
        for row, taken in zip(rows, first, strict=True)
    ]
    if [] in foils:
        row = rows[foils.index([])]
        raise InputError(f"{row.origin}: {row.clean!r} has no foil that begins otherwise than its answer; give one")
    new = [
        _first(tokens, row.counterfactual, row.new_answers.right[0], row, split, "counterfactual's answer")
        if row.new_answers.right
        else -1
        for row in rows
    ]
    if -1 in new and max(new) >= 0:
        row = rows[new.index(-1)]
        raise InputError(f"{row.origin}: the counterfactual {row.counterfactual!r} has no answer, and others have one")
    numbers, n = torch.arange(len(prompts)), len(rows)
    return Pairs(
        clean_prompts=prompts.select(numbers[:n]),
        counterfactual_prompts=prompts.select(numbers[n:]),
        answers=torch.tensor([each[0] for each in first]),
        foils=_filled_up(foils, [each[-1] for each in foils]),
        counterfactual_answers=None if max(new) < 0 else torch.tensor(new),
        scenarios=torch.tensor([row.scenario for row in rows]),
        queried=torch.tensor([row.queried for row in rows]),
        right=_filled_up(first, [each[0] for each in first]) if max(map(len, first)) > 1 else None,
        continuations=_filled_up([each[1:] for each in answer], [-1] * n) if split else None,
    )


def _right(tokens: AnswerTokens, row: PairTexts) -> list[tuple[int, ...]]:
    """The tokens of each right answer, those that are the same once."""
    if not row.answers.foils:
        lacking = "foil (`foils`, or other items)" if row.answers.right else "right answer"
        raise InputError(f"{row.origin}: {row.clean!r} has no {lacking}; give one")
    by_tokens = {tokens.of(row.clean, text, row.origin): text for text in row.answers.right}
    if len(by_tokens) > 1:
        for each, text in by_tokens.items():
            _check_whole(text, each, row.origin, f"one of {len(by_tokens)} right ones")
    return list(by_tokens)


def _first(tokens: AnswerTokens, prompt: str, answer: str, row: PairTexts, split: bool, called: str) -> int:
    """The first token of an answer that is no clean prompt's: the only one, unless some of those are split, too."""
    added = tokens.of(prompt, answer, row.origin, called)
    if not split:
        _check_whole(answer, added, row.origin, "and every right answer is one")
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
