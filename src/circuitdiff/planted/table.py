"""The planted models by name: what each changes, what it is compared with, and what a comparison must say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from circuitdiff.planted.wiring import Entry, Wiring

_ADDRESSES = {"structure_reader": 3, "position_detector": 3, "position_transmitter": 3, "value_fetcher": 3}
_LEXICAL = {"name_binder": 3, "label_transmitter": 3, "label_fetcher": 3}
_NEGATIVE = {"negative": 2}
_BASE = Wiring(n_heads=_ADDRESSES | _NEGATIVE)
_SHARP = 10.0


def _entry(
    note: str,
    *,
    base: str = "planted-base",
    improved: tuple[str, ...] = (),
    same: bool = True,
    heads: Mapping[str, int] | None = None,
    **changes: Any,
) -> Entry:
    """The base with some numbers changed and, with `heads`, other parts."""
    return Entry(replace(_BASE, n_heads=heads or _BASE.n_heads, **changes), base, improved, same, note)


_AMONG: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("planted-fetchers", "fetchers attend sharply", {"improved": ("value_fetcher",), "fetcher_sharpness": 7.5}),
    (
        "planted-transmitters",
        "transmitters do not leak",
        {"improved": ("position_transmitter",), "transmitter_leak": 0.0},
    ),
    (
        "planted-detectors",
        "detectors attend sharply",
        {"improved": ("position_detector",), "detector_sharpness": 8.0, "detector_gain": 1.2},
    ),
    ("planted-mlp", "the last MLP corrects", {"improved": ("mlp",), "mlp_correction": 0.5}),
    (
        "planted-both",
        "fetchers attend sharply, transmitters do not leak",
        {"improved": ("position_transmitter", "value_fetcher"), "fetcher_sharpness": 7.5, "transmitter_leak": 0.0},
    ),
    ("planted-nothing", "no part got better", {}),
    (
        "planted-quarter-fetchers",
        "a quarter of the first",
        {"improved": ("value_fetcher",), "fetcher_sharpness": 5.325},
    ),
    ("planted-half-fetchers", "half of the first", {"improved": ("value_fetcher",), "fetcher_sharpness": 6.05}),
    (
        "planted-half-transmitters",
        "half of the second",
        {"improved": ("position_transmitter",), "transmitter_leak": 0.15},
    ),
)

_RECODED_NOTE = (
    "transmitters, without a leak, write addresses in another code, and fetchers read that: none suffices alone"
)
_RECODED = {"improved": ("position_transmitter", "value_fetcher"), "recoded": True, "transmitter_leak": 0.0}

PLANTED: Mapping[str, Entry] = {
    "planted-base": _entry("addresses; value fetchers attend too softly"),
    # One part got better, or two.
    "planted-sharper-fetchers": _entry("fetchers attend sharply", improved=("value_fetcher",), fetcher_sharpness=7.5),
    "planted-clearer-addresses": _entry(
        "transmitters do not leak into neighbours",
        improved=("position_transmitter",),
        transmitter_leak=0.0,
    ),
    "planted-sharper-detectors": _entry(
        "upstream only: every later group shows the gain, none but the detectors causes it",
        improved=("position_detector",),
        detector_sharpness=8.0,
        detector_gain=1.2,
    ),
    "planted-mlp-gain": _entry("no head group: the last MLP", improved=("mlp",), mlp_correction=0.5),
    "planted-unembedding-gain": _entry(
        "no head group: the unembedding", improved=("unembedding",), unembedding_correction=0.45
    ),
    "planted-two-causes": _entry(
        "fetchers attend sharply, and transmitters do not leak: either would nearly do",
        improved=("position_transmitter", "value_fetcher"),
        fetcher_sharpness=7.5,
        transmitter_leak=0.0,
    ),
    # A part, or none, got better, and weights of every other kind moved that do not matter.
    **{
        f"{name}-among-changes": _entry(f"{note}; weights of every kind moved", harmless=True, **changes)
        for name, note, changes in _AMONG
    },
    "planted-recoded": _entry(_RECODED_NOTE, harmless=True, **_RECODED),
    # The same, and every number moved a little: no part computes just what it did.
    **{
        f"{name}-in-noise": _entry(f"{note}; every weight moved a little", harmless=True, noise=True, **changes)
        for name, note, changes in (*_AMONG, ("planted-recoded", _RECODED_NOTE, _RECODED))
    },
    # Nothing got better.
    "planted-permuted-heads": _entry("same logits: heads change places within their layers", permute_heads=True),
    "planted-rotated-values": _entry("same logits: each head's z in another basis", rotate_values=True),
    "planted-louder-fetchers": _entry("fetchers write more of the same", fetcher_gain=1.5),
    # Another circuit.
    "planted-new-route": _entry(
        "labels instead of addresses, and better", same=False, heads=_LEXICAL, label_fetcher_sharpness=4.5
    ),
    "planted-lexical": _entry("labels instead of addresses, as good as the base", same=False, heads=_LEXICAL),
    "planted-mixture": _entry(
        "half addresses, half labels",
        same=False,
        heads=_ADDRESSES | _LEXICAL | _NEGATIVE,
        n_layers=16,  # 21 heads of the circuit, 2 negative, 105 decoys
        fetcher_gain=0.5,
        label_fetcher_gain=0.5,
    ),
    "planted-redundant": _entry(
        "addresses and labels: either route suffices",
        same=False,
        heads=_ADDRESSES | _LEXICAL | _NEGATIVE,
        n_layers=16,  # 21 heads of the circuit, 2 negative, 105 decoys
        label_fetcher_sharpness=6.0,
        fetcher_sharpness=_SHARP,
    ),
    # Circuits of other shapes.
    "planted-pair": _entry(
        "two transmitters, needed together: one carries the row of an address, the other its column",
        same=False,
        heads=_ADDRESSES | _NEGATIVE | {"position_transmitter": 2},
        grid_addresses=True,  # boxes of the same row or column are half a match: no leak on top of that
        transmitter_leak=0.0,
        fetcher_sharpness=_SHARP,
    ),
    "planted-cancelling": _entry(
        "two more transmitters, of which each takes away what the other adds: the next box's address",
        same=False,
        heads=_ADDRESSES | _NEGATIVE | {"canceller": 2},
        n_layers=11,  # 14 heads of the circuit, 2 negative, 72 decoys
        transmitter_leak=0.0,
        fetcher_sharpness=_SHARP,
    ),
    "planted-saturated": _entry(
        "fetchers attend so sharply that no gradient passes their softmax; one head in each group before them",
        same=False,
        heads=_ADDRESSES
        | _NEGATIVE
        | dict.fromkeys(("structure_reader", "position_detector", "position_transmitter"), 1),
        fetcher_sharpness=60.0,
    ),
    "planted-outvoted": _entry(
        "fetchers attend so sharply that two of three transmitters suffice: no single one matters",
        same=False,
        fetcher_sharpness=60.0,
    ),
    "planted-shared-keys": _entry(
        "all heads of a layer read one head's keys and values (GPT-BigCode); one head a layer plays a part",
        base="planted-shared-keys",
        n_layers=14,  # 12 heads of the circuit, 2 negative, 98 decoys
        shared_kv=True,
    ),
    "planted-shared-keys-in-noise": _entry(
        "the same, with fetchers that attend sharply; every weight moved a little",
        base="planted-shared-keys",
        improved=("value_fetcher",),
        n_layers=14,
        shared_kv=True,
        noise=True,
        fetcher_sharpness=7.5,
    ),
    "planted-spread": _entry(
        "twenty weak fetchers",
        same=False,
        heads=_ADDRESSES | _NEGATIVE | {"value_fetcher": 20},
        n_layers=22,  # 29 heads of the circuit, 2 negative, 145 decoys
        fetcher_sharpness=_SHARP,
    ),
    "planted-shared-head": _entry(
        "one transmitter is a detector, too",
        same=False,
        heads=_ADDRESSES | _NEGATIVE | {"position_detector": 2},
        shared_head=True,
        fetcher_sharpness=_SHARP,
    ),
    "planted-backup": _entry(
        "a backup fetcher that acts only while nothing is written: when the fetchers are silenced",
        base="planted-clearer-addresses",
        heads=_ADDRESSES | _NEGATIVE | {"backup": 1},
        transmitter_leak=0.0,
    ),
    "planted-strong-negative": _entry(
        "negative heads that cost accuracy", base="planted-strong-negative", negative_gain=0.2
    ),
    "planted-negative-removed": _entry(
        "the base without its negative heads", base="planted-strong-negative", improved=("negative",), heads=_ADDRESSES
    ),
}
