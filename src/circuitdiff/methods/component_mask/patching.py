"""Running base prompts while heads of a group take what they carry on the source prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as with_fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.circuit import Head
from circuitdiff.engine import Edit, Executor, Model
from circuitdiff.engine.kept_runs import KeptRuns, Need
from circuitdiff.engine.memory import rows_at_once
from circuitdiff.prompts import Bucket

# Logits after each prompt, and which of the base prompts these are, to a number each.
Quantity = Callable[[Float[Tensor, "row d_vocab"], Int[Tensor, " row"]], Float[Tensor, " row"]]

_A_RUN = 32  # positions that take as long as one more run of all layers (small models on CPUs)


@dataclass(frozen=True)
class Patching:
    """The base and source prompts of one group's role. Which answer is wanted plays no part here."""

    runs: KeptRuns
    executor: Executor
    at: str
    source_z: Mapping[Head, Float[Tensor, "prompt d_head"]]
    memory_gb: float
    _answers: dict[frozenset[Head], Int[Tensor, " prompt"]] = field(default_factory=dict)  # -1: not run yet

    @property
    def model(self) -> Model:
        return self.runs.model

    @property
    def n_prompts(self) -> int:
        return len(self.runs.prompts)

    @property
    def widths(self) -> Int[Tensor, " prompt"]:
        """How many positions of each prompt a patch can change."""
        return self.runs.prompts.lengths - self.runs.prompts.positions[self.at]

    def dealt(self, order: Int[Tensor, " prompt"]) -> Patching:
        """The same with base prompt i patched from source prompt `order[i]`."""
        order = order.to(self.model.device)
        return with_fields(self, source_z={head: z[order] for head, z in self.source_z.items()}, _answers={})

    def values(
        self, heads: Sequence[Head], keep: Float[Tensor, " head"], bucket: Bucket, quantity: Quantity
    ) -> Float[Tensor, " prompt"]:
        """`quantity` of the bucket's base prompts, with keep * own z + (1 - keep) * source z; differentiable."""
        batch = self.runs.batch(Need(self.at, self._first_layer(heads)), bucket)
        rows = bucket.prompts.to(self.model.device)

        def readout(logits: Float[Tensor, "row d_vocab"], prompt: Int[Tensor, " row"]) -> Float[Tensor, "row value"]:
            return quantity(logits, rows[prompt])[:, None]

        return self.executor.run(batch, self._edits(heads, keep, bucket), 1, readout)[0, :, 0]

    @torch.no_grad()
    def answers(self, patched: Iterable[Head], rows: Int[Tensor, " chosen"]) -> Int[Tensor, " chosen"]:
        """The most likely token of the whole vocabulary with these heads patched; each prompt is run once."""
        heads = sorted(set(patched))
        known = self._answers.setdefault(frozenset(heads), torch.full((self.n_prompts,), -1))
        keep = torch.zeros(len(heads), device=self.model.device)
        for bucket in self.buckets(rows[known[rows] < 0], training=False):
            answer = self.values(heads, keep, bucket, lambda logits, _: logits.argmax(1).to(torch.float64))
            known[bucket.prompts] = answer.long().cpu()
        return known[rows]

    def buckets(self, rows: Int[Tensor, " chosen"], *, training: bool) -> list[Bucket]:
        """Prompts that run together; where gradients are wanted, every layer's activations count as memory."""
        if not len(rows):
            return []
        width = int(self.widths[rows].max())
        n_layers = self.model.n_layers - self._first_layer(self.source_z) if training else 1
        longest = int(self.runs.prompts.lengths[rows].max())
        largest = rows_at_once(self.model, self.memory_gb / n_layers, longest) // width
        return list(self._together(self.runs.buckets(self.at, rows, max(1, largest)), largest))

    def _together(self, buckets: Sequence[Bucket], largest: int) -> Iterator[Bucket]:
        """Few prompts run with others whose window begins earlier, where that costs less than a run of their own.

        A bucket's position is then the earliest of its prompts'.
        """
        kinds: dict[tuple[int, bool], list[Bucket]] = {}
        for bucket in buckets:
            kinds.setdefault((bucket.length, self.runs.are_kept(bucket)), []).append(bucket)
        for kind in kinds.values():
            narrow, *wider = sorted(kind, key=lambda bucket: -bucket.positions[self.at])
            for wide in wider:
                n, further = len(narrow.prompts), narrow.positions[self.at] - wide.positions[self.at]
                if n * further > _A_RUN or n + len(wide.prompts) > largest:
                    yield narrow
                    narrow = wide
                else:
                    narrow = with_fields(wide, prompts=torch.cat([narrow.prompts, wide.prompts]))
            yield narrow

    def _first_layer(self, heads: Iterable[Head]) -> int:
        """Of these heads; without any, of all that may be patched."""
        return min(head.layer for head in (list(heads) or self.source_z))

    def _edits(self, heads: Sequence[Head], keep: Float[Tensor, " head"], bucket: Bucket) -> list[Edit]:
        """One edit for each layer with heads and each position; prompts that have the role elsewhere keep their own."""
        device, everyone = self.model.device, torch.zeros(1, dtype=torch.long)
        positions = self.runs.prompts.positions[self.at][bucket.prompts]
        edits = []
        for layer in sorted({head.layer for head in heads}):
            mine = [i for i, head in enumerate(heads) if head.layer == layer]
            index = torch.tensor([heads[i].index for i in mine], device=device)
            source = torch.stack([self.source_z[heads[i]][bucket.prompts.to(device)] for i in mine], dim=1)
            own = keep[mine].to(self.model.dtype)
            for position in positions.unique().tolist():
                here = (positions == position).to(device)[:, None]
                kept = own[None] if bool(here.all()) else torch.where(here, own, 1.0)
                edits.append(Edit(layer, "z", position, index, everyone, source[None], kept[None]))
        return edits
