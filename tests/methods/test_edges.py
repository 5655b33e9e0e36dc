"""Edges of a circuit: which there can be, and that all together are each as path patching has it."""

from __future__ import annotations

import pytest
import torch

from circuitdiff.circuit import Group, Head
from circuitdiff.methods.edges import Edge, edge_effects, possible_edges
from circuitdiff.methods.path_patching import Path, group_path_effects
from helpers.fake_pairs import fake_pairs
from helpers.tiny_models import subject

GROUPS = {
    "fetcher": Group("last", (Head(3, 1), Head(2, 5))),
    "transmitter": Group("last", (Head(1, 1), Head(2, 0))),
    "reader": Group("previous_query_label", (Head(0, 2), Head(1, 4))),
}


def test_edges_lead_up_and_forward():
    assert possible_edges(GROUPS, fake_pairs()) == [
        Edge("fetcher", None, None),
        Edge("transmitter", None, None),
        Edge("transmitter", "fetcher", "q"),
        Edge("reader", "fetcher", "k"),
        Edge("reader", "fetcher", "v"),
        Edge("reader", "transmitter", "k"),
        Edge("reader", "transmitter", "v"),
    ]


@pytest.mark.parametrize("executor", ["window", "full"])
def test_each_edge_has_the_effect_of_its_path_alone(executor):
    model, pairs = subject("qwen2").model, fake_pairs()
    edges = possible_edges(GROUPS, pairs)
    found = edge_effects(model, GROUPS, edges, pairs, executor=executor)
    for edge, effects in zip(edges, found, strict=True):
        sender, receiver = GROUPS[edge.sender], None if edge.receiver is None else GROUPS[edge.receiver]
        read_at = None if receiver is None or edge.via == "q" else receiver.at
        heads = None if receiver is None else receiver.heads
        alone = group_path_effects(model, pairs, sender.heads, Path(sender.at, heads, edge.via, read_at))
        torch.testing.assert_close(effects, alone, rtol=0, atol=1e-10)
        assert float(alone.abs().max()) > 1e-6
