"""The order of work: every planted model, what a study says of some, then other plantings of the base."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from circuitdiff.discovery import StageResult
from circuitdiff.errors import InputError
from circuitdiff.ground_truth.attribution_rows import Comparison, compare_with_attribution
from circuitdiff.ground_truth.circuit_rows import circuit_rows
from circuitdiff.ground_truth.cross_model_rows import cross_model_rows
from circuitdiff.ground_truth.discovery_rows import discovery_rows
from circuitdiff.ground_truth.mask_rows import mask_rows
from circuitdiff.ground_truth.minimality_rows import minimality_rows
from circuitdiff.ground_truth.null_rows import NULLS, null_rows
from circuitdiff.ground_truth.parts import Monitor, Part, Share, carry_out
from circuitdiff.ground_truth.plantings import Planting, planting_rows, try_planting
from circuitdiff.ground_truth.result import GroundTruth
from circuitdiff.ground_truth.rows import Row
from circuitdiff.ground_truth.same_circuit_rows import JUDGED, same_circuit_rows
from circuitdiff.ground_truth.subjects import Sizes, Subject, another_planting, named_subject, run_plan
from circuitdiff.models.planted import build_planted, planted_names
from circuitdiff.store import Store

BASE = "planted-base"
# A minute each, so not all: each part's own function, better parts, another route, and a head of two groups.
MASKED = (BASE, "planted-sharper-fetchers", "planted-clearer-addresses", "planted-lexical", "planted-shared-head")
# Without redundancy: elsewhere a head may be dispensable, and minimality would be right to say so.
MINIMAL = (BASE, "planted-sharper-fetchers", "planted-clearer-addresses", "planted-pair")


def check_ground_truth(
    folder: str | Path,
    n_plantings: int = 20,
    sizes: Sizes | None = None,
    names: Sequence[str] | None = None,
    monitor: Monitor = lambda title, done, total: None,
) -> GroundTruth:
    """Every claim about every planted model of `names` (all, if not given), then about `n_plantings` of the base.

    What the folder has from a run before is not computed again.

    Raises: InputError if a name is unknown or a number negative, or the folder cannot be written to.
    """
    sizes, kept = sizes or Sizes(), Store.open(folder)
    came = carry_out(_parts(n_plantings, sizes, names, kept), sizes, kept, monitor)
    rows = [Row.from_dict(row) for part in came for row in part.get("rows", ())]
    comparisons = [Comparison.from_dict(each) for part in came for each in part.get("attribution", ())]
    plantings = [Planting.from_dict(part["planting"]) for part in came if "planting" in part]
    rows += planting_rows(plantings) if plantings else []
    return GroundTruth(sizes, tuple(rows), tuple(plantings), tuple(comparisons))


def compute_share(
    folder: str | Path,
    share: Share,
    n_plantings: int = 20,
    sizes: Sizes | None = None,
    names: Sequence[str] | None = None,
    monitor: Monitor = lambda title, done, total: None,
) -> None:
    """Some of the parts of `check_ground_truth`, into its folder: other processes compute the others.

    Raises: as `check_ground_truth`.
    """
    sizes, kept = sizes or Sizes(), Store.open(folder)
    carry_out(_parts(n_plantings, sizes, names, kept), sizes, kept, monitor, share)


def _parts(n_plantings: int, sizes: Sizes, names: Sequence[str] | None, kept: Store) -> list[Part]:
    if n_plantings < 0:
        raise InputError(f"the number of plantings must be 0 or more; got {n_plantings}")
    chosen = planted_names() if names is None else names
    pairs = {name: dict.fromkeys((name, build_planted(name).base)) for name in chosen}
    judged = [name for name in JUDGED if name in chosen]
    study = partial(_judged, judged, sizes, kept.folder / "study")
    return [
        *(Part(name, tuple((each, 0) for each in pair), partial(_model, name, sizes)) for name, pair in pairs.items()),
        *([Part("what a study says", tuple((name, 0) for name in (BASE, *judged)), study)] if judged else []),
        *(
            Part(f"{BASE}, planting {seed}", ((BASE, seed),), partial(_planting, seed, sizes))
            for seed in range(1, n_plantings + 1)
        ),
    ]


def _model(name: str, sizes: Sizes) -> dict[str, Any]:
    subject, found = _base(sizes) if name == BASE else _found(name, sizes)
    rows = [*discovery_rows(subject, found), *circuit_rows(subject, sizes), *cross_model_rows(subject)]
    rows += minimality_rows(subject) if name in MINIMAL else []
    rows += mask_rows(subject) if name in MASKED else []
    rows += null_rows(*_base(sizes), subject, found) if name in NULLS else []
    comparisons = compare_with_attribution(subject, found)
    return {"rows": [row.to_dict() for row in rows], "attribution": [each.to_dict() for each in comparisons]}


def _found(name: str, sizes: Sizes) -> tuple[Subject, list[StageResult]]:
    subject = named_subject(name, sizes)
    return subject, run_plan(subject)


@cache
def _base(sizes: Sizes) -> tuple[Subject, list[StageResult]]:
    """The base, with which variants that compute the same are compared."""
    return _found(BASE, sizes)


def _judged(names: Sequence[str], sizes: Sizes, folder: Path) -> dict[str, Any]:
    return {"rows": [row.to_dict() for row in same_circuit_rows(names, sizes, folder)]}


def _planting(seed: int, sizes: Sizes) -> dict[str, Any]:
    return {"planting": try_planting(another_planting(BASE, seed, sizes), seed, sizes).to_dict()}
