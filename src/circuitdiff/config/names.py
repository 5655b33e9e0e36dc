"""Names that users give: which are accepted, how they are printed, and what a file may be called after them."""

from __future__ import annotations

import re
from hashlib import sha256

_MOST_LETTERS = 100  # of a name
_MOST_IN_FILE = 80  # of it in a file's name, which may have 255 bytes with what stands around it


def printable(text: str) -> str:
    """`text` with all that a terminal would obey instead of showing escaped, such as \\x1b or \\n."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def file_name(name: str) -> str:
    """The name as a part of a file's name: short, of letters, digits and `-_.` only.

    A name that is changed by this gets a hash behind `~`, which no unchanged name has: two names never share a file.
    """
    safe = re.sub(r"^\.|[^A-Za-z0-9._-]", "_", name)[:_MOST_IN_FILE]
    return safe if safe == name != "" else f"{safe}~{sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def check_name(name: str) -> str:
    """The name itself. Raises: ValueError if it is empty, too long, or holds what cannot be printed."""
    if not name.strip():
        raise ValueError(f"expected a name; got {name[:9]!r}, which is empty")
    if len(name) > _MOST_LETTERS:
        raise ValueError(f"expected a name of at most {_MOST_LETTERS} letters; got {len(name)}: {name[:20]!r}...")
    if not name.isprintable():
        raise ValueError(f"expected a name without control characters; got {name!r}")
    return name


def check_folder_name(name: str) -> str:
    """The name itself. Raises: ValueError if a folder of that name would not lie where it belongs."""
    if check_name(name) in (".", "..") or re.search(r"[/\\]", name):
        raise ValueError(f"expected a name that a folder can have, without / and \\; got {name!r}")
    return name
