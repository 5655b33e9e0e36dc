"""A circuit on its own, and a model without it: everything that is ablated held at what an ablation puts there."""

from circuitdiff.evaluation.answers import Evaluation, Quantity, evaluate_model
from circuitdiff.evaluation.circuits import Progress, check_circuit, check_groups, evaluate_circuit, evaluate_circuits
from circuitdiff.evaluation.constants import (
    By,
    Means,
    Replacement,
    Shared,
    SlotSums,
    check_replacement,
    mean_activations,
    slot_sums,
)
from circuitdiff.evaluation.edited import evaluate_without
from circuitdiff.evaluation.shapes import all_heads, minus, moved, random_circuit

__all__ = [
    "By",
    "Evaluation",
    "Means",
    "Progress",
    "Quantity",
    "Replacement",
    "Shared",
    "SlotSums",
    "all_heads",
    "check_circuit",
    "check_groups",
    "check_replacement",
    "evaluate_circuit",
    "evaluate_circuits",
    "evaluate_model",
    "evaluate_without",
    "mean_activations",
    "minus",
    "moved",
    "random_circuit",
    "slot_sums",
]
