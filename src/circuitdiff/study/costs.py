"""What the methods that run many variants of a model cost, before their circuit is known; see `plan.Sizes`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from circuitdiff.circuit import Group, Head
from circuitdiff.config.settings import ModelSettings
from circuitdiff.engine.fits import KEPT_SHARE
from circuitdiff.engine.mixtures import packs
from circuitdiff.engine.weights import MLP_SIDES
from circuitdiff.finetune.recipes import read_recipe
from circuitdiff.methods.edges import possible_edges
from circuitdiff.methods.graft import ALL_PROJECTIONS
from circuitdiff.prompts import Pairs
from circuitdiff.stats.shapley import needed_subsets
from circuitdiff.study.facts import ModelFacts
from circuitdiff.study.plan import Sizes


def group_work_flop(sizes: Sizes, pairs: Pairs, roles: Sequence[str]) -> float:
    """A run for attention, one for sources and a clean one; and every group patched at each role."""
    n, widths = len(pairs), [sizes.width(role) for role in roles]
    patched = (sizes.runs(n, width, sizes.layers_from(group)) for group in sizes.groups for width in widths)
    return sizes.passes(3 * n) + sum(patched)


def edges_flop(sizes: Sizes, pairs: Pairs) -> float:
    """Sources and a clean run, anew for each edge where it is not kept; and along each edge both runs.

    First one token, from the sender's layers up to the receiver's; then the window, from the receiver's layers on.
    """
    n, at = len(pairs), {stage.name: stage.at for stage in sizes.main.stages}
    anywhere = (Head(0, 0), Head(sizes.base.n_layers - 1, 0))
    edges = possible_edges({name: Group(role, anywhere) for name, role in at.items()}, pairs)
    tokens = 0.0  # through all layers
    for sender, receiver, _ in edges:
        if receiver is None:
            tokens += sizes.layers_from(sender)
        else:
            tokens += max(0.0, sizes.layers_from(sender) + sizes.layers_up_to(receiver) - 1)
            tokens += sizes.width(at[receiver]) * sizes.layers_from(receiver)
    room = KEPT_SHARE * sizes.settings.memory_gb
    n_kept = min(n, room / (sizes.length * sizes.speed.kept_gb_per_token + sizes.speed.logits_gb))
    clean = n_kept + (n - n_kept) * len(edges)
    return sizes.passes(n + clean) + n * tokens * sizes.base.n_layers * sizes.speed.flop_of_layer


Pieces = frozenset[tuple[int, str]]  # which weights come from the donor: the layer, or -1, and what of it


@dataclass(frozen=True)
class PlannedMixtures:
    """Grafts as sets of pieces. A group's heads are taken to be spread evenly over the layers."""

    n_layers: int
    kinds: dict[str, Pieces]  # what differs between the models, but for groups, in the order of `methods.graft`

    @classmethod
    def of(cls, base: ModelFacts, variant: ModelSettings) -> PlannedMixtures:
        """Adapters are taken to change all heads and MLPs; another model's weights are taken to differ everywhere."""
        layers, ends = range(base.n_layers), {"embeddings": frozenset([(-1, "embeddings")])}
        inner = {kind: frozenset((layer, kind) for layer in layers) for kind in ("other heads", "mlps", "norms")}
        if not base.config.get("tie_word_embeddings"):
            ends["unembedding"] = frozenset([(-1, "unembedding")])
        if variant.adapters or (variant.recipe is not None and read_recipe(variant.recipe).lora is not None):
            return cls(base.n_layers, {kind: inner[kind] for kind in ("other heads", "mlps")})
        return cls(base.n_layers, inner | {"norms": inner["norms"] | {(-1, "norms")}} | ends)

    def grafts(self, groups: Mapping[str, int], ranges: Mapping[str, range], *, matrices: bool = False) -> set[Pieces]:
        """By groups of so many heads, those found last first, by ranges of layers, by matrices; the rest by kind."""
        parts = {name: self._spread(name, size) for name, size in reversed(list(groups.items()))} | self.kinds
        every = Pieces().union(*parts.values())
        by_layer = {name: frozenset(piece for piece in every if piece[0] in its) for name, its in ranges.items()}
        ends = {name: frozenset(piece for piece in every if piece == (-1, name)) for name in self.kinds}
        found = _mixed(parts)
        if ranges:
            found |= _mixed(by_layer | {name: end for name, end in ends.items() if end})
        if matrices:
            layers = range(self.n_layers)
            named = {name: frozenset((layer, name) for layer in layers) for name in (*ALL_PROJECTIONS, *MLP_SIDES)}
            inner = Pieces().union(*named.values())
            rest = {kind: its for kind, its in self.kinds.items() if kind not in ("other heads", "mlps")}
            both = every - Pieces().union(*rest.values())  # the same weights, by groups and kinds
            named |= rest
            found |= {each - inner | both if inner <= each else each for each in _mixed(named)}
        return found

    def alone(self, size: int, times: int) -> set[Pieces]:
        """So many groups of one size, one at a time."""
        return {self._spread(str(i), size) for i in range(times)}

    def flop(self, mixtures: set[Pieces], sizes: Sizes, pairs: Pairs) -> float:
        """A layer is run once for mixtures that are alike up to it, and a token once for prompts that begin alike."""
        layers = range(self.n_layers)
        alike = {(layer, frozenset(p for p in each if p[0] <= layer)) for each in mixtures for layer in layers}
        tokens = sum(pack.prompts.shape[0] * len(pack.positions) for pack in packs(pairs.clean_prompts, len(pairs)))
        logits = len(mixtures) * len(pairs) * sizes.speed.flop_of_head
        return len(alike) * tokens * sizes.speed.flop_of_layer + logits

    def _spread(self, name: str, size: int) -> Pieces:
        return frozenset((int((i + 0.5) / size * self.n_layers), name) for i in range(size))


def _mixed(parts: Mapping[str, Pieces]) -> set[Pieces]:
    """The runs behind the shares of these parts, in this order."""
    return {Pieces().union(*(parts[name] for name in subset)) for subset in needed_subsets(list(parts))}
