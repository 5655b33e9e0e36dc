"""Running base prompts while heads of a group take what they carry on the source prompts.

Masks of several groups and desiderata share clean runs of the base prompts, and runs of the source prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as with_fields
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.engine import Edit, Executor, Model, executor_named
from circuitdiff.engine.capture import read_heads
from circuitdiff.engine.executor import Progress
from circuitdiff.engine.fits import check_triples, rows_at_once
from circuitdiff.engine.kept_runs import KeptRuns, Need, keep_runs, kept_gb
from circuitdiff.engine.model import bypassed
from circuitdiff.errors import InputError
from circuitdiff.evaluation.shapes import by_layer, has_others, random_group
from circuitdiff.prompts import Bucket, PromptSet
from circuitdiff.triples import Triples

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
    _answers: dict[tuple[frozenset[Head], tuple[int, ...]], Int[Tensor, " chosen"]] = field(default_factory=dict)

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
        needs = [Need(self.at, self._first_layer(heads))]
        batch = self.runs.batch(bucket, bucket.positions[self.at], needs)
        rows = bucket.prompts.to(self.model.device)

        def readout(logits: Float[Tensor, "row d_vocab"], prompt: Int[Tensor, " row"]) -> Float[Tensor, "row value"]:
            return quantity(logits, rows[prompt])[:, None]

        return self.executor.run(batch, self._edits(heads, keep, bucket), 1, readout)[0, :, 0]

    @torch.no_grad()
    def answers(self, patched: Iterable[Head], rows: Int[Tensor, " chosen"]) -> Int[Tensor, " chosen"]:
        """The most likely token of the whole vocabulary with these heads patched.

        The same prompts are run once, and always together, so that no answer depends on what was asked before.
        """
        heads = sorted(set(patched))
        key = frozenset(heads), tuple(rows.tolist())
        if key not in self._answers:
            keep, answers = torch.zeros(len(heads), device=self.model.device), torch.full((self.n_prompts,), -1)
            for bucket in self.buckets(rows, training=False):
                answer = self.values(heads, keep, bucket, lambda logits, _: logits.argmax(1).to(torch.float64))
                answers[bucket.prompts] = answer.long().cpu()
            self._answers[key] = answers[rows]
        return self._answers[key]

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


MEMORY_GB = 2.25  # keeps the clean runs of 750 prompts of 53 tokens of a model of 135M parameters, for four groups
SourceZ = Mapping[tuple[str, Head], Float[Tensor, "prompt d_head"]]


class SharedRuns:
    """Groups of one model and one set of base prompts; nothing runs before it is needed.

    Every patching of the same group and source prompts is the same object, so that whichever answers are wanted, a
    prompt with the same heads patched is run once.
    """

    def __init__(
        self,
        model: Model,
        groups: Mapping[str, Group],
        base: PromptSet,
        *,
        n_random: int = 5,
        seed: int = 0,
        executor: str = "window",
        memory_gb: float = MEMORY_GB,
        progress: Progress | None = None,
    ) -> None:
        if empty := [name for name, group in groups.items() if not group.heads]:
            raise InputError(f"group {empty[0]!r} has no heads, so there is nothing to mask; leave it out")
        Circuit(groups).check_fits(model.n_layers, model.n_heads, base.positions)
        self.model, self.groups, self._base = model, dict(groups), base
        self._executor, self._memory_gb, self._progress = executor_named(executor), memory_gb, progress
        self._kept_gb = memory_gb if executor == "window" else 0.0
        self.random = {name: _random_orders(model, group, n_random, seed) for name, group in groups.items()}
        self._source: tuple[PromptSet, frozenset[str], SourceZ] | None = None
        self._patchings: dict[tuple[str, tuple[int, ...]], Patching] = {}

    @cached_property
    def runs(self) -> KeptRuns:
        """The base prompts' clean runs."""
        return keep_runs(self.model, self._base, self._needs, self._kept_gb, self._memory_gb, self._progress)

    @cached_property
    def may_take_gb(self) -> float:
        """The memory of `runs`, once they are there."""
        return kept_gb(self.model, self._base, self._needs, self._kept_gb)

    @property
    def _needs(self) -> list[Need]:
        return [Need(self.groups[name].at, n) for name in self.groups for n in by_layer(self._heads(name))]

    def patching(
        self,
        group: str,
        triples: Triples,
        order: Int[Tensor, " triple"] | None = None,
        *,
        tested: Collection[str] | None = None,
    ) -> Patching:
        """Base prompts patched from their own source prompts, or from those that `order` deals them.

        `tested`: the groups for which these source prompts are read at once; None: all of them.

        Raises: InputError if a base or source prompt lacks the group's role.
        """
        assert triples.base is self._base, "shared runs are of one set of base prompts"
        check_triples(self.model, triples)
        triples.check_role(self.groups[group].at)
        key = (group, () if order is None else tuple(order.tolist()))
        source = self._source_of(group, triples, tested)
        if key not in self._patchings:
            own = self._make(group, source)
            self._patchings[key] = own if order is None else own.dealt(order)
        return self._patchings[key]

    def redrawn(self, group: str, triples: Triples, rows: Int[Tensor, " chosen"]) -> Patching:
        """Some base prompts, `rows`, patched from the sources of `triples`, which were drawn for just these.

        Raises: InputError if a source prompt lacks the group's role.
        """
        triples.check_role(self.groups[group].at)
        source = self._source_of(group, triples, None)
        spread = {
            key: z.new_full((len(self._base), z.shape[1]), torch.nan).index_copy(0, rows.to(z.device), z)
            for key, z in source.items()
        }
        return self._make(group, spread)

    def _source_of(self, group: str, triples: Triples, tested: Collection[str] | None) -> SourceZ:
        """What these groups' heads carry on the source prompts; only the last that were read are remembered."""
        prompts, groups = triples.source, frozenset({group, *(self.groups if tested is None else tested)})
        if self._source is None or self._source[0] is not prompts or self._source[1] != groups:
            self._source, self._patchings = (prompts, groups, self._read(prompts, groups)), {}
        return self._source[2]

    def _make(self, group: str, source: SourceZ) -> Patching:
        at = self.groups[group].at
        z = {head: source[at, head] for head in self._heads(group)}
        return Patching(self.runs, self._executor, at, z, self._memory_gb)

    def _heads(self, group: str) -> list[Head]:
        """The group's and those it is compared with."""
        return sorted({*self.groups[group].heads, *(head for order in self.random[group] for head in order)})

    def _read(self, source: PromptSet, groups: Collection[str]) -> SourceZ:
        """What the groups' heads carry at their roles, for the roles that every source prompt has."""
        heads: dict[str, set[Head]] = {}
        for name in groups:
            group = self.groups[name]
            if group.at in source.positions and (source.positions[group.at] >= 0).all():
                heads.setdefault(group.at, set()).update(self._heads(name))
        wanted = {at: by_layer(chosen) for at, chosen in heads.items()}
        last = max(layer for layers in wanted.values() for layer in layers)
        with bypassed(self.model.layers[last + 1 :]):  # what comes later cannot change what is read
            carried, _ = read_heads(self.model, source, ["z"], wanted)
        return {
            (at, Head(layer, index)): carried["z"][at][layer][:, i]
            for at, layers in wanted.items()
            for layer, indices in layers.items()
            for i, index in enumerate(indices)
        }


def _random_orders(model: Model, group: Group, n_random: int, seed: int) -> list[tuple[Head, ...]]:
    """Random other heads at the group's role, as many per layer as the group has, in random order.

    None if the group has more than half of all heads.
    """
    if not has_others(group.heads, model.n_layers, model.n_heads):
        return []
    g = torch.Generator().manual_seed(seed)
    drawn = [random_group(group, model.n_layers, model.n_heads, g).heads for _ in range(n_random)]
    return [tuple(heads[i] for i in torch.randperm(len(heads), generator=g).tolist()) for heads in drawn]
