"""How good is a ranking of heads? Faithfulness over the size of a circuit, and its two areas."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from circuitdiff.errors import InputError
from circuitdiff.stats.intervals import Interval, Scenarios, cluster_weights, resampled_means


class CurveAreas(NamedTuple):
    """Faithfulness f at each size, and over the share of heads kept, from 0 to 1: the area under it (`cpr`, more is
    better), and between it and 1 (`cmd`, less is better). nan where the model is no better than with all heads ablated.
    """

    faithfulness: Interval  # arrays [size]
    cpr: Interval
    cmd: Interval


def curve_areas(
    circuits: Float[ndarray, "size prompt"],
    ablated: Float[ndarray, " prompt"],
    model: Float[ndarray, " prompt"],
    shares: Float[ndarray, " size"],
    scenarios: Scenarios,
) -> CurveAreas:
    """Of scores of ever larger circuits, whose shares of all heads rise to 1; between them f goes straight.

    f = (circuit - ablated) / (model - ablated), of means over prompts; 0 at a share of 0. 95 % percentile intervals of
    resampled scenarios.

    Source: Mueller et al. 2025 (arXiv:2504.13151), CPR and CMD; there over edges, here over heads at roles.

    Raises: InputError unless the shares rise from above 0 to 1.
    """
    if (np.diff(shares, prepend=0) <= 0).any() or shares[-1] != 1:
        raise InputError(f"shares of heads must rise from above 0 to 1; got {shares.tolist()}")
    rows = np.concatenate([circuits, ablated[None], model[None]])
    point = _ratios(rows.mean(1)[None])
    drawn = _ratios(resampled_means(rows, cluster_weights(scenarios)))
    return CurveAreas(
        _interval(point[0], drawn),
        _interval(_area(point, shares)[0], _area(drawn, shares)),
        _interval(_area_to_one(point, shares)[0], _area_to_one(drawn, shares)),
    )


def _ratios(means: Float[ndarray, "draw row"]) -> Float[ndarray, "draw size"]:
    """f of each size; nan in a draw whose model is no better than ablated."""
    above, room = means[:, :-2] - means[:, -2:-1], means[:, -1:] - means[:, -2:-1]
    return np.where(room > 0, above / np.where(room > 0, room, 1), np.nan)


def _area(f: Float[ndarray, "draw size"], shares: Float[ndarray, " size"]) -> Float[ndarray, " draw"]:
    return np.trapezoid(np.pad(f, ((0, 0), (1, 0))), np.pad(shares, (1, 0)), axis=1)


def _area_to_one(f: Float[ndarray, "draw size"], shares: Float[ndarray, " size"]) -> Float[ndarray, " draw"]:
    """Of |1 - f|, exactly: a piece that crosses 1 is two triangles."""
    gap, width = 1 - np.pad(f, ((0, 0), (1, 0))), np.diff(shares, prepend=0)
    first, second = gap[:, :-1], gap[:, 1:]
    size = np.abs(first) + np.abs(second)
    crossing = (first * second < 0) & (size > 0)
    pieces = np.where(crossing, (first**2 + second**2) / np.where(size > 0, 2 * size, 1), size / 2)
    return (pieces * width).sum(1)


def _interval(value: float | ndarray, drawn: Float[ndarray, " draw *size"]) -> Interval:
    """nan where more than 5 % of the resamples are."""
    few = np.isnan(drawn).mean(0) > 0.05
    with np.errstate(all="ignore"):
        low, high = np.nanquantile(np.where(few, 0.0, drawn), [0.025, 0.975], axis=0)
    bounds = (np.where(few, np.nan, each) for each in (value, low, high))
    return Interval(*(each if each.shape else float(each) for each in bounds))
