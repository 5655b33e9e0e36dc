"""What transformers, tokenizers and PEFT print and raise while they read a model, made ours."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr

import torch
from transformers.utils import logging

from circuitdiff.errors import InputError

_LONGEST = 300  # letters of a library's message that are shown


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines, bars or warnings of the libraries: what matters in them is an error here."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():  # the GGUF reader's bar cannot be switched off
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def library_errors(refusal: Callable[[str], str]) -> Iterator[None]:
    """While a library reads a user's files, whatever it raises is bad input: `refusal` of its message says so.

    A damaged or strange file can make these libraries raise any exception, from KeyError to pickle's own.

    Raises: InputError.
    """
    try:
        yield
    except InputError:
        raise
    except torch.OutOfMemoryError as error:
        raise InputError(refusal("it does not fit into memory: use a 16-bit dtype or a larger device")) from error
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise InputError(refusal(said[:_LONGEST])) from error


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first few names in order, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more
