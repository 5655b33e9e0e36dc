"""Claims about discovery: every planted group exactly, and negative and backup heads as what they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jaxtyping import Float
from torch import Tensor

from circuitdiff.circuit import Circuit, Group
from circuitdiff.compare import overlap
from circuitdiff.discovery import Plan, StageResult, circuit_of
from circuitdiff.evaluation import Replacement, evaluate_without, mean_activations
from circuitdiff.ground_truth.rows import Row, at_least, at_most, exactly
from circuitdiff.ground_truth.subjects import MINIMUM, NAME_BINDERS, PLAN, Subject, run_plan
from circuitdiff.heads import Head
from circuitdiff.statistics import mean_interval


def discovery_rows(subject: Subject, results: Sequence[StageResult]) -> list[Row]:
    """Precision and recall of each group; no head where none is planted."""
    found = circuit_of(results, PLAN.shared)
    rows = []
    for stage in PLAN.stages:
        result = next((result for result in results if result.stage == stage), None)
        rows += _group_rows(subject, stage.name, _heads(found, stage.name), result)
    return [*rows, *_binder_rows(subject), *_negative_rows(subject, results), *_backup_rows(subject, found)]


def _group_rows(subject: Subject, group: str, found: Sequence[Head], result: StageResult | None) -> list[Row]:
    name, planted = subject.model.name, _heads(subject.truth.circuit, group)
    if not planted:
        return [exactly(name, f"{group}: heads found", len(found), 0, _names(found), "none is planted")]
    return _precision_and_recall(subject, group, found, planted, result)


def _precision_and_recall(
    subject: Subject, group: str, found: Sequence[Head], planted: Sequence[Head], result: StageResult | None
) -> list[Row]:
    name, shared = subject.model.name, overlap(found, planted)
    if result is None:
        nothing = "the plan did not come this far: a stage before chose no heads"
        return [exactly(name, f"{group}: {what}", 0, 1, nothing) for what in ("precision", "recall")]
    more = [f"{_part(subject, head)} {_numbers(head, result)}" for head in sorted(set(found) - set(planted))]
    missing = [_numbers(head, result) for head in sorted(set(planted) - set(found))]
    return [
        exactly(
            name,
            f"{group}: precision",
            shared.precision if found else 0,
            1,
            _listed("too many", more) if found else "no head was chosen",
        ),
        exactly(name, f"{group}: recall", shared.recall, 1, _listed("missing", missing)),
    ]


def _binder_rows(subject: Subject) -> list[Row]:
    """The lexical route's first group: out of the paper's plan's reach, not out of the method's."""
    planted = _heads(subject.truth.circuit, NAME_BINDERS.name)
    if not planted:
        return []
    longer = Plan((PLAN.stages[0], NAME_BINDERS))
    result = next((result for result in run_plan(subject, longer) if result.stage == NAME_BINDERS), None)
    found = () if result is None else result.selection.helping
    return _group_rows(subject, NAME_BINDERS.name, found, result)


def _negative_rows(subject: Subject, results: Sequence[StageResult]) -> list[Row]:
    name, direct = subject.model.name, results[0]
    negative, hurting = subject.truth.negative, direct.selection.hurting
    if not negative:
        return [exactly(name, "negative: heads found", len(hurting), 0, _names(hurting), "none is planted")]
    return _precision_and_recall(subject, "negative", hurting, negative, direct)


def _backup_rows(subject: Subject, found: Circuit) -> list[Row]:
    """A backup is not in the circuit: it adds nothing while the fetchers write, and much while they are silent."""
    backup, name = subject.truth.backup, subject.model.name
    if not backup:
        return []
    inside = sum(len(set(backup) & set(group.heads)) for group in found.groups.values())
    fetchers = subject.truth.circuit.groups["value_fetcher"].heads
    means = mean_activations(subject.model, subject.prompts["mask"])
    idle = {
        "in the whole model": _added(subject, backup, (), means),
        "behind fetchers that write other names": _added(subject, backup, fetchers, "resample"),
    }
    acting = {
        "behind fetchers at their mean": _added(subject, backup, fetchers, means),
        "behind fetchers that write nothing": _added(subject, backup, fetchers, "zero"),
    }
    return [
        exactly(name, "backup: in the found circuit", inside, 0, _names(backup)),
        *(
            at_most(name, f"backup: effect {where}", float(added.mean().abs()), MINIMUM, _spread(added, subject))
            for where, added in idle.items()
        ),
        *(
            at_least(name, f"backup: effect {where}", float(added.mean()), MINIMUM, _spread(added, subject))
            for where, added in acting.items()
        ),
    ]


def _added(
    subject: Subject, heads: Sequence[Head], removed: Sequence[Head], by: Replacement
) -> Float[Tensor, " prompt"]:
    """The logit difference that the heads at the last token add to a model in which those `removed` are ablated."""
    gone = [Circuit({"removed": Group("last", tuple(each))}) for each in (removed, (*removed, *heads))]
    before, after = evaluate_without(subject.model, gone, subject.prompts["evaluation"], by)
    return before.logit_differences - after.logit_differences


def _spread(values: Float[Tensor, " prompt"], subject: Subject) -> str:
    bounds = mean_interval(values.numpy(), subject.prompts["evaluation"].scenarios.numpy())
    return (
        f"logits: {bounds.value:+.2f}, interval {bounds.low:+.2f} to {bounds.high:+.2f}, median {values.median():+.2f}"
    )


def _listed(what: str, heads: Sequence[str]) -> str:
    return f"{what}: {'; '.join(heads)}" if heads else ""


def _numbers(head: Head, result: StageResult) -> str:
    chosen, place = result.selection, (head.layer, head.index)
    again = "" if chosen.replication_p is None else f", replication p {chosen.replication_p[place]:.2g}"
    return f"{head} (effect {chosen.effects[place]:+.3f}, adjusted p {chosen.adjusted_p[place]:.2g}{again})"


def _part(subject: Subject, head: Head) -> str:
    return next((part for part, heads in subject.truth.parts.items() if head in heads), "decoy")


def _heads(circuit: Circuit, group: str) -> tuple[Head, ...]:
    return circuit.groups.get(group, Group("", ())).heads


def _names(heads: Iterable[Head]) -> str:
    return " ".join(map(str, heads))
