"""What may be said of each variant: sentences, each with its scope and the table that it rests on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from circuitdiff.report.numbers import printed
from circuitdiff.report.parts import Part, Sentence, Table, anchor
from circuitdiff.study.registry import CommonResults, part_of
from circuitdiff.study.sections.verdict import SECTION, Verdict
from circuitdiff.study.verdict import REASONS_IN_TEXT, TRIED, Sensitivity

_CLAIMS = {
    "behaviour": "What happened to the behaviour?",
    "same_circuit": "Is the same circuit at work?",
    "beats_base": "Does the base's circuit do better in the variant?",
    "beats_own": "Is it better there than the variant's own?",
    "further_heads": "Do the variant's further heads help?",
    "stable_choice": "Would other prompts choose the same heads?",
    "beats_rival": "Does the circuit do more than a second one?",
    "same_function": "Does each group have the same function?",
    "improved_part": "Which part improved?",
    "cause_layers": "In which layers is its cause?",
    "visible_part": "Where is the gain visible?",
}
_LOOKS = {"yes": "yes", "no": "no", "better": "yes", "kept": "yes", "worse": "no", "lost": "no"}
_ABLATIONS = {"slot": "mean by slot", "kind": "mean by kind, heads at every segment"}
_SCORES = {"accuracy": "accuracy", "logit_difference": "logit difference"}
_FAITHFUL = {
    "base_own": "normalised faithfulness: the base's circuit in the base",
    "variant_own": "normalised faithfulness: the variant's circuit in the variant",
    "transfer": "normalised faithfulness: the base's circuit less the variant's own, in the variant",
    "transfer_where_only_variant_right": "normalised faithfulness: the same where only the variant is right",
}
_DIFFERENCES = {
    "over_base": "the base's circuit in the variant, less the whole base",
    "over_own": "the base's circuit in the variant, less the variant's own",
    "reverse": "the variant's circuit in the base, less the whole base",
    "extras_add": "both circuits together in the variant, less the base's",
    "extras_alone": "the variant's further heads alone, less no heads at all",
    "faithful": "normalised faithfulness: the base's circuit in the variant",
}
_THRESHOLDS = {
    "scenarios": "least held-out scenarios",
    "faithful": "least normalised faithfulness",
    "too_faithful": "greatest normalised faithfulness",
    "accuracy": "margin of accuracy",
    "faithfulness": "margin of normalised faithfulness",
    "alike": "least likeness of effects",
    "stable": "least Jaccard index with resampled choices",
    "gap": "margin of a circuit's gap",
    "share": "least share of the gain",
    "nothing": "share of the gain that is near 0",
}


def view(results: CommonResults) -> Part:
    verdicts = part_of(results, SECTION)
    parts = [Part(variant, sentences=_sentences(variant, each), items=True) for variant, each in verdicts.items()]
    note = "What each word means, and why it is held against which number: docs/verdict.md."
    return Part("Verdict", note, parts=parts)


def _sentences(variant: str, verdict: Verdict) -> list[Sentence]:
    """One per claim; all models have one table of accuracies."""
    return [
        Sentence(
            each.text,
            look=_LOOKS.get(each.answer, "not-established"),
            asks=_CLAIMS[each.claim],
            link=anchor(each.rests_on, "" if each.rests_on == "accuracy" else variant),
            scope="; ".join([each.scope, *map(in_words, each.sensitivity)]),
            reasons=each.reasons if len(each.reasons) > REASONS_IN_TEXT else (),
        )
        for each in verdict.sentences
    ]


def in_words(sensitivity: Sensitivity) -> str:
    name = _THRESHOLDS[sensitivity.threshold]
    if (sensitivity.low, sensitivity.high) == (TRIED[0], TRIED[-1]):
        return f"the same answer for any {name}"
    return f"the same answer for a {name} of {sensitivity.low:g} to {sensitivity.high:g}"


def evidence(results: CommonResults) -> Part:
    """The numbers that no other section has, for the sentences' links."""
    verdicts, tables = part_of(results, SECTION), []
    for variant, verdict in verdicts.items():
        ids = [anchor("circuits", variant)]
        tables.append(Table(f"Circuits alone, base and {variant}", list(_alone(verdict)), ids=ids))
        tables += [_parts(name, variant, verdict) for name in verdict.parts]
    for verdict in list(verdicts.values())[:1]:
        rows = [
            {"threshold": words, "value": f"{asdict(verdict.thresholds)[name]:g}"}
            for name, words in _THRESHOLDS.items()
        ]
        tables.append(Table("Held against", rows, numeric=("value",)))
    return Part(
        "The numbers behind the verdict",
        "Normalised faithfulness: 0 is no better than ablating every head, 1 is the model.",
        tables=tables,
    )


def _alone(verdict: Verdict) -> Iterator[dict]:
    """A row for each number on circuits alone that was measured."""
    faithful = [(each, _SCORES[each.score], _FAITHFUL) for each in verdict.circuits]
    differences = [(each, "accuracy", _DIFFERENCES) for each in verdict.transfers]
    for circuits, score, numbers in [*faithful, *differences]:
        for name, what in numbers.items():
            if (estimate := getattr(circuits, name)) is not None:
                row = {"ablation": _ABLATIONS[circuits.by], "score": score, "number": what}
                yield row | {"value (95 % interval)": printed(estimate), "": getattr(estimate, "note", None) or ""}


def _parts(name: str, variant: str, verdict: Verdict) -> Table:
    """What is established of each part of a division."""
    asked = {"sufficient": "sufficient", "necessary": "necessary", "sole": "the sole one", "improved": "improved"}
    rows = [asdict(each) | {"note": "; ".join(each.reasons)} for each in verdict.parts[name]]
    title = f"Parts of {variant}" + (", by layers" if name == "layers" else "")
    return Table(title, rows, {"part": "part", **asked, "numbers": "of the gain", "note": ""})
