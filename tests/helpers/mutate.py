"""Seeded damage to files: to the tree that a text file holds, and to its bytes."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

DEEP = "deeply nested"  # stands in a tree for what Python cannot write, and is replaced in the text
EXTREMES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3.7, 1e308, 5e-324, 2**31, 2**63 - 1, 2**63, -(2**70), 10**30),
    *(float("nan"), float("inf"), float("-inf")),
    *("", " ", "x", "3", "\0", "\ud800", "\x1b]0;x\x07", "a\nb", "x" * 5000, "[/b]", "<script>"),
    *("../..", "/dev/zero", "a/b/c", "./nothing", "{", "%s", ".gguf", "+", "\\", "2001-13-45", "1e-3"),
    *([], {}, [[]], [[[]]], {"": None}, [None], ["x"], [1, 2, 3], DEEP),
)
GARBAGE = (b"[", b"{", b"}", b"]", b'"', b":", b",", b"\n", b"\r\n", b"\t", b"&a", b"*a", b"!!int ", b"!!python/x ")
GARBAGE += (
    b"%",
    b"@",
    b"`",
    b"|",
    b">",
    b"---\n",
    b"#",
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"\\u0000",
    b"1e999",
    b"<<: ",
)


@dataclass(frozen=True)
class Mutant:
    """A damaged file, and in words what was done to it, in order."""

    steps: tuple[str, ...]
    content: bytes


def mutants(content: bytes, n: int, seed: int, read: Callable[[bytes], Any] | None, lines: bool) -> Iterator[Mutant]:
    """`n` mutants of a good file, of one step each or (every fourth) two; `read`: its tree, if it has one."""
    tree = None if read is None else read(content)
    for i in range(n):
        random = Random(f"{seed}/{i}")
        n_steps = 2 if i % 4 == 3 else 1
        if tree is None or random.random() < 0.4:
            yield _damaged_bytes(content, n_steps, random)
        else:
            yield _damaged_tree(tree, n_steps, random, lines)


def _damaged_bytes(content: bytes, n_steps: int, random: Random) -> Mutant:
    steps = []
    for _ in range(n_steps):
        start = random.randrange(min(len(content), random.choice((64, 512, 2**62))) or 1)
        end = min(len(content), start + random.choice((1, 3, 20, 200)))
        kind = random.choice(("flip", "cut", "remove", "repeat", "insert", "noise"))
        part = content[start:end]
        if kind == "flip" and part:
            part = bytes([part[0] ^ 1 << random.randrange(8)]) + part[1:]
        elif kind == "insert":
            part = random.choice(GARBAGE) + part
        elif kind == "noise":
            part = random.randbytes(len(part))
        elif kind == "repeat":
            part = part * random.choice((2, 50))
        elif kind == "remove":
            part = b""
        content = content[:start] if kind == "cut" else content[:start] + part + content[end:]
        steps.append(f"{kind} bytes {start} to {end}: {part[:40]!r}")
    return Mutant(tuple(steps), content)


def _damaged_tree(tree: Any, n_steps: int, random: Random, lines: bool) -> Mutant:
    whole = {"root": copy.deepcopy(tree)}
    steps = [_damage(whole, random) for _ in range(n_steps)]
    tree = whole.get("root")
    text = "\n".join(map(json.dumps, tree)) if lines and isinstance(tree, list) else json.dumps(tree)
    text = text.replace(json.dumps(DEEP), "[" * 20_000 + "]" * 20_000)
    if random.random() < 0.1 and (keys := list(re.finditer(r'"[^"]*": ', text))):
        key = random.choice(keys)
        text = f"{text[: key.start()]}{key[0]}1, {text[key.start() :]}"
        steps.append(f"key twice: {key[0]}")
    return Mutant(tuple(steps), text.encode(errors="surrogatepass"))


def _damage(whole: dict[str, Any], random: Random) -> str:
    """Changes one place of the tree."""
    whole.setdefault("root", None)  # the step before may have dropped all
    holder, key, path = random.choice(list(_places(whole, ())))
    kind = random.choice(("value", "value", "value", "drop", "rename", "swap", "repeat", "wrap"))
    if kind == "drop":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        name = random.choice((f"{key}x", str(key)[1:], "", "\ud800", str(key).upper(), "0"))
        holder[name] = holder.pop(key)
        return f"rename {path} to {name!r}"
    elif kind == "swap":
        other, other_key, other_path = random.choice(list(_places(whole, ())))
        one, two = copy.deepcopy(holder[key]), copy.deepcopy(other[other_key])
        holder[key], other[other_key] = two, one
        return f"swap {path} and {other_path}"
    elif kind == "repeat" and isinstance(holder, list):
        holder[key:key] = [copy.deepcopy(holder[key])] * random.choice((1, 1, 30))
    elif kind == "wrap":
        holder[key] = random.choice(([holder[key]], {"x": holder[key]}, str(holder[key])[:50]))
    else:
        holder[key] = copy.deepcopy(random.choice(EXTREMES))
        return f"set {path} to {str(holder[key])[:40]!a}"
    return f"{kind} {path}"


def _places(data: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, Any, str]]:
    """Every value of the tree: what holds it, under which key, and where."""
    items = list(data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ())
    for key, value in items:
        yield data, key, ".".join(map(str, (*path, key)))[5:] or "the whole"
        yield from _places(value, (*path, key))
