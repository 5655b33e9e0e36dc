"""Invented results of a run: irregular on purpose, five layers of three heads, two circuits, gaps everywhere."""

from __future__ import annotations

import math

MODEL = "tiny <b>&co</b>"
OURS, PAPER = "study's plan", "paper's plan"


def _estimate(value: float, low: float, high: float, hits: int | None = None, n: int | None = None) -> dict:
    return {"value": value, "low": low, "high": high} | ({} if n is None else {"hits": hits, "n": n})


def _stage(name: str, **changed: object) -> dict:
    effects = [
        [0.0, 0.04, -0.013],
        [None, -0.25, 0.002],
        [0.3, math.nan, -0.5],
        [-1.25, 0.01, 0.0],
        [1 / 48, -0.8, 0.6],
    ]
    stage = {
        "name": name,
        "at": "last",
        "via": None,
        "receivers": None,
        "receivers_from": None,
        "receivers_at": None,
        "metric": "logit_difference",
        "n_prompts": 37,
        "noise_floor": 2.5e-6,
        "effects": effects,
        "low": [[None if e is None else e - 0.0625 for e in row] for row in effects],
        "high": [[None if e is None else e + 0.0625 for e in row] for row in effects],
        "selected": [[3, 0], [4, 1]],
        "hurting": [[4, 2]],
        "rule": "max-T at 0.05, |effect| > 0.1",
    }
    return stage | changed


def _discovery() -> dict:
    fetchers = _stage("value_fetcher")
    transmitters = _stage("position_transmitter", via="q", receivers_from="value_fetcher", selected=[[2, 2]])
    detectors = _stage(
        "position_detector",
        at="query_label",
        via="v",
        receivers_from="position_transmitter",
        selected=[[1, 1]],
        hurting=[],
        low=None,
        high=None,
    )
    readers = _stage(
        "structure_reader",
        at="previous_query_label",
        via="v",
        receivers_from="position_detector",
        receivers_at="query_label",
        selected=[[0, 2]],
    )
    return {
        OURS: {"model": MODEL, "plan": "four stages", "stages": [fetchers, transmitters, detectors, readers]},
        PAPER: {"model": MODEL, "plan": "one stage", "stages": [_stage("value_fetcher", effects=[[None] * 3] * 5)]},
    }


def _faithfulness() -> dict:
    accuracies = {
        "model_accuracy": _estimate(0.71875, 0.6, 0.81, 46, 64),
        "ablated_accuracy": _estimate(0.125, 0.06, 0.22, 8, 64),
        "mean_by": "slot",
    }
    ours = _estimate(0.913043, 0.81, 0.99) | accuracies
    ours |= {
        "normalised": _estimate(0.894737, 0.79, 0.98),
        "agreement": _estimate(0.84375, 0.74, 0.92),
        "circuit_accuracy": _estimate(0.65625, 0.53, 0.76, 42, 64),
        "note": None,
    }
    paper = _estimate(1.26087, 1.1, 1.4) | accuracies
    paper |= {
        "normalised": None,
        "agreement": _estimate(0.5, 0.4, 0.6),
        "circuit_accuracy": _estimate(0.90625, 0.8, 0.96, 29, 32),
        "note": "means of 32 prompts & <few>",
    }
    return {OURS: {MODEL: ours}, PAPER: {MODEL: paper}}


def _rows() -> list[dict]:
    return [
        {"row": "circuit, slot means", "accuracy": _estimate(0.65625, 0.53, 0.76, 42, 64), "faithfulness": None},
        {
            "row": "circuit, kind means",
            "accuracy": _estimate(0.21875, 0.13, 0.33, 14, 64),
            "faithfulness": _estimate(0.304348, 0.17, 0.46),
            "logit_difference": _estimate(-1.5, -1.75, -1.25),
            "note": "address taken out",
        },
    ]


def invented_results() -> dict:
    tokens = ["The", " apple", " is", " in", " Box", " F", ",", "\n", " Box", " F", " contains", " <the>"]
    roles = {"last": 11, "query_label": 9, "previous_query_label": 5, "unused": 2, "absent": -1}
    return {
        "study": {"name": "boxes & <labels>", "task": "entity_tracking", "seed": 7, "settings": {"n_boxes": 7}},
        "versions": {"circuitdiff": "0.1.0", "torch": "2.13.0"},
        "warnings": ["objects left out: <kiwi>"],
        "example": {
            "tokens": tokens,
            "roles": roles,
            "answer": " apple",
            "counterfactual_tokens": tokens[::-1],
            "counterfactual_roles": {"last": 11},
        },
        "models": {
            MODEL: {
                "source": "models/tiny",
                "n_layers": 5,
                "n_heads": 3,
                "accuracy": _estimate(0.71875, 0.6, 0.81, 46, 64),
                "accuracy_by_queried": [
                    {"queried": 0, **_estimate(0.875, 0.7, 0.97, 7, 8)},
                    {"queried": 1, **_estimate(0.6, 0.4, 0.8, 12, 20)},
                    {"queried": 2, "value": None, "low": None, "high": None, "hits": 0, "n": 0},
                ],
            }
        },
        "discovery": _discovery(),
        "circuits": {
            OURS: {
                "model": MODEL,
                "groups": {
                    "value_fetcher": {"at": "last", "heads": [[3, 0], [4, 1]]},
                    "position_transmitter": {"at": "last", "heads": [[2, 2]]},
                    "position_detector": {"at": "query_label", "heads": [[1, 1], [1, 0]]},
                    "structure_reader": {"at": "previous_query_label", "heads": [[0, 2]]},
                    "backup": {"at": "absent", "heads": [[4, 0]]},
                },
            },
            PAPER: {"model": MODEL, "groups": {"value_fetcher": {"at": "last", "heads": [[2, 1]]}}},
        },
        "faithfulness": _faithfulness(),
        "faithfulness_rows": {OURS: {MODEL: _rows()}},
        "random": {OURS: {MODEL: {"mean": 0.2209, "percentile": 0.99, "accuracies": [i / 128 for i in range(100)]}}},
        "all_heads_at_roles": {OURS: {MODEL: _estimate(0.6875, 0.56, 0.79, 44, 64)}},
        "checks": [
            {"name": "same logits", "model": MODEL, "value": 3.1e-7, "tolerance": 1e-5, "passed": True, "detail": ""},
            {
                "name": "window = full",
                "model": MODEL,
                "value": 0.25,
                "tolerance": 1e-5,
                "passed": False,
                "detail": "v at <query_label>",
            },
        ],
    }
