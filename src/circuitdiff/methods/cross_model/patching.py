"""Cross-model activation patching (CMAP): on the same prompts, the donor's activations in the recipient.

1. Run the donor and keep what the groups' heads carry at their roles; and what MLPs add there, if they are parts.
2. Run the recipient with these in place of its own: for each group alone, all but each, and every subset of them.
3. Whose is the gain? Shares of donor - recipient (`stats.shapley.attribute`).

What a late group carries also holds what the donor's earlier parts did: the shares say where a gain is visible. What
caused it is asked by grafting weights.

Source: Prakash et al. 2024 (arXiv:2402.14811), section 6. We differ in patching every subset, in controls, in MLPs as
parts, and in leaving runs without a share that end far from any clean run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from circuitdiff.circuit import Circuit, Group, Head, Mlps
from circuitdiff.engine import Model
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB
from circuitdiff.errors import InputError
from circuitdiff.evaluation.answers import Evaluation, Score
from circuitdiff.evaluation.circuits import Progress
from circuitdiff.evaluation.shapes import has_others, named_parts, random_group
from circuitdiff.methods.cross_model.activations import Activations, Carrier, patches, read_activations, read_several
from circuitdiff.methods.cross_model.hybrids import Basis, Clean, Hybrid, Ran, basis_of, run_hybrids
from circuitdiff.models.comparable import Shape, check_comparable
from circuitdiff.prompts import Pairs
from circuitdiff.readable import Readable
from circuitdiff.stats.shapley import Attribution, Subset, all_subsets, attribute, needed_subsets

Parts = Group | Circuit | Mapping[str, Group | Mlps]

MOST_GROUPS = 6  # 2^6 runs of every prompt
_ITSELF = 16  # prompts on which the recipient is given its own activations
_VECTORS = ("z", "q", "k", "v")


@dataclass(frozen=True)
class Limits:
    """Beyond these a hybrid run is incompatible: it has no share."""

    distance: Annotated[float, Field(gt=0)] = 0.5  # mean over prompts; 1 = as far as another prompt's run
    turned: Annotated[float, Field(gt=0)] = 0.25  # how much more alike values are in another basis than as they are


_LIMITS = Limits()


@dataclass(frozen=True, repr=False)
class CrossPatch(Readable):
    """The recipient with each subset of the parts patched, and the donor, on the same prompts."""

    what: Carrier
    order: tuple[str, ...]  # causes first
    donor: Evaluation
    runs: Mapping[Subset, Ran]
    bases: Mapping[str, Basis]  # of z, q, k and v
    noise_floor: float  # largest change of a log probability when the recipient is given its own activations

    @property
    def recipient(self) -> Evaluation:
        return self.runs[frozenset()].answers

    def incompatible(self, limits: Limits = _LIMITS) -> dict[Subset, str]:
        """The runs that the recipient could not have made itself, and why."""
        turned = {part for part, basis in self.bases.items() if basis.turned - basis.as_it_is > limits.turned}
        reasons = {}
        for subset, ran in self.runs.items():
            far = float(ran.distance.mean())
            if subset & turned:
                reasons[subset] = f"the donor's {', '.join(sorted(subset & turned))} write in another basis"
            elif far > limits.distance:
                reasons[subset] = f"it ends at a distance of {far:.2f} from clean runs (1 = another prompt's)"
        return reasons

    def attribution(self, score: Score = "accuracy", limits: Limits = _LIMITS) -> Attribution:
        """Shares of the gain in this score, with intervals over scenarios."""
        scores = {subset: ran.answers.scored(score) for subset, ran in self.runs.items()}
        return attribute(
            scores,
            self.donor.scored(score),
            self.donor.scenarios.numpy(),
            self.order,
            incompatible=self.incompatible(limits),
        )


def patch_across(
    donor: Model | Activations,
    recipient: Model,
    group: Parts,
    pairs: Pairs,
    *,
    what: Carrier = "z",
    executor: str = "window",
    memory_gb: float = DEFAULT_MEMORY_GB,
) -> CrossPatch:
    """What the recipient answers with a group's heads carrying, at the group's role, what they carry in the donor.

    `what`: z, which the recipient's own output projection then reads (the paper's); q, k, v; the attention pattern,
    with the recipient's values; or the contribution, what a head writes after the donor's output projection. Of several
    groups every subset is run; the last comes first as a cause. A part by name may also be `Mlps`: what these MLPs add
    to the residual stream at their role, whatever heads are patched in. The donor may be given as what
    `read_activations` kept, so that two models need not be in memory together.

    Raises: InputError if the models do not fit together, a role, head or layer does not exist, MLPs cannot be read, or
    there are too many groups.
    """
    theirs = donor
    if not isinstance(theirs, Activations):
        check_comparable(Shape.of(theirs, pairs), Shape.of(recipient, pairs))
        theirs = read_activations(theirs, pairs, _parts(group, per_head=False).values(), what)
    return patch_across_several({what: theirs}, recipient, group, pairs, executor=executor, memory_gb=memory_gb)[what]


def patch_across_several(
    donor: Mapping[Carrier, Activations],
    recipient: Model,
    group: Parts,
    pairs: Pairs,
    *,
    per_head: bool = False,
    every_subset: bool = True,
    own: Mapping[Carrier, Activations] | None = None,
    executor: str = "window",
    memory_gb: float = DEFAULT_MEMORY_GB,
    progress: Progress | None = None,
) -> dict[Carrier, CrossPatch]:
    """`patch_across` of several kinds of activations, which share the recipient's clean run.

    With `per_head` a lone group's heads are the parts: each alone, left out, and in order of layers. Without
    `every_subset` parts, as many as there are, are patched likewise, in order of causes. `own`: what was read of the
    recipient, if it was.

    Raises: InputError as `patch_across` does.
    """
    few = per_head or not every_subset
    parts = _parts(group, per_head=per_head, most=None if few else MOST_GROUPS)
    ordered = tuple(sorted(parts, key=Head.parse) if per_head else reversed(parts))
    subsets = needed_subsets(ordered) if few else all_subsets(ordered)
    if "contribution" in donor:
        _check_apart(parts)
    for what, theirs in donor.items():
        check_donor(theirs, recipient, parts, pairs, what)
    own = own or read_several(recipient, pairs, parts.values(), list(donor))
    for what in donor:
        check_donor(own[what], recipient, parts, pairs, what)
    # Each patch once, so that hybrids which begin with the same patches share that part of their run.
    given = [{name: patches(theirs, part) for name, part in parts.items()} for theirs in donor.values()]
    hybrids = [_hybrid(of_one_kind, subset) for of_one_kind in given for subset in subsets]
    first = next(iter(donor))
    clean, run_by = Clean(donor[first], own[first]), {"executor": executor, "memory_gb": memory_gb}
    ran = run_hybrids(recipient, pairs, hybrids, clean, progress=progress, **run_by)
    some = pairs.select(torch.arange(min(_ITSELF, len(pairs))))
    heads = {name: part for name, part in parts.items() if isinstance(part, Group)}
    itself = [tuple(patch for part in parts.values() for patch in patches(own[what], part)) for what in donor]
    plain, *same = run_hybrids(recipient, some, [(), *itself], clean, **run_by)
    return {
        what: CrossPatch(
            what=what,
            order=ordered,
            donor=theirs.answers,
            runs=dict(zip(subsets, ran[i * len(subsets) : (i + 1) * len(subsets)], strict=True)),
            bases={name: basis_of(theirs, own[what], part) for name, part in heads.items()} if what in _VECTORS else {},
            noise_floor=float((same[i].answers.log_probs - plain.answers.log_probs).abs().max()),
        )
        for i, (what, theirs) in enumerate(donor.items())
    }


def check_donor(
    donor: Activations, recipient: Model, parts: Mapping[str, Group | Mlps], pairs: Pairs, what: str
) -> None:
    """Raises: InputError if what was read is of another kind of model, or not of these prompts, heads and MLPs."""
    check_comparable(donor.shape, Shape.of(recipient, pairs))
    if donor.what != what:
        raise InputError(f"the donor's {donor.what} was read, but {what} is to be patched; read it with what={what!r}")
    if len(donor.answers.hits) != len(pairs) or not torch.equal(donor.answers.scenarios, pairs.scenarios):
        raise InputError(
            f"the donor was read on {len(donor.answers.hits)} other prompts than these {len(pairs)}; give both the same"
        )
    for name, part in parts.items():
        if isinstance(part, Mlps):
            if missing := set(part.layers) - {*donor.mlps.get(part.at, ())}:
                raise InputError(
                    f"the donor was not read at the MLP of layer {min(missing)} of {name!r} at {part.at!r}; read it "
                    f"there, too"
                )
            continue
        for head in part.heads:
            known = donor.heads.get(part.at, {}).get(head.layer, ())
            if head.index not in known:
                raise InputError(
                    f"the donor was not read at head {head} of {name!r} at {part.at!r}; read it there, too"
                )


def _parts(group: Parts, *, per_head: bool, most: int | None = MOST_GROUPS) -> dict[str, Group | Mlps]:
    parts = named_parts(group, per_head=per_head)
    empty = [name for name, part in parts.items() if not (part.layers if isinstance(part, Mlps) else part.heads)]
    if empty or not parts:
        raise InputError(
            f"a group to patch needs heads (or layers, of MLPs); {', '.join(empty) or 'the circuit'} has none: leave "
            f"it out"
        )
    if most is not None and len(parts) > most:
        raise InputError(f"every subset of at most {MOST_GROUPS} groups is patched; got {len(parts)}: join some")
    return parts


def _check_apart(parts: Mapping[str, Group | Mlps]) -> None:
    """Raises: InputError if two groups have a head in common, whose contribution would be added twice."""
    owner: dict[tuple[str, Head], str] = {}
    for name, part in parts.items():
        for head in () if isinstance(part, Mlps) else part.heads:
            other = owner.setdefault((part.at, head), name)
            if other != name:
                raise InputError(
                    f"head {head} at {part.at!r} is in both {other} and {name}, so its contribution would be patched "
                    f"twice; leave it in one of them, or patch z"
                )


def _hybrid(given: Mapping[str, Hybrid], subset: Subset) -> Hybrid:
    return tuple(patch for name in sorted(subset) for patch in given[name])


Values = Float[Tensor, "prompt head width"]


@dataclass(frozen=True)
class ControlGroups:
    """Other heads, and the same heads elsewhere. The donor must be read at all of them."""

    same_layers: tuple[Group, ...]  # as many others in each layer; none if the group has more than half of all heads
    elsewhere: Group | None  # the same heads at another role

    def __iter__(self) -> Iterator[Group]:
        yield from (*self.same_layers, *([] if self.elsewhere is None else [self.elsewhere]))


@dataclass(frozen=True, repr=False)
class Controls(Readable):
    """The recipient with each control patched in a group's stead; `nothing` is the recipient as it is.

    `noise`: the recipient's own values moved in a random direction, as far as the donor's are away. `scaled`: its own
    values made as large as the donor's: is it mere gain? Neither exists for patterns.
    """

    nothing: Ran
    group: Ran
    same_layers: tuple[Ran, ...]
    elsewhere: Ran | None = None
    noise: Ran | None = None
    scaled: Ran | None = None


def control_groups(
    group: Group, n_layers: int, n_heads: int, *, n_random: int = 100, other_role: str | None = None, seed: int = 0
) -> ControlGroups:
    """The control groups of a group, the same for the same seed."""
    g, n_random = torch.Generator().manual_seed(seed), n_random if has_others(group.heads, n_layers, n_heads) else 0
    return ControlGroups(
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
    real = patches(donor, group)
    both = list(zip(real, patches(own, group), strict=True))
    g = torch.Generator().manual_seed(seed)
    named: dict[str, Hybrid] = {"nothing": (), "group": real}
    if chosen.elsewhere is not None:
        named["elsewhere"] = patches(donor, chosen.elsewhere)
    if donor.what != "pattern":
        named["noise"] = tuple(replace(theirs, values=_noise(theirs.values, its.values, g)) for theirs, its in both)
        named["scaled"] = tuple(replace(theirs, values=_scaled(theirs.values, its.values)) for theirs, its in both)
    hybrids = [*named.values(), *(patches(donor, other) for other in chosen.same_layers)]
    ran = run_hybrids(
        recipient, pairs, hybrids, Clean(donor, own), executor=executor, memory_gb=memory_gb, progress=progress
    )
    return Controls(**dict(zip(named, ran, strict=False)), same_layers=tuple(ran[len(named) :]))


def _noise(donor: Values, own: Values, generator: torch.Generator) -> Values:
    """The recipient's own values, each moved in a random direction by as much as the donor's differ."""
    direction = torch.randn(own.shape, generator=generator, dtype=torch.float64).to(own)
    unit = direction / direction.norm(dim=-1, keepdim=True)
    return own + unit * (donor - own).norm(dim=-1, keepdim=True)


def _scaled(donor: Values, own: Values) -> Values:
    """The recipient's own values, each head's as large as the donor's over all prompts."""
    sizes = [x.double().square().sum(dim=(0, 2)).sqrt() for x in (donor, own)]
    return own * (sizes[0] / sizes[1].clamp(min=1e-30)).to(own)[None, :, None]
