"""Keys and values of tokens whose heads are all constant: what was known before shows in no digit."""

from __future__ import annotations

import pytest
import torch

from circuitdiff.engine.constant_tokens import ConstantTokens
from circuitdiff.engine.replay import embed
from circuitdiff.models import load_model
from helpers.tiny_folder import save_tiny_model

WIDE = {"hidden_size": 576, "head_dim": 64, "intermediate_size": 768, "num_hidden_layers": 2}


@pytest.mark.parametrize("known", [1, 4, 11])
def test_what_ran_before_changes_no_bit_of_what_is_added(tmp_path, known):
    model = load_model(save_tiny_model(tmp_path, **WIDE))
    tokens = torch.randint(3, 40, (3, 12), generator=torch.Generator().manual_seed(0))
    resid, keywords = embed(model, tokens)

    def keys_and_values(first: int) -> list[torch.Tensor]:
        constants = ConstantTokens(model, torch.zeros(model.n_layers, 1, 12, model.n_heads, model.d_head))
        if first:
            constants.columns(torch.arange(first), tokens, resid, keywords)
        columns = constants.columns(torch.arange(12), tokens, resid, keywords)
        return [kept[columns.member] for kept in (*columns.k, *columns.v)]

    for alone, later in zip(keys_and_values(0), keys_and_values(known), strict=True):
        assert torch.equal(alone, later)
