"""Where a model is put: one device, with the precision that the checks need."""

from __future__ import annotations

import pytest
import torch

from circuitdiff.errors import InputError
from circuitdiff.models.sources import placed_on, read_source


@pytest.mark.parametrize("option", [{"dtype": "int4"}, {"device": "warp:9"}, {"device": "cuda:77"}])
def test_an_unknown_dtype_or_device_is_refused_before_anything_is_read(option):
    with pytest.raises(InputError, match=r"choose (one of float32|cpu)"):
        read_source("no-such-model", **option)


def test_a_device_without_double_precision_is_refused():
    with pytest.raises(InputError, match="double precision"):
        placed_on("mps")


@pytest.mark.parametrize(("available", "place"), [(True, {"": "cuda:0"}), (False, None)])
def test_a_model_is_never_spread_over_devices(monkeypatch, available, place):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert placed_on("auto") == place
    assert placed_on("cpu") is None
