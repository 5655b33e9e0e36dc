"""How much of the behaviour a circuit keeps, by what everything else is replaced with.

Mean ablation asks whether the heads outside are needed for what varies between prompts; resample ablation puts another
prompt's whole activation there; zero ablation takes away what heads always add, too, and often breaks a model that mean
ablation leaves alone. Faithfulness that holds under one of them only is a statement about that ablation.

Source: Wang et al. 2022 (arXiv:2211.00593), section 2.1, for mean ablation by template slot; Chan et al. 2022, Causal
Scrubbing, for resampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from circuitdiff.circuit import Circuit
from circuitdiff.engine import Model
from circuitdiff.errors import InputError
from circuitdiff.evaluation import (
    Evaluation,
    Means,
    Quantity,
    Replacement,
    check_circuit,
    evaluate_circuits,
    evaluate_model,
)
from circuitdiff.prompts import Pairs
from circuitdiff.readable import Readable
from circuitdiff.stats.intervals import (
    Interval,
    RatioInterval,
    mean_interval,
    normalised_ratio_interval,
    ratio_interval,
)
from circuitdiff.stats.proportions import accuracy_interval

AblationName = Literal["mean_by_slot", "mean_by_kind", "resample", "zero"]
ABLATIONS: tuple[AblationName, ...] = get_args(AblationName)


@dataclass(frozen=True, repr=False)
class Ablated(Readable):
    """A circuit under one ablation, with the model and the model of which nothing is kept, on the same prompts."""

    circuit: Evaluation
    model: Evaluation
    ablated: Evaluation


@dataclass(frozen=True, repr=False)
class Scores(Readable):
    """One quantity of the three, and how much of the model's the circuit has."""

    circuit: Interval
    model: Interval
    ablated: Interval
    ratio: RatioInterval  # circuit / model
    normalised: RatioInterval  # (circuit - ablated) / (model - ablated): 0 = no better than ablating all, 1 = the model


def ablation_scores(found: Ablated, quantity: Quantity) -> Scores:
    """Accuracy (of hits), mean probability or mean logit difference, with intervals over scenarios.

    A ratio is undefined where its denominator is not surely above 0, and says so.
    """
    scenarios = found.model.scenarios.numpy()
    circuit, model, ablated = (
        evaluation.scored(quantity) for evaluation in (found.circuit, found.model, found.ablated)
    )
    interval = accuracy_interval if quantity == "hits" else mean_interval
    return Scores(
        circuit=interval(circuit, scenarios),
        model=interval(model, scenarios),
        ablated=interval(ablated, scenarios),
        ratio=ratio_interval(circuit, model, scenarios),
        normalised=normalised_ratio_interval(circuit, ablated, model, scenarios),
    )


def compare_ablations(
    model: Model,
    circuit: Circuit,
    pairs: Pairs,
    means: Mapping[str, Means],
) -> dict[AblationName, Ablated]:
    """What the circuit answers when everything else is at its mean by slot, by kind, resampled, or zero.

    Raises: InputError if a group is empty, the model or task lacks a head or role, or a mean is missing.
    """
    check_circuit(model, circuit, pairs, "ablation")
    if missing := {"slot", "kind"} - set(means):
        raise InputError(f"expected means by slot and by kind; {min(missing)!r} is missing, add it")
    replacements: dict[AblationName, Replacement] = {
        "mean_by_slot": means["slot"],
        "mean_by_kind": means["kind"],
        "resample": "resample",
        "zero": "zero",
    }
    whole, both = evaluate_model(model, pairs), [circuit, Circuit({})]
    found: dict[AblationName, Ablated] = {}
    for name, chosen in replacements.items():
        alone, nothing = evaluate_circuits(model, both, pairs, chosen)
        found[name] = Ablated(alone, whole, nothing)
    return found
