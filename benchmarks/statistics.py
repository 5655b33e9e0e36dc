"""How often intervals hold the truth, and "the same within a margin" is said where it is false: wanted and measured.

Every row draws samples of which the truth is known; "missed" means by more than two standard errors. "Few carry all":
one scenario in twenty has an effect. Of 50 scenarios one sample in 13 then holds none at all, of 21 one in three, so
that no interval can hold the truth in more than 0.92 and 0.66. Nothing is wanted of rows with fewer than 50 scenarios.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from rich.console import Console
from rich.table import Table
from scipy import stats

from circuitdiff.stats.effect_maps import likeness
from circuitdiff.stats.intervals import Interval, mean_interval, normalised_ratio_interval, ratio_interval
from circuitdiff.stats.proportions import accuracy_interval, paired_interval
from circuitdiff.stats.shapley import ALONE, attribute

MARGIN = 0.05
FAIR, SKEWED = (0.93, 0.97), (0.90, 1.0)
SAFE = (0.93, 1.0)  # discrete data cannot be at 0.95 everywhere: rather above
ANYTHING = (0.0, 1.0)


class Row(NamedTuple):
    what: str
    wanted: tuple[float, float]
    measured: float
    error: float  # standard error of `measured`


class Effects(NamedTuple):
    """A distribution of effects."""

    draw: Callable[[np.random.Generator, tuple[int, ...]], ndarray]
    mean: float


EFFECTS = {
    "normal": Effects(lambda g, shape: g.normal(size=shape), 0.0),
    "mild skew (gamma 4)": Effects(lambda g, shape: g.gamma(4, size=shape), 4.0),
    "mild skew (exponential)": Effects(lambda g, shape: g.exponential(size=shape), 1.0),
    "strong skew (log-normal, sigma 1.5)": Effects(lambda g, shape: g.lognormal(0, 1.5, shape), float(np.exp(1.125))),
    "strong skew (few carry all)": Effects(lambda g, shape: (g.random(shape) < 0.05) * g.exponential(size=shape), 0.05),
}


def coverage(what: str, wanted: tuple[float, float], bounds: Interval, truth: float) -> Row:
    """Bounds that are undefined hold nothing and are left out."""
    low, high = np.asarray(bounds.low), np.asarray(bounds.high)
    held = ((low <= truth) & (truth <= high))[~np.isnan(low)]
    return Row(what, wanted, float(held.mean()), float(held.std() / len(held) ** 0.5))


def means(g: np.random.Generator, n: int) -> Iterator[Row]:
    """Of effects; the unit is the scenario."""
    for name, effects in EFFECTS.items():
        strong = name.startswith("strong")
        for n_scenarios in (21, 50, 100, 300):
            wanted = ANYTHING if n_scenarios < 50 else SKEWED if strong else FAIR
            bounds = mean_interval(effects.draw(g, (n, n_scenarios)), np.arange(n_scenarios))
            yield coverage(f"mean, {name}, {n_scenarios} scenarios", wanted, bounds, effects.mean)
        for n_scenarios, size in ((14, 7), (75, 4)):
            values, scenarios = _clustered(effects, g, n, n_scenarios, size)
            wanted = ANYTHING if n_scenarios < 50 else SKEWED if strong else FAIR
            bounds = mean_interval(values, scenarios)
            yield coverage(f"mean, {name}, {n_scenarios} scenarios of {size}", wanted, bounds, 2 * effects.mean)


def _clustered(
    effects: Effects, g: np.random.Generator, n: int, n_scenarios: int, size: int
) -> tuple[ndarray, ndarray]:
    """Each prompt's effect is its scenario's and one of its own."""
    shared = effects.draw(g, (n, n_scenarios)).repeat(size, axis=1)
    return shared + effects.draw(g, shared.shape), np.arange(n_scenarios).repeat(size)


def accuracies(g: np.random.Generator, n: int) -> Iterator[Row]:
    """Of clustered prompts half have their scenario's answer."""
    for p in (0.05, 0.5, 0.9, 0.98):
        for n_scenarios, size in ((60, 1), (300, 1), (14, 7), (25, 4), (75, 4)):
            hits, scenarios = _hits(g, n, n_scenarios, size, p)
            wanted = SAFE if n_scenarios >= 50 else ANYTHING
            name = f"accuracy {p}, {n_scenarios} scenarios of {size}"
            yield coverage(name, wanted, accuracy_interval(hits, scenarios), p)


def _hits(g: np.random.Generator, n: int, n_scenarios: int, size: int, p: float) -> tuple[ndarray, ndarray]:
    shared = (g.random((n, n_scenarios)) < p).repeat(size, axis=1)
    hits = np.where(g.random(shared.shape) < (0.5 if size > 1 else 0), shared, g.random(shared.shape) < p)
    return hits, np.arange(n_scenarios).repeat(size)


def same() -> Iterator[Row]:
    """One prompt per scenario, all sample sizes: exact, from the probabilities of all tables."""
    sizes, hidden = range(60, 501, 4), (0.0, 0.01, 0.02, 0.05)
    for lost in hidden:
        chance, at = max((_said_same(size, lost + MARGIN, lost), size) for size in sizes)
        yield Row(
            f'"the same" at the margin, {lost} the other way, n = 60 to 500 (worst: {at})', (0, 0.03), chance, 0.0
        )
    worst = min(
        (_held(size, lost + difference, lost), size)
        for size in sizes[::10]
        for lost in hidden
        for difference in (0, 0.02, 0.05, 0.2)
    )
    yield Row(f"paired difference, worst coverage, n = 60 to 500 ({worst[1]})", SAFE, worst[0], 0.0)


def _tables(n: int, won: float, lost: float) -> tuple[Interval, ndarray]:
    """The intervals of all tables that may come, and their probabilities."""
    most = [int(stats.binom.ppf(1 - 1e-7, n, p)) + 1 if p else 0 for p in (won, lost)]
    b, c = (x.ravel() for x in np.meshgrid(*(np.arange(m + 1) for m in most), indexing="ij"))
    likely = stats.multinomial.pmf(np.stack([b, c, n - b - c], -1), n, [won, lost, 1 - won - lost])
    b, c, likely = b[likely > 1e-9], c[likely > 1e-9], likely[likely > 1e-9]
    prompt = np.arange(n)
    rows = (prompt < b[:, None]) * 1.0 - ((prompt >= b[:, None]) & (prompt < (b + c)[:, None]))
    return paired_interval(rows, prompt), likely


def _said_same(n: int, won: float, lost: float) -> float:
    bounds, likely = _tables(n, won, lost)
    return float(likely[(bounds.high <= MARGIN) & (bounds.low >= -MARGIN)].sum())


def _held(n: int, won: float, lost: float) -> float:
    bounds, likely = _tables(n, won, lost)
    return float(likely[(bounds.low <= won - lost) & (won - lost <= bounds.high)].sum())


def clustered_differences(g: np.random.Generator, n: int) -> Iterator[Row]:
    """A scenario is lost as a whole, or prompt by prompt."""
    for n_scenarios, size in ((25, 4), (75, 4), (150, 2)):
        for name, together in (("alike", 1.0), ("half alike", 0.5), ("independent", 0.0)):
            shared = _signs(g, (n, n_scenarios)).repeat(size, axis=1)
            rows = np.where(g.random(shared.shape) < together, shared, _signs(g, shared.shape))
            bounds = paired_interval(rows, np.arange(n_scenarios).repeat(size))
            said = (np.asarray(bounds.low) >= -MARGIN) & (np.asarray(bounds.high) <= MARGIN)
            sizes = f"{n_scenarios} scenarios of {size} ({name})"
            enough = n_scenarios >= 50
            yield Row(f'"the same" at the margin, {sizes}', (0, 0.03), float(said.mean()), float(said.std() / n**0.5))
            yield coverage(f"paired difference, {sizes}", SAFE if enough else ANYTHING, bounds, MARGIN)


def _signs(g: np.random.Generator, shape: tuple[int, ...]) -> ndarray:
    """A true difference of the margin: of the discordant, one in six the other way."""
    chance = g.random(shape)
    return (chance < 1.25 * MARGIN) * 1.0 - (chance > 1 - 0.25 * MARGIN)


def ratios(g: np.random.Generator, n: int) -> Iterator[Row]:
    """Faithfulness of hits; (circuit - ablated) / (model - ablated) of them; and of logit differences."""
    for size in (60, 100, 500):
        for p, kept, new in ((0.6, 0.5, 0.1), (0.6, 0.95, 0.02), (0.95, 0.98, 0.0), (0.2, 0.98, 0.0)):
            found = []
            for _ in range(n):
                model = g.random(size) < p
                found.append(
                    ratio_interval(np.where(model, g.random(size) < kept, g.random(size) < new), model, np.arange(size))
                )
            name = f"faithfulness, {size} prompts, model {p}, kept {kept}, new {new}"
            yield coverage(name, SAFE, _stacked(found), (p * kept + (1 - p) * new) / p)
        found = []
        for _ in range(n):
            model, ablated = g.random(size) < 0.6, g.random(size) < 0.1
            found.append(
                normalised_ratio_interval(
                    np.where(g.random(size) < 0.8, model, ablated), ablated, model, np.arange(size)
                )
            )
        yield coverage(f"normalised faithfulness, {size} prompts", SAFE, _stacked(found), 0.8)
        found = []
        for _ in range(n):
            model = g.gamma(4, size=size)
            found.append(ratio_interval(model * g.random(size), model, np.arange(size)))
        yield coverage(
            f"faithfulness of a skewed score, {size} prompts", FAIR if size > 60 else SAFE, _stacked(found), 0.5
        )


def shares(g: np.random.Generator, n: int) -> Iterator[Row]:
    """A part that brings half of the gain, alone; of samples in which there is a gain."""
    for size in (60, 100, 300):
        found, found_score, whole = [], [], []
        for _ in range(n):
            nothing, better = g.random(size) < 0.3, g.random(size) < 0.4
            runs = {frozenset[str](): nothing, frozenset(["part"]): nothing | better & (g.random(size) < 0.5)}
            credit = attribute(runs, nothing | better, np.arange(size), ["part"]).parts["part"][ALONE]
            found.append(Interval(credit.share, credit.share_low, credit.share_high))
            low, gain = g.normal(size=size), g.exponential(size=size)
            runs = {frozenset[str](): low, frozenset(["part"]): low + gain * g.random(size)}
            credit = attribute(runs, low + gain, np.arange(size), ["part"]).parts["part"][ALONE]
            found_score.append(Interval(credit.share, credit.share_low, credit.share_high))
            whole.append(Interval(credit.value, credit.low, credit.high))
        yield coverage(f"share of a gain in accuracy, {size} prompts", SAFE, _stacked(found), 0.5)
        yield coverage(f"share of a gain in a skewed score, {size} prompts", SAFE, _stacked(found_score), 0.5)
        yield coverage(f"contribution to it, {size} prompts", FAIR, _stacked(whole), 0.5)


class Maps(NamedTuple):
    """How two models' effects over 270 heads and 100 scenarios are drawn."""

    few: bool  # six strong heads, and in the other model as many others; noise in proportion to effects
    common: float  # share of the variance of noise that is in both models
    works: bool = False  # each scenario's circuit works more or less (exponential), in the noise's stead in few heads


MAPS = {
    "many heads": Maps(False, 0.0),
    "many heads, noise in common": Maps(False, 0.6),
    "few strong heads": Maps(True, 0.5),
    "few strong heads that work or not": Maps(True, 0.0, True),
}
PLACES = (range(6), range(3, 9))  # of strong heads: half of them are in both models
RETESTS = ((0.98, 0.98), (0.84, 0.98), (0.58, 0.98), (0.43, 0.98), (0.84, 0.84), (0.43, 0.43))  # of halves
ALIKE, RARELY, MOSTLY = 0.9, (0.0, 0.05), (0.8, 1.0)


def likenesses(g: np.random.Generator, n: int) -> Iterator[Row]:
    """Of effect maps, by how far each repeats itself: "alike" and "not alike" where they are not, and where they are.

    Undefined bounds say nothing, so are in no error and in no power.
    """
    for name, maps in MAPS.items():
        for retests in RETESTS:
            of = f"{name}, retests {retests[0]} and {retests[1]}"
            low = _likenesses(g, n, 0.85, retests, maps).low
            yield _share(f'"alike" of a true 0.85, {of}', RARELY, np.asarray(low) >= ALIKE)
            high = _likenesses(g, n, 0.95, retests, maps).high
            yield _share(f'"not alike" of a true 0.95, {of}', RARELY, np.asarray(high) < ALIKE)
            fair = SKEWED if maps.few else SAFE
            yield coverage(f"likeness of a true 0.9, {of}", fair, _likenesses(g, n, 0.9, retests, maps), 0.9)
            clear = min(retests) > (0.9 if maps.few else 0.8)
            low = _likenesses(g, n, 0.98, retests, maps).low
            yield _share(f'"alike" of a true 0.98, {of}', MOSTLY if clear else ANYTHING, np.asarray(low) >= ALIKE)


def _share(what: str, wanted: tuple[float, float], said: ndarray) -> Row:
    return Row(what, wanted, float(said.mean()), float(said.std() / len(said) ** 0.5))


def _likenesses(g: np.random.Generator, n: int, truth: float, retests: tuple[float, float], maps: Maps) -> Interval:
    drawn = (_maps(g, truth, retests, maps) for _ in range(n))
    return _stacked([likeness(first, second, np.arange(100)) for first, second in drawn])


def _maps(g: np.random.Generator, truth: float, retests: tuple[float, float], maps: Maps) -> Iterator[ndarray]:
    """Maps whose true means correlate exactly so."""
    strong = [
        0.05 * g.normal(size=270) - np.isin(np.arange(270), at) * (g.exponential(size=270) + 0.3) for at in PLACES
    ]
    first = _standard(strong[0])
    other = _standard(strong[1] if maps.few else g.normal(size=270))
    other = _standard(other - first * (first * other).mean())
    shared, *own = g.normal(size=(3, 270, 100))
    second = truth * first + np.sqrt(1 - truth**2) * other
    for mean, retest, noise in zip((first, second), retests, own, strict=True):
        scale = np.abs(mean) + 0.2 if maps.few else np.ones(270)
        size = np.sqrt(100 * (1 / retest - 1) / 2 / (scale**2).mean())
        noise = np.sqrt(maps.common) * shared + np.sqrt(1 - maps.common) * noise
        works = g.exponential(size=100) if maps.works else 1.0
        yield (mean[:, None] * works + size * scale[:, None] * noise)[None]


def _standard(values: ndarray) -> ndarray:
    return (values - values.mean()) / values.std()


def _stacked(found: list) -> Interval:
    return Interval(*(np.array([getattr(one, bound) for one in found]) for bound in ("value", "low", "high")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("runs/bench-statistics.json"))
    options = parser.parse_args()
    begin, n = time.perf_counter(), options.samples
    g = np.random.default_rng(options.seed)
    parts = (means(g, n), accuracies(g, n), same(), clustered_differences(g, n), ratios(g, n // 4), shares(g, n // 4))
    parts = (*parts, likenesses(g, n // 40))
    rows = [row for part in parts for row in part]
    table = Table("what", "wanted", "measured", "standard error", "", box=None)
    for what, (least, most), measured, error in rows:
        wanted = "" if (least, most) == ANYTHING else f"{least:g} to {most:g}"
        missed = "" if least - 2 * error <= measured <= most + 2 * error else "missed"
        table.add_row(what, wanted, f"{measured:.3f}", f"{error:.3f}", missed)
    Console(width=140).print(table)
    minutes = (time.perf_counter() - begin) / 60
    print(f"{n} samples, {minutes:.1f} minutes")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"samples": n, "minutes": minutes, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
