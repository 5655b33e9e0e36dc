"""How well each model does the task."""

from __future__ import annotations

from typing import Any

from circuitdiff import results as form
from circuitdiff.models.comparable import other_settings
from circuitdiff.study_checks import check_batching, check_same_shape
from circuitdiff.workbench import Workbench


def accuracy_section(bench: Workbench, name: str) -> dict[str, Any]:
    """The model's accuracy on the evaluation prompts, in all and by queried index, after checks 4 and 6.

    Raises: CheckError if batches disagree, or a variant has other shapes or tokens than the base.
    """
    subject = bench.subject(name)
    pairs = subject.splits.evaluation
    if name != bench.base:
        base = bench.subject(bench.base)
        bench.keep([check_same_shape(base.model, subject.model, base.splits.evaluation, pairs)])
        if other := other_settings(base.model, subject.model):
            bench.warn(f"{name} and {bench.base} differ in more than weights: {other}")
    bench.keep(check_batching(subject.model, pairs))
    answers = subject.stages.answers(pairs)
    for warning in form.warnings_about(name, answers):
        bench.warn(warning)
    return {"models": {name: form.accuracy_entry(answers, pairs)}}
