"""Circuits in the forms of other tools: what is written is read, and what is none of them is refused."""

from __future__ import annotations

import json

import pytest

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.circuit_files import read_circuit, read_scores, written
from circuitdiff.errors import InputError

HEADS, SCORES = [Head(1, 0), Head(0, 2), Head(1, 0)], {Head(1, 0): -0.5, Head(0, 1): 0.25}
AT_BOTH = Circuit({role: Group(role, (Head(0, 2), Head(1, 0))) for role in ("last", "subject")})


@pytest.mark.parametrize("form", ["heads", "names", "graph"])
def test_a_circuit_of_every_form_is_read_as_it_was_written_at_all_roles(form, tmp_path):
    path = tmp_path / "theirs.json"
    path.write_bytes(written(form, HEADS, 2, 3, SCORES))
    assert read_circuit(path, ["last", "subject"]) == AT_BOTH


def test_our_own_form_keeps_its_roles(tmp_path):
    own = Circuit({"mover": Group("last", (Head(1, 0),))})
    own.to_json(tmp_path / "own.json")
    assert read_circuit(tmp_path / "own.json", ["last", "subject"]) == own


def test_a_graph_has_all_heads_and_mlps_and_scores_come_back(tmp_path):
    path = tmp_path / "graph.json"
    path.write_bytes(written("graph", HEADS, 2, 3, SCORES))
    graph = json.loads(path.read_text())
    assert list(graph["nodes"]) == ["input", "a0.h0", "a0.h1", "a0.h2", "m0", "a1.h0", "a1.h1", "a1.h2", "m1", "logits"]
    assert graph["nodes"]["a0.h1"] == {"in_graph": False, "score": 0.25}
    assert graph["nodes"]["m1"] == {"in_graph": True}
    assert read_scores(path) == SCORES


def test_heads_are_pairs_and_names_as_others_write_them():
    assert json.loads(written("heads", HEADS, 2, 3, {})) == [[0, 2], [1, 0]]
    assert json.loads(written("names", HEADS, 2, 3, {})) == ["a0.h2", "a1.h0"]


@pytest.mark.parametrize(
    "data",
    [[], {}, 3, [[1]], [[1, 2, 3]], [[1, "2"]], [[True, 1]], ["a1.h"], ["b1.h0"], ["a1.h0", [1, 0]], {"nodes": []}],
)
def test_what_is_no_circuit_is_refused_in_one_line(data, tmp_path):
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"wrong\.json is not a circuit: expected") as caught:
        read_circuit(path, ["last"])
    assert "\n" not in str(caught.value)


def test_a_graph_without_scores_has_none_to_read(tmp_path):
    path = tmp_path / "graph.json"
    path.write_text(json.dumps({"nodes": {"a0.h1": {"in_graph": True}, "m0": {"score": 1.0}}}))
    with pytest.raises(InputError, match="has no scores of heads"):
        read_scores(path)
