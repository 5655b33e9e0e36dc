"""A question as text: the template's parts with their words filled in, each a slot with a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from circuitdiff.errors import InputError
from circuitdiff.tasks.changes import Change, holds
from circuitdiff.tasks.markup import Part, Ref, after, distinct, parse, slot_of, slot_of_text
from circuitdiff.tasks.scenarios import Question
from circuitdiff.tasks.template_file import Changes
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
    changes: Changes | None = None

    def of(self, question: Question, ref: Ref, item: int | None = None) -> str:
        """The text of a field; in the list, of item number `item`."""
        name, word = self.word(question, ref, item)
        return self.column(name, word, ref[ref.index(name) + 1 :])

    def word(self, question: Question, ref: Ref, item: int | None = None) -> tuple[str, str]:
        """The field to which a path leads, and its word, whichever column is written."""
        first, *rest = ref
        scenario = question.scenario
        if item is None and question.given is not None and ref[:2] == self.given:
            return rest[0], question.given
        if first == "held":
            return rest[0], self.things(question)[self.held(question)[0]]
        if first in ("asked", "other") or first.isdecimal():
            place = {"asked": question.asked, "other": question.other}.get(first)
            return rest[0], scenario.items[rest[0]][int(first) if place is None else place]
        if item is not None and first in scenario.items:
            return first, scenario.items[first][item]
        return first, scenario.draws[first]

    def field_of(self, ref: Ref) -> str | None:
        """The field to which a path leads; None of a word, and of what stands for clauses."""
        return next((name for name in reversed(ref[:2]) if name in self.categories), None)

    def column(self, name: str, word: str, column: Sequence[str]) -> str:
        columns = self.columns[self.categories[name]].get(word)
        return word if columns is None else columns[column[0]] if column else next(iter(columns.values()))

    def held(self, question: Question) -> list[int]:
        """Which things the item asked for holds after all changes."""
        n_items = len(next(iter(question.scenario.items.values())))
        return holds(question.scenario.changes, n_items)[question.asked]

    def things(self, question: Question) -> list[str]:
        """What the items hold at first and what is put in, by the numbers of changes."""
        assert self.changes is not None
        return [*question.scenario.items[self.changes.holds], *question.scenario.things]


def with_between(texts: Texts, between: str) -> Texts:
    """The same with what stands between two items, whose last spaces belong to the next item."""
    signs = between.rstrip()
    return replace(texts, between=parse(signs, "between"), gap=between[len(signs) :])


class Writer:
    """One question, written piece by piece up to where the answer goes; `spare`: by field words for inserted text."""

    def __init__(
        self,
        texts: Texts,
        words: Words,
        question: Question,
        capital: bool,
        spare: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._texts, self._words, self._question = texts, words, question
        self._spare = {name: iter(left) for name, left in (spare or {}).items()}
        self.pieces: list[Piece] = []
        self.fields: dict[str, str] = {}  # the slots that fields fill, with their texts
        self._roles: list[str] = []  # all slots but those of words that stand outside clauses and are not named
        self._parts: list[Part] = []
        self._taken = {"last", START, CHAT}  # the end, and what a tokenizer or a chat template puts before
        self._write()
        if capital:
            slot, text = self.pieces[0]
            self.pieces[0] = Piece(slot, text[:1].upper() + text[1:])

    def prompt(self, named: Mapping[str, str], prefix: str = "") -> Prompt:
        """The pieces with their roles: slots, the token after each field, `last`, and those `named`, each at a slot.

        With a `prefix`, a wording's, slots get longer names, and roles do not.
        """
        roles = {slot: slot for slot in self._roles}
        for piece, following in pairwise(self.pieces):
            if piece.slot in self.fields:
                roles.setdefault(after(piece.slot), following.slot)
        roles |= {"last": self.pieces[-1].slot} | {role: roles.get(slot, slot) for role, slot in named.items()}
        pieces = tuple(Piece(prefix + piece.slot, piece.text) for piece in self.pieces)
        words = {prefix + slot: text for slot, text in self.fields.items()}
        return Prompt(pieces, {role: prefix + slot for role, slot in roles.items()}, words)

    def _write(self) -> None:
        for part in self._texts.wordings[self._question.scenario.wording]:
            if part.ref == ("list",):
                self._list(part.space)
            elif part.ref == ("changes",):
                self._changes(part.space)
            else:
                self._add(part)
        last, slot = self._parts[-1], self.pieces[-1].slot
        if last.slot is None and not last.ref:
            self.pieces[-1] = Piece("last", self.pieces[-1].text)
            self._roles = [role for role in self._roles if role != slot]

    def _list(self, space: str) -> None:
        n = len(next(iter(self._question.scenario.items.values())))
        for i in range(n):
            asked = self._texts.asked if i == self._question.asked else None
            for part in asked or self._texts.list:
                self._add(part, f"segment_{i}.", item=i, space=space)
                space = ""
            for part in self._texts.between if i < n - 1 else ():
                self._add(part, f"segment_{i}.")
            space = self._texts.gap

    def _changes(self, space: str) -> None:
        changes = self._question.scenario.changes
        for i, change in enumerate(changes):
            for part in self._texts.changes[change.kind]:
                self._add(part, f"change_{i}.{change.kind}_", text=self._of_change(change, part.ref), space=space)
                space = ""
            for part in self._texts.between_changes if i < len(changes) - 1 else ():
                self._add(part, f"change_{i}.")

    def _of_change(self, change: Change, ref: Ref) -> str | None:
        """The text of a field that is the change's own: its thing, the place of that, or where it is moved."""
        words, items, form = self._words, self._question.scenario.items, self._words.changes
        if not ref or form is None:
            return None
        if ref[0] == "to":
            return words.column(ref[1], items[ref[1]][change.to], ref[2:])
        if ref[0] == form.holds:
            return words.column(form.holds, words.things(self._question)[change.thing], ref[1:])
        return words.column(form.key, items[form.key][change.at], ref[1:]) if ref[0] == form.key else None

    def _add(
        self, part: Part, prefix: str = "", *, item: int | None = None, text: str | None = None, space: str = ""
    ) -> None:
        if part.ref[:1] == ("spare",):
            text = self._words.column(part.ref[1], self._next_spare(part.ref[1]), part.ref[2:])
        elif part.ref and text is None:
            text = self._words.of(self._question, part.ref, item)
        slot = distinct(self._slot(part, prefix), self._taken)
        self._taken.add(slot)
        whole = space + part.space + (part.text if text is None else text)
        self.pieces.append(Piece(slot, whole if self.pieces else whole.lstrip()))
        self._parts.append(part)
        if part.ref:
            self.fields[slot] = whole.strip()
        if part.slot or part.ref or "." in slot or slot.startswith("after_"):
            self._roles.append(slot)

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
