"""What all studies have in their results, beside the parts of the sections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from circuitdiff.config.validation import Strict
from circuitdiff.models.checks import Check
from circuitdiff.prompts import Pairs
from circuitdiff.readable import ByName, Readable, data_frame
from circuitdiff.study.estimates import Estimate, Number
from circuitdiff.tasks.task import describe_pair

SCHEMA_VERSION = 3  # 2 had no faithfulness of the base's circuit in a variant; 1, without a number, had other names


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

    schema_version: Literal[3]
    study: StudyHeader
    versions: Annotated[dict[str, str], AfterValidator(ByName.of)]
    warnings: tuple[str, ...]
    checks: tuple[Check, ...]
    models: Annotated[dict[str, ModelResult], AfterValidator(ByName.of)]
    example: Example

    def to_pandas(self) -> Any:
        """A row for each number with an interval, by where it stands. Raises: InputError if there is no pandas."""
        return data_frame("where value low high", _estimates(dict(self), ()))


def _estimates(data: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Number, Number, Number]]:
    if isinstance(data, Estimate):
        yield ".".join(path), data.value, data.low, data.high
    elif is_dataclass(data):
        data = vars(data)
    items = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, tuple) else ()
    for name, each in items:
        yield from _estimates(each, (*path, str(name)))


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
