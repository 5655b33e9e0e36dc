"""What an executor does: the interface that the full and the window executor share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdiff.engine.constant_tokens import ConstantTokens
from circuitdiff.engine.edits import AnyEdit, Edit, SenderEdit, Site
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB
from circuitdiff.engine.model import Model
from circuitdiff.engine.replay import CleanRun, run_clean

# From logits and the prompt that each row belongs to, to the numbers wanted of each.
Readout = Callable[[Float[Tensor, "row d_vocab"], Int[Tensor, " row"]], Float[Tensor, "row value"]]
Values = Float[Tensor, "variant prompt value"]
Progress = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True)
class Ablation:
    """Every head at every position is constant, but for the heads that a variant keeps at a few positions."""

    positions: tuple[int, ...]  # ascending; the last one is the prompts' last
    kept: Bool[Tensor, "variant layer at head"]  # `at` runs over `positions`
    constants: Float[Tensor, " layer #prompt pos head d_head"]  # the leading space keeps ruff from unquoting it
    remembered: ConstantTokens | None = None  # of the same constants, shared by all prompts; kept from call to call
    memory_gb: float = DEFAULT_MEMORY_GB

    def __post_init__(self) -> None:
        known = self.remembered
        assert known is None or (known.shared and known.constants is self.constants), "remembered for other constants"


@dataclass(frozen=True)
class Batch:
    """Prompts of one length on a model, with their clean run, which is made when first asked for."""

    model: Model
    tokens: Int[Tensor, "prompt pos"]
    start: int = 0  # the first position that an edit will change
    known: CleanRun | None = None  # the clean run, where it was made before

    @cached_property
    def clean(self) -> CleanRun:
        return self.known or run_clean(self.model, self.tokens, self.start)

    @property
    def n_prompts(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        return self.tokens.shape[1]


@runtime_checkable
class Executor(Protocol):
    """Carries edits out. Both executors give the same numbers; the window executor computes only what can differ."""

    def run(self, batch: Batch, edits: Sequence[AnyEdit], n_variants: int, readout: Readout) -> Values:
        """Nothing frozen: what `readout` says of each variant's logits at the last position.

        Within a layer: the residual stream that enters it, knockouts and edits of q, k and v, then of patterns, then
        of z and contributions, then of what the MLP adds.

        Raises: InputError if a knockout leaves a query without keys.
        """
        ...

    def frozen(self, batch: Batch, edits: Sequence[SenderEdit], n_variants: int, at: int, readout: Readout) -> Values:
        """The same with every head that is not edited frozen at its clean z, at positions >= `at`.

        Edits are of z, or of what MLPs add, at `at`. MLPs that are not edited are recomputed.
        """
        ...

    def received(
        self, batch: Batch, edits: Sequence[SenderEdit], n_variants: int, at: int, sites: Sequence[Site]
    ) -> list[Edit]:
        """In the same frozen run, what arrives at `sites` (q, k or v at `at`), as edits that put it there.

        Variants whose edits come too late to change a site may be left out of that site's edit.
        """
        ...

    def ablated(self, batch: Batch, ablation: Ablation, readout: Readout) -> Values:
        """Each variant's circuit alone: see `Ablation`."""
        ...


@dataclass(frozen=True)
class NarrowReadout:
    """A readout of the logits of some tokens only: a run that ends in it computes no others."""

    tokens: Int[Tensor, " wanted"]
    of: Callable[[Float[Tensor, "row wanted"], Int[Tensor, " row"]], Float[Tensor, "row value"]]

    def __call__(self, logits: Float[Tensor, "row d_vocab"], prompt: Int[Tensor, " row"]) -> Float[Tensor, "row value"]:
        return self.of(logits[:, self.tokens.to(logits.device)], prompt)


_UNEMBED_ROWS, _UNEMBED_BYTES = 512, 2**26  # of logits at once: 64 MB, beside what a readout makes of them


def read_out(model: Model, final: Float[Tensor, "variant prompt d_model"], readout: Readout) -> Values:
    """What `readout` says of final residual streams, a bounded number of rows at a time."""
    n_variants, n_prompts, _ = final.shape
    prompts = torch.arange(n_prompts, device=final.device).repeat(n_variants)
    rows = final.flatten(0, 1)
    tokens, of = (readout.tokens, readout.of) if isinstance(readout, NarrowReadout) else (None, readout)
    d_vocab = model.module.config.get_text_config().vocab_size if tokens is None else len(tokens)
    size = max(1, min(_UNEMBED_ROWS, _UNEMBED_BYTES // (d_vocab * model.dtype.itemsize)))
    parts = [
        of(model.unembed(part, tokens), some) for part, some in zip(rows.split(size), prompts.split(size), strict=True)
    ]
    return torch.cat(parts).unflatten(0, (n_variants, n_prompts))
