"""Path patching: how much of the behaviour each head carries straight into the logits, or into other heads.

For every sender head:
1. Run the clean prompt with the sender's z at role `at` taken from the counterfactual prompt, and every other head's z
   at that position and later ones frozen at its clean value; MLPs are recomputed.
2. Without receivers, the effect is read off this run's logits. With receivers, what reaches their q, k or v in this
   run is put into a second run in which nothing is frozen, and the effect is read off that.

Source: Wang et al. 2022 (arXiv:2211.00593), section 3.1; Prakash et al. 2024 (arXiv:2402.14811), section 3.1.
We differ in the counterfactual of each prompt, which is drawn once for all senders, and in `receivers_at`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.circuit import Head
from circuitdiff.engine import Batch, Edit, Executor, Model, Site, executor_named
from circuitdiff.engine.executor import NarrowReadout, Readout
from circuitdiff.engine.fits import (
    DEFAULT_MEMORY_GB,
    ROWS_SHARE,
    RUN_SHARE,
    batches,
    check_pairs,
    held_by_clean_run,
    rows_at_once,
)
from circuitdiff.engine.kept_runs import PairRuns
from circuitdiff.errors import InputError
from circuitdiff.evaluation.circuits import check_heads, check_roles
from circuitdiff.prompts import Bucket, Pairs
from circuitdiff.readable import Plotted, data_frame
from circuitdiff.stats.intervals import Interval, mean_interval
from circuitdiff.stats.metrics import Measured, Metric, OwnMetric, metric_named

Via = Literal["q", "k", "v"]
Progress = Callable[[int, int], None]  # done, of how many
Senders = Sequence[Head]  # heads that are patched together


@dataclass(frozen=True, repr=False)
class PathEffects(Plotted):
    """Effects of every sender, per prompt. Negative = the head helps; nan where a head was not among the senders."""

    _shown = ("strongest", "per_prompt", "on_counterfactual_answer", "noise_floor", "scenarios", "metric")

    per_prompt: Float[Tensor, "layer head prompt"]
    on_counterfactual_answer: (
        Float[Tensor, "layer head prompt"] | None
    )  # its first; None without one, or for a user's metric
    noise_floor: float  # largest |effect| of an edit that changes nothing, on the same path
    scenarios: Int[Tensor, " prompt"]
    metric: str

    @property
    def effects(self) -> Float[Tensor, "layer head"]:
        """Mean over prompts."""
        return self.per_prompt.mean(dim=-1)

    @property
    def strongest(self) -> dict[str, float]:
        """The mean effects of the five heads that help or hurt most."""
        effects = self.effects
        order = effects.abs().nan_to_num(nan=-1.0).flatten().argsort(descending=True)[:5].tolist()
        places = [divmod(i, effects.shape[1]) for i in order]
        return {str(Head(*place)): float(effects[place]) for place in places if not effects[place].isnan()}

    def intervals(self, level: float = 0.95) -> Interval:
        """Each mean with a bootstrap interval over scenarios; arrays [layer, head]."""
        return mean_interval(self.per_prompt.numpy(), self.scenarios.numpy(), level=level)

    def to_pandas(self, level: float = 0.95) -> Any:
        """A row for each head. Raises: InputError if there is no pandas."""
        bounds = self.intervals(level)
        rows = ((*place, *(np.asarray(bound)[place] for bound in bounds)) for place in np.ndindex(*self.effects.shape))
        return data_frame("layer head effect low high", rows)


@dataclass(frozen=True)
class Path:
    """Where the effect goes: straight into the logits (no receivers), or into q, k or v of receivers."""

    at: str
    receivers: tuple[Head, ...] = ()
    via: Via | None = None
    receivers_at: str | None = None

    @property
    def roles(self) -> list[str]:
        return [self.at] if self.receivers_at is None else [self.at, self.receivers_at]

    @property
    def first_changed(self) -> str:
        """The role where the second run's window starts."""
        return self.receivers_at or self.at

    @property
    def last_layer(self) -> int | None:
        """Senders in this layer or later have an effect of exactly zero."""
        return max(head.layer for head in self.receivers) if self.receivers else None


@torch.no_grad()
def path_effects(
    model: Model,
    pairs: Pairs,
    at: str,
    receivers: Sequence[Head] | None = None,
    via: Via | None = None,
    receivers_at: str | None = None,
    senders: Sequence[Head] | None = None,
    metric: str | Measured = "logit_difference",
    executor: str = "window",
    *,
    memory_gb: float = DEFAULT_MEMORY_GB,
    progress: Progress | None = None,
    shared: PairRuns | None = None,
) -> PathEffects:
    """The effect of each sender at role `at`, straight into the logits or via q, k or v of `receivers`.

    Via "q" sender and receivers sit at `at`; via "k" and "v" the receivers read `at`: only at role `receivers_at`, or
    from every later position (None, the published meaning). Senders default to all heads.

    The unit is the metric's; negative = the head helps. A metric is one of `circuitdiff.stats.metrics.METRICS`, or a
    function of logits [row, d_vocab] and of each row's place in `pairs` [row] that gives a number for each row. Sweeps
    over the same pairs that are given the same `shared` make their clean and counterfactual runs once.

    Raises: InputError if a role, head or metric does not exist, or if the path can have no effect.
    """
    everyone = [Head(layer, i) for layer in range(model.n_layers) for i in range(model.n_heads)]
    chosen = everyone if senders is None else sorted(set(senders))
    check_heads(model, chosen)
    sweep = _sweep(model, pairs, at, receivers, via, receivers_at, metric, executor, memory_gb, shared)
    return sweep.run(chosen, progress or (lambda done, total: None))


@torch.no_grad()
def group_path_effects(
    model: Model,
    pairs: Pairs,
    senders: Sequence[Head],
    at: str,
    receivers: Sequence[Head] | None = None,
    via: Via | None = None,
    receivers_at: str | None = None,
    executor: str = "window",
    shared: PairRuns | None = None,
    *,
    memory_gb: float = DEFAULT_MEMORY_GB,
) -> Float[Tensor, " prompt"]:
    """`path_effects` on the logit difference of a whole group at role `at`: all senders are patched at once.

    Per prompt; negative = the group helps along this path. Raises: as `path_effects`.
    """
    check_heads(model, senders)
    sweep = _sweep(model, pairs, at, receivers, via, receivers_at, "logit_difference", executor, memory_gb, shared)
    per_prompt = torch.empty(len(pairs), dtype=torch.promote_types(model.dtype, torch.float32))
    for batch, bucket in sweep.batches(1):
        [(_, effects)] = sweep.effects(batch, bucket, [senders])
        per_prompt[bucket.prompts] = effects[0, :, 0]
    return per_prompt


def _sweep(
    model: Model,
    pairs: Pairs,
    at: str,
    receivers: Sequence[Head] | None,
    via: Via | None,
    receivers_at: str | None,
    metric: str | Measured,
    executor: str,
    memory_gb: float,
    shared: PairRuns | None,
) -> _Sweep:
    path = Path(at, tuple(receivers or ()), via, receivers_at)
    check_path(model, pairs, path, empty_receivers=receivers is not None and not receivers)
    runs = shared or PairRuns(model, pairs, path.roles, memory_gb, keep=False)
    return _Sweep(runs, path, metric_named(metric), executor_named(executor), memory_gb)


def check_path(model: Model, pairs: Pairs, path: Path, *, empty_receivers: bool = False) -> None:
    """Raises: InputError if a role or head does not exist, or if the path can have no effect on the logits."""
    check_pairs(model, pairs, "path patching")
    check_roles(pairs, [path.at], in_counterfactuals=True)
    check_roles(pairs, path.roles)
    check_heads(model, path.receivers)
    if empty_receivers:
        raise InputError("the list of receivers is empty; leave receivers out to patch straight into the logits")
    if bool(path.receivers) != (path.via is not None):
        raise InputError("receivers and via go together: name both (via q, k or v), or neither for the logits")
    if path.via not in (None, "q", "k", "v"):
        raise InputError(f"via must be 'q', 'k' or 'v'; got {path.via!r}")
    check_reach(pairs, path.at, path.via, path.receivers_at)


def check_reach(pairs: Pairs, at: str, via: str | None, receivers_at: str | None) -> None:
    """Raises: InputError if nothing reads what is patched at `at`; the roles are known to exist."""
    if via is None and (pairs.positions[at] != pairs.lengths - 1).any():
        raise InputError(
            f"straight into the logits only the last position has an effect, and {at!r} is not the last; name "
            f"receivers that read it"
        )
    if receivers_at is None:
        return
    if via not in ("k", "v"):
        raise InputError("receivers_at goes with via 'k' or 'v'; via 'q' the receivers sit at the sender's role")
    if (pairs.positions[receivers_at] < pairs.positions[at]).any():
        raise InputError(f"receivers at {receivers_at!r} cannot read {at!r}, which comes later")


class _Sweep:
    """Senders of one path over all prompts, in batches that fit the memory."""

    def __init__(
        self, runs: PairRuns, path: Path, metric: Metric | OwnMetric, executor: Executor, memory_gb: float
    ) -> None:
        self._runs, self._model, self._pairs, self._path = runs, runs.model, runs.pairs, path
        self._metric, self._executor, self._memory_gb = metric, executor, memory_gb
        self._rows = rows_at_once(runs.model, ROWS_SHARE * memory_gb, int(runs.pairs.lengths.max()))
        self._width = int((self._pairs.lengths - self._pairs.positions[path.first_changed]).max())
        self._source = runs.source(path.at)

    def run(self, heads: Sequence[Head], progress: Progress) -> PathEffects:
        """Each head by itself."""
        model, n_prompts = self._model, len(self._pairs)
        last = self._path.last_layer
        live = [head for head in heads if last is None or head.layer < last]
        two = self._pairs.counterfactual_answers is not None and isinstance(self._metric, Metric)
        n_answers = 2 if two else 1
        dtype = torch.promote_types(model.dtype, torch.float32)
        per_prompt = torch.full((n_answers, model.n_layers, model.n_heads, n_prompts), torch.nan, dtype=dtype)
        layers, indices = ([head.layer for head in heads], [head.index for head in heads])
        per_prompt[:, layers, indices] = 0.0  # exactly, for senders that no receiver can see
        floor, done = 0.0, 0
        for batch, bucket in self.batches(len(live)):
            for part, effects in self.effects(batch, bucket, [[head] for head in live]):
                rows, columns = ([head.layer for [head] in part], [head.index for [head] in part])
                for answer in range(n_answers):
                    per_prompt[answer, torch.tensor(rows)[:, None], torch.tensor(columns)[:, None], bucket.prompts] = (
                        effects[:, :, answer]
                    )
                done += len(part) * len(bucket.prompts)
                progress(done, len(live) * n_prompts)
            if floor == 0.0 and live:
                floor = self._noise_floor(batch, bucket, live)
        other = per_prompt[1] if n_answers == 2 else None
        return PathEffects(per_prompt[0], other, floor, self._pairs.scenarios, self._metric.name)

    def batches(self, n_senders: int) -> Iterator[tuple[Batch, Bucket]]:
        """Clean prompts whose clean runs fit the memory, and no more than all senders together can be run on."""
        largest = max(1, self._rows // max(1, n_senders * self._width))
        prompts, run_gb, held = self._pairs.clean_prompts, RUN_SHARE * self._memory_gb, held_by_clean_run(self._model)
        for bucket in batches(self._model, prompts, self._path.roles, run_gb, largest=largest, held=held):
            yield open_batch(self._runs, bucket, self._path), bucket

    def effects(
        self,
        batch: Batch,
        bucket: Bucket,
        senders: Sequence[Senders],
        source: Float[Tensor, "layer prompt head d_head"] | None = None,
    ) -> Iterator[tuple[Sequence[Senders], Float[Tensor, "sender prompt answer"]]]:
        """As many senders together as the memory takes; their z comes from `source`, by default the counterfactual."""
        source = self._source[:, bucket.prompts] if source is None else source
        readout = _readout(self._pairs, bucket, self._metric, self._model.device)
        clean = readout(batch.clean.logits, torch.arange(batch.n_prompts, device=batch.clean.logits.device))
        size = max(1, self._rows // (batch.n_prompts * self._width))
        for part in (senders[i : i + size] for i in range(0, len(senders), size)):
            patched = sweep_senders(self._executor, batch, bucket, self._path, part, source, readout)
            yield part, self._metric.effect(patched, clean[None]).cpu()

    def _noise_floor(self, batch: Batch, bucket: Bucket, live: Sequence[Head]) -> float:
        """One sender per layer, replaced by its own clean z."""
        own = torch.stack([batch.clean.z_at(i, bucket.positions[self._path.at]) for i in range(self._model.n_layers)])
        first_of_layer = sorted({head.layer: head for head in reversed(live)}.values())
        parts = self.effects(batch, bucket, [[head] for head in first_of_layer], own)
        return max(float(effects.abs().max()) for _, effects in parts)


def _readout(pairs: Pairs, bucket: Bucket, metric: Metric | OwnMetric, device: torch.device) -> Readout:
    """The metric's quantity for the right answers, then for the counterfactual's answer if it has one."""
    if isinstance(metric, OwnMetric):
        rows = bucket.prompts.to(device)
        return lambda logits, prompt: metric(logits, rows[prompt])[:, None]
    part = pairs.select(bucket.prompts)
    if not metric.of_listed:
        return _quantities(metric, part, device)
    swapped = part.counterfactual_answers
    listed = [part.right_answers.flatten(), part.foils.flatten(), *([] if swapped is None else [swapped])]
    tokens = torch.cat(listed).unique()
    local = replace(
        part,
        answers=torch.searchsorted(tokens, part.answers),
        right=None if part.right is None else torch.searchsorted(tokens, part.right),
        foils=torch.searchsorted(tokens, part.foils),
        counterfactual_answers=None if swapped is None else torch.searchsorted(tokens, swapped),
    )
    return NarrowReadout(tokens.to(device), _quantities(metric, local, device))


def _quantities(metric: Metric, part: Pairs, device: torch.device) -> Readout:
    """For the counterfactual's answer, the right ones take its place among the foils, if it is one of them."""
    everything, foils = part.right_answers.to(device), part.foils.to(device)
    swapped = part.counterfactual_answers

    def readout(logits: Float[Tensor, "row logit"], prompt: Int[Tensor, " row"]) -> Float[Tensor, "row value"]:
        right, others = everything[prompt], foils[prompt]
        values = [metric.quantity(logits, right, others)]
        if swapped is not None:
            target = swapped.to(device)[prompt, None]
            rest = torch.where(others == target, right[:, :1], others)
            more = torch.where((others == target).any(1, keepdim=True), right[:, 1:], rest[:, :1])
            values.append(metric.quantity(logits, target, torch.cat([rest, more], dim=1)))
        return torch.stack(values, dim=-1)

    return readout


def open_batch(runs: PairRuns, bucket: Bucket, path: Path) -> Batch:
    """The clean prompts of a bucket, their clean run kept from the path's first position on."""
    return runs.batch(bucket, min(bucket.positions[role] for role in path.roles))


def sweep_senders(
    executor: Executor,
    batch: Batch,
    bucket: Bucket,
    path: Path,
    senders: Sequence[Sequence[Head]],
    source: Float[Tensor, "layer prompt head d_head"],
    readout: Readout,
) -> Float[Tensor, "sender prompt value"]:
    """Both runs of the module's docstring, for every sender: one head or several, whose z `source` replaces."""
    at = bucket.positions[path.at]
    edits = _sender_edits(batch, at, senders, source)
    if not path.receivers:
        return executor.frozen(batch, edits, len(senders), at, readout)
    received = executor.received(batch, edits, len(senders), at, _sites(path, at, source.device))
    if path.receivers_at is not None:
        read_at = bucket.positions[path.receivers_at]
        received = [Edit(e.layer, e.what, e.at, e.heads, e.variants, e.replacement, None, read_at) for e in received]
    return executor.run(batch, received, len(senders), readout)


def _sender_edits(
    batch: Batch, at: int, senders: Sequence[Sequence[Head]], source: Float[Tensor, "layer prompt head d_head"]
) -> list[Edit]:
    """One edit per layer: all its heads clean, but for each variant's own sender."""
    heads = torch.arange(batch.model.n_heads, device=source.device)
    edits = []
    for layer in sorted({head.layer for sender in senders for head in sender}):
        own = [[head.index for head in sender if head.layer == layer] for sender in senders]
        variants = [i for i, indices in enumerate(own) if indices]
        is_sender = torch.stack([torch.isin(heads, heads.new_tensor(own[i])) for i in variants])[:, None, :, None]
        z = torch.where(is_sender, source[layer], batch.clean.z_at(layer, at))
        edits.append(Edit(layer, "z", at, heads, torch.tensor(variants), z))
    return edits


def _sites(path: Path, at: int, device: torch.device) -> list[Site]:
    assert path.via is not None
    layers = sorted({head.layer for head in path.receivers})
    heads = [sorted({head.index for head in path.receivers if head.layer == layer}) for layer in layers]
    return [
        Site(layer, path.via, at, torch.tensor(chosen, device=device))
        for layer, chosen in zip(layers, heads, strict=True)
    ]
