"""The order of work: every planted model, what a study says of some, then other plantings of the base.

In parts, each of which is kept: a killed run continues, and several processes can share the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from circuitdiff.cache.code_digest import digest_of_code
from circuitdiff.cache.store import Record, Store
from circuitdiff.errors import InputError
from circuitdiff.methods.discovery import StageResult
from circuitdiff.models.fingerprint import fingerprint, weight_digests
from circuitdiff.planted import build_planted, planted_names
from circuitdiff.study.context import versions
from circuitdiff.study.workers import Monitor
from validation.circuit_rows import circuit_rows, mask_rows
from validation.cross_model_rows import JUDGED, cross_model_rows, same_circuit_rows
from validation.discovery_rows import (
    NULLS,
    Comparison,
    compare_with_attribution,
    discovery_rows,
    minimality_rows,
    null_rows,
)
from validation.plantings import Planting, planting_rows, try_planting
from validation.subjects import MINIMUM, Row, Sizes, Subject, another_planting, named_subject, run_plan


@dataclass(frozen=True)
class GroundTruth:
    """What was checked, in one part of the work or in all."""

    sizes: Sizes
    rows: tuple[Row, ...] = ()
    plantings: tuple[Planting, ...] = ()
    attribution: tuple[Comparison, ...] = ()

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        return {"minimum": MINIMUM, "sizes": asdict(self.sizes), "passed": self.passed} | _FORM.dump_python(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> GroundTruth:
        """Of `to_dict`, read back from JSON."""
        return _FORM.validate_python(data)


_FORM = TypeAdapter(GroundTruth)


class Part(NamedTuple):
    """One planted model, one planting, or one study."""

    name: str
    planted: tuple[tuple[str, int], ...]  # the models that it is about, with their seeds
    compute: Callable[[], dict[str, Any]]  # what JSON can hold


class Share(NamedTuple):
    """Every `of`-th part, beginning with number `which`, from 1."""

    which: int = 1
    of: int = 1

    @classmethod
    def read(cls, text: str) -> Share:
        """From "1/2".

        Raises: InputError if it is anything else.
        """
        which, _, of = text.partition("/")
        if not (which.isdecimal() and of.isdecimal() and 1 <= int(which) <= int(of)):
            raise InputError(f"a share is written 1/2, the first of two, or 2/2; got {text!r}")
        return cls(int(which), int(of))


EVERYTHING = Share()


def carry_out(
    parts: Sequence[Part], sizes: Sizes, kept: Store, monitor: Monitor, share: Share = EVERYTHING
) -> list[dict[str, Any]]:
    """What each part of the share comes to, from the folder if it was finished before.

    Kept under the versions of all packages, our own code, the sizes and the planted weights.
    """
    chosen = parts[share.which - 1 :: share.of]
    came = []
    for done, part in enumerate(chosen):
        monitor("ground truth", done, len(chosen))
        weights = [_weights(*each) for each in part.planted]
        key = {
            "part": part.name,
            "version": dict(versions()),
            "code": [digest_of_code(), digest_of_code(Path(__file__).parent)],
            "sizes": asdict(sizes),
            "weights": weights,
        }
        came.append(kept.stage(part.name, key, lambda part=part: Record({}, part.compute())).data)
    monitor("ground truth", len(chosen), len(chosen))
    return came


@cache
def _weights(name: str, seed: int) -> str:
    planted = build_planted(name, seed=seed)
    return fingerprint(weight_digests(planted.model), planted.model.config, planted.tokenizer)


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
    share: Share = EVERYTHING,
) -> GroundTruth:
    """Every claim about every planted model of `names` (all, if not given), then about `n_plantings` of the base.

    What the folder has from a run before is not computed again. Of a share only its parts: others are left to other
    processes.

    Raises: InputError if a name is unknown or a number negative, or the folder cannot be written to.
    """
    sizes, kept = sizes or Sizes(), Store.open(folder)
    came = carry_out(_parts(n_plantings, sizes, names, kept), sizes, kept, monitor, share)
    parts = [GroundTruth.from_dict(part) for part in came]
    rows = [row for part in parts for row in part.rows]
    plantings = [planting for part in parts for planting in part.plantings]
    comparisons = [comparison for part in parts for comparison in part.attribution]
    rows += planting_rows(plantings) if plantings else []
    return GroundTruth(sizes, tuple(rows), tuple(plantings), tuple(comparisons))


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
    return GroundTruth(sizes, tuple(rows), (), tuple(compare_with_attribution(subject, found))).to_dict()


def _found(name: str, sizes: Sizes) -> tuple[Subject, list[StageResult]]:
    subject = named_subject(name, sizes)
    return subject, run_plan(subject)


@cache
def _base(sizes: Sizes) -> tuple[Subject, list[StageResult]]:
    """The base, with which variants that compute the same are compared."""
    return _found(BASE, sizes)


def _judged(names: Sequence[str], sizes: Sizes, folder: Path) -> dict[str, Any]:
    return GroundTruth(sizes, tuple(same_circuit_rows(names, sizes, folder))).to_dict()


def _planting(seed: int, sizes: Sizes) -> dict[str, Any]:
    return GroundTruth(sizes, (), (try_planting(another_planting(BASE, seed, sizes), seed, sizes),)).to_dict()
