"""What a fitted mask puts into results.json, and what is kept of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from circuitdiff import results as form
from circuitdiff.cache.store import Record
from circuitdiff.methods.component_mask import Mask, MaskFit
from circuitdiff.prompts import Triples
from circuitdiff.sections.entries import heads_entry, interval_entry
from circuitdiff.stats.intervals import difference_interval

_FLOORS = {"nothing": "no head patched", "shuffled": "a mask trained and tested on shuffled targets"}


def fit_record(fit: MaskFit) -> Record:
    """Keep values and hits per test triple as tensors; beside them the entry."""
    tensors = {f"hits.{name}": fit.hits(name) for name in fit.answers}
    tensors |= {f"answers.{name}": answers for name, answers in fit.answers.items()}
    tensors |= {"keep": fit.mask.keep, "scenarios": fit.test.scenarios}
    tensors |= {"keep.shuffled": fit.shuffled.keep} if fit.shuffled else {}
    tensors |= {f"keep.other.{i}": mask.keep for i, mask in enumerate(fit.others)}
    return Record(tensors, fit_entry(fit))


def fit_entry(fit: MaskFit) -> dict[str, Any]:
    accuracy, above = fit.accuracy(), fit.above_floor
    return {
        "heads": heads_entry(fit.heads),
        "at": fit.group.at,
        "group": heads_entry(fit.group.heads),
        "accuracy": accuracy.value,
        "low": accuracy.low,
        "high": accuracy.high,
        "floor": fit.accuracy(fit.floor).value,
        "floor_is": _FLOORS[fit.floor],
        "above_floor": interval_entry(above),
        "carries": fit.carries,
        "controls": {name: _share(fit, name) for name in (*_FLOORS, "all", "ranked") if name in fit.answers}
        | {"random": fit.random_accuracy},
        "pointed": {"mask": fit.pointed(), "all": fit.pointed("all")},
        "by_queried": by_queried(fit.hits(), fit.test),
        "trade_off": [_mask_entry(mask) | interval_entry(interval) for mask, interval in fit.trade_off()],
        "penalty": fit.mask.penalty,
        "keep": fit.mask.keep.tolist(),
        "validation_accuracy": fit.mask.validation_accuracy,
        "n_test": len(fit.test),
    }


def _share(fit: MaskFit, name: str) -> dict[str, Any]:
    hits = fit.hits(name)
    return form.share(hits, fit.test.scenarios[: len(hits)])


def _mask_entry(mask: Mask) -> dict[str, Any]:
    patched = heads_entry(mask.patched)
    return {"penalty": mask.penalty, "seed": mask.seed, "heads": patched, "n_heads": len(patched)}


def by_queried(hits: Bool[Tensor, " test"], test: Triples) -> list[dict[str, Any]]:
    """Accuracy by the index that the source asks for, the one a position points to; none where it is not known."""
    return [
        {"queried": index} | form.share(hits[rows], test.scenarios[rows])
        for index in test.source_queried.unique().tolist()
        for rows in [test.source_queried == index]
        if index >= 0
    ]


def transfer_entry(
    patched: Sequence[Sequence[int]],
    answers: Int[Tensor, " test"],
    test: Triples,
    own: Mapping[str, Tensor],
) -> dict[str, Any]:
    """A mask found in another model, unchanged in this one, against this model's own mask and floors."""
    hits, scenarios = answers == test.targets, test.scenarios.numpy()
    there = [name for name in _FLOORS if f"hits.{name}" in own]
    floor = max(there, key=lambda name: int(own[f"hits.{name}"].sum()))

    def above(name: str) -> dict[str, float]:
        return interval_entry(difference_interval(hits.numpy(), own[f"hits.{name}"].numpy(), scenarios))

    return form.share(hits, test.scenarios) | {
        "heads": [list(head) for head in patched],
        "floor_is": _FLOORS[floor],
        "above_floor": above(floor),
        "above_own_mask": above("mask"),
    }


def redraw_entry(hits: Bool[Tensor, "redraw test"], heads: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Accuracies over redraws: their mean, standard deviation (of a sample) and each of them."""
    accuracies = hits.double().mean(1)
    return {
        "heads": [list(head) for head in heads],
        "mean": float(accuracies.mean()),
        "sd": float(accuracies.std()) if len(accuracies) > 1 else float(np.nan),
        "accuracies": accuracies.tolist(),
        "n_triples": hits.shape[1],
    }
