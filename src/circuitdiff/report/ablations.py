"""One circuit by what everything outside it is replaced with."""

from __future__ import annotations

import altair as alt

from circuitdiff.report.charts import (
    Figure,
    bounds,
    colour,
    dashed,
    distinct,
    finish,
    inline,
    intervals,
    names_along,
    points,
    side_by_side,
    tips,
)
from circuitdiff.report.numbers import printed
from circuitdiff.report.parts import Part, Table
from circuitdiff.study.registry import part_of
from circuitdiff.study.results import CommonResults
from circuitdiff.study.sections.ablations import SECTION

_ABLATIONS = {
    "mean_by_slot": "mean of the slot",
    "mean_by_kind": "mean of the kind of slot",
    "mean_by_kind_every_segment": "mean of the kind of slot, heads kept at every segment",
    "resample": "counterfactual's own",
    "zero": "zero",
    "zero_every_segment": "zero, heads kept at every segment",
}
_QUANTITIES = {"accuracy": "accuracy", "probability": "probability", "logit_difference": "logit difference"}
_UNIT = "share of the model's score that the circuit has"
