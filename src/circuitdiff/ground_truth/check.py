"""The order of work: every planted model, then other plantings of the base."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from circuitdiff.discovery import StageResult
from circuitdiff.errors import InputError
from circuitdiff.ground_truth.attribution_rows import compare_with_attribution
from circuitdiff.ground_truth.circuit_rows import circuit_rows
from circuitdiff.ground_truth.cross_model_rows import cross_model_rows
from circuitdiff.ground_truth.discovery_rows import discovery_rows
from circuitdiff.ground_truth.mask_rows import mask_rows
from circuitdiff.ground_truth.minimality_rows import minimality_rows
from circuitdiff.ground_truth.null_rows import NULLS, null_rows
from circuitdiff.ground_truth.plantings import planting_rows, try_planting
from circuitdiff.ground_truth.result import GroundTruth
from circuitdiff.ground_truth.subjects import Sizes, Subject, another_planting, named_subject, run_plan
from circuitdiff.models.planted import planted_names

BASE = "planted-base"
# A minute each, so not all: each part's own function, better parts, another route, and a head of two groups.
MASKED = (BASE, "planted-sharper-fetchers", "planted-clearer-addresses", "planted-lexical", "planted-shared-head")
# Without redundancy: elsewhere a head may be dispensable, and minimality would be right to say so.
MINIMAL = (BASE, "planted-sharper-fetchers", "planted-clearer-addresses", "planted-pair")
Monitor = Callable[[str, int, int], None]  # what is being done, how much of it, of how much


def check_ground_truth(
    n_plantings: int = 20,
    sizes: Sizes | None = None,
    names: Sequence[str] | None = None,
    monitor: Monitor = lambda title, done, total: None,
) -> GroundTruth:
    """Every claim about every planted model of `names` (all, if not given), then about `n_plantings` of the base.

    Raises: InputError if a name is unknown or a number negative.
    """
    if n_plantings < 0:
        raise InputError(f"the number of plantings must be 0 or more; got {n_plantings}")
    chosen, sizes = planted_names() if names is None else names, sizes or Sizes()
    rows, comparisons = [], []
    base: tuple[Subject, Sequence[StageResult]] | None = None
    for done, name in enumerate(chosen):
        monitor("planted models", done, len(chosen))
        subject = named_subject(name, sizes)
        found = run_plan(subject)
        base = (subject, found) if name == BASE else base
        rows += [*discovery_rows(subject, found), *circuit_rows(subject, sizes), *cross_model_rows(subject)]
        rows += minimality_rows(subject) if name in MINIMAL else []
        rows += mask_rows(subject) if name in MASKED else []
        comparisons += compare_with_attribution(subject, found)
        if base is not None and name in NULLS:
            rows += null_rows(*base, subject, found)
    monitor("planted models", len(chosen), len(chosen))
    plantings = []
    for seed in range(1, n_plantings + 1):
        monitor("other plantings", seed - 1, n_plantings)
        plantings.append(try_planting(another_planting(BASE, seed, sizes), seed, sizes))
    monitor("other plantings", n_plantings, n_plantings)
    rows += planting_rows(plantings) if plantings else []
    return GroundTruth(sizes, tuple(rows), tuple(plantings), tuple(comparisons))
