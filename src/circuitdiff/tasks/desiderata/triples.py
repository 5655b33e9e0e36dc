"""Triples of a desideratum, sampled (the base prompts are the same for all desiderata) or a user's own.

A user's are one JSON object a line:

    {"base": "Box F contains the", "source": "Box K contains the", "answer": " apple", "target": " book",
     "base_roles": {"query_label": [4, 5]}, "source_roles": {"query_label": [4, 5]}, "scenario": 0}

Answer and target are what follows the base prompt, space included: one token each. Roles are characters, from
start up to but not including the end; `last` is known without being named. Prompts of one scenario are not independent;
without the field, each line is a scenario of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from random import Random
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuitdiff.config.reading import read_jsonl
from circuitdiff.config.validation import Strict, validated
from circuitdiff.errors import InputError
from circuitdiff.prompts import PromptSet, Triples
from circuitdiff.tasks.desiderata.source_prompts import Pairing, Source, Wording
from circuitdiff.tasks.desiderata.table import POINTERS, Desideratum, Target, desideratum_named
from circuitdiff.tasks.scenarios import SPLITS, Question, draw_questions, generator, prompt_for
from circuitdiff.tasks.template import Piece, Prompt, Words, tokenise

N_TRIPLES = 750  # 300 to train on, 150 to choose the mask, 300 to test
_N_SPARE = 3
Span = tuple[int, int]


@runtime_checkable
class Boxes(Protocol):
    """What is asked of entity tracking here."""

    @property
    def name(self) -> str: ...

    @property
    def n_boxes(self) -> int: ...

    def usable_objects(self, tokenizer: PreTrainedTokenizerBase, split: str = "evaluation") -> Words: ...

    def usable_labels(self, tokenizer: PreTrainedTokenizerBase) -> Words: ...


def sample_triples(
    task: Boxes,
    tokenizer: PreTrainedTokenizerBase,
    desideratum: str | Desideratum,
    n_triples: int = N_TRIPLES,
    seed: int = 0,
    split: str = "mask",
    redraw: int = 0,
) -> Triples:
    """Triples of one desideratum, each base prompt a scenario of its own: the same for the same arguments.

    Base prompts depend on neither desideratum nor `redraw`, which draws other source prompts for them; nor do the
    first triples on how many follow.

    Raises: InputError if an option is unknown, the words are too few, or the tokenizer does not know an inserted word.
    """
    return sample_desiderata(task, tokenizer, [desideratum], n_triples, seed, split, redraw)[0]


def sample_desiderata(
    task: Boxes,
    tokenizer: PreTrainedTokenizerBase,
    desiderata: Sequence[str | Desideratum],
    n_triples: int = N_TRIPLES,
    seed: int = 0,
    split: str = "mask",
    redraw: int = 0,
) -> list[Triples]:
    """`sample_triples` for several desiderata, which share base prompts, and source prompts where they are alike."""
    if n_triples < 1 or split not in SPLITS:
        raise InputError(f"expected at least 1 triple of a split in {', '.join(SPLITS)}; got {n_triples} of {split!r}")
    chosen = [desideratum_named(each) if isinstance(each, str) else each for each in desiderata]
    drawing = Drawing(task, tokenizer, n_triples, seed, split, redraw)
    sources = {pairing: drawing.sources(pairing) for pairing in dict.fromkeys(each.pairing for each in chosen)}
    texts = dict.fromkeys((each.pairing, each.wording) for each in chosen)
    prompts = {(pairing, wording): drawing.prompts(wording, sources[pairing]) for pairing, wording in texts}
    return [drawing.triples(each, prompts[each.pairing, each.wording], sources[each.pairing]) for each in chosen]


@dataclass(frozen=True)
class Drawing:
    """Questions of one task, split and seed."""

    task: Boxes
    tokenizer: PreTrainedTokenizerBase
    n_triples: int
    seed: int
    split: str
    redraw: int

    @property
    def key(self) -> tuple[object, ...]:
        return (self.task.name, "desiderata", self.task.n_boxes, self.split, self.seed)

    @cached_property
    def objects(self) -> Mapping[str, int]:
        words = self.task.usable_objects(self.tokenizer, self.split)
        words.check_enough(2 * self.task.n_boxes, "objects")
        return words.ids

    @cached_property
    def labels(self) -> Mapping[str, int]:
        words = self.task.usable_labels(self.tokenizer)
        words.check_enough(2 * self.task.n_boxes - 1, "labels")
        return words.ids

    @cached_property
    def questions(self) -> list[Question]:
        drawn = draw_questions(self.key, self.split, (tuple(self.objects), tuple(self.labels)), self.task.n_boxes, 1)
        return list(islice(chain.from_iterable(drawn), self.n_triples))

    @cached_property
    def base(self) -> PromptSet:
        return self._tokenised([prompt_for(question) for question in self.questions], self.questions)

    def sources(self, pairing: Pairing) -> list[Source]:
        random = generator(*self.key, "sources", pairing.__name__, self.redraw)
        objects, labels = tuple(self.objects), tuple(self.labels)
        return [
            _with_spares(random, base, pairing(random, base, objects, labels), objects, labels)
            for base in self.questions
        ]

    def prompts(self, wording: Wording, sources: Sequence[Source]) -> PromptSet:
        return self._tokenised([wording(source) for source in sources], [source.question for source in sources])

    def triples(self, wanted: Desideratum, source: PromptSet, drawn: Sequence[Source]) -> Triples:
        asked = list(zip(self.questions, (each.question for each in drawn), strict=True))
        targets = self._tokens(wanted.target, asked)
        if (targets < 0).any():
            raise InputError(
                f"desideratum {wanted.name!r} has no target for triple {int((targets < 0).nonzero()[0]) + 1}: its "
                f"pairing and its target do not go together"
            )
        return Triples(
            name=wanted.name,
            base=self.base,
            source=source,
            answers=torch.tensor([self.objects[base.context.objects[base.queried]] for base, _ in asked]),
            targets=targets,
            pointers={kind: self._tokens(pointer, asked) for kind, pointer in POINTERS.items()},
            scenarios=torch.arange(len(asked)),
            queried=torch.tensor([base.queried for base, _ in asked]),
            source_queried=torch.tensor([source.queried for _, source in asked]),
        )

    def _tokens(self, target: Target, asked: Sequence[tuple[Question, Question]]) -> Int[Tensor, " triple"]:
        """What each source points to, as a token; -1 for nothing."""
        words = [target(*pair) for pair in asked]
        if strange := next((word for word in words if word is not None and word not in self.objects), None):
            raise InputError(
                f"the target {strange!r} is not one token after the prompt: choose one of the task's objects"
            )
        return torch.tensor([-1 if word is None else self.objects[word] for word in words])

    def _tokenised(self, prompts: Sequence[Prompt], questions: Sequence[Question]) -> PromptSet:
        """Raises: InputError if the tokenizer does not know a word, or its offsets lead to wrong tokens."""
        tokens = tokenise(self.tokenizer, prompts)
        unknown = self.tokenizer.unk_token_id
        missing = torch.eq(tokens.tokens, torch.tensor(-1 if unknown is None else unknown))
        strange = missing.any(1).nonzero()[:, 0].tolist()
        if strange:
            raise InputError(
                f"the tokenizer does not know every word of {prompts[strange[0]].text!r}: use a desideratum without "
                f"inserted text, or another model"
            )
        answers = torch.tensor([self.objects[q.context.objects[q.queried]] for q in questions])
        labels = torch.tensor([self.labels[q.label] for q in questions])
        for role, wanted in (("correct_object", answers), ("previous_query_label", labels), ("query_label", labels)):
            check_place(tokens, role, wanted)
        return tokens


def check_place(prompts: PromptSet, role: str, tokens: Int[Tensor, " prompt"]) -> None:
    """Raises: InputError if another token sits at `role`, where a prompt has it: the offsets would be wrong."""
    places = prompts.positions.get(role, torch.full_like(tokens, -1))
    found = prompts.tokens.gather(1, places.clamp(min=0)[:, None])[:, 0]
    if ((found != tokens) & (places >= 0)).any():
        raise InputError(
            f"the tokenizer's character offsets do not lead to the token at {role!r}: load another version of this "
            f"tokenizer (use_fast=True)"
        )


def _with_spares(
    random: Random, base: Question, source: Question, objects: Sequence[str], labels: Sequence[str]
) -> Source:
    """The source with a few words, in random order, that neither prompt has."""
    spare = (
        [word for word in words if word not in used]
        for words, used in (
            (objects, {*base.context.objects, *source.context.objects}),
            (labels, {*base.context.labels, *source.context.labels, source.label}),
        )
    )
    chosen = [tuple(random.sample(words, min(len(words), _N_SPARE))) for words in spare]
    return Source(source, chosen[0], chosen[1])


class Line(Strict):
    """One triple as written; see the module."""

    base: str = Field(min_length=1)
    source: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    target: str = Field(min_length=1)
    base_roles: dict[str, Span] = Field(default_factory=dict)
    source_roles: dict[str, Span] = Field(default_factory=dict)
    scenario: int | None = Field(default=None, ge=0, lt=2**62)  # a 64-bit number, with room for those that lack one
    queried: int = Field(default=-1, ge=-1, lt=2**31)
    source_queried: int = Field(default=-1, ge=-1, lt=2**31)


def read_triples(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> Triples:
    """The triples of a JSONL file, named after it.

    Raises: InputError naming the line whose form is wrong, whose target is not one token, or is the answer.
    """
    path = Path(path)
    lines = {origin: validated(Line, line, origin) for origin, line in read_jsonl(path)}
    if not lines:
        raise InputError(f"{path} has no triples; expected one JSON object a line")
    return triples_of(lines.values(), tokenizer, path.stem, list(lines))


def triples_of(
    lines: Iterable[Line], tokenizer: PreTrainedTokenizerBase, name: str, origins: Sequence[str] | None = None
) -> Triples:
    """Triples written in Python; `origins` names each in errors."""
    lines = list(lines)
    origins = origins or [f"triple {number} of {name!r}" for number in range(1, len(lines) + 1)]
    places = list(zip(lines, origins, strict=True))
    base = [_prompt(line.base, line.base_roles, origin) for line, origin in places]
    source = [_prompt(line.source, line.source_roles, origin) for line, origin in places]
    return Triples(
        name=name,
        base=tokenise(tokenizer, base),
        source=tokenise(tokenizer, source),
        answers=torch.tensor([_answer_token(tokenizer, line.base, line.answer, origin) for line, origin in places]),
        targets=torch.tensor([_answer_token(tokenizer, line.base, line.target, origin) for line, origin in places]),
        pointers={},
        scenarios=_scenarios([line.scenario for line in lines]),
        queried=torch.tensor([line.queried for line in lines]),
        source_queried=torch.tensor([line.source_queried for line in lines]),
    )


def _prompt(text: str, roles: Mapping[str, Span], origin: str) -> Prompt:
    """The text cut wherever a role begins or ends; a role sits at the last token before its end."""
    for role, (start, end) in roles.items():
        if not 0 <= start < end <= len(text):
            raise InputError(
                f"{origin}: role {role!r} is at characters {start} to {end} of a prompt of {len(text)}; give [start, "
                f"end] with start < end"
            )
    ends = sorted({len(text), *(edge for span in roles.values() for edge in span)} - {0})
    starts = [0, *ends[:-1]]
    pieces = tuple(Piece(f"text_{end}", text[start:end]) for start, end in zip(starts, ends, strict=True))
    named = {role: f"text_{end}" for role, (_, end) in roles.items()}
    return Prompt(pieces, {"last": f"text_{len(text)}"} | named)


def _answer_token(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, origin: str) -> int:
    """The one token that `answer` adds to the prompt."""
    start, whole = tokenizer([prompt, prompt + answer], add_special_tokens=False)["input_ids"]
    added = whole[len(start) :]
    if whole[: len(start)] != start or len(added) != 1 or added[0] == tokenizer.unk_token_id:
        came = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(added))) or "no token"
        raise InputError(
            f"{origin}: {answer!r} must be one token of the vocabulary after the prompt; it came as {came}: choose "
            f"another answer, with its leading space"
        )
    return added[0]


def _scenarios(given: Sequence[int | None]) -> torch.Tensor:
    """Numbers as given; a scenario of its own, beyond them, for each line without one."""
    first_free = max((n for n in given if n is not None), default=-1) + 1
    return torch.tensor([first_free + i if n is None else n for i, n in enumerate(given)])
