"""What may be said of each variant: sentences, each with its scope and the table that it rests on."""

from __future__ import annotations

from collections.abc import Iterator

from circuitdiff.report.numbers import printed
from circuitdiff.report.parts import Part, Sentence, Table, anchor
from circuitdiff.study.evidence import Thresholds
from circuitdiff.study.registry import CommonResults, part_of
from circuitdiff.study.sections.verdict import SECTION, Verdict

_CLAIMS = {
    "better": "Is it better?",
    "same_circuit": "Is the same circuit at work?",
    "same_function": "Does each group have the same function?",
    "improved_part": "Which part improved?",
    "cause_layers": "In which layers is its cause?",
    "visible_part": "Where is the gain visible?",
}
_ABLATIONS = {"slot": "mean by slot", "kind": "mean by kind, heads at every segment"}
_NUMBERS = {
    "base_own": "the base's circuit in the base",
    "variant_own": "the variant's circuit in the variant",
    "transfer": "the base's circuit less the variant's own, in the variant",
    "transfer_where_only_variant_right": "the same where only the variant is right",
}


def view(results: CommonResults) -> Part:
    verdicts = part_of(results, SECTION)
    limits = next((_thresholds(verdict.thresholds) for verdict in verdicts.values()), "")
    parts = [Part(variant, sentences=_sentences(variant, each), items=True) for variant, each in verdicts.items()]
    return Part("Verdict", limits, parts=parts)


def _sentences(variant: str, verdict: Verdict) -> list[Sentence]:
    """One per claim; all models have one table of accuracies."""
    return [
        Sentence(
            each.text,
            look=each.answer.replace(" ", "-"),
            asks=_CLAIMS[each.claim],
            link=anchor(each.rests_on, "" if each.rests_on == "accuracy" else variant),
            scope=each.scope,
        )
        for each in verdict.sentences
    ]


def _thresholds(limits: Thresholds) -> str:
    return (
        f"Held against at least {limits.scenarios} held-out scenarios, normalised faithfulness of at least "
        f"{limits.faithful:g}, and at most {limits.too_faithful:g}, a margin of {limits.margin:g} for what counts as "
        f"equal, {limits.share:g} of the gain for a part that improved."
    )


def evidence(results: CommonResults) -> Part:
    """The numbers that no other section has, for the sentences' links."""
    columns = {"ablation": "ablation", "what": "number", "printed": "value (95 % interval)", "note": ""}
    tables = [
        Table(f"Own circuits, base and {variant}", columns, list(_rows(verdict)), [anchor("circuits", variant)])
        for variant, verdict in part_of(results, SECTION).items()
    ]
    return Part(
        "The numbers behind the verdict on circuits",
        "Normalised faithfulness: 0 is no better than ablating every head, 1 is the model.",
        tables=tables,
    )


def _rows(verdict: Verdict) -> Iterator[dict]:
    for by, circuits in verdict.circuits.items():
        for name, what in _NUMBERS.items():
            estimate = getattr(circuits, name)
            note = "" if estimate is None else estimate.note or ""
            yield {"ablation": _ABLATIONS[by], "what": what, "printed": printed(estimate), "note": note}
