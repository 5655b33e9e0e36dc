"""The page's parts beyond discovery and faithfulness: for each a heading, sentences, figures and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from circuitdiff.report.ablations import ablation_rows, ablations_figures
from circuitdiff.report.accuracy import error_kinds, error_rows
from circuitdiff.report.completeness import (
    completeness_caption,
    completeness_figures,
    completeness_sentence,
    part_rows,
)
from circuitdiff.report.cross_model import gain_figures, gain_sentence, measured, variants
from circuitdiff.report.functions import function_sentences, function_tables, functions_figures
from circuitdiff.report.gains import gain_tables
from circuitdiff.report.knockout import knockout_caption, knockout_figures, knockout_sentences, knockout_table_rows
from circuitdiff.report.look import Figure
from circuitdiff.report.minimality import minimality_figures, minimality_sentence
from circuitdiff.report.numbers import interval, number
from circuitdiff.report.overlap import (
    curve_rows,
    edge_rows,
    group_rows,
    matrix_rows,
    moved_rows,
    overlap_figures,
    overlap_sentence,
    profile_rows,
    stage_rows,
)
from circuitdiff.report.series import series_figures, series_of, series_rows
from circuitdiff.report.table import Table
from circuitdiff.report.verdict import anchor


@dataclass(frozen=True)
class Part:
    """One heading of the page."""

    title: str
    note: str
    sentences: Sequence[str] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    tables: Sequence[Table] = ()

    @property
    def empty(self) -> bool:
        return not (self.sentences or self.figures or any(table.rows for table in self.tables))


def parts(results: dict) -> list[Part]:
    """The parts that `results` has numbers for, in the page's order."""
    every = [
        _series(results),
        _errors(results),
        _overlap(results),
        _gains(results),
        _functions(results),
        _minimality(results),
        _completeness(results),
        _ablations(results),
        _knockout(results),
        _evidence(results),
    ]
    return [part for part in every if not part.empty]


def _series(results: dict) -> Part:
    columns = {"step": "step", "model": "model", "measure": "", "printed": "value (95 % interval)"}
    return Part(
        "Over training",
        "Checkpoints of one training run.",
        figures=series_figures(results),
        tables=[Table(title, columns, series_rows(results, title)) for title in series_of(results)],
    )


def _errors(results: dict) -> Part:
    columns = {"what": "", "right": "right"} | {kind: kind for kind in error_kinds(results)}
    return Part(
        "What is answered instead?",
        "Shares of all evaluation prompts, by what was asked for: it, its neighbours in the list, another, or none.",
        tables=[Table("Answers of models and circuits", columns, error_rows(results))],
    )


def _overlap(results: dict) -> Part:
    tables = []
    columns = {"circuit": "circuit of", "model": "in model", "printed": "faithfulness", "normalised": "normalised"}
    columns |= {"accuracy": "circuit alone", "of_model": "whole model", "random": "random circuits", "note": ""}
    found = matrix_rows(results)
    if len({row["model"] for row in found}) > 1:
        tables.append(Table("Every circuit in every model", columns, found))
    overlaps = (results.get("overlap") or {}).items()
    for variant, entry in overlaps:
        tables += [table for table in _overlap_tables(variant, entry) if table.rows]
    return Part(
        "Is it the same circuit?",
        "Overlaps and correlations stand between chance and what one model repeats on other prompts. Negative effects "
        "help; a head gained helps more in the variant, on the same prompts, false discoveries controlled at 5 % in "
        "each stage. Where a stage's receivers differ between the models, so may the change be the receivers'.",
        [
            said
            for variant, entry in (results.get("overlap") or {}).items()
            if (said := overlap_sentence(variant, entry))
        ],
        overlap_figures(results),
        tables,
    )


def _overlap_tables(variant: str, entry: dict) -> list[Table]:
    pair = {"base": "base", "variant": variant}
    heads = {"group": "group"} | pair | {"common": "in common", "precision": "precision", "recall": "recall"}
    maps = {"stage": "stage", "receivers": "receivers", "between": "base and variant", "base": "base, retest"}
    maps |= {"variant": "variant, retest", "different": "another stage's map", "gained": "gained", "lost": "lost"}
    curves = {"stage": "stage", "share": "share", "k": "k", "between": "base and variant", "base": "base, retest"}
    curves |= {"variant": "variant, retest", "chance": "chance"}
    edges = {"edge": "from group to group", "via": "via"} | pair
    edges |= {"difference": "difference", "adjusted_p": "adjusted p"}
    profile = {"group": "the base's group", "role": "role"} | pair
    moved = {"base": "the base's group", "variant": f"{variant}'s own group"}
    on = f", on {entry['n_scenarios']} scenarios" if "n_scenarios" in entry else ""
    return [
        Table(f"Heads of the base's circuit and of {variant}'s", heads | {"jaccard": "Jaccard"}, group_rows(entry)),
        Table(f"Correlation of all heads' effects, base and {variant}", maps, stage_rows(entry)),
        Table(f"Heads in common among the k strongest, base and {variant}", curves, curve_rows(entry)),
        Table(f"Effects between the base's groups, base and {variant}{on}", edges, edge_rows(entry)),
        Table(f"Attention of the base's groups, by role attended to{on}", profile, profile_rows(entry, "attention")),
        Table(f"Effect of the base's groups, by role they are patched at{on}", profile, profile_rows(entry, "effect")),
        Table(
            f"Do other heads do the same? Cosine of profiles, the base's groups and the variant's own{on}",
            moved | {"attention": "attention", "effect": "effect"},
            moved_rows(entry),
        ),
    ]


def _gains(results: dict) -> Part:
    sentences, tables = [], []
    for variant in variants(results):
        sentences += [gain_sentence(variant, *each) for each in measured(results, variant)]
        tables += gain_tables(results, variant)
    return Part(
        "Which part got better?",
        "Patched activations show where a gain is visible, for they bring along what earlier parts of the donor did; "
        "grafted weights show what caused it.",
        sentences,
        gain_figures(results),
        tables,
    )


def _functions(results: dict) -> Part:
    return Part(
        "What each group encodes",
        "A mask chooses heads of a group whose activations, taken from a source prompt, turn the answer into the "
        "desideratum's target. Only accuracy above the floor counts. The trained floor is a mask trained and tested on "
        "shuffled targets.",
        function_sentences(results),
        functions_figures(results),
        function_tables(results),
    )


def _minimality(results: dict) -> Part:
    found = results.get("minimality") or {}
    return Part(
        "Does the circuit need every head?",
        "A head's cost is what the circuit loses without it, once the heads that stand in for it are gone. Everything "
        "outside the circuit is at its mean by slot: a head that writes only what any prompt has there costs nothing.",
        [minimality_sentence(circuit, entry) for circuit, entry in found.items()],
        minimality_figures(results),
    )


def _completeness(results: dict) -> Part:
    said = [
        completeness_sentence(circuit, model, entry)
        for circuit, models in (results.get("completeness") or {}).items()
        for model, entry in models.items()
    ]
    columns = {"removed": "removed", "n_removed": "heads", "model_printed": "the model without it"}
    columns |= {"circuit_printed": "the circuit without it", "difference": "difference", "absolute": "absolute"}
    tables = [
        Table(completeness_caption(circuit, model, entry), columns, part_rows(entry))
        for circuit, models in (results.get("completeness") or {}).items()
        for model, entry in models.items()
    ]
    return Part(
        "Is something missing from the circuit?",
        "The same heads are taken out of the circuit and out of the whole model.",
        [sentence for sentence in said if sentence],
        completeness_figures(results),
        tables,
    )


def _ablations(results: dict) -> Part:
    columns = {"ablation": "all else is", "quantity": "measured by", "circuit": "circuit", "model": "model"}
    columns |= {"ablated": "all ablated", "ratio": "ratio", "normalised": "normalised", "note": ""}
    tables = [
        Table(f"{circuit} in {model}", columns, ablation_rows(entry))
        for circuit, models in (results.get("ablations") or {}).items()
        for model, entry in models.items()
    ]
    return Part(
        "Faithfulness under other ablations",
        "What all heads outside the circuit are replaced with decides the result. Means of a kind of slot and zeros "
        "are the same in all segments: heads kept at the queried one alone mark it, and so the answer.",
        figures=ablations_figures(results),
        tables=tables,
    )


def _knockout(results: dict) -> Part:
    found = results.get("knockout") or {}
    columns = {"query": "role", "key": "does not see", "accuracy": "accuracy", "loss": "loss"}
    columns |= {"control": "accuracy, a random position blocked", "beyond": "loss beyond it", "answer": "flows"}
    return Part(
        "Where does information flow?",
        "Attention from one role to another is blocked, in all layers for the tables. The control blocks a random "
        "position that is neither the answer nor the query.",
        [sentence for model, entry in found.items() for sentence in knockout_sentences(model, entry)],
        knockout_figures(results),
        [Table(knockout_caption(model, entry), columns, knockout_table_rows(entry)) for model, entry in found.items()],
    )


def _evidence(results: dict) -> Part:
    """The numbers behind the verdict on circuits, for its links."""
    columns = {"ablation": "ablation", "what": "number", "printed": "value (95 % interval)", "note": ""}
    tables = [
        Table(f"Own circuits, base and {variant}", columns, list(_circuit_rows(entry)), [anchor("ablations", variant)])
        for variant, entry in (results.get("verdict") or {}).items()
    ]
    return Part(
        "The numbers behind the verdict on circuits",
        "Normalised faithfulness: 0 is no better than ablating every head, 1 is the model.",
        tables=tables,
    )


_NUMBERS = {
    "base_own": "the base's circuit in the base",
    "variant_own": "the variant's circuit in the variant",
    "transfer": "the base's circuit less the variant's own, in the variant",
    "transfer_where_only_variant_right": "the same where only the variant is right",
}


def _circuit_rows(entry: dict) -> Iterator[dict]:
    for ablation, found in ((entry.get("evidence") or {}).get("circuits") or {}).items():
        for key, said in _NUMBERS.items():
            estimate = found.get(key) or {}
            yield {
                "ablation": ablation,
                "what": said,
                "printed": f"{number(estimate.get('value'))} ({interval(estimate)})",
                "note": estimate.get("note") or "",
            }
