"""Text files of users to data: YAML and JSON, read strictly, and paths that are not there. Any fault is one InputError.

YAML means YAML 1.2's core schema and the merge key `<<`: `no`, `on`, `1_000`, `12:30:00` and dates are text, `1e-3` is
a number. Numbers are finite and fit 64 bits; a key stands once; the whole is a mapping.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable
from difflib import get_close_matches
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn

import yaml

from circuitdiff.errors import InputError

_LARGEST_YAML = 2**19  # bytes: PyYAML reads some 50 kB a second, and a long study has 5 kB
_LARGEST_JSON = 2**28
_DEEPEST = 50  # a whole run's results have 12 levels; far below Python's limit of 1,000 calls
_MOST_NODES = 100_000  # of a YAML file, whatever its aliases repeat
_LARGEST_INT = 2**63 - 1

_STRING = r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)'  # one that nothing closes ends with the text
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NOT_BRACKETS = bytes(set(range(256)) - set(_STEPS))

_TAG = "tag:yaml.org,2002:"
_SCALARS: dict[str, tuple[re.Pattern[str], Callable[[str], Any], str]] = {  # form, value, how a plain one may begin
    "null": (re.compile(r"(?:~|null|Null|NULL|)\Z"), lambda _: None, "~nN\0"),
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), lambda text: text.lower() == "true", "tTfF"),
    "int": (
        re.compile(r"(?:[-+]?[0-9]{1,100}|0o[0-7]{1,100}|0x[0-9a-fA-F]{1,100})\Z"),
        lambda text: int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)),
        "-+0123456789",
    ),
    "float": (
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
        lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
        "-+0123456789.",
    ),
    "str": (re.compile(r"(?s:.*)\Z"), str, ""),
}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises: InputError naming the line."""
    return parse_yaml(read_text(path, "YAML", _LARGEST_YAML), str(path))


def read_json(path: str | Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises: InputError naming the line where there is one."""
    return parse_json(read_text(path, "JSON"), str(path))


def read_jsonl(path: str | Path, most: int | None = None) -> list[tuple[str, dict[str, Any]]]:
    """The mappings in the first `most` lines (None: all) that are not blank, each after its "FILE, line N".

    Raises: InputError naming the line.
    """
    lines = enumerate(read_text(path, "JSONL").split("\n"), 1)  # splitlines() would split inside strings, too
    written = [(f"{path}, line {number}", line) for number, line in lines if line.strip()]
    return [(origin, parse_json(line, origin)) for origin, line in written[:most]]


def looks_like_path(named: str) -> bool:
    """Whether what may also be a hub id or a lone name is surely meant as a path."""
    return named.startswith((".", "/", "~")) or named.endswith(".gguf") or named.count("/") > 1 or "\\" in named


def split_adapters(named: str, folder: str | Path = "") -> list[str]:
    """The source, then each adapter, of SOURCE+ADAPTER+...; a path that itself holds a `+` and is there stays whole.

    Raises: InputError if one of them is empty.
    """
    parts, models = named.split("+"), list[str]()
    while parts:
        joined = ("+".join(parts[:n]) for n in range(len(parts), 1, -1))
        first = next((path for path in joined if os.path.exists(Path(folder) / Path(path).expanduser())), parts[0])
        models.append(first)
        parts = parts[first.count("+") + 1 :]
    if not all(models):
        raise InputError(f"expected SOURCE or SOURCE+ADAPTER; got {named!r}")
    return models


def no_such_path(path: str | Path) -> str:
    """What to say of a path that is not there: where it ends, and what there is nearly of that name."""
    whole = Path(path).expanduser()
    parent = next((folder for folder in whole.parents if os.path.isdir(folder)), Path("."))
    missing = whole.relative_to(parent).parts[0] if whole.is_relative_to(parent) and whole != parent else str(whole)
    try:
        names = os.listdir(parent)
    except OSError:
        names = []
    near = " or ".join(repr(name) for name in get_close_matches(missing, names, n=3))
    return f"there is no {path}: {parent.absolute()} has no {missing!r}; " + (
        f"did you mean {near}?" if near else "check the path"
    )


def parse_json(text: str, origin: str) -> dict[str, Any]:
    """Raises: InputError if `text` is no JSON mapping; `origin` says where it came from."""
    return _mapping(json_value(text, origin), origin)


def json_value(text: str, origin: str) -> Any:
    """The same of any value."""
    outside_strings = re.sub(_STRING, "", text, flags=re.DOTALL).encode("ascii", "ignore")
    depth = max(accumulate(map(_STEPS.__getitem__, outside_strings.translate(None, _NOT_BRACKETS))), default=0)
    if depth > _DEEPEST:
        raise InputError(f"{origin} is nested {depth} levels deep; expected at most {_DEEPEST}")
    try:
        data = json.loads(text, object_pairs_hook=_once, parse_int=_int, parse_float=_float, parse_constant=_no_number)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(data, ensure_ascii=False).encode()  # half a pair of surrogates is no text
    except _KeyTwiceError as error:
        (key,) = error.args
        where = f"line {_line_of_repeated_key(text, key)}: " if "\n" in text.strip() else ""
        raise InputError(f"{origin}: {where}the key {key!r} stands twice; keep one") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.strip() else ""  # of JSONL the origin says it
        what = "it is empty" if not text.strip() else f"{line}column {error.colno}: {error.msg}"
        raise InputError(f"{origin} is not JSON: {what}") from error
    except InputError as error:  # of a number
        raise InputError(f"{origin}: {error}") from error
    except UnicodeEncodeError as error:
        raise InputError(f"{origin}: half a pair of surrogates ({error.object[error.start]!a}) is no text") from error
    return data


def parse_yaml(text: str, origin: str) -> dict[str, Any]:
    """Raises: InputError if `text` is no YAML mapping; `origin` says where it came from."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = None if node is None else _Values().of(node)
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark or error.context_mark, error.problem or error.context
        where = "" if mark is None else f"line {mark.line + 1}: "
        raise InputError(f"{origin}: {where}{problem}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the scanner lets chr()'s error on \U00110000 through
        raise InputError(f"{origin} is not YAML: {error}") from error
    if node is None:
        raise InputError(f"{origin} is empty; expected a mapping of keys to values")
    return _mapping(data, origin)


def read_text(path: str | Path, kind: str, largest: int = _LARGEST_JSON) -> str:
    """Only of regular files: a device or a pipe may never end."""
    if not os.path.exists(path):
        raise InputError(no_such_path(path))
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
            raise InputError(f"cannot read {path}: it is {what}; give the path of a {kind} file")
        with open(path, "rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give the path of a {kind} file") from error
    if len(content) > largest:
        raise InputError(f"{path} is larger than {largest / 2**20:g} MiB, which is more than a {kind} file needs")
    if b"\0" in content:
        raise InputError(f"{path} is not text: it holds a NUL byte at {content.index(0)}; expected {kind} in UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: byte {error.start} cannot be read; save it as UTF-8") from error


def _mapping(data: Any, origin: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        kind = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
        raise InputError(f"{origin}: expected a mapping of keys to values; got {kind.get(type(data), 'nothing')}")
    return data


class _KeyTwiceError(ValueError):
    """An object has its one argument, a key, twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _KeyTwiceError(next(key for key in keys if keys.count(key) > 1))
    return data


def _int(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > _LARGEST_INT:
        raise InputError(f"the number {text[:40]} does not fit 64 bits")
    return int(text)


def _float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        _no_number(text)
    return value


def _no_number(text: str) -> NoReturn:
    raise InputError(f"{text[:40]} is not a finite number; where there is none, JSON has null")


def _line_of_repeated_key(text: str, repeated: str) -> int:
    """The line on which an object has the key for the second time."""
    seen: list[int] = []  # of each open bracket: how often it has the key
    for token in re.finditer(rf"({_STRING})(\s*:)?|[\[\]{{}}]", text, re.DOTALL):
        if token[0] in ("[", "{"):
            seen.append(0)
        elif token[0] in ("]", "}"):
            seen.pop()
        elif token[2] and json.loads(token[1]) == repeated:
            seen[-1] += 1
            if seen[-1] > 1:
                return text.count("\n", 0, token.start()) + 1
    return 1


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the plain scalars of YAML 1.2, and a bound on depth."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML's own name and kind)
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.MarkedYAMLError(
                problem=f"nested deeper than {_DEEPEST} levels", problem_mark=self.peek_event().start_mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _name, (_form, _, _first) in _SCALARS.items():
    if _first:
        _Loader.add_implicit_resolver(_TAG + _name, _form, ["" if letter == "\0" else letter for letter in _first])
_Loader.add_implicit_resolver(_TAG + "merge", re.compile(r"<<\Z"), ["<"])


class _Values:
    """Nodes to data, so many at most."""

    def __init__(self) -> None:
        self._n_nodes = 0

    def of(self, node: yaml.Node, depth: int = 0) -> Any:
        self._n_nodes += 1
        if self._n_nodes > _MOST_NODES or depth > _DEEPEST:
            _fail(node, f"its aliases make it larger than {_MOST_NODES:,} values, or nest it in itself")
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.of(each, depth + 1) for each in node.value]
        name = node.tag.removeprefix(_TAG)
        if not isinstance(node, yaml.ScalarNode) or name not in _SCALARS:
            _fail(node, f"the tag {node.tag.replace(_TAG, '!!')} is not known; leave it out")
        return _scalar(node, name)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[Any, Any]:
        own: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            value = self.of(value_node, depth + 1)
            if key_node.tag == _TAG + "merge":
                for each in reversed(value if isinstance(value, list) else [value]):
                    if not isinstance(each, dict):
                        _fail(value_node, "<< merges mappings; got something else")
                    merged |= each
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                _fail(key_node, "a key is text; got a list or a mapping")
            key = self.of(key_node, depth + 1)
            if not isinstance(key, str):
                _fail(key_node, f"a key is text; write {str(key)[:40]!r} in quotes")
            if key in own:
                _fail(key_node, f"the key {key!r} stands twice; keep one")
            own[key] = value
        return merged | own


def _scalar(node: yaml.ScalarNode, name: str) -> Any:
    form, value_of, _ = _SCALARS[name]
    if not form.match(node.value):
        _fail(node, f"{node.value[:40]!r} is no {name}")
    value = value_of(node.value)
    if isinstance(value, float) and not math.isfinite(value):
        _fail(node, f"{node.value[:40]} is not a finite number")
    if isinstance(value, int) and abs(value) > _LARGEST_INT:
        _fail(node, f"the number {node.value[:40]} does not fit 64 bits")
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        _fail(node, f"{value[:40]!a} holds what is no text (NUL, or half a pair of surrogates)")
    return value


def _fail(node: yaml.Node, problem: str) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
