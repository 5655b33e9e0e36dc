"""Invented results of a run: irregular on purpose, five layers of three heads, two circuits, gaps everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from circuitdiff.models.checks import Check
from circuitdiff.report.charts import Figure
from circuitdiff.study.estimates import Estimate, GroupHeads, Ratio, Share
from circuitdiff.study.registry import Results
from circuitdiff.study.results import CommonResults, Example, ModelResult, StudyHeader
from circuitdiff.study.sections.accuracy import Accuracy, ErrorShare, QueriedShare
from circuitdiff.study.sections.discovery import FoundCircuit, Sweep
from circuitdiff.study.sections.faithfulness import CircuitInModel, Row
from circuitdiff.study.sections.faithfulness_controls import ControlCircuit, RandomCircuits

MODEL = "tiny <b>&co</b>"
OURS, PAPER = "study's plan", "paper's plan"
TOKENS = ("The", " apple", " is", " in", " Box", " F", ",", "\n", " Box", " F", " contains", " <the>")
ROLES = {"last": 11, "query_label": 9, "previous_query_label": 5, "unused": 2, "absent": -1}
EXAMPLE = Example(TOKENS, ROLES, " apple", TOKENS[::-1], {"last": 11})


def around(value: float | None, spread: float = 0.05) -> Estimate:
    return Estimate(value, None, None) if value is None else Estimate(value, value - spread, value + spread)


def ratio(value: float | None, spread: float = 0.05, note: str | None = None) -> Ratio:
    return Ratio(**vars(around(value, spread)), note=note)


def share(value: float | None, n: int = 64, spread: float = 0.05) -> Share:
    return Share(**vars(around(value, spread)), hits=round((value or 0.0) * n), n=n)


def accuracy(value: float, n: int = 64) -> Accuracy:
    return Accuracy(share(value, n), around(1.5), (), ())


def model(n_layers: int = 5, source: str = "models/tiny") -> ModelResult:
    return ModelResult(source, (), "off", "f00d", n_layers, 3, 3, 8)


def results_of(**parts: Any) -> CommonResults:
    """Results with these parts and nothing else."""
    header = {
        "schema_version": 3,
        "study": StudyHeader("boxes & <labels>", "entity_tracking", 7, {"n_boxes": 7}),
        "versions": {"circuitdiff": "0.1.0", "torch": "2.13.0"},
        "warnings": (),
        "checks": (),
        "models": {},
        "example": Example((), {}, None, (), {}),
    }
    return Results(**header | parts)


def changed(results: CommonResults, **parts: Any) -> CommonResults:
    return results.model_copy(update=parts)


def _stage(name: str, **different: Any) -> Sweep:
    effects = ((0.0, 0.04, -0.013), (None, -0.25, 0.002), (0.3, None, -0.5), (-1.25, 0.01, 0.0), (1 / 48, -0.8, 0.6))
    stage = Sweep(
        name=name,
        at="last",
        via=None,
        receivers=(),
        receivers_from=None,
        receivers_at=None,
        metric="logit_difference",
        split="replication",
        n_prompts=37,
        n_choosing=41,
        noise_floor=2.5e-6,
        effects=effects,
        low=tuple(tuple(None if e is None else e - 0.0625 for e in row) for row in effects),
        high=tuple(tuple(None if e is None else e + 0.0625 for e in row) for row in effects),
        adjusted_p=effects,
        selected=((3, 0), (4, 1)),
        hurting=((4, 2),),
        not_replicated=((2, 0),),
        rule="max-T at 0.05, |effect| > 0.1",
    )
    return replace(stage, **different)


def _discovery() -> dict[str, FoundCircuit]:
    nothing = ((None,) * 3,) * 5
    stages = (
        _stage("value_fetcher"),
        _stage("position_transmitter", via="q", receivers_from="value_fetcher", selected=((2, 2),)),
        _stage(
            "position_detector", at="query_label", via="v", receivers_from="position_transmitter", selected=((1, 1),),
            hurting=(), low=nothing, high=nothing,
        ),
        _stage(
            "structure_reader", at="previous_query_label", via="v", receivers_from="position_detector",
            receivers_at="query_label", selected=((0, 2),),
        ),
    )  # fmt: skip
    ours = {
        "value_fetcher": GroupHeads("last", ((3, 0), (4, 1))),
        "position_transmitter": GroupHeads("last", ((2, 2),)),
        "position_detector": GroupHeads("query_label", ((1, 1), (1, 0))),
        "structure_reader": GroupHeads("previous_query_label", ((0, 2),)),
        "backup": GroupHeads("absent", ((4, 0),)),
    }
    paper = {"value_fetcher": GroupHeads("last", ((2, 1),))}
    empty = _stage(
        "value_fetcher", effects=nothing, low=nothing, high=nothing, selected=(), hurting=(), not_replicated=()
    )
    return {
        OURS: FoundCircuit(MODEL, "four stages", "logit_difference", ours, stages),
        PAPER: FoundCircuit(MODEL, "one stage", "logit_difference", paper, (empty,)),
    }


def cell(value: float | None, **different: Any) -> CircuitInModel:
    """A circuit in a model, without controls."""
    plain = CircuitInModel(
        **vars(ratio(value)),
        normalised=around(value),
        agreement=share(0.5),
        circuit_accuracy=share(0.5),
        model_accuracy=share(0.75),
        ablated_accuracy=share(0.125),
        circuit_answers=accuracy(0.5),
        rows=(),
        random=None,
        controls=(),
    )
    return replace(plain, **different)


def random_circuits(accuracies: tuple[float, ...], rank_p: float | None = None) -> RandomCircuits:
    return RandomCircuits(0.2209, 0.2, 0.25, rank_p, 64, accuracies)


def other_circuits() -> tuple[ControlCircuit, ...]:
    """The next-best heads score more than nothing; of one role none can be rotated."""
    groups = {"fetcher": GroupHeads("last", ((1, 0),))}
    found = ControlCircuit("next_best", groups, share(0.25, 64), ratio(0.35), around(0.4), "2 heads fewer")
    return found, ControlCircuit("other_roles", {}, None, None, None, "all of its heads are at one role")


def _faithfulness() -> dict[str, dict[str, CircuitInModel]]:
    alone = Share(0.65625, 0.53, 0.76, 42, 64)
    of_model = {
        "model_accuracy": Share(0.71875, 0.6, 0.81, 46, 64),
        "ablated_accuracy": Share(0.125, 0.06, 0.22, 8, 64),
    }
    rows = (
        Row("circuit", "slot", alone, ratio(None), around(None)),
        Row(
            "circuit", "kind", Share(0.21875, 0.13, 0.33, 14, 64), Ratio(0.304348, 0.17, 0.46, None), around(-1.5, 0.25)
        ),
        Row("all_heads", "slot", Share(0.6875, 0.56, 0.79, 44, 64), ratio(0.95), around(1.0)),
    )
    ours = cell(
        0.913043, low=0.81, high=0.99, normalised=Estimate(0.894737, 0.79, 0.98), agreement=share(0.84375),
        circuit_accuracy=alone, rows=rows, random=random_circuits(tuple(i / 128 for i in range(100)), 17 / 101),
        controls=other_circuits(),
        **of_model,
    )  # fmt: skip
    paper = cell(
        1.26087, low=1.1, high=1.4, normalised=around(None), note="means of 32 prompts & <few>",
        circuit_accuracy=Share(0.90625, 0.8, 0.96, 29, 32), **of_model,
    )  # fmt: skip
    return {OURS: {MODEL: ours}, PAPER: {MODEL: paper}}


def invented_results() -> CommonResults:
    """With accuracy, discovery and faithfulness."""
    queried = (
        QueriedShare(0.875, 0.7, 0.97, 7, 8, 0),
        QueriedShare(0.6, 0.4, 0.8, 12, 20, 1),
        QueriedShare(None, None, None, 0, 0, 2),
    )
    errors = (ErrorShare(0.125, 0.06, 0.22, 8, 64, "before"), ErrorShare(0.15625, 0.08, 0.27, 10, 64, "none"))
    answers = Accuracy(Share(0.71875, 0.6, 0.81, 46, 64), around(1.5), queried, errors)
    checks = (
        Check("same logits", MODEL, 3.1e-7, 1e-5, True, ""),
        Check("window = full", MODEL, 0.25, 1e-5, False, "v at <query_label>"),
    )
    return results_of(
        warnings=("objects left out: <kiwi>",),
        example=EXAMPLE,
        models={MODEL: model()},
        checks=checks,
        accuracy={MODEL: answers},
        discovery=_discovery(),
        faithfulness=_faithfulness(),
    )


def data_of(figure: Figure) -> list[dict]:
    """All rows of a figure's own data, which a page may hold."""
    spec = figure.to_dict()
    json.dumps(spec, allow_nan=False)
    return [row for rows in spec["datasets"].values() for row in rows]


def rows_with(figure: Figure, *columns: str) -> list[dict]:
    """The one data set of a figure that has these columns."""
    (rows,) = (rows for rows in figure.to_dict()["datasets"].values() if rows and set(columns) <= set(rows[0]))
    return rows
