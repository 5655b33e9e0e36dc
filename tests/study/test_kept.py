"""What a process keeps between units takes no more than the memory that it is given."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from circuitdiff.engine.fits import KEPT_SHARE
from circuitdiff.methods.path_patching import Path
from circuitdiff.study.host import Host
from circuitdiff.study.kept import Kept, held_bytes
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.sections.discovery_units import sweep
from circuitdiff.study.units import Unit, contents
from helpers.tiny_folder import save_tiny_model, settings_of, silent

MB = 2**20


class Growing:
    """Takes its memory when it is used."""

    def __init__(self, may_take_gb: float) -> None:
        self.may_take_gb = may_take_gb
        self.parts: list[torch.Tensor] = []

    def grow(self, n_bytes: int) -> None:
        self.parts.append(torch.zeros(n_bytes, dtype=torch.uint8))


def get(kept: Kept, key: str, size: int, of: str = "a", n_kept: int = 9) -> Growing:
    thing = kept.get(of, "kind", key, lambda: Growing(size / 2**30), n_kept=n_kept)
    if not thing.parts:
        thing.grow(size)
    return thing


def test_all_memory_is_counted_and_each_once():
    whole = torch.zeros(10, 4, dtype=torch.float64)
    own = {"views": [whole[:3], whole.T], "other": (torch.zeros(5, dtype=torch.int32), "text", None)}
    assert held_bytes([own, whole]) == 10 * 4 * 8 + 5 * 4


def test_things_of_all_models_and_kinds_together_take_no_more_than_the_memory():
    kept, most = Kept(10 * MB / 2**30), 0
    for step in range(12):
        get(kept, f"{step}", 3 * MB, of="ab"[step % 2])
        most = max(most, kept.bytes)
    assert most == 9 * MB


def test_what_was_used_longest_ago_goes_first_and_all_of_a_dropped_model():
    kept = Kept(10 * MB / 2**30)
    first, second = (weakref.ref(get(kept, key, 4 * MB)) for key in ("first", "second"))
    assert get(kept, "first", 4 * MB) is first()
    get(kept, "third", 4 * MB, of="b")
    gc.collect()
    assert first() is not None
    assert second() is None
    kept.forget("a")
    gc.collect()
    assert first() is None
    assert kept.bytes == 4 * MB


def test_what_takes_more_than_the_memory_is_kept_alone():
    kept = Kept(10 * MB / 2**30)
    get(kept, "small", 4 * MB)
    get(kept, "large", 12 * MB)
    assert kept.bytes == 12 * MB
    get(kept, "small", 4 * MB)
    assert kept.bytes == 4 * MB


def test_no_more_than_so_many_of_one_kind_are_kept():
    kept = Kept(10 * MB / 2**30)
    for key in ("first", "second", "third"):
        get(kept, key, MB, n_kept=2)
    assert kept.bytes == 2 * MB


ARGUMENTS = {
    "shared_roles": ("last",),
    "path": Path("last"),
    "senders": None,
    "metric": "logit_difference",
}


@pytest.mark.parametrize("memory_gb", [0.001, 0.004])
def test_live_bytes_of_two_models_stay_within_the_memory(tmp_path, memory_gb):
    """Sweeps over two sets of prompts on two models would keep four times their share."""
    wide = {"hidden_size": 128, "num_attention_heads": 4, "head_dim": 32}
    model, variant = (save_tiny_model(tmp_path / name, i, **wide) for i, name in enumerate(("model", "variant")))
    prompts = "{discovery: 60, replication: 60, evaluation: 9, means: 12}"
    settings = settings_of(
        tmp_path, model, variants=f"{{variant: {variant}}}", prompts=prompts, memory_gb=memory_gb, dtype="float64"
    )
    host, sizes = Host(settings, "cpu", silent), list[int]()
    for name in ("model", "variant", "model"):
        loaded = host.loaded(name, settings.models)
        for split in ("discovery", "replication"):
            arguments = ARGUMENTS | {"prompts": PromptsOf(split)}
            unit = Unit("a sweep", sweep, (name,), arguments)
            expected = contents(unit, [loaded.model.provenance["fingerprint"]], loaded.prompts)
            host.run(unit, settings.models, {}, expected)
            sizes.append(host._kept.bytes)
    assert max(sizes) <= memory_gb * 2**30
    assert max(sizes) > KEPT_SHARE * memory_gb * 2**30 / 2, "nothing is kept, so nothing is tested"
