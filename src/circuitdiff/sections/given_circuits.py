"""Circuits that the user hands in, beside those that are found."""

from __future__ import annotations

from typing import Any

from circuitdiff.circuit import Circuit
from circuitdiff.errors import InputError
from circuitdiff.evaluation import check_circuit
from circuitdiff.workbench import Workbench


def given_circuits(bench: Workbench) -> tuple[dict[str, Circuit], dict[str, Any]]:
    """The study's circuit files by name, and their entries; they count as found in the base.

    Raises: InputError naming the file if it is no circuit, has an empty group, or names a head that the base lacks or a
    role that the task lacks.
    """
    base, found = bench.subject(bench.base), {}
    for name, path in bench.settings.circuits.items():
        found[name] = Circuit.from_json(path)
        try:
            check_circuit(base.model, found[name], base.splits.evaluation)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    entries = {name: {"model": bench.base, **circuit.to_dict()} for name, circuit in found.items()}
    return found, {"circuits": entries}
