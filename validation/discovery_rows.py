"""Claims about which heads are found: by discovery, also where nothing changed, by attribution and by minimality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.circuit import Circuit, Group, Head, overlap
from circuitdiff.evaluation import Replacement, evaluate_model, evaluate_without, mean_activations
from circuitdiff.methods.attribution import attribution_scores
from circuitdiff.methods.discovery import Plan, StageResult, circuit_of
from circuitdiff.methods.minimality import HeadCost, MinimalityResult, MinimalityRule, minimality
from circuitdiff.stats.intervals import mean_interval
from circuitdiff.stats.selection import lowest
from validation.subjects import (
    MINIMUM,
    NAME_BINDERS,
    PLAN,
    Number,
    Row,
    Subject,
    at_least,
    at_most,
    exactly,
    run_plan,
)


def discovery_rows(subject: Subject, results: Sequence[StageResult]) -> list[Row]:
    """Precision and recall of each group; no head where none is planted."""
    found = circuit_of(results, PLAN.shared_heads)
    rows = []
    for stage in PLAN.stages:
        result = next((result for result in results if result.stage == stage), None)
        planted = _heads(subject.truth.circuit, stage.name)
        rows += _group_rows(subject, stage.name, _heads(found, stage.name), planted, result)
    hurting, negative = results[0].selection.hurting, subject.truth.negative
    rows += [*_binder_rows(subject), *_group_rows(subject, "negative", hurting, negative, results[0])]
    return [*rows, *_backup_rows(subject, found)]


def _group_rows(
    subject: Subject, group: str, found: Sequence[Head], planted: Sequence[Head], result: StageResult | None
) -> list[Row]:
    name, shared = subject.model.name, overlap(found, planted)
    if not planted:
        return [exactly(name, f"{group}: heads found", len(found), 0, _names(found), "none is planted")]
    if result is None:
        nothing = "the plan did not come this far: a stage before chose no heads"
        return [exactly(name, f"{group}: {what}", 0, 1, nothing) for what in ("precision", "recall")]
    more = [f"{_part(subject, head)} {_numbers(head, result)}" for head in sorted(set(found) - set(planted))]
    missing = [_numbers(head, result) for head in sorted(set(planted) - set(found))]
    precision, why = (shared.precision, _listed("too many", more)) if found else (0, "no head was chosen")
    return [
        exactly(name, f"{group}: precision", precision, 1, why),
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
    return _group_rows(subject, NAME_BINDERS.name, found, planted, result)


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
    return f"{head} (effect {result.reported.effects[place]:+.3f}, adjusted p {chosen.adjusted_p[place]:.2g}{again})"


def _part(subject: Subject, head: Head) -> str:
    return next((part for part, heads in subject.truth.parts.items() if head in heads), "decoy")


def _heads(circuit: Circuit, group: str) -> tuple[Head, ...]:
    return circuit.groups.get(group, Group("", ())).heads


def _names(heads: Iterable[Head]) -> str:
    return " ".join(map(str, heads))


NULLS = ("planted-permuted-heads", "planted-rotated-values")
_NOISE = 1e-3  # logits, between two float32 computations of the same effect


def null_rows(base: Subject, found: Sequence[StageResult], null: Subject, again: Sequence[StageResult]) -> list[Row]:
    """The null's answers, heads and effects are the base's, with the heads at their new places."""
    name, pairs = null.model.name, base.prompts["evaluation"]
    first, second = (evaluate_model(subject.model, pairs) for subject in (base, null))
    changed = int((first.predictions != second.predictions).sum())
    place = _places(base, null)
    other = [one.stage.name for one, two in zip(found, again, strict=True) if not _same_heads(one, two, place)]
    largest = max(_largest_change(one, two) for one, two in zip(found, again, strict=True))
    return [
        exactly(name, "null: answers that differ from the base's", changed, 0, f"of {len(pairs)} prompts"),
        exactly(name, "null: stages with other heads than the base's", len(other), 0, ", ".join(other)),
        at_most(name, "null: largest change of an effect", largest, _NOISE, "logits; all heads, all stages"),
    ]


def _places(base: Subject, null: Subject) -> Mapping[Head, Head]:
    """Where each head that plays a part is in the null."""
    parts = ((heads, null.truth.parts[part]) for part, heads in base.truth.parts.items())
    return {here: there for heads, moved in parts for here, there in zip(heads, moved, strict=True)}


def _same_heads(found: StageResult, again: StageResult, place: Mapping[Head, Head]) -> bool:
    """The same heads in the same order; of decoys, whose new places are not recorded, the layers."""

    def key(head: Head) -> Head | int:
        return place.get(head, head.layer)

    known = set(place.values())

    def own(head: Head) -> Head | int:
        return head if head in known else head.layer

    one, two = found.selection, again.selection
    helping = list(map(key, one.helping)) == list(map(own, two.helping))
    return helping and list(map(key, one.hurting)) == list(map(own, two.hurting))


def _largest_change(found: StageResult, again: StageResult) -> float:
    """Of the mean effects, sorted within each layer, so that heads which changed places meet again."""
    one, two = (result.found.effects.sort(dim=1).values for result in (found, again))
    return float((one - two).abs().max())


@dataclass(frozen=True)
class Comparison:
    """Both methods at one role of one model. Precision: the share of the chosen heads that are planted there."""

    model: str
    role: str
    planted: int  # heads of the plan's groups at this role, and the k of the top-k
    attribution: Number
    discovery: Number  # nan where it found nothing
    discovery_recall: Number


def compare_with_attribution(subject: Subject, results: Sequence[StageResult]) -> list[Comparison]:
    """At each role where the plan's groups have heads: the k lowest scores on the prompts of both splits' first."""
    found, name = circuit_of(results, PLAN.shared_heads), subject.model.name
    planted = {
        role: truth for role in dict.fromkeys(stage.at for stage in PLAN.stages) if (truth := _at(subject, role))
    }
    scores = attribution_scores(subject.model, subject.prompts["discovery"], list(planted))
    rows = []
    for role, truth in planted.items():
        top = overlap(lowest(scores[role].mean(-1), len(truth)), truth)
        ours = overlap(found.heads_at(role), truth)
        rows.append(Comparison(name, role, len(truth), top.precision, ours.precision, ours.recall))
    return rows


def _at(subject: Subject, role: str) -> set[Head]:
    """The heads of the plan's groups at a role."""
    groups = subject.truth.circuit.groups
    return {
        head for stage in PLAN.stages if stage.at == role and stage.name in groups for head in groups[stage.name].heads
    }


N_DECOYS = 6  # put into the circuit, spread over its groups
# Of the answer's probability; less is no need. The point of Prakash et al. 2024: decoys write a little everywhere.
MINIMALITY_RULE = MinimalityRule(threshold=0.01)


def minimality_rows(subject: Subject) -> list[Row]:
    """The planted circuit and some decoys, all else at its mean by kind: a mean by slot does what the readers do."""
    means = mean_activations(subject.model, subject.prompts["mask"], "kind")
    decoys = drawn_decoys(subject)
    found = minimality(
        subject.model, with_decoys(subject, decoys), subject.prompts["evaluation"], means, MINIMALITY_RULE
    )
    return judged(subject, decoys, found)


def drawn_decoys(subject: Subject, n_decoys: int = N_DECOYS) -> list[Head]:
    """Some decoys, no head twice, always the same for a model."""
    pool, g = sorted(subject.decoys), torch.Generator().manual_seed(0)
    return [pool[i] for i in torch.randperm(len(pool), generator=g)[:n_decoys].tolist()]


def with_decoys(subject: Subject, decoys: Sequence[Head]) -> Circuit:
    """The planted circuit, each group with its share of the decoys at its end."""
    groups = subject.truth.circuit.groups
    more = {name: tuple(decoys[i :: len(groups)]) for i, name in enumerate(groups)}
    return Circuit({name: Group(group.at, group.heads + more[name]) for name, group in groups.items()})


def judged(subject: Subject, decoys: Sequence[Head], found: MinimalityResult) -> list[Row]:
    """How many decoys are needed, or open; and planted heads that are not needed, or open."""
    name = subject.model.name
    costs = [(group, cost) for group, each in found.groups.items() for cost in each.costs]
    kinds = {"decoys": ("needed", "open"), "planted heads": ("not_needed", "open")}
    rows = []
    for kind, unexpected in kinds.items():
        of_kind = [(group, cost) for group, cost in costs if (cost.head in decoys) == (kind == "decoys")]
        for outcome in unexpected:
            named = [_named(group, cost) for group, cost in of_kind if cost.outcome == outcome]
            what = f"minimality: {kind} that are {outcome.replace('_', ' ')}"
            rows.append(exactly(name, what, len(named), 0, _of_all(len(of_kind), named)))
    return rows


def _of_all(n_heads: int, heads: Sequence[str]) -> str:
    return "; ".join([f"of {n_heads}", *heads])


def _named(group: str, cost: HeadCost) -> str:
    low, high = (float(bound) for bound in (cost.cost.low, cost.cost.high))
    return f"{group} {cost.head} (cost {float(cost.cost.value):+.3f}, {low:+.3f} to {high:+.3f})"
