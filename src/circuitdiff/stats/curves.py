"""How good is a ranking of heads? Faithfulness over the size of a circuit, and its two areas."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from circuitdiff.errors import InputError
from circuitdiff.stats.intervals import Interval, Scenarios, cluster_weights, mean_interval, resampled_means


class CurveAreas(NamedTuple):
    """Faithfulness f at each size, and over the share of heads kept, from 0 to 1: the area under it (`cpr`, more is
    better), and between it and 1 (`cmd`, less is better); means over orders. nan unless the model is surely better than
    with all heads ablated.
    """

    faithfulness: Interval  # arrays [size]
    cpr: Interval
    cmd: Interval


def curve_areas(
    circuits: Float[ndarray, "order size prompt"],
    ablated: Float[ndarray, " prompt"],
    model: Float[ndarray, " prompt"],
    shares: Float[ndarray, " size"],
    scenarios: Scenarios,
) -> CurveAreas:
    """Of scores of ever larger circuits, whose shares of all heads rise to 1; between them f goes straight.

    Each order of the heads has its own curve and areas.

    f = (circuit - ablated) / (model - ablated), of means over prompts; 0 at a share of 0. 95 % percentile intervals of
    resampled scenarios.

    Source: Mueller et al. 2025 (arXiv:2504.13151), CPR and CMD; there over edges, here over heads at roles.

    Raises: InputError unless the shares rise from above 0 to 1.
    """
    if (np.diff(shares, prepend=0) <= 0).any() or shares[-1] != 1:
        raise InputError(f"shares of heads must rise from above 0 to 1; got {shares.tolist()}")
    known = mean_interval(model - ablated, scenarios).low > 0
    weights = np.concatenate([np.ones((1, len(scenarios))), cluster_weights(scenarios)])  # all prompts, then resamples
    f = np.stack(
        [_ratios(np.concatenate([each, ablated[None], model[None]]), weights, bool(known)) for each in circuits]
    )
    return CurveAreas(*(_interval(each.mean(0)) for each in (f, _area(f, shares), _area_to_one(f, shares))))


def _ratios(
    rows: Float[ndarray, "row prompt"], weights: Float[ndarray, "draw prompt"], known: bool
) -> Float[ndarray, "draw size"]:
    means = resampled_means(rows, weights)
    above, room = means[:, :-2] - means[:, -2:-1], means[:, -1:] - means[:, -2:-1]
    return above / np.where(room > 0, room, np.nan) if known else np.full_like(above, np.nan)


def _area(f: Float[ndarray, "order draw size"], shares: Float[ndarray, " size"]) -> Float[ndarray, "order draw"]:
    return np.trapezoid(np.pad(f, ((0, 0), (0, 0), (1, 0))), np.pad(shares, (1, 0)), axis=-1)


def _area_to_one(f: Float[ndarray, "order draw size"], shares: Float[ndarray, " size"]) -> Float[ndarray, "order draw"]:
    """Of |1 - f|, exactly: a piece that crosses 1 is two triangles."""
    gap, width = 1 - np.pad(f, ((0, 0), (0, 0), (1, 0))), np.diff(shares, prepend=0)
    first, second = gap[..., :-1], gap[..., 1:]
    size = np.abs(first) + np.abs(second)
    crossing = (first * second < 0) & (size > 0)
    pieces = np.where(crossing, (first**2 + second**2) / np.where(size > 0, 2 * size, 1), size / 2)
    return (pieces * width).sum(-1)


def _interval(drawn: Float[ndarray, " draw *size"]) -> Interval:
    """Of the first draw, which is of all prompts, with percentiles of the others; nan where any is undefined."""
    bounds = drawn[0], *np.quantile(drawn[1:], [0.025, 0.975], axis=0)
    return Interval(*(each if each.shape else float(each) for each in bounds))
