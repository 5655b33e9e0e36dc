"""What a patched group is held against: if these do as well, the group has nothing to do with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace as with_fields

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.circuit import Group
from circuitdiff.engine import Model
from circuitdiff.engine.memory import DEFAULT_MEMORY_GB
from circuitdiff.evaluation.circuits import Progress
from circuitdiff.evaluation.random_groups import random_group
from circuitdiff.methods.cross_model.activations import Activations, Patch, patches, read_activations
from circuitdiff.methods.cross_model.hybrids import Clean, Hybrid, Ran, run_hybrids
from circuitdiff.prompts import Pairs

Values = Float[Tensor, "prompt head width"]


@dataclass(frozen=True)
class ControlGroups:
    """Other heads, and the same heads elsewhere. The donor must be read at all of them."""

    any_layer: Group  # as many heads, from all layers
    same_layers: tuple[Group, ...]  # as many in each layer
    elsewhere: Group | None  # the same heads at another role

    def __iter__(self) -> Iterator[Group]:
        yield from (self.any_layer, *self.same_layers, *([] if self.elsewhere is None else [self.elsewhere]))


@dataclass(frozen=True)
class Controls:
    """The recipient with each control patched in a group's stead; `nothing` is the recipient as it is.

    `noise`: the recipient's own values moved in a random direction, as far as the donor's are away. `scaled`: its own
    values made as large as the donor's: is it mere gain? Neither exists for patterns.
    """

    nothing: Ran
    group: Ran
    any_layer: Ran
    same_layers: tuple[Ran, ...]
    elsewhere: Ran | None
    noise: Ran | None
    scaled: Ran | None


def control_groups(
    group: Group, n_layers: int, n_heads: int, *, n_random: int = 100, other_role: str | None = None, seed: int = 0
) -> ControlGroups:
    """The control groups of a group, the same for the same seed."""
    g = torch.Generator().manual_seed(seed)
    return ControlGroups(
        any_layer=random_group(group, n_layers, n_heads, g, same_layers=False),
        same_layers=tuple(random_group(group, n_layers, n_heads, g) for _ in range(n_random)),
        elsewhere=None if other_role in (None, group.at) else Group(other_role, group.heads),
    )


def run_controls(
    donor: Activations,
    recipient: Model,
    group: Group,
    chosen: ControlGroups,
    pairs: Pairs,
    *,
    own: Activations | None = None,
    seed: int = 0,
    executor: str = "window",
    memory_gb: float = DEFAULT_MEMORY_GB,
    progress: Progress | None = None,
) -> Controls:
    """The recipient with the group and each of its controls patched; the donor was read at all of them."""
    own = own or read_activations(recipient, pairs, [group], donor.what)
    real, mine = patches(donor, group), patches(own, group)
    pairs_of_patches = list(zip(real, mine, strict=True))
    g = torch.Generator().manual_seed(seed)
    named: dict[str, Hybrid] = {"nothing": (), "group": real, "any_layer": patches(donor, chosen.any_layer)}
    if chosen.elsewhere is not None:
        named["elsewhere"] = patches(donor, chosen.elsewhere)
    if donor.what != "pattern":
        named["noise"] = tuple(_with(theirs, _noise(theirs.values, its.values, g)) for theirs, its in pairs_of_patches)
        named["scaled"] = tuple(_with(theirs, _scaled(theirs.values, its.values)) for theirs, its in pairs_of_patches)
    random = [patches(donor, other) for other in chosen.same_layers]
    ran = run_hybrids(
        recipient,
        pairs,
        [*named.values(), *random],
        Clean(donor, own),
        executor=executor,
        memory_gb=memory_gb,
        progress=progress,
    )
    found = dict(zip(named, ran, strict=False))
    return Controls(
        nothing=found["nothing"],
        group=found["group"],
        any_layer=found["any_layer"],
        same_layers=tuple(ran[len(named) :]),
        elsewhere=found.get("elsewhere"),
        noise=found.get("noise"),
        scaled=found.get("scaled"),
    )


def _with(patch: Patch, values: Values) -> Patch:
    return with_fields(patch, values=values)


def _noise(donor: Values, own: Values, generator: torch.Generator) -> Values:
    """The recipient's own values, each moved in a random direction by as much as the donor's differ."""
    direction = torch.randn(own.shape, generator=generator, dtype=torch.float64).to(own)
    unit = direction / direction.norm(dim=-1, keepdim=True)
    return own + unit * (donor - own).norm(dim=-1, keepdim=True)


def _scaled(donor: Values, own: Values) -> Values:
    """The recipient's own values, each head's as large as the donor's over all prompts."""
    sizes = [x.double().square().sum(dim=(0, 2)).sqrt() for x in (donor, own)]
    return own * (sizes[0] / sizes[1].clamp(min=1e-30)).to(own)[None, :, None]
