"""A question as text: the template's parts with their words filled in, each a slot with a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from circuitdiff.errors import InputError
from circuitdiff.tasks.changes import Change, holds
from circuitdiff.tasks.markup import Part, Ref, after, distinct, parse, slot_of, slot_of_text
from circuitdiff.tasks.scenarios import Question
from circuitdiff.tasks.tokens import CHAT, START, Piece, Prompt

Columns = Mapping[str, Mapping[str, Mapping[str, str]]]  # category -> word -> column -> text


@dataclass(frozen=True)
class Texts:
    """The parts of a template's texts; `asked` is how the item asked for is listed, where it differs."""

    wordings: tuple[tuple[Part, ...], ...]
    list: tuple[Part, ...] = ()
    between: tuple[Part, ...] = ()
    gap: str = ""  # the spaces that end what stands between two items
    asked: tuple[Part, ...] | None = None
    changes: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    between_changes: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Words:
    """What the fields of a question stand for."""

    item_fields: tuple[str, ...]
    single_fields: tuple[str, ...]
    categories: Mapping[str, str]  # field -> category
    columns: Columns
    given: Ref | None  # the field that names the item asked for
    holds: tuple[str, str] | None = None  # of changes: the fields of the place and of the thing

    def word(self, question: Question, name: str, item: int) -> str:
        return question.scenario.items[self.item_fields.index(name)][item]

    def of(self, question: Question, ref: Ref, item: int | None = None) -> str:
        """The text of a field; in the list, of item number `item`."""
        first, *rest = ref
        if item is None and question.given is not None and ref[:2] == self.given:
            return self.column(rest[0], question.given, rest[1:])
        if first in ("asked", "other") or first.isdecimal():
            place = {"asked": question.asked, "other": question.other}.get(first)
            return self.column(rest[0], self.word(question, rest[0], int(first) if place is None else place), rest[1:])
        if first == "held":
            return self.column(rest[0], self.thing(question, self.held(question)[0]), rest[1:])
        if first in self.item_fields and item is not None:
            return self.column(first, self.word(question, first, item), rest)
        return self.column(first, question.scenario.draws[self.single_fields.index(first)], rest)

    def column(self, name: str, word: str, column: Sequence[str]) -> str:
        columns = self.columns[self.categories[name]].get(word)
        return word if columns is None else columns[column[0]] if column else next(iter(columns.values()))

    def held(self, question: Question) -> list[int]:
        """Which things the item asked for holds after all changes."""
        n = len(question.scenario.items[0]) if question.scenario.items else 0
        return holds(question.scenario.changes, n)[question.asked]

    def thing(self, question: Question, number: int) -> str:
        assert self.holds is not None
        first = question.scenario.items[self.item_fields.index(self.holds[1])]
        return [*first, *question.scenario.things][number]


def with_between(texts: Texts, between: str, origin: str) -> Texts:
    """The same with what stands between two items, whose last spaces belong to the next item."""
    signs = between.rstrip()
    return replace(texts, between=parse(signs, f"{origin}: between"), gap=between[len(signs) :])


_RESERVED = ("last", START, CHAT)  # slots of the end, and of what a tokenizer or a chat template puts before


class Writer:
    """Writes one question, piece by piece."""

    def __init__(self, texts: Texts, words: Words, question: Question, spare: Mapping[str, Sequence[str]]) -> None:
        self._texts, self._words, self._question = texts, words, question
        self._spare = {name: iter(left) for name, left in spare.items()}
        self.pieces: list[Piece] = []
        self.fields: dict[str, str] = {}  # the slots that fields fill, with their texts
        self.roles: list[str] = []  # all slots but those of words that stand outside clauses and are not named
        self._parts: list[Part] = []

    def write(self) -> None:
        for part in self._texts.wordings[self._question.scenario.wording]:
            if part.ref == ("list",):
                self._list(part.space)
            elif part.ref == ("changes",):
                self._changes(part.space)
            else:
                self._add(part)
        last = self._parts[-1]
        if last.slot is None and not last.ref:
            slot = self.pieces[-1].slot
            self.pieces[-1] = Piece("last", self.pieces[-1].text)
            self.roles = [role for role in self.roles if role != slot]

    def _list(self, space: str) -> None:
        n = len(self._question.scenario.items[0])
        for i in range(n):
            asked = self._texts.asked if i == self._question.asked else None
            for k, part in enumerate(asked or self._texts.list):
                self._add(part, f"segment_{i}.", item=i, space=space if k == 0 else None)
            for part in self._texts.between if i < n - 1 else ():
                self._add(part, f"segment_{i}.")
            space = self._texts.gap

    def _changes(self, space: str) -> None:
        changes = self._question.scenario.changes
        for i, change in enumerate(changes):
            for k, part in enumerate(self._texts.changes[change.kind]):
                name = f"change_{i}.{change.kind}_"
                self._add(part, name, text=self._of_change(change, part.ref), space=space if k == 0 else None)
            for part in self._texts.between_changes if i < len(changes) - 1 else ():
                self._add(part, f"change_{i}.")
            space = ""

    def _of_change(self, change: Change, ref: Ref) -> str | None:
        words, question = self._words, self._question
        if not ref or words.holds is None:
            return None
        key, thing = words.holds
        if ref[0] == "to":
            return words.column(ref[1], words.word(question, ref[1], change.to), ref[2:])
        if ref[0] == thing:
            return words.column(thing, words.thing(question, change.thing), ref[1:])
        if ref[0] == key:
            return words.column(key, words.word(question, key, change.at), ref[1:])
        return None

    def _add(
        self,
        part: Part,
        prefix: str = "",
        *,
        item: int | None = None,
        text: str | None = None,
        space: str | None = None,
    ) -> None:
        if part.ref[:1] == ("spare",):
            text = self._words.column(part.ref[1], self._next_spare(part.ref[1]), part.ref[2:])
        elif part.ref and text is None:
            text = self._words.of(self._question, part.ref, item)
        slot = distinct(self._slot(part, prefix), [*_RESERVED, *(piece.slot for piece in self.pieces)])
        whole = ((space or "") + part.space) + (part.text if text is None else text)
        self.pieces.append(Piece(slot, whole.lstrip() if not self.pieces else whole))
        self._parts.append(part)
        if part.ref:
            self.fields[slot] = whole.strip()
        if part.slot or part.ref or "." in slot or slot.startswith("after_"):
            self.roles.append(slot)

    def _slot(self, part: Part, prefix: str) -> str:
        if part.slot is not None:
            return prefix + part.slot
        if part.ref:
            return prefix + ("_".join(part.ref[:2]) if part.ref[0] in ("spare", "to") else slot_of(part.ref))
        if self._parts and self._parts[-1].ref:
            return after(self.pieces[-1].slot)
        return prefix + slot_of_text(part.text)

    def _next_spare(self, name: str) -> str:
        word = next(self._spare.get(name, iter(())), None)
        if word is None:
            raise InputError(
                f"inserted text needs more words for {name!r} that neither prompt has: give the task more words, or "
                f"fewer items"
            )
        return word


def write(
    texts: Texts, words: Words, question: Question, *, spare: Mapping[str, Sequence[str]] | None = None, capital: bool
) -> tuple[list[Piece], dict[str, str], list[str]]:
    """The question's pieces up to where the answer goes, the texts of fields by slot, and the slots that are roles."""
    writer = Writer(texts, words, question, spare or {})
    writer.write()
    first = writer.pieces[0]
    if capital:
        writer.pieces[0] = Piece(first.slot, first.text[:1].upper() + first.text[1:])
    return writer.pieces, writer.fields, writer.roles


def prompt_of(
    pieces: Sequence[Piece], fields: Mapping[str, str], slots: Sequence[str], named: Mapping[str, str], prefix: str = ""
) -> Prompt:
    """Pieces with their roles: these slots, the token after each field, `last`, and those `named`.

    With a `prefix`, a wording's, slots get longer names, and roles do not.
    """
    roles = {slot: slot for slot in slots}
    for piece, following in pairwise(pieces):
        if piece.slot in fields:
            roles.setdefault(after(piece.slot), following.slot)
    roles |= {"last": pieces[-1].slot} | {role: roles.get(slot, slot) for role, slot in named.items()}
    whole = tuple(Piece(prefix + piece.slot, piece.text) for piece in pieces)
    words = {prefix + slot: text for slot, text in fields.items()}
    return Prompt(whole, {role: prefix + slot for role, slot in roles.items()}, words)
