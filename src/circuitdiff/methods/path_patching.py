"""Path patching: how much of the behaviour each head carries straight into the logits, or into other heads.

For every sender, a head or an MLP:
1. Run the clean prompt with the sender's z at role `at` taken from the counterfactual prompt, and every other head's z
   at that position and later ones frozen at its clean value; MLPs are recomputed.
   Or what the MLP of one layer adds to the residual stream taken from there, and every head frozen. Then, too, the
   MLPs that are not the sender are recomputed, so that an effect holds what later ones make of it.
2. Without receivers, the effect is read off this run's logits. With receivers, what reaches their q, k or v in this
   run is put into a second run in which nothing is frozen, and the effect is read off that.

Source: Wang et al. 2022 (arXiv:2211.00593), section 3.1; Prakash et al. 2024 (arXiv:2402.14811), section 3.1.
We differ in the counterfactual of each prompt, which is drawn once for all senders, in `receivers_at`, and in MLPs as
senders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.circuit import Head
from circuitdiff.engine import Batch, Edit, Executor, MlpEdit, Model, Site, executor_named
from circuitdiff.engine.capture import stream_at_positions
from circuitdiff.engine.edits import SenderEdit
from circuitdiff.engine.executor import Progress, Readout
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB, ROWS_SHARE, check_pairs, clean_batches, rows_at_once
from circuitdiff.engine.kept_runs import PairRuns
from circuitdiff.errors import InputError
from circuitdiff.evaluation.circuits import check_heads, check_layers, check_roles
from circuitdiff.evaluation.measured import readout_of
from circuitdiff.evaluation.shapes import by_layer
from circuitdiff.prompts import Bucket, Pairs
from circuitdiff.readable import Plotted, Readable, data_frame
from circuitdiff.stats.intervals import Interval, mean_interval
from circuitdiff.stats.metrics import METRICS, Measured, Metric, OwnMetric, metric_named

Via = Literal["q", "k", "v"]
Senders = Sequence[Head] | int  # heads that are patched together, or the MLP of a layer


@dataclass(frozen=True, repr=False)
class PathEffects(Plotted):
    """Effects of every sender, per prompt. Negative = the head helps; nan where a head was not among the senders."""

    _shown = ("strongest", "per_prompt", "on_counterfactual_answer", "noise_floor", "scenarios", "metric")

    per_prompt: Float[Tensor, "layer head prompt"]
    # Of its first right answer; None without one, or for a user's metric.
    on_counterfactual_answer: Float[Tensor, "layer head prompt"] | None
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


@dataclass(frozen=True, repr=False)
class MlpPathEffects(Readable):
    """Effects of every layer's MLP, per prompt, as those of heads in `PathEffects`; nan where a layer was not asked."""

    _shown = ("effects", "per_prompt", "on_counterfactual_answer", "noise_floor", "scenarios", "metric")

    per_prompt: Float[Tensor, "layer prompt"]
    on_counterfactual_answer: Float[Tensor, "layer prompt"] | None
    noise_floor: float  # largest |effect| of an MLP that adds what it adds anyway, on the same path
    scenarios: Int[Tensor, " prompt"]
    metric: str

    @property
    def effects(self) -> Float[Tensor, " layer"]:
        """Mean over prompts."""
        return self.per_prompt.mean(dim=-1)

    def intervals(self, level: float = 0.95) -> Interval:
        """Each mean with a bootstrap interval over scenarios; arrays [layer]."""
        return mean_interval(self.per_prompt.numpy(), self.scenarios.numpy(), level=level)

    def to_pandas(self, level: float = 0.95) -> Any:
        """A row for each layer. Raises: InputError if there is no pandas."""
        bounds = np.stack(self.intervals(level), axis=-1)
        return data_frame("layer effect low high", ((layer, *each) for layer, each in enumerate(bounds)))


@dataclass(frozen=True)
class Path:
    """Where the effect goes: straight into the logits (no receivers), or into q, k or v of receivers."""

    at: str
    receivers: tuple[Head, ...] | None = None
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
    path = Path(at, None if receivers is None else tuple(receivers), via, receivers_at)
    check_path(model, pairs, path)
    measure, last = metric_named(metric), path.last_layer
    live = [head for head in chosen if last is None or head.layer < last]
    first_of_layer = [[head] for head in sorted({head.layer: head for head in reversed(live)}.values())]
    runs = shared or PairRuns(model, pairs, path.roles, memory_gb, keep=False)
    each = [[head] for head in live]
    effects, floor = _sweep(runs, path, each, measure, executor, memory_gb, progress, first_of_layer)
    shape = (effects.shape[2], model.n_layers, model.n_heads, len(pairs))
    per_prompt = torch.full(shape, torch.nan, dtype=effects.dtype)
    per_prompt[:, [head.layer for head in chosen], [head.index for head in chosen]] = 0.0  # those no receiver can see
    per_prompt[:, [head.layer for head in live], [head.index for head in live]] = effects.permute(2, 0, 1)
    other = per_prompt[1] if len(per_prompt) == 2 else None
    return PathEffects(per_prompt[0], other, floor, pairs.scenarios, measure.name)


@torch.no_grad()
def mlp_path_effects(
    model: Model,
    pairs: Pairs,
    at: str,
    receivers: Sequence[Head] | None = None,
    via: Via | None = None,
    receivers_at: str | None = None,
    layers: Sequence[int] | None = None,
    metric: str | Measured = "logit_difference",
    executor: str = "window",
    *,
    memory_gb: float = DEFAULT_MEMORY_GB,
    progress: Progress | None = None,
    shared: PairRuns | None = None,
) -> MlpPathEffects:
    """The effect of each layer's MLP at role `at`, straight into the logits or via q, k or v of `receivers`.

    The sender is what the MLP adds to the residual stream (`engine.mlp` defines it); all else is as in `path_effects`.
    An MLP comes after the attention of its layer, which cannot receive from it. Layers default to all.

    Raises: InputError as `path_effects` does, if a layer does not exist, or if the architecture lets nobody tell what
    its MLPs add.
    """
    chosen = list(range(model.n_layers)) if layers is None else sorted(set(layers))
    check_layers(model, chosen)
    path = Path(at, None if receivers is None else tuple(receivers), via, receivers_at)
    check_path(model, pairs, path)
    measure, last = metric_named(metric), path.last_layer
    live = [layer for layer in chosen if last is None or layer < last]
    runs = shared or PairRuns(model, pairs, path.roles, memory_gb, keep=False)
    effects, floor = _sweep(runs, path, live, measure, executor, memory_gb, progress, live)
    per_prompt = torch.full((effects.shape[2], model.n_layers, len(pairs)), torch.nan, dtype=effects.dtype)
    per_prompt[:, chosen] = 0.0  # those that no receiver can see
    per_prompt[:, live] = effects.permute(2, 0, 1)
    other = per_prompt[1] if len(per_prompt) == 2 else None
    return MlpPathEffects(per_prompt[0], other, floor, pairs.scenarios, measure.name)


@torch.no_grad()
def group_path_effects(
    model: Model,
    pairs: Pairs,
    senders: Sequence[Head],
    path: Path,
    executor: str = "window",
    shared: PairRuns | None = None,
    *,
    memory_gb: float = DEFAULT_MEMORY_GB,
) -> Float[Tensor, " prompt"]:
    """`path_effects` on the logit difference of a whole group at the path's role: all senders are patched at once.

    Per prompt; negative = the group helps along this path. Raises: as `path_effects`.
    """
    check_heads(model, senders)
    check_path(model, pairs, path)
    runs = shared or PairRuns(model, pairs, path.roles, memory_gb, keep=False)
    effects, _ = _sweep(runs, path, [senders], METRICS["logit_difference"], executor, memory_gb)
    return effects[0, :, 0]


def check_path(model: Model, pairs: Pairs, path: Path) -> None:
    """Raises: InputError if a role or head does not exist, or if the path can have no effect on the logits."""
    check_pairs(model, pairs, "path patching")
    check_roles(pairs, [path.at], in_counterfactuals=True)
    check_roles(pairs, path.roles)
    check_heads(model, path.receivers or ())
    if path.receivers == ():
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


def _sweep(
    runs: PairRuns,
    path: Path,
    senders: Sequence[Senders],
    metric: Metric | OwnMetric,
    executor: str,
    memory_gb: float,
    progress: Progress | None = None,
    unmoved: Sequence[Senders] = (),
) -> tuple[Float[Tensor, "sender prompt answer"], float]:
    """The effect of each of the senders, as many of them and of the prompts together as fit the memory.

    Also the largest |effect| where `unmoved` senders, one by one, are given what they carry anyway.
    """
    model, pairs, runner = runs.model, runs.pairs, executor_named(executor)
    mlps = any(isinstance(sender, int) for sender in senders)
    sources = runs.mlp_source(path.at) if mlps else runs.source(path.at)
    n_answers = 2 if pairs.counterfactual_answers is not None and isinstance(metric, Metric) else 1
    found = torch.empty(len(senders), len(pairs), n_answers, dtype=torch.promote_types(model.dtype, torch.float32))
    rows = rows_at_once(model, ROWS_SHARE * memory_gb, int(pairs.lengths.max()))
    width = int((pairs.lengths - pairs.positions[path.first_changed]).max())
    largest, floor, done = max(1, rows // max(1, len(senders) * width)), 0.0, 0
    for bucket in clean_batches(model, pairs.clean_prompts, path.roles, memory_gb, largest) if senders else ():
        batch, readout = open_batch(runs, bucket, path), readout_of(pairs, bucket, metric, model.device)
        clean = readout(batch.clean.logits, torch.arange(batch.n_prompts, device=batch.clean.logits.device))[None]
        source, size = sources[:, bucket.prompts], max(1, rows // (batch.n_prompts * width))
        for i in range(0, len(senders), size):
            part = senders[i : i + size]
            patched = sweep_senders(runner, batch, bucket, path, part, source, readout)
            found[i : i + size, bucket.prompts] = metric.effect(patched, clean).cpu()
            done += len(part) * batch.n_prompts
            if progress:
                progress(done, len(senders) * len(pairs))
        if unmoved and floor == 0.0:
            own = _own(runs, batch, bucket, path.at, mlps=mlps)
            for i in range(0, len(unmoved), size):
                part = unmoved[i : i + size]
                patched = sweep_senders(runner, batch, bucket, path, part, own, readout)
                floor = max(floor, float(metric.effect(patched, clean).abs().max()))
    return found, floor


def _own(
    runs: PairRuns, batch: Batch, bucket: Bucket, role: str, *, mlps: bool
) -> Float[Tensor, "layer prompt *carried"]:
    """What heads or MLPs carry at a role of the bucket's clean prompts."""
    at, layers = bucket.positions[role], range(runs.model.n_layers)
    if not mlps:
        return torch.stack([batch.clean.z_at(layer, at) for layer in layers])
    prompts = runs.pairs.clean_prompts.select(bucket.prompts)
    positions = torch.full((len(prompts), 1), at)
    return stream_at_positions(runs.model, "mlp_out", prompts, positions, layers)[0][:, :, 0]


def open_batch(runs: PairRuns, bucket: Bucket, path: Path) -> Batch:
    """The clean prompts of a bucket, their clean run kept from the path's first position on."""
    return runs.batch(bucket, min(bucket.positions[role] for role in path.roles))


def sweep_senders(
    executor: Executor,
    batch: Batch,
    bucket: Bucket,
    path: Path,
    senders: Sequence[Senders],
    source: Float[Tensor, "layer prompt *carried"],
    readout: Readout,
) -> Float[Tensor, "sender prompt value"]:
    """Both runs of the module's docstring, for every sender: heads whose z `source` replaces, or MLPs."""
    at = bucket.positions[path.at]
    edits: list[SenderEdit] = [
        MlpEdit(sender, at, torch.tensor([i]), source[sender][None])
        for i, sender in enumerate(senders)
        if isinstance(sender, int)
    ]
    edits += _head_edits(batch, at, [[] if isinstance(sender, int) else sender for sender in senders], source)
    return passed_on(executor, batch, bucket, path, edits, len(senders), readout)


def passed_on(
    executor: Executor,
    batch: Batch,
    bucket: Bucket,
    path: Path,
    edits: Sequence[SenderEdit],
    n_variants: int,
    readout: Readout,
) -> Float[Tensor, "variant prompt value"]:
    """What edits at the path's role, all other heads frozen, do to the logits, or by what receivers then read."""
    at, device = bucket.positions[path.at], batch.tokens.device
    if not path.receivers:
        return executor.frozen(batch, edits, n_variants, at, readout)
    assert path.via is not None, "receivers and via go together"
    layers = by_layer(path.receivers).items()
    sites = [Site(layer, path.via, at, torch.tensor(heads, device=device)) for layer, heads in layers]
    received = executor.received(batch, edits, n_variants, at, sites)
    if path.receivers_at is not None:
        read_at = bucket.positions[path.receivers_at]
        received = [replace(edit, read_at=read_at) for edit in received]
    return executor.run(batch, received, n_variants, readout)


def _head_edits(
    batch: Batch, at: int, senders: Sequence[Sequence[Head]], source: Float[Tensor, "layer prompt *carried"]
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
