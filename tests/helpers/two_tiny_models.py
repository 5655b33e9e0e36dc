"""Two tiny models of one architecture with other weights: a donor and a recipient."""

from __future__ import annotations

import copy
import functools

from helpers.tiny_models import Subject, as_subject, randomise, subject


@functools.cache
def donor_of(architecture: str) -> Subject:
    """The architecture's tiny model with other weights; the recipient is `tiny_models.subject`."""
    module = copy.deepcopy(subject(architecture).model.module)
    randomise(module, seed=5)
    return as_subject(architecture, module)
