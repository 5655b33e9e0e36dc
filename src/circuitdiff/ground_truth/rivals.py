"""What plainer methods would have answered: which heads, and which part got better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from circuitdiff.circuit import Circuit, Head, Overlap, overlap
from circuitdiff.engine import Model
from circuitdiff.ground_truth.plantings import PLAN, Planting
from circuitdiff.methods.attribution_patching import attribution
from circuitdiff.methods.graft import split
from circuitdiff.planted import Planted
from circuitdiff.prompts import Pairs
from circuitdiff.stats.selection import lowest
from circuitdiff.study.sections.cross_model import CrossModel
from circuitdiff.study.sections.discovery import FoundCircuit

ATTRIBUTION, EFFECT, Z_PATCHING, WEIGHTS = "attribution", "effect", "z-patching", "weights"
_SEEN = 0.5  # of the gain: less is not said to be there


@dataclass(frozen=True)
class FoundHeads:
    """The heads of a planted group, and those that were found: how many, and how many in common.

    `rivals`: the share of the planted heads among as many with the most negative attribution as are planted at the
    group's role, in all groups; and with the most negative effect at its stage, as the group has. Most positive for
    heads that hurt. None where no head is planted, or the stage was not run.
    """

    planting: str
    held_out: bool
    model: str
    group: str
    ours: Overlap
    rivals: Mapping[str, float | None]

    @property
    def exact(self) -> bool:
        return self.ours.first == self.ours.second == self.ours.common


def found_heads(
    planting: Planting, model: Model, truth: Planted, found: FoundCircuit, pairs: Pairs
) -> Iterator[FoundHeads]:
    """Of each of the plan's groups, and of the heads that hurt."""
    roles = list(dict.fromkeys(stage.at for stage in PLAN.stages))
    by_role = attribution(model, pairs, roles).scores
    for stage in (*PLAN.stages, None):
        group, at = ("negative", "last") if stage is None else (stage.name, stage.at)
        sweep = next((each for each in found.stages if each.name == (stage or PLAN.stages[0]).name), None)
        ours = () if sweep is None else sweep.hurting if stage is None else sweep.selected
        planted = truth.negative if stage is None else _heads(truth.circuit, group)
        k = len(planted) if stage is None else len(truth.circuit.heads_at(at))
        sign = -1 if stage is None else 1
        effects = None if sweep is None else torch.tensor(sweep.effects, dtype=torch.float64)
        rivals = {
            ATTRIBUTION: _recall(sign * by_role[at], k, planted),
            EFFECT: None if effects is None else _recall(sign * effects, len(planted), planted),
        }
        shared = overlap([Head(*place) for place in ours], planted)
        yield FoundHeads(planting.title, planting.held_out, truth.name, group, shared, rivals)


def _heads(circuit: Circuit, group: str) -> Sequence[Head]:
    return circuit.groups[group].heads if group in circuit.groups else ()


def _recall(scores: torch.Tensor, k: int, planted: Sequence[Head]) -> float | None:
    return overlap(lowest(scores, k), planted).recall if planted else None


def by_z_patching(found: CrossModel | None) -> list[str]:
    """The groups whose z, patched alone, brings half of the gain: the paper's way."""
    if found is None or not found.to_base:  # the base's circuit has no heads; or the variant is surely worse
        return []
    parts = found.to_base["z"].scores["accuracy"].parts
    shares = {name: its["alone"].share for name, its in parts.items()}
    return [name for name, share in shares.items() if share is not None and share >= _SEEN]


def by_weights(base: Model, variant: Model, circuit: Circuit) -> list[str]:
    """The parts whose weights have moved most: the mean square of a number's change is at least half of the largest."""
    ours, theirs = (dict(model.module.named_parameters()) for model in (base, variant))

    def change(part: str) -> float:
        moved = n_numbers = 0.0
        for piece in parts[part].slices:
            first, second = (
                of_model[piece.parameter]
                if piece.axis is None
                else of_model[piece.parameter].index_select(piece.axis, torch.tensor(piece.index))
                for of_model in (ours, theirs)
            )
            moved, n_numbers = moved + float((second - first).square().sum()), n_numbers + first.numel()
        return moved / n_numbers

    parts = split(base, circuit, ("q", "k", "v", "o"))
    changes = {part: change(part) for part in parts}
    return [part for part, moved in changes.items() if moved >= max(changes.values()) / 2 and moved > 0]
