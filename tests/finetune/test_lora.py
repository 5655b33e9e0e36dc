"""LoRA for some heads, and heads that are taken out: what may change changes, and nothing else."""

from __future__ import annotations

import pytest
import torch

from circuitdiff.circuit import Head
from circuitdiff.errors import InputError
from circuitdiff.finetune.examples import Examples
from circuitdiff.finetune.loop import Training, answer_logits, finetune
from circuitdiff.finetune.lora import Lora, add_lora, silence
from helpers.tiny_decoders import tiny_decoder

SHAPE = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4}
TRAINING = Training(steps=5, batch=4, learning_rate=0.05, warmup=1, seed=0)


def examples(n=9):
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 12, (n, 5), generator=g)
    return Examples(tokens, torch.full((n,), 5), tokens[:, :1] + 1)


def tuned(lora, silenced=()):
    """The model before, and after training, as plain weights."""
    before, after = tiny_decoder(**SHAPE), tiny_decoder(**SHAPE)
    silence(after, silenced)
    model = add_lora(after, lora, 0, silenced)
    finetune(model, examples(), examples(), TRAINING)
    return before.state_dict(), model.merge_and_unload().state_dict()


def changed_rows(before, after, name, by_column=False):
    different = (before[name] != after[name]).any(dim=0 if by_column else 1)
    return {int(i) // 4 for i in different.nonzero()[:, 0]}


def test_only_the_named_heads_projections_change():
    lora = Lora(rank=2, alpha=4, targets=("q_proj", "k_proj", "v_proj", "o_proj"), heads=(Head(1, 4), Head(2, 0)))
    before, after = tuned(lora)
    layer = "model.layers.{}.self_attn.{}.weight"
    assert changed_rows(before, after, layer.format(1, "q_proj")) == {4}
    assert changed_rows(before, after, layer.format(1, "k_proj")) == {1}  # heads 3 to 5 share key/value head 1
    assert changed_rows(before, after, layer.format(2, "v_proj")) == {0}
    assert changed_rows(before, after, layer.format(1, "o_proj"), by_column=True) == {4}
    assert changed_rows(before, after, layer.format(2, "o_proj"), by_column=True) == {0}
    assert {name.split(".")[2] for name in before if not torch.equal(before[name], after[name])} == {"1", "2"}


def test_a_silenced_head_stays_silent_through_training():
    _, after = tuned(Lora(rank=2, alpha=4, targets=("o_proj", "up_proj")), silenced=(Head(0, 5), Head(2, 1)))
    layer = "model.layers.{}.self_attn.o_proj.weight"
    for number, head in ((0, 5), (2, 1)):
        columns = after[layer.format(number)].unflatten(1, (6, 4))
        assert (columns[:, head] == 0).all()
        assert all((columns[:, other] != 0).any() for other in range(6) if other != head)


@torch.no_grad()
def test_silence_is_what_a_head_without_output_does():
    silent, plain, data = tiny_decoder(**SHAPE), tiny_decoder(**SHAPE), examples()
    silence(silent, [Head(1, 2)])

    def drop(_, inputs):
        z = inputs[0].clone()
        z[..., 8:12] = 0
        return (z,)

    plain.model.layers[1].self_attn.o_proj.register_forward_pre_hook(drop)
    torch.testing.assert_close(answer_logits(silent, data), answer_logits(plain, data))


def small(**chosen) -> Lora:
    return Lora(rank=2, alpha=4, **chosen)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (
            Lora(rank=2, alpha=4, targets=("up_proj",), heads=(Head(0, 0),)),
            r"targets among q_proj, k_proj, v_proj, o_proj; got 'up_proj'",
        ),
        (small(targets=("q_proj",), heads=(Head(3, 0),)), r"no head 3\.0; it has 3 layers of 6"),
        (small(targets=("q_proj",), layers=(0,), heads=(Head(0, 0),)), r"either layers or heads"),
    ],
)
def test_heads_that_cannot_be_tuned_are_refused(lora, message):
    with pytest.raises(InputError, match=message):
        add_lora(tiny_decoder(**SHAPE), lora, 0)
