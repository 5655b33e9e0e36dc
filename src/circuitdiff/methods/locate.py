"""Where does it happen? Residual streams exchanged between two runs, and what all heads at a few roles do alone.

For each layer and role:
1. Run the other prompt, and read the residual stream that enters the layer at the role's token.
2. Run the prompt with it put in at its own token of that role, and nowhere else; all that follows is computed anew.
   Restore: the clean prompt's into the counterfactual run. Remove: the counterfactual's into the clean run.
3. The effect is the metric of that run less that of the plain one, both on the clean prompt's answer. As a share: over
   what the clean run's metric is above the counterfactual run's.

Source: causal tracing, Meng et al. 2022 (arXiv:2202.05262); activation patching, Zhang & Nanda 2024 (arXiv:2309.16042).
We differ from the former in what is restored: the run of a counterfactual prompt, not of noised embeddings; and in one
layer at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.engine import Model, ResidualEdit
from circuitdiff.engine.capture import stream_at_positions
from circuitdiff.engine.executor import Readout
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB, RUN_SHARE, check_pairs
from circuitdiff.errors import InputError
from circuitdiff.evaluation import (
    Evaluation,
    Progress,
    Replacement,
    Shared,
    all_heads,
    evaluate_circuits,
    evaluate_model,
)
from circuitdiff.evaluation.circuits import check_layers, check_roles
from circuitdiff.evaluation.edited import Editing, run_edited
from circuitdiff.evaluation.measured import readout_of
from circuitdiff.prompts import Bucket, Pairs, halves
from circuitdiff.readable import Readable, data_frame
from circuitdiff.stats.intervals import Interval, mean_interval, ratio_interval
from circuitdiff.stats.metrics import Measured, metric_named

DIRECTIONS = ("restore", "remove")

_Place = tuple[int, int]  # which of the layers, and which of the roles
_PLAIN = (-1, -1)  # nothing is put in


@dataclass(frozen=True, eq=False, repr=False)
class ResidualPatching(Readable):
    """Effects of another run's residual stream at one role before one layer, in the metric's unit, prompt by prompt.

    Where the place carries what the answer needs, they are above zero if it is restored, and below if it is removed.
    `distance` [prompt]: the clean run's metric less the counterfactual run's.
    """

    _shown = ("direction", "layers", "roles", "effects", "per_prompt", "distance", "scenarios", "metric")

    direction: str
    layers: tuple[int, ...]
    roles: tuple[str, ...]
    per_prompt: Float[Tensor, "layer role prompt"]
    distance: Float[Tensor, " prompt"]
    scenarios: Int[Tensor, " prompt"]
    metric: str

    @property
    def effects(self) -> Float[Tensor, "layer role"]:
        """Mean over prompts."""
        return self.per_prompt.mean(dim=-1)

    def intervals(self, level: float = 0.95) -> Interval:
        """Each mean with a bootstrap interval over scenarios; arrays [layer, role]."""
        return mean_interval(self.per_prompt.numpy(), self.scenarios.numpy(), level=level)

    def shares(self) -> Interval:
        """Mean effects over the mean distance, with `ratio_interval`; arrays [layer, role].

        Restored, 1 = the clean run; removed, -1 = the counterfactual run. nan where the distance may not be above 0.
        """
        effects, distance = self.per_prompt.double().numpy(), self.distance.double().numpy()
        bounds = np.empty((3, *effects.shape[:2]))
        for place in np.ndindex(*effects.shape[:2]):
            bounds[:, *place] = ratio_interval(effects[place], distance, self.scenarios.numpy())[:3]
        return Interval(*bounds)

    def to_pandas(self) -> Any:
        """A row for each layer and role. Raises: InputError if there is no pandas."""
        bounds, shares = np.stack(self.intervals(), axis=-1), np.stack(self.shares(), axis=-1)
        rows = (
            (layer, role, *bounds[i, j], *shares[i, j])
            for i, layer in enumerate(self.layers)
            for j, role in enumerate(self.roles)
        )
        return data_frame("layer role effect low high share share_low share_high", rows)


@torch.no_grad()
def residual_patching(
    model: Model,
    pairs: Pairs,
    roles: Sequence[str],
    *,
    direction: str = "restore",
    layers: Sequence[int] | None = None,
    metric: str | Measured = "logit_difference",
    executor: str = "window",
    memory_gb: float = DEFAULT_MEMORY_GB,
    progress: Progress | None = None,
) -> ResidualPatching:
    """The effect of exchanging the residual stream at each role before each layer (None: all layers).

    A metric is one of `circuitdiff.stats.metrics.METRICS`, or a function, as in `path_effects`.

    Raises: InputError if a role, layer or metric does not exist, or a prompt or counterfactual lacks a role.
    """
    layers, roles = tuple(range(model.n_layers) if layers is None else layers), tuple(dict.fromkeys(roles))
    _check(model, pairs, roles, layers, direction)
    measure, base = metric_named(metric), replace(pairs, counterfactual_answers=None)
    if direction == "restore":  # the clean prompt's answer stays the one that is scored
        base = replace(base, clean_prompts=pairs.counterfactual_prompts, counterfactual_prompts=pairs.clean_prompts)

    def readout(bucket: Bucket) -> Readout:
        return readout_of(base, bucket, measure, model.device)

    # 1
    source = base.counterfactual_prompts
    at = torch.stack([source.positions[role] for role in roles], dim=1)
    everyone = Bucket(torch.arange(len(base)), int(source.lengths.max()), {})
    how = (readout(everyone), RUN_SHARE * memory_gb)
    carried, other = stream_at_positions(model, "resid_pre", source, at, layers, *how)
    # 2
    editing = Editing[_Place](
        roles,
        begins=lambda place, bucket: (
            max(bucket.positions.values()) if place == _PLAIN else bucket.positions[roles[place[1]]]
        ),
        edits=lambda places, bucket: [
            ResidualEdit(layers[i], bucket.positions[roles[j]], torch.tensor([n]), carried[i, bucket.prompts, j][None])
            for n, (i, j) in enumerate(places)
            if (i, j) != _PLAIN
        ],
    )
    places = [_PLAIN, *np.ndindex(len(layers), len(roles))]
    how = {"executor": executor, "memory_gb": memory_gb, "progress": progress}
    plain, *patched = run_edited(model, base, places, editing, readout_of=readout, **how)[:, :, 0]
    # 3
    effects = torch.stack([measure.effect(each, plain) for each in patched]).unflatten(0, (len(layers), len(roles)))
    distance = measure.effect(other[:, 0], plain) * (1 if direction == "restore" else -1)
    return ResidualPatching(direction, layers, roles, effects, distance, pairs.scenarios, measure.name)


def _check(model: Model, pairs: Pairs, roles: Sequence[str], layers: Sequence[int], direction: str = "restore") -> None:
    check_pairs(model, pairs, "residual patching")
    if direction not in DIRECTIONS:
        raise InputError(f"direction must be 'restore' or 'remove'; got {direction!r}")
    if not roles:
        raise InputError("no role was named at which the residual stream is exchanged; name one or more")
    check_roles(pairs, roles, in_counterfactuals=True)
    check_layers(model, layers)


@dataclass(frozen=True, eq=False, repr=False)
class RoleCeiling(Readable):
    """What is answered with all heads kept at a few roles, and every other head, at every position, replaced.

    `alone`: by what replaces them, with none of the roles, the first, the first two, ... up to all. Roles were chosen
    on scenarios that are not among these.
    """

    roles: tuple[str, ...]  # in the order in which they were chosen
    alone: Mapping[str, tuple[Evaluation, ...]]
    model: Evaluation

    def to_pandas(self) -> Any:
        """A row for each number of roles and replacement. Raises: InputError if there is no pandas."""
        rows = (
            (n, ", ".join(self.roles[:n]), by, *answers.accuracy)
            for by, its in self.alone.items()
            for n, answers in enumerate(its)
        )
        return data_frame("n_roles roles replaced_by accuracy low high", rows)


@torch.no_grad()
def role_ceiling(
    model: Model,
    pairs: Pairs,
    replaced_by: Mapping[str, Replacement],
    roles: Sequence[str],
    *,
    executor: str = "window",
    memory_gb: float = DEFAULT_MEMORY_GB,
    progress: Progress | None = None,
) -> RoleCeiling:
    """The best role at which all heads are kept, then the best beside it, and so on until all roles are in.

    `replaced_by`: by name, what every other head is replaced with, as in `evaluate_circuit`; the first of them decides
    which role is best: by accuracy, among equals by the logit difference. Chosen on half of the scenarios, and
    evaluated on the others: the best of many is too good where it was chosen. Greedily, so that two roles which do
    nothing one by one are found late. No bound: what other positions do may be in the way.

    Raises: InputError as `evaluate_circuit`, or if there is nothing to replace by, no role, or fewer than 4 scenarios.
    """
    roles = list(dict.fromkeys(roles))
    if not (roles and replaced_by):
        raise InputError(f"expected roles, and what replaces other heads; got {len(roles)} and {len(replaced_by)}")
    check_roles(pairs, roles)
    choosing, judging = halves(pairs)
    shared, chosen, n_runs = Shared(), list[str](), len(roles) + len(replaced_by)

    def answers(kept: Sequence[Sequence[str]], of: Pairs, by: str, done: int) -> list[Evaluation]:
        circuits = [all_heads(model.n_layers, model.n_heads, each) for each in kept]
        how = {"shared": shared, "memory_gb": memory_gb}
        found = evaluate_circuits(model, circuits, of, replaced_by[by], executor, **how)
        if progress:
            progress(done, n_runs)
        return found

    first = next(iter(replaced_by))
    for n in range(len(roles)):
        left = [role for role in roles if role not in chosen]
        found = answers([[*chosen, role] for role in left], choosing, first, n + 1)
        chosen.append(left[max(range(len(left)), key=lambda i: _goodness(found[i]))])
    nested = [chosen[:n] for n in range(len(roles) + 1)]
    alone = {by: tuple(answers(nested, judging, by, len(roles) + i)) for i, by in enumerate(replaced_by, start=1)}
    return RoleCeiling(tuple(chosen), alone, evaluate_model(model, judging))


def _goodness(answers: Evaluation) -> tuple[float, float]:
    return float(answers.hits.double().mean()), float(answers.logit_differences.double().mean())
