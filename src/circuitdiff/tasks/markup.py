"""The text of a template: words, signs and `{fields}`, each of which fills a slot of its own.

`{object}` is a field: the word that is drawn for it. `{asked.label}` is one of the item asked for, `{other.name}` of
the other one, `{0.name}` of the first listed, `{country.capital}` the column `capital` of a word that has several.
`{query_label=asked.label}` names its slot, `{article:the}` the slot of a word that is written as it stands.

An unnamed slot is called after its field, or after its word in lower case; what follows a field is `after_FIELD`, and
the end of the prompt is `last`. Spaces before a word belong to the word.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from functools import lru_cache

from circuitdiff.errors import InputError

_PIECE = re.compile(r"(\s*)(?:\{([^{}]*)\}|(\w+(?:['’-]\w+)*|['’]\w+)|([^\w\s{}]+))")
_BODY = re.compile(r"(?:(?P<slot>\w+)(?P<how>[=:]))?(?P<rest>.+)", re.DOTALL)
_REF = re.compile(r"\w+(?:\.\w+)*")

_TAKEN = ("start", "chat", "last")  # slots that are not called after a word

Ref = tuple[str, ...]  # a field: its dotted path


@dataclass(frozen=True)
class Part:
    """A word or sign as it stands (`text`), or a field (`ref`), the spaces before it and the slot that is named."""

    space: str
    text: str = ""
    ref: Ref = ()
    slot: str | None = None


@lru_cache(maxsize=1024)
def parse(markup: str, origin: str) -> tuple[Part, ...]:
    """The parts of a text in their order.

    Raises: InputError naming `origin` if braces do not match, a field is no path, or the text ends in a space.
    """
    parts: list[Part] = []
    at = 0
    while piece := _PIECE.match(markup, at):
        parts.append(_part(piece, origin))
        at = piece.end()
    if rest := markup[at:]:
        problem = f"a brace has no match in {rest[:40]!r}" if rest.strip() else "it ends in white space"
        raise InputError(f"{origin}: {problem}; write words, signs and {{fields}}, as in 'Box {{asked.label}} has'")
    return tuple(parts)


def _part(piece: re.Match[str], origin: str) -> Part:
    space, body, word, sign = piece.groups()
    if body is None:
        return Part(space, word or sign)
    found = _BODY.fullmatch(body)
    if found and found["how"] == ":":
        return Part(space, found["rest"], slot=found["slot"])
    if not found or not _REF.fullmatch(found["rest"]):
        raise InputError(
            f"{origin}: {{{body}}} is no field; write {{object}}, {{asked.object}}, {{slot=asked.object}} or "
            f"{{slot:word}}"
        )
    return Part(space, ref=reference(found["rest"]), slot=found["slot"])


def reference(written: str) -> Ref:
    return tuple(written.split("."))


def slot_of(ref: Ref) -> str:
    """The slot of a field that is not named."""
    first, *rest = ref
    if not rest or not (first.isdecimal() or first in ("asked", "other")):
        return first
    return {"asked": f"query_{rest[0]}", "other": f"other_{rest[0]}"}.get(first, f"segment_{first}.{rest[0]}")


def after(slot: str) -> str:
    """The slot or role of the token that follows a field: `segment_0.after_name`."""
    where, dot, name = slot.rpartition(".")
    return f"{where}{dot}after_{name}"


def slot_of_text(text: str) -> str:
    """The slot of a word or sign that is not named."""
    name = text.lower() if text[0].isalnum() else "sign"
    return f"{name}_" if name in _TAKEN else name


def distinct(slot: str, taken: Container[str]) -> str:
    """The slot with the first number behind it that is free: `the`, `the_2`."""
    n = 1
    while (name := slot if n == 1 else f"{slot}_{n}") in taken:
        n += 1
    return name
