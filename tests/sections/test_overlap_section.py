"""Overlap of variants with the base in a study of tiny models, one of which was not searched for a circuit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from circuitdiff.cache.store import read_results
from circuitdiff.report.overlap import curve_rows, edge_rows, group_rows, moved_rows, overlap_sentence, stage_rows
from circuitdiff.report.parts import parts
from circuitdiff.methods.edges import Edge
from circuitdiff.sections.overlap import _edges, _Measured
from circuitdiff.sections.whole_study import read_study
from circuitdiff.stats.intervals import cluster_p_values, false_discovery_adjusted
from circuitdiff.study import run_study
from helpers.tiny_folder import CIRCUIT_ONLY, save_tiny_model, study_yaml


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("study")
    models = [save_tiny_model(folder / name, seed) for seed, name in enumerate(("base", "tuned", "plain"))]
    changes = {"variants": json.dumps({path.name: str(path) for path in models[1:]}), "discover_in": "[tuned]"}
    (folder / "tiny.yaml").write_text(study_yaml(models[0], **CIRCUIT_ONLY | changes))
    run_study(read_study(folder / "tiny.yaml"), folder / "run", lambda *_: None)
    return read_results(folder / "run")


def test_the_matrix_has_every_circuit_in_every_model_and_whose_it_is(results):
    matrix, names = results["matrix"], ["base", "tuned", "plain"]
    assert matrix["models"] == names
    assert set(matrix["circuits"]) == {"base", "base (other)", "tuned"}
    cells = {(cell["circuit"], cell["model"]): cell for cell in matrix["cells"]}
    assert len(cells) == len(matrix["cells"]) == 9
    assert cells["tuned", "base"]["found_in"] == cells["tuned", "plain"]["found_in"] == "tuned"
    for (circuit, model), cell in cells.items():
        entry = results["faithfulness"][circuit][model]
        assert cell["faithfulness"] == {key: entry[key] for key in ("value", "low", "high", "note")}
        assert cell["model_accuracy"] == results["models"][model]["accuracy"]
        assert (cell["random"] is not None) == (model in ("base", cell["found_in"]))


def test_edges_and_profiles_are_measured_in_every_model(results):
    found = results["overlap"]
    assert list(found) == ["tuned", "plain"]
    assert set(found["plain"]) == {"edges", "profiles", "n_scenarios"}
    assert set(found["tuned"]) == {"edges", "profiles", "groups", "stages", "not_run", "moved", "n_scenarios"}
    for entry in found.values():
        assert {(edge["sender"], edge["receiver"], edge["via"]) for edge in entry["edges"]} >= {("fetcher", None, None)}
        for edge, of_base in zip(entry["edges"], found["tuned"]["edges"], strict=True):
            assert edge["base"] == of_base["base"]
            assert edge["difference"]["value"] == pytest.approx(edge["variant"]["value"] - edge["base"]["value"])
    adjusted = [edge["adjusted_p"] for edge in found["plain"]["edges"]]
    assert len(adjusted) > 1
    assert all(0 < p <= 1 for p in adjusted)


def test_curves_hold_precision_recall_and_jaccard_at_the_size_of_each_group_too(results):
    for stage, size in zip(results["overlap"]["tuned"]["stages"], (3, 2), strict=False):
        for share in ("precision", "recall", "jaccard"):
            assert size in [row["k"] for row in stage[share]]
            assert {"between", "base", "variant", "floor"} <= set(stage[share][0])
    rows = curve_rows(results["overlap"]["tuned"])
    assert len({(row["stage"], row["share"], row["k"]) for row in rows}) == len(rows) > 2 * 3 * 4


def test_how_alike_profiles_are_has_an_interval(results):
    for row in results["overlap"]["tuned"]["moved"]:
        for what in ("attention", "effect"):
            assert -1 <= row[what]["low"] <= row[what]["value"] <= row[what]["high"] <= 1 + 1e-9
            assert row[what]["low"] < row[what]["high"]


def test_a_variant_without_a_circuit_of_its_own_is_reported_by_its_edges_alone(results):
    entry = results["overlap"]["plain"]
    assert overlap_sentence("plain", entry) == ""
    assert group_rows(entry) == stage_rows(entry) == moved_rows(entry) == []
    assert all(row["adjusted_p"] != "–" for row in edge_rows(entry))
    (part,) = (part for part in parts(results) if part.title == "Is it the same circuit?")
    assert all(part.sentences)
    assert all(table.rows for table in part.tables)


def test_false_discoveries_are_controlled_over_all_edges_of_a_variant():
    g, scenarios = torch.Generator().manual_seed(0), torch.arange(30) // 2
    edges = [Edge(name, None, None) for name in "abcd"]
    one, other = ({edge: torch.randn(30, generator=g) for edge in edges} for _ in range(2))
    ours, theirs = (_Measured(each, {}, {}, [], scenarios) for each in (one, other))
    raw = [float(cluster_p_values((other[edge] - one[edge]).numpy(), scenarios.numpy()).p) for edge in edges]
    found = [row["adjusted_p"] for row in _edges(ours, theirs)]
    assert found == pytest.approx(false_discovery_adjusted(np.array(raw)).tolist(), abs=1e-6)
    assert found != pytest.approx(raw)
