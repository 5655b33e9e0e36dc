"""What all studies have in their results, beside the parts of the sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from circuitdiff.config.validation import Strict
from circuitdiff.models.checks import Check
from circuitdiff.prompts import Pairs
from circuitdiff.readable import Readable
from circuitdiff.tasks.task import describe_pair

SCHEMA_VERSION = 2  # 1, without a number, had other names


@dataclass(frozen=True, repr=False)
class StudyHeader(Readable):
    name: str
    task: str
    seed: int
    settings: dict[str, Any]


@dataclass(frozen=True, repr=False)
class ModelResult(Readable):
    """Which model it was; `adapters` were merged in, in order. `chat`: the chat template before its prompts."""

    source: str
    adapters: tuple[str, ...]
    chat: str
    fingerprint: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int


@dataclass(frozen=True, repr=False)
class Example(Readable):
    """One pair as text; roles are positions among its tokens, -1 where there is none."""

    tokens: tuple[str, ...]
    roles: dict[str, int]
    answer: str | None
    counterfactual_tokens: tuple[str, ...]
    counterfactual_roles: dict[str, int]


class CommonResults(Readable, Strict):
    """`registry.Results` adds a part for each section; one that did not run is None."""

    schema_version: Literal[2]
    study: StudyHeader
    versions: dict[str, str]
    warnings: tuple[str, ...]
    checks: tuple[Check, ...]
    models: dict[str, ModelResult]
    example: Example


def example_of(pairs: Pairs, tokenizer: Any) -> Example:
    """The first pair."""
    described = describe_pair(pairs, 0, tokenizer)
    return Example(
        tokens=tuple(described.clean.tokens),
        roles={role: int(at[0]) for role, at in pairs.positions.items()},
        answer=described.answer,
        counterfactual_tokens=tuple(described.counterfactual.tokens),
        counterfactual_roles={role: int(at[0]) for role, at in pairs.counterfactual_positions.items()},
    )
