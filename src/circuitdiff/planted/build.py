"""Planted models: decoders whose circuit is known because it was written into their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.errors import InputError, choices
from circuitdiff.planted.harmless import moved_heads
from circuitdiff.planted.heads import (
    D_HEAD,
    HeadWeights,
    decoy,
    detecting_transmitter,
    members,
    rotated,
    sharing,
    wired,
)
from circuitdiff.planted.space import Space, make_space
from circuitdiff.planted.table import PLANTED
from circuitdiff.planted.vocabulary import make_tokenizer
from circuitdiff.planted.weights import make_model
from circuitdiff.planted.wiring import N_HEADS, Entry, Wiring, generator, orthogonal, place_apart, place_heads

# Group -> role, and the parts that it is made of. Groups are named by their place in the paper's plan of discovery.
_GROUPS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "value_fetcher": ("last", ("value_fetcher", "label_fetcher")),
    "position_transmitter": ("last", ("position_transmitter", "label_transmitter", "canceller")),
    "position_detector": ("query_label", ("position_detector",)),
    "structure_reader": ("previous_query_label", ("structure_reader",)),
    "name_binder": ("previous_query_label", ("name_binder",)),
}


@dataclass(frozen=True)
class Planted(Entry):
    """A model with its tokenizer and the truth about it."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    circuit: Circuit  # groups that write to the logits through each other; without backup and negative heads
    parts: Mapping[str, tuple[Head, ...]]  # finer than groups: heads that do the same, the strongest first

    @property
    def negative(self) -> tuple[Head, ...]:
        """Heads that lower the answer's logit, at the last token."""
        return self.parts.get("negative", ())

    @property
    def backup(self) -> tuple[Head, ...]:
        """Heads that act only while no name is written, at the last token: when the value fetchers are silenced."""
        return self.parts.get("backup", ())


def planted_names() -> tuple[str, ...]:
    """The names of all planted models."""
    return tuple(PLANTED)


@contextmanager
def _one_thread() -> Iterator[None]:
    """QR and matrix products add up in another order on more threads, which moves weights by 1e-16."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def build_planted(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Planted:
    """The planted model of this name.

    Another `seed` is another planting: other places, strengths, codes and decoys. Models of one seed differ in what
    their wirings differ in, and in nothing else.

    Raises: InputError if there is no such model.
    """
    if name not in PLANTED:
        raise InputError(f"there is no planted model {name!r}{choices(name, PLANTED)}")
    entry, space = PLANTED[name], make_space(seed)
    wiring = entry.wiring
    parts = _parts(wiring, seed)
    heads = _heads(space, wiring, parts, seed)
    if wiring.rotate_values:
        heads = {h: rotated(w, orthogonal(D_HEAD, key=(seed, "rotation", h))) for h, w in heads.items()}
    if wiring.harmless:
        heads = moved_heads(heads, set(heads).difference(*parts.values()), seed)
    if wiring.permute_heads:
        moved = _permutation(wiring.n_layers, seed)
        heads = {moved[h]: w for h, w in heads.items()}
        parts = {part: tuple(moved[h] for h in chosen) for part, chosen in parts.items()}
    return Planted(
        **vars(entry),
        name=name,
        model=make_model(space, wiring, heads, seed, dtype),
        tokenizer=make_tokenizer(),
        circuit=_circuit(parts),
        parts=parts,
    )


def _parts(wiring: Wiring, seed: int) -> Mapping[str, tuple[Head, ...]]:
    """The heads that do something, by part."""
    placed = place_apart(seed, wiring.n_heads) if wiring.shared_kv else place_heads(seed, wiring.n_layers)
    parts = {part: placed[part][:n_heads] for part, n_heads in wiring.n_heads.items()}
    if wiring.shared_head:
        parts["position_detector"] = (parts["position_transmitter"][0], *parts["position_detector"])
    return parts


def _heads(
    space: Space, wiring: Wiring, parts: Mapping[str, tuple[Head, ...]], seed: int
) -> Mapping[Head, HeadWeights]:
    """Every head's weights: decoys, except those that do something."""
    everywhere = [Head(layer, index) for layer in range(wiring.n_layers) for index in range(N_HEADS)]
    heads = {head: decoy(space, head, seed) for head in everywhere}
    group = {part: members(part, len(chosen), seed) for part, chosen in parts.items()}
    for part, chosen in parts.items():
        heads |= {h: wired(space, wiring, member) for h, member in zip(chosen, group[part], strict=True)}
    if wiring.shared_kv:
        owners = {head.layer: head for chosen in parts.values() for head in chosen}
        others = set(everywhere).difference(owners.values())
        heads |= {head: sharing(heads[owners[head.layer]], space, head, seed) for head in others}
    if wiring.shared_head:
        both = (group["position_detector"][0], group["position_transmitter"][0])
        heads[parts["position_detector"][0]] = detecting_transmitter(space, wiring, *both)
    return heads


def _permutation(n_layers: int, seed: int) -> Mapping[Head, Head]:
    """Where each head goes within its layer."""
    g = generator(seed, "permutation")
    orders = [torch.randperm(N_HEADS, generator=g).tolist() for _ in range(n_layers)]
    return {Head(layer, i): Head(layer, j) for layer, order in enumerate(orders) for i, j in enumerate(order)}


def _circuit(parts: Mapping[str, tuple[Head, ...]]) -> Circuit:
    heads = {group: sum((parts.get(part, ()) for part in made_of), ()) for group, (_, made_of) in _GROUPS.items()}
    return Circuit({group: Group(role, heads[group]) for group, (role, _) in _GROUPS.items() if heads[group]})
