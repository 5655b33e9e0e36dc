"""The work in parts, each of which is kept: a killed run continues, and several processes can share the parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any, NamedTuple

from circuitdiff.errors import InputError
from circuitdiff.ground_truth.subjects import Sizes
from circuitdiff.models.fingerprint import fingerprint, weight_digests
from circuitdiff.models.planted import build_planted
from circuitdiff.own_code import digest_of_code
from circuitdiff.results import versions
from circuitdiff.store import Record, Store

Monitor = Callable[[str, int, int], None]  # what is being done, how much of it, of how much


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
            "version": versions(),
            "code": digest_of_code(),
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
