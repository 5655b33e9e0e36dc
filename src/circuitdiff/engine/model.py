"""A loaded decoder as the engine sees it: its layers, their attention, and its own forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from circuitdiff.readable import Readable


@dataclass(frozen=True, repr=False)
class Model(Readable):
    """A causal decoder whose attention runs through circuitdiff's function (see `models.load_model`).

    `name`: what it was loaded as. `module`, `tokenizer`: the transformers model and tokenizer themselves.
    `layers`, `attentions`, `projections`: of each layer the block, its attention, and that one's output projection.
    `n_layers`, `n_heads`, `n_kv_heads`, `d_head`, `d_query`, `d_vocab`: sizes. `device`, `dtype`: the module's.
    `provenance`: its source, adapters and self-checks. `weights`: SHA-256 of each weight as it was loaded, by name.
    """

    _shown = ("name", "module", "tokenizer", "n_layers", "n_heads", "n_kv_heads", "d_vocab", "device", "dtype")

    name: str
    module: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    layers: Sequence[nn.Module] = field(repr=False)
    attentions: Sequence[nn.Module] = field(repr=False)
    projections: Sequence[nn.Module] = field(repr=False)  # of each attention; its input is z, all heads in a row
    n_heads: int
    n_kv_heads: int
    d_head: int  # of z and values
    d_query: int  # of queries and keys; wider in latent attention (MLA)
    provenance: dict[str, Any] = field(repr=False)
    weights: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def d_vocab(self) -> int:
        """How many logits there are."""
        head = self.module.get_output_embeddings()
        return self.module.config.get_text_config().vocab_size if head is None else len(head.weight)  # pyright: ignore[reportArgumentType]

    @property
    def device(self) -> torch.device:
        return self.module.device

    @property
    def dtype(self) -> torch.dtype:
        return self.module.dtype

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch d_vocab"]:
        """The logits after the last position, by the model's own forward pass."""
        return self.module(input_ids=tokens.to(self.device), use_cache=False, logits_to_keep=1).logits[:, -1]

    def unembed(
        self, resid: Float[Tensor, "row d_model"], tokens: Int[Tensor, " wanted"] | None = None
    ) -> Float[Tensor, "row logit"]:
        """Logits of final residual streams, by the model's own final norm, head, caps and scales.

        Of all tokens, or only of the wanted ones, in their order. Runs the model's forward pass on one-token prompts
        with its layers bypassed, the last one handing in `resid`.
        """
        head = self.module.get_output_embeddings()
        inputs = torch.zeros(len(resid), 1, dtype=torch.long, device=self.device)
        with ExitStack() as stack:
            stack.enter_context(bypassed(self.layers, final=resid[:, None].to(self.device)))
            if tokens is None or type(head) is not nn.Linear:
                logits = self.module(input_ids=inputs, use_cache=False).logits[:, -1]
                return logits if tokens is None else logits[:, tokens.to(logits.device)]
            narrow = _rows_of(head, tokens.to(head.weight.device))  # caps and scales act on each logit by itself
            stack.enter_context(replaced_forward(head, narrow.forward))
            return self.module(input_ids=inputs, use_cache=False).logits[:, -1]


def _rows_of(head: nn.Linear, tokens: Int[Tensor, " wanted"]) -> nn.Linear:
    """The head for some tokens only: rows of the same weights."""
    some = nn.Linear(head.in_features, len(tokens), bias=head.bias is not None, device="meta")
    some.weight = nn.Parameter(head.weight[tokens], requires_grad=False)
    if head.bias is not None:
        some.bias = nn.Parameter(head.bias[tokens], requires_grad=False)
    return some


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., object]) -> Iterator[None]:
    """While this lasts, calling `module` calls `forward`."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


@contextmanager
def bypassed(layers: Sequence[nn.Module], final: Tensor | None = None) -> Iterator[None]:
    """While this lasts, layers hand on what they are given; the last one hands on `final` if there is one."""

    def identity(hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        return hidden_states

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(replaced_forward(layer, identity))
        if final is not None:
            stack.enter_context(replaced_forward(layers[-1], lambda *_, **__: final))
        yield
