"""Which controls a circuit has."""

from __future__ import annotations

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.study.sections.faithfulness import _at_other_segments
from circuitdiff.tasks import entity_tracking

HEADS = (Head(1, 2), Head(0, 3))


def test_heads_at_other_segments_are_no_control_where_no_head_is_in_one():
    task = entity_tracking(n_boxes=3)
    assert _at_other_segments(Circuit({"a": Group("last", HEADS), "b": Group("query_label", HEADS[:1])}), task) == {}
    inside = Circuit({"a": Group("last", HEADS), "b": Group("previous_query_label", HEADS[:1])})
    found = _at_other_segments(inside, task)
    assert found["wrong_segment"].heads_at("last") == {*HEADS}
    assert found["wrong_segment"].heads_at("previous_query_label") == set()
    assert all(found["every_segment"].heads_at(f"segment_{i}.label") == {HEADS[0]} for i in range(3))
