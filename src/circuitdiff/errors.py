"""The one exception that bad input raises: a line that says what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

_LONGEST = 600  # letters of a message
_MOST_CHOICES = 30


class InputError(ValueError):
    """Something a user gave cannot be used: what was expected, what came, what to do.

    The command line prints the message as one line and exits with code 2. Messages quote what users gave, so what
    cannot be printed is escaped, and a long one loses its middle: what it is about comes first, what to do last.
    """

    def __init__(self, message: str):
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(message.splitlines()))
        super().__init__(line if len(line) <= _LONGEST else f"{line[: _LONGEST - 205]} ... {line[-200:]}")


@contextmanager
def errors_name(subject: object) -> Iterator[None]:
    """An InputError of this block begins with what it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{subject}: {error}") from error


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, of the known name that is nearest, or nothing."""
    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def choices(name: object, names: Iterable[str]) -> str:
    """What to say after a name that is unknown: the known one that is nearest, then all that there are."""
    names = list(names)
    listed = ", ".join(names[:_MOST_CHOICES]) or "none"
    more = f" and {len(names) - _MOST_CHOICES} more" if len(names) > _MOST_CHOICES else ""
    return f"{nearest(str(name)[:100], names)}; choose one of {listed}{more}"
