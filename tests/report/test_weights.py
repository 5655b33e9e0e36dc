"""What the page says and draws of two models' weights, on invented ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from circuitdiff.models.differences import ModelDifferences
from circuitdiff.models.weight_changes import MOST_RANK, Kind, WeightChange, summed
from circuitdiff.report import figures, report_page, weights
from helpers.invented_results import model, results_of, rows_with


def change(layer: int | None, kind: Kind, n_changed: int, relative: float | None, rank: int | None = 2) -> WeightChange:
    change, size = (1.0, 0.0) if relative is None else (2.0 * relative, 2.0)
    return WeightChange(layer, kind, 80, n_changed, change, size, relative, rank)


CHANGES = (
    change(None, "embeddings", 0, 0.0, 0),
    change(0, "q", 80, 0.5),
    change(0, "norms", 0, 0.0, None),
    change(0, "biases", 7, None, None),
    change(1, "q", 0, 0.0, 0),
    change(1, "mlp", 79, 0.003, MOST_RANK),
)


def found(changes: tuple[WeightChange, ...] = CHANGES, **different: Any) -> ModelDifferences:
    words: dict[str, Any] = {"settings": (), "tokenizer": (), "not_compared": ()} | different
    return ModelDifferences("base", "tuned", weights=changes, whole=summed(None, "all", changes), **words)


UNCHANGED = tuple(replace(each, n_changed=0, change=0.0, relative=0.0) for each in CHANGES)


def said(differences: ModelDifferences) -> str:
    return " ".join(weights.in_words(differences))


def test_the_sentence_counts_what_differs():
    assert said(found()) == (
        "tuned is not base: 166 of 480 weights differ (34.6 %), by 0.316 of the base's size. "
        "Architecture, settings and tokenizer are the same."
    )


def test_equal_weights_are_said_plainly():
    assert said(found(UNCHANGED)).startswith("tuned has base's weights: not one of 480 numbers differs.")
    assert "Tokenizer: it has no chat template." in said(found(UNCHANGED, tokenizer=("it has no chat template",)))


def test_what_was_not_compared_and_what_else_differs_is_named():
    words = said(
        found(
            UNCHANGED,
            settings=("hidden size 64, not 48", "rms norm eps 0.1, not 0.2"),
            tokenizer=("2 tokens more: '<a>', '<b>'",),
            not_compared=tuple(f"w{i}: 3, not 4" for i in range(5)),
        )
    )
    assert words.startswith("tuned is not base: 0 of 480 weights differ")
    assert "Not compared: w0: 3, not 4; w1: 3, not 4; w2: 3, not 4 and 2 more." in words
    assert "Architecture and settings: hidden size 64, not 48; rms norm eps 0.1, not 0.2." in words
    assert "Tokenizer: 2 tokens more: '<a>', '<b>'." in words
    assert "no weights that could be compared" in said(found((), not_compared=("w: 3, not 4",)))


def test_the_table_sums_the_layers_of_a_kind():
    table = weights.by_kind(found())
    rows = {row["weights"]: [row[column] for column in list(table.headings)[1:]] for row in table.rows}
    assert rows == {
        "embeddings": ["80", "0", "0 %", "0", "0", "–"],
        "q": ["160", "80", "50 %", "0.354", "2", "1 of 2"],
        "MLP": ["80", "79", "98.8 %", "0.003", "128 or more", "1 of 1"],
        "norms": ["80", "0", "0 %", "0", "–", "0 of 1"],
        "biases": ["80", "7", "8.75 %", "from 0", "–", "1 of 1"],
    }


def test_the_table_by_layer_has_every_kind_and_what_is_outside_last():
    table = weights.by_layer(found())
    assert [[row[column] for column in table.headings] for row in table.rows] == [
        ["0", "", "0.5", "", "0", "from 0"],
        ["1", "", "0", "0.003", "", ""],
        ["outside", "0", "", "", "", ""],
    ]


def test_the_heat_map_has_a_cell_for_every_kind_and_layer_and_white_is_unchanged():
    results = results_of(models={"base": model(), "tuned": model()}, weights={"tuned": found()})
    figure = figures(results)["weights/tuned"]
    rows = rows_with(figure, "layer", "kind", "value", "changed")
    assert [(row["layer"], row["kind"], row["value"], row["changed"]) for row in rows] == [
        ("0", "q", 0.5, True),
        ("0", "norms", 0.0, False),
        ("0", "biases", None, True),
        ("1", "q", 0.0, False),
        ("1", "MLP", 0.003, True),
        ("outside", "embeddings", 0.0, False),
    ]
    white, cells, struck = figure.to_dict()["layer"]
    assert white["mark"]["fill"] == "white"
    assert cells["encoding"]["color"]["scale"]["domain"] == [0, 0.5]
    assert cells["encoding"]["color"]["scale"]["range"][0] != "white"
    assert struck["mark"]["type"] == "point"


@pytest.mark.parametrize("changes", [(), UNCHANGED, CHANGES])
def test_the_page_begins_with_it_whatever_was_found(changes):
    results = results_of(models={"base": model(), "tuned": model()}, weights={"tuned": found(changes)})
    page = report_page(results)
    first = page[page.index("<section") :]
    assert first.index("Are they different models?") < 100
    assert ('data-figure="figure-1"' in page) == (changes is CHANGES), "a white map says no more than the sentence"
    assert "held against the SHA-256" in page
