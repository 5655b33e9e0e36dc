"""Circuits and scores of heads in the forms that other tools read and write, which know heads but no roles.

- "heads": `[[9, 6], [10, 0]]`, layer and head.
- "names": `["a9.h6", "a10.h0"]`.
- "graph": `{"nodes": {"a9.h6": {"in_graph": true, "score": -0.3}, "m9": {"in_graph": true}, ...}, "edges": {}}`, as
  tools for edge attribution have it. Only attention heads are read; every MLP, the input and the logits are written as
  part of the circuit, which they are in all of ours.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.config.reading import json_value, read_json, read_text
from circuitdiff.errors import InputError

Form = Literal["heads", "names", "graph"]
Scores = Mapping[Head, float]  # in the unit of whatever scored them

_NAME = re.compile(r"a(\d+)\.h(\d+)")


def read_circuit(path: str | Path, roles: Sequence[str]) -> Circuit:
    """Our own form of a circuit; or another tool's, whose heads act at each of these roles, since it names none.

    Raises: InputError if the file is missing, not JSON, or none of these forms.
    """
    data = json_value(read_text(path, "JSON"), str(path))
    if isinstance(data, dict) and "groups" in data:
        return Circuit.from_dict(data, str(path))
    heads = tuple(sorted(set(heads_of(data, str(path)))))
    return Circuit({role: Group(role, heads) for role in roles})


def heads_of(data: object, source: str) -> list[Head]:
    """The heads that another tool's file says are in the circuit. Raises: InputError if it has none of the forms."""
    if isinstance(data, dict) and isinstance(nodes := data.get("nodes"), dict):
        chosen = [name for name, node in nodes.items() if isinstance(node, dict) and node.get("in_graph") is True]
        return [_named(name) for name in chosen if _NAME.fullmatch(name)]
    if isinstance(data, list) and data:
        if all(isinstance(each, str) and _NAME.fullmatch(each) for each in data):
            return [_named(each) for each in data]
        if all(isinstance(each, list) and [type(n) for n in each] == [int, int] for each in data):
            return [Head(*each) for each in data]
    raise InputError(
        f'{source} is not a circuit: expected {{"groups": ...}}, a list of heads as [[9, 6], ...] or ["a9.h6", ...], '
        f'or a graph {{"nodes": {{"a9.h6": {{"in_graph": true}}, ...}}}}'
    )


def read_scores(path: str | Path) -> dict[Head, float]:
    """The scores of the heads of a graph that have one. Raises: InputError if the file has no such node."""
    data = read_json(path)
    nodes = data.get("nodes")
    found = {
        _named(name): float(node["score"])
        for name, node in (nodes.items() if isinstance(nodes, dict) else ())
        if _NAME.fullmatch(name) and isinstance(node, dict) and type(node.get("score")) in (int, float)
    }
    if not found:
        raise InputError(f'{path} has no scores of heads: expected {{"nodes": {{"a9.h6": {{"score": 0.3}}, ...}}}}')
    return found


def written(form: Form, heads: Iterable[Head], n_layers: int, n_heads: int, scores: Scores) -> bytes:
    """The heads of a circuit in that form; a graph has every head of the model, with its score if it has one."""
    inside = sorted(set(heads))
    forms: dict[Form, Callable[[], Any]] = {
        "heads": lambda: [[head.layer, head.index] for head in inside],
        "names": lambda: [name_of(head) for head in inside],
        "graph": lambda: _graph(set(inside), n_layers, n_heads, scores),
    }
    return json.dumps(forms[form](), indent=1).encode() + b"\n"


def name_of(head: Head) -> str:
    return f"a{head.layer}.h{head.index}"


def _named(name: str) -> Head:
    match = _NAME.fullmatch(name)
    assert match is not None
    return Head(int(match[1]), int(match[2]))


def _graph(inside: set[Head], n_layers: int, n_heads: int, scores: Scores) -> dict[str, Any]:
    nodes: dict[str, dict[str, Any]] = {"input": {"in_graph": True}}
    for layer in range(n_layers):
        for head in (Head(layer, i) for i in range(n_heads)):
            score = scores.get(head, math.nan)
            nodes[name_of(head)] = {"in_graph": head in inside} | ({} if math.isnan(score) else {"score": score})
        nodes[f"m{layer}"] = {"in_graph": True}
    nodes["logits"] = {"in_graph": True}
    return {"cfg": {"n_layers": n_layers, "n_heads": n_heads, "parallel_attn_mlp": False}, "nodes": nodes, "edges": {}}
