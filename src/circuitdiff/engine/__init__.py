"""Edits and the two executors that carry them out."""

from circuitdiff.engine.attention import IMPLEMENTATION
from circuitdiff.engine.edits import Edit, Knockout, MlpEdit, ResidualEdit, Site
from circuitdiff.engine.executor import Ablation, Batch, Executor
from circuitdiff.engine.full import FullExecutor
from circuitdiff.engine.model import Model
from circuitdiff.engine.window import WindowExecutor
from circuitdiff.errors import InputError

__all__ = [
    "IMPLEMENTATION",
    "Ablation",
    "Batch",
    "Edit",
    "Executor",
    "Knockout",
    "MlpEdit",
    "Model",
    "ResidualEdit",
    "Site",
    "executor_named",
]


def executor_named(name: str) -> Executor:
    """The executor called "window" (the default everywhere) or "full" (the oracle)."""
    executors = {"window": WindowExecutor, "full": FullExecutor}
    if name not in executors:
        raise InputError(f"executor must be 'window' or 'full'; got {name!r}")
    return executors[name]()
