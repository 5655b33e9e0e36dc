"""Attribution patching: what patching each head would do if the model were linear, for all heads from one gradient.

1. Every head's z at a role becomes keep * its own + (1 - keep) * what it is in the counterfactual prompt.
2. A head's score is minus the gradient of the metric by its own `keep`, where all of them are 1 (nothing is patched).
3. With integrated gradients: the mean of that over `keep` between 1 and 0, all heads' moved together.

Along a path, as in path patching, every other head is frozen: only what reaches the receivers, or the logits, counts.

Source: Nanda 2023, Attribution patching; Syed et al. 2023 (arXiv:2310.10348). Integrated gradients as in Hanna et al.
2024 (arXiv:2403.17806), but between activations of heads, where theirs go between inputs, and for edges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdiff.circuit import Circuit, Head
from circuitdiff.engine import Batch, Edit, Model, executor_named
from circuitdiff.engine.executor import Progress, Readout, Values
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB, batches, check_pairs, held_by_clean_run, numbers_per_row
from circuitdiff.engine.kept_runs import PairRuns
from circuitdiff.errors import InputError
from circuitdiff.evaluation.circuits import check_roles
from circuitdiff.evaluation.constants import Means, check_replacement
from circuitdiff.evaluation.measured import readout_of
from circuitdiff.methods.path_patching import Path, Via, check_path, passed_on
from circuitdiff.prompts import Bucket, Pairs
from circuitdiff.readable import Readable, data_frame
from circuitdiff.stats.intervals import Interval, mean_interval
from circuitdiff.stats.metrics import Measured, metric_named

Keep = Float[Tensor, "role layer prompt head"]
Run = Callable[[Batch, Bucket, list[Edit], Readout], Values]


@dataclass(frozen=True, repr=False)
class Attribution(Readable):
    """Scores of every head at some roles, per prompt, in the metric's unit. Negative = the head helps."""

    per_prompt: Mapping[str, Float[Tensor, "layer head prompt"]]  # by role
    scenarios: Int[Tensor, " prompt"]
    metric: str
    steps: int  # of integrated gradients; 1: the gradient where nothing is patched

    @property
    def scores(self) -> dict[str, Float[Tensor, "layer head"]]:
        """Means over prompts, by role."""
        return {role: each.mean(dim=-1) for role, each in self.per_prompt.items()}

    def intervals(self, level: float = 0.95) -> dict[str, Interval]:
        """Each mean with a bootstrap interval over scenarios, by role; arrays [layer, head]."""
        scenarios = self.scenarios.numpy()
        return {role: mean_interval(each.numpy(), scenarios, level=level) for role, each in self.per_prompt.items()}

    def to_pandas(self) -> Any:
        """A row for each role and head. Raises: InputError if there is no pandas."""
        tables = self.scores.items()
        rows = ((role, *place, float(each[place])) for role, each in tables for place in np.ndindex(*each.shape))
        return data_frame("role layer head score", rows)


def attribution(
    model: Model,
    pairs: Pairs,
    at: str | Sequence[str],
    *,
    steps: int = 1,
    metric: str | Measured = "logit_difference",
    held: Circuit | None = None,
    means: Means | None = None,
    executor: str = "window",
    memory_gb: float = DEFAULT_MEMORY_GB,
    progress: Progress | None = None,
) -> Attribution:
    """The score of every head at each role `at`, along all ways to the logits, from one run forward and back a step.

    `steps` of integrated gradients: `keep` in the middles of so many equal parts of (0, 1), all heads of all roles
    together; 1: at `keep` = 1. Roles at one token are patched once, and have the same scores. In the metric's unit (one
    of `circuitdiff.stats.metrics.METRICS`); negative = the head helps. A head that saturates (a gradient near zero, and
    yet needed) scores near zero with one step. `held`: the heads of this circuit, at roles
    among `at`, carry their `means` and not what they compute, in all runs but the one that effects are relative to (of
    which the logit difference does not depend); they score 0.

    Raises: InputError if a role or metric does not exist, a prompt lacks a role, a slot a mean, or `steps` is below 1.
    """
    roles = [at] if isinstance(at, str) else list(dict.fromkeys(at))
    check_pairs(model, pairs, "attribution patching")
    check_roles(pairs, roles, in_counterfactuals=True)
    runner = executor_named(executor)

    def run(batch: Batch, bucket: Bucket, edits: list[Edit], readout: Readout) -> Values:
        return runner.run(batch, edits, 1, readout)

    runs = PairRuns(model, pairs, roles, memory_gb, keep=False)
    if (held is None) != (means is None):
        raise InputError("heads are held at their means: name both, held and means, or neither")
    constant = None if held is None or means is None else _held(model, pairs, roles, held, means)
    return _scores(runs, roles, (), run, steps, metric, memory_gb, progress, constant=constant)


class _Held(NamedTuple):
    """Heads that carry a constant, and what it is."""

    heads: Bool[Tensor, "role layer prompt head"]
    values: Float[Tensor, "role layer prompt head d_head"]


def _held(model: Model, pairs: Pairs, roles: Sequence[str], circuit: Circuit, means: Means) -> _Held:
    """At roles that share a token, what is held at one is held at the other."""
    circuit.check_fits(model.n_layers, model.n_heads, roles)
    check_replacement(pairs, means)
    heads = torch.zeros(len(roles), model.n_layers, model.n_heads, dtype=torch.bool)
    for i, role in enumerate(roles):
        for head in circuit.heads_at(role):
            heads[i, head.layer, head.index] = True
    at = torch.stack([pairs.positions[role] for role in roles])
    same = at[:, None] == at[None]  # role, role, prompt
    each = (same[:, :, None, :, None] & heads[None, :, :, None, :]).any(1)
    slots = pairs.clean_prompts.slots.gather(1, at.T).T
    values = [means.at(of_role, pairs.clean_prompts.slot_names).transpose(0, 1) for of_role in slots]
    return _Held(each.to(model.device), torch.stack(values).to(model.device))


def path_attribution(
    model: Model,
    pairs: Pairs,
    at: str,
    receivers: Sequence[Head] | None = None,
    via: Via | None = None,
    receivers_at: str | None = None,
    *,
    steps: int = 1,
    metric: str | Measured = "logit_difference",
    executor: str = "window",
    memory_gb: float = DEFAULT_MEMORY_GB,
    shared: PairRuns | None = None,
    progress: Progress | None = None,
) -> Attribution:
    """The linear estimate of `path_effects`, which has the same arguments: straight into the logits, or via receivers.

    Raises: InputError as `path_effects` and `attribution` do.
    """
    path = Path(at, None if receivers is None else tuple(receivers), via, receivers_at)
    check_path(model, pairs, path)
    runner = executor_named(executor)

    def run(batch: Batch, bucket: Bucket, edits: list[Edit], readout: Readout) -> Values:
        return passed_on(runner, batch, bucket, path, edits, 1, readout)

    runs = shared or PairRuns(model, pairs, path.roles, memory_gb, keep=False)
    others = [role for role in path.roles if role != at]
    return _scores(runs, [at], others, run, steps, metric, memory_gb, progress, path.last_layer)


def _scores(
    runs: PairRuns,
    roles: Sequence[str],
    others: Sequence[str],
    run: Run,
    steps: int,
    metric: str | Measured,
    memory_gb: float,
    progress: Progress | None,
    last_layer: int | None = None,
    constant: _Held | None = None,
) -> Attribution:
    """`others`: roles that the run needs to know the places of. Heads from `last_layer` on are not run, and score 0."""
    if steps < 1:
        raise InputError(f"attribution takes 1 step or more; got {steps}")
    measure, model, pairs = metric_named(metric), runs.model, runs.pairs
    n_layers = model.n_layers if last_layer is None else last_layer
    shape = (len(roles), model.n_layers, len(pairs), model.n_heads)
    found = torch.zeros(shape, dtype=torch.promote_types(model.dtype, torch.float32))
    sources = torch.stack([runs.source(role) for role in roles])
    free = sources.new_ones(sources.shape[:-1])
    if constant is not None:
        sources = torch.where(constant.heads[..., None], constant.values, sources)
        free = free.masked_fill(constant.heads, 0.0)
    held = numbers_per_row(model, int(pairs.lengths.max())) + held_by_clean_run(model)  # a gradient needs all of it
    done = 0
    live = bool(n_layers)  # no head comes before a receiver in the first layer
    for bucket in batches(model, pairs.clean_prompts, [*roles, *others], memory_gb, held=held) if live else ():
        with torch.no_grad():
            batch = runs.batch(bucket, min(bucket.positions[role] for role in (*roles, *others)))
            readout = readout_of(pairs, bucket, measure, model.device)
            clean = readout(batch.clean.logits, torch.arange(batch.n_prompts, device=model.device))[None]

        def effect(
            edits: list[Edit],
            batch: Batch = batch,
            bucket: Bucket = bucket,
            readout: Readout = readout,
            clean: Tensor = clean,
        ) -> Tensor:
            return measure.effect(run(batch, bucket, edits, readout), clean)[..., 0]

        source = sources[:, :n_layers, bucket.prompts]
        for value in [(i + 0.5) / steps for i in range(steps)] if steps > 1 else [1.0]:
            slope = _gradient(bucket, roles, source, value * free[:, :n_layers, bucket.prompts], effect)
            found[:, :n_layers, bucket.prompts] -= slope.to(found) / steps
        done += len(bucket.prompts)
        if progress:
            progress(done, len(pairs))
    per_prompt = {role: found[i].transpose(1, 2).contiguous() for i, role in enumerate(roles)}
    return Attribution(per_prompt, pairs.scenarios, measure.name, steps)


def _gradient(
    bucket: Bucket,
    roles: Sequence[str],
    source: Float[Tensor, "role layer prompt head d_head"],
    value: Keep,
    effect: Callable[[list[Edit]], Tensor],
) -> Keep:
    """Of the effect by every `keep` at this value; 0 where that is 0. A prompt's effect depends on its own alone."""
    one, heads = torch.zeros(1, dtype=torch.long), torch.arange(source.shape[3], device=source.device)
    first = {bucket.positions[role]: i for i, role in reversed([*enumerate(roles)])}  # roles at one token are one
    with torch.enable_grad():
        keep = value.clone().requires_grad_()
        edits = [
            Edit(layer, "z", at, heads, one, source[i, layer][None], keep[i, layer][None])
            for layer in range(source.shape[1])
            for at, i in first.items()
        ]
        change = effect(edits).sum()
        if not change.requires_grad:
            raise InputError("the metric has no gradient, as a count has none; give one that changes smoothly")
        slope = torch.autograd.grad(change, keep)[0]
    return (slope * (value > 0))[[first[bucket.positions[role]] for role in roles]]
