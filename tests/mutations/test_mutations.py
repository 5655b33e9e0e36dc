"""Whatever is done to a file that a user gives, it is accepted or refused in one line: no traceback, no hang."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import extract_tb

import pytest

from circuitdiff.errors import InputError
from helpers.inputs import Input, model_inputs, text_inputs
from helpers.mutate import Mutant, mutants

TEXTS = (
    "study",
    "circuit",
    "triples",
    "template",
    "wordings",
    "rows",
    "cells",
    "columns",
    "examples",
    "recipe",
    "tables",
    "diff",
    "report",
)
MODELS = ("config.json", "tokenizer.json", "tokenizer_config.json", "adapter_config.json", "adapter_model.safetensors")
SLOW_ONES = ("report", "study", *MODELS)  # a tenth of a second or more each
MOST_SECONDS = 20  # of CPU
LONGEST = 600  # letters of a message
SEED = int(os.environ.get("MUTATIONS_SEED", "0"))
N_SLOW = int(os.environ.get("MUTATIONS", "2000"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield text_inputs(tmp_path_factory.mktemp("texts"), patch) | model_inputs(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", [*TEXTS, *MODELS])
def test_a_damaged_file_is_accepted_or_refused_in_one_line(inputs, name):
    check(name, inputs[name], 10 if name in SLOW_ONES else 40)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TEXTS, *MODELS])
def test_two_thousand_damaged_files_are_accepted_or_refused_in_one_line(inputs, name):
    check(name, inputs[name], N_SLOW)


def check(name: str, given: Input, n: int) -> None:
    """Says how many were accepted and refused; fails with each kind of failure, in its smallest mutant."""
    good = given.path.read_bytes()
    given.use()  # the undamaged one is accepted
    counts, failures = Counter[str](), dict[str, str]()
    try:
        for mutant in mutants(good, n, SEED, given.read, given.lines):
            outcome = outcome_of(given, mutant)
            counts[outcome if outcome in ("accepted", "refused") else "failed"] += 1
            if outcome not in ("accepted", "refused"):
                shortest = failures.get(outcome, "")
                described = f"{'; '.join(mutant.steps)}"
                failures[outcome] = min(shortest or described, described, key=len)
    finally:
        given.path.write_bytes(good)
    sys.stderr.write(f"{name}: {dict(counts)}\n")
    assert not failures, "\n".join(f"{name}: {outcome} <- {steps}" for outcome, steps in failures.items())


def outcome_of(given: Input, mutant: Mutant) -> str:
    """accepted, refused, or what went wrong and where."""
    given.path.write_bytes(mutant.content)
    try:
        with at_most(MOST_SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given.use()
    except InputError as error:
        one_line = str(error).isprintable() and len(str(error)) <= LONGEST
        return "refused" if one_line else f"not one line: {str(error)[:80]!r}"
    except TooLongError:
        return f"more than {MOST_SECONDS} s of CPU"
    except Exception as error:  # whatever it is: to be told apart by kind and place
        ours = [frame for frame in extract_tb(error.__traceback__) if "circuitdiff/" in frame.filename]
        place = f"{ours[-1].filename.rpartition('circuitdiff/')[2]}:{ours[-1].name}" if ours else "?"
        return f"{type(error).__name__} in {place} ({' '.join(str(error).split())[:60]!a})"
    return "accepted"


class TooLongError(BaseException):
    """Not to be caught on the way."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Of this process's CPU."""

    def stop(*_: object) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
