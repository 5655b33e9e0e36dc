"""Faithfulness by what everything outside the circuit is replaced with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from circuitdiff.circuit import Circuit
from circuitdiff.errors import InputError
from circuitdiff.evaluation import Replacement, check_replacement, moved
from circuitdiff.methods.ablations import QUANTITIES, Ablated, AblationName, ablation_scores
from circuitdiff.prompts import Pairs
from circuitdiff.sections.circuit_settings import AblationsSettings
from circuitdiff.sections.entries import interval_entry, ratio_entry, with_heads
from circuitdiff.workbench import Workbench

EVERY_SEGMENT = "_every_segment"  # how the names end of those with heads kept at every segment
_MARKING: tuple[AblationName, ...] = ("mean_by_kind", "zero")


def ablations_section(
    bench: Workbench, model: str, name: str, circuit: Circuit, settings: AblationsSettings
) -> dict[str, Any]:
    """A circuit in a model under each ablation: accuracy, probability and logit difference, as they are and as ratios.

    Means by kind and zeros are the same in all segments, so heads kept at one segment alone mark it: under these the
    circuit is evaluated with its heads kept at every segment, too.

    Resampling is left out, and said, where counterfactuals lack a slot of their prompts.

    Raises: InputError if the circuit has no heads at all.
    """
    subject, tested = bench.subject(model), with_heads(circuit)
    everyone, means = subject.splits.evaluation, subject.means
    chosen = torch.arange(min(settings.prompts or len(everyone), len(everyone)))
    pairs, answers = everyone.select(chosen), subject.stages.answers(everyone).select(chosen)
    replacements: dict[AblationName, Replacement] = {
        "mean_by_slot": means["slot"],
        "mean_by_kind": means["kind"],
        "resample": "resample",
        "zero": "zero",
    }
    entry = {}
    for ablation in _possible(bench, name, pairs, settings.ablations):
        title = f"ablations of circuit {name} in {model}: {ablation}"
        everywhere = moved(tested, bench.task.every_segment) if ablation in _MARKING else tested
        kept = [tested] if set(everywhere.roles) == set(tested.roles) else [tested, everywhere]
        *alone, nothing = subject.stages.circuits(title, [*kept, Circuit({})], pairs, replacements[ablation])
        for key, each in zip((ablation, ablation + EVERY_SEGMENT), alone, strict=False):
            entry[key] = ablation_entry(Ablated(each, answers, nothing))
    return {"ablations": {name: {model: entry}}}


def ablation_entry(found: Ablated) -> dict[str, Any]:
    """Each quantity of circuit, model and fully ablated model, with both ratios."""
    entry: dict[str, Any] = {"n_prompts": len(found.model.hits)}
    for quantity in QUANTITIES:
        scores = ablation_scores(found, quantity)
        entry["accuracy" if quantity == "hits" else quantity] = {
            "circuit": interval_entry(scores.circuit),
            "model": interval_entry(scores.model),
            "ablated": interval_entry(scores.ablated),
            "ratio": ratio_entry(scores.ratio),
            "normalised": ratio_entry(scores.normalised),
        }
    return entry


def _possible(bench: Workbench, name: str, pairs: Pairs, wanted: Sequence[AblationName]) -> tuple[AblationName, ...]:
    if "resample" not in wanted:
        return tuple(wanted)
    try:
        check_replacement(pairs, "resample")
    except InputError as error:
        bench.warn(f"circuit {name} was not evaluated with resampled activations: {error}")
        return tuple(ablation for ablation in wanted if ablation != "resample")
    return tuple(wanted)
