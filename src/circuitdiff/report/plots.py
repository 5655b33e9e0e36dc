"""Figures of what methods give, where there is no study: `plot()` of their results."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import torch

from circuitdiff.methods.discovery import Stage, StageResult
from circuitdiff.methods.knockout import Knockouts
from circuitdiff.methods.path_patching import PathEffects
from circuitdiff.report.charts import Figure
from circuitdiff.report.discovery import effect_map, effect_rows, map_of
from circuitdiff.report.knockout import curves_over_layers
from circuitdiff.stats.selection import Discoveries, Selection
from circuitdiff.study.estimates import share
from circuitdiff.study.sections.discovery import sweep_of
from circuitdiff.study.sections.knockout import Curve, points_of


@singledispatch
def plot(found: Any) -> Figure:
    raise AssertionError(f"no figure of {type(found).__name__}")


@plot.register
def _stage(found: StageResult) -> Figure:
    return effect_map(sweep_of(found))


@plot.register
def _effects(found: PathEffects) -> Figure:
    nothing = torch.full_like(found.effects, torch.nan)
    none_chosen = Selection(Discoveries(), (), (), (), found.effects, nothing, nothing, None)
    sweep = sweep_of(StageResult(Stage("effects", ""), (), found, None, none_chosen))
    return map_of(effect_rows(sweep), "Effect of every head", f"{sweep.n_prompts} prompts; {sweep.metric}")


@plot.register
def _knockouts(found: Knockouts) -> Figure:
    clean = share(found.clean.hits, found.clean.scenarios)
    curves = [
        Curve(each.query, each.says, not each.upward, clean, points_of(each.layers, its))
        for each, its in zip(found.wanted, found.blocked, strict=True)
    ]
    return curves_over_layers("Attention knockout", curves, clean.n)
