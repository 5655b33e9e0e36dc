"""Figures hold the numbers that they were given."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from circuitdiff.report import faithfulness, figures
from circuitdiff.study.estimates import GroupHeads
from circuitdiff.study.sections.accuracy import Accuracy, QueriedShare
from helpers.invented_results import (
    EXAMPLE,
    MODEL,
    OURS,
    PAPER,
    accuracy,
    around,
    cell,
    changed,
    data_of,
    results_of,
    rows_with,
)

FIRST = f"effects/{OURS}/1 value_fetcher"
CIRCUIT, RANDOM = f"circuit/{OURS}", f"random/{OURS}/{MODEL}"


def with_stages(results, *stages, groups=None):
    ours = results.discovery[OURS]
    found = replace(ours, stages=stages or ours.stages, groups=groups or ours.groups)
    return changed(results, accuracy=None, faithfulness=None, discovery={OURS: found})


def test_there_is_a_figure_for_every_section_that_has_numbers(drawn):
    assert list(drawn) == [
        "accuracy_by_queried",
        RANDOM,
        CIRCUIT,
        FIRST,
        f"effects/{OURS}/2 position_transmitter",
        f"effects/{OURS}/3 position_detector",
        f"effects/{OURS}/4 structure_reader",
        f"circuit/{PAPER}",
        f"effects/{PAPER}/1 value_fetcher",
    ]


def test_no_results_have_no_figures():
    assert figures(results_of()) == {}


def test_a_heat_map_has_every_effect_unrounded_at_its_own_head(drawn):
    rows = {row["head"]: row for row in rows_with(drawn[FIRST], "value", "status")}
    assert len(rows) == 15
    assert rows["4.0"]["value"] == 1 / 48
    assert rows["3.0"]["value"] == -1.25
    assert (rows["1.1"]["low"], rows["1.1"]["high"]) == (-0.3125, -0.1875)
    assert (rows["1.2"]["layer"], rows["1.2"]["index"]) == (1, 2)


def test_a_heat_map_tells_selected_hurting_unmeasured_and_noise_apart(drawn):
    rows = rows_with(drawn[FIRST], "value", "status")
    status = {row["head"]: row["status"] for row in rows}
    assert status["3.0"] == status["4.1"] == "selected: the head helps"
    assert status["4.2"] == "selected: the head hurts"
    assert status["1.0"] == status["2.1"] == "not measured"
    assert status["3.2"] == "within rounding errors"
    assert status["2.2"] == "not selected"


def test_effect_colours_are_symmetric_about_zero_and_blue_where_the_head_helps(drawn):
    spec = drawn[FIRST].to_dict()
    scales = [layer["encoding"]["color"]["scale"] for layer in spec["layer"] if "color" in layer["encoding"]]
    assert len(scales) == 1
    assert scales[0]["domain"] == [-1.25, 0, 1.25]
    blue, _, orange = (tuple(bytes.fromhex(colour[1:])) for colour in scales[0]["range"])
    assert blue[2] > blue[0]
    assert orange[0] > orange[2]


def test_a_stage_without_any_number_has_no_colour_scale(drawn):
    spec = drawn[f"effects/{PAPER}/1 value_fetcher"].to_dict()
    assert not any("color" in layer["encoding"] for layer in spec["layer"])


def test_two_stages_of_one_name_are_two_figures(results):
    stage = results.discovery[OURS].stages[0]
    assert sum(key.startswith("effects") for key in figures(with_stages(results, stage, stage))) == 2


def test_heads_stand_over_their_role_and_at_their_layer(drawn):
    figure = drawn[CIRCUIT]
    columns = rows_with(figure, "token", "left", "right")
    dots = rows_with(figure, "head", "group")
    assert {dot["head"] for dot in dots} == {"3.0", "4.1", "2.2", "1.1", "1.0", "0.2"}  # 4.0 has no place
    for dot in dots:
        column = next(column for column in columns if column["left"] < dot["x"] < column["right"])
        assert column["role"] == dot["role"]
        assert dot["y"] == int(dot["head"].partition(".")[0])
    assert len({(dot["x"], dot["y"]) for dot in dots}) == len(dots)


def test_a_group_without_a_place_in_the_prompt_is_named_as_not_drawn(drawn):
    subtitle = drawn[CIRCUIT].to_dict()["title"]["subtitle"]
    assert subtitle[-1] == "not drawn, having no head or no place in this prompt: backup"


def test_columns_carry_the_prompts_tokens_in_order(drawn):
    columns = rows_with(drawn[CIRCUIT], "token", "left", "right")
    assert [column["token"] for column in columns[:3]] == ["The", "apple", "is"]
    assert [column["token"] for column in columns[6:8]] == [",", "↵"]
    edges = [(column["left"], column["right"]) for column in columns]
    assert all(left[1] == pytest.approx(right[0]) for left, right in pairwise(edges))


def test_roles_that_no_group_uses_are_not_labelled(drawn):
    columns = rows_with(drawn[CIRCUIT], "token", "left", "right")
    assert {column["role"] for column in columns} == {"", "last", "query_label", "previous_query_label"}


def test_a_link_leads_from_senders_to_receivers(drawn):
    figure = drawn[CIRCUIT]
    dots, path = rows_with(figure, "head", "group"), rows_with(figure, "order")
    detector = [row for row in path if row["group"] == "position_detector"]
    assert (detector[0]["y"], detector[-1]["y"]) == (1, 2)
    transmitter = next(dot for dot in dots if dot["group"] == "position_transmitter")
    assert detector[-1]["x"] == transmitter["x"]
    output = [row for row in path if row["group"] == "value_fetcher"]
    assert (output[0]["y"], output[-1]["y"]) == (3.5, 5)  # from the mean of layers 3 and 4 to above layer 4
    assert {row["what"] for row in path} == {"to the output", "via q", "via v"}


def test_two_roles_at_one_token_keep_their_heads_apart(results):
    groups = results.discovery[OURS].groups | {"backup": GroupHeads("also_last", ((3, 2),))}
    example = replace(EXAMPLE, roles=EXAMPLE.roles | {"also_last": 11})
    results = changed(with_stages(results, groups=groups), example=example)
    dots = rows_with(figures(results)[CIRCUIT], "head", "group")
    assert len({(dot["x"], dot["y"]) for dot in dots}) == len(dots) == 7


def test_a_long_prompt_is_cut_to_the_tokens_near_its_roles(results):
    roles = {"last": 499, "query_label": 250, "previous_query_label": 100}
    example = replace(EXAMPLE, tokens=tuple(f"t{i}" for i in range(500)), roles=roles)
    columns = rows_with(figures(changed(with_stages(results), example=example))[CIRCUIT], "token", "left", "right")
    texts = [column["token"] for column in columns]
    assert texts[:6] == ["t0", "t1", "t2", "t3", "…", "t97"]
    assert texts[-5:] == ["…", "t496", "t497", "t498", "t499"]
    assert next(column["role"] for column in columns if column["token"] == "t250") == "query_label"


def test_random_circuits_stand_beside_the_real_one(drawn):
    figure = drawn[RANDOM]
    bars, rules = figure.to_dict()["datasets"].values()
    assert [row["accuracy"] for row in bars] == [i / 128 for i in range(100)]
    assert rules[0] == {"what": "this circuit: 0.656", "accuracy": 0.65625}
    assert [row["accuracy"] for row in rules] == [0.65625, 0.71875, 0.125, 0.6875]


def test_other_circuits_of_its_size_have_a_row_each_with_what_the_circuit_does_better(results):
    tables = faithfulness.view(results).tables
    (table,) = (table for table in tables if table.caption.startswith(f"{OURS} in {MODEL}: other circuits of its size"))
    assert [row["instead of the circuit"] for row in table.rows] == [
        "mean of 100 random circuits",
        "the heads that help next in each stage",
        "its heads at each other's roles",
    ]
    assert table.rows[0]["note"] == "the circuit: 0.656; 16 of 100 random circuits do as well, p = 0.168"
    assert (table.rows[1]["accuracy"][:5], table.rows[1]["accuracy of the circuit less this one's"]) == (
        "0.250",
        "0.400 (0.350 to 0.450)",
    )
    assert (table.rows[2]["accuracy"], table.rows[2]["note"]) == ("–", "all of its heads are at one role")


def test_accuracy_by_queried_item_keeps_a_gap_a_gap(drawn):
    rows = rows_with(drawn["accuracy_by_queried"], "queried")
    assert [(row["queried"], row["value"], row["low"], row["high"]) for row in rows] == [
        (0, 0.875, 0.7, 0.97),
        (1, 0.6, 0.4, 0.8),
        (2, None, None, None),
    ]


def test_a_models_own_circuit_stands_beside_it_by_queried_item(results):
    """A main circuit goes by its model's name; other circuits, and other models, are left out."""
    point = QueriedShare(0.5, 0.25, 0.75, 4, 8, 0)
    answers = Accuracy(accuracy(0.5).accuracy, around(1.0), (point,), ())
    alone = cell(0.5, circuit_answers=answers)
    given = results_of(
        accuracy=results.accuracy | {"tuned": answers},
        faithfulness={MODEL: {MODEL: alone, "tuned": alone}, "x": {MODEL: alone}},
    )
    figure = figures(given)["accuracy_by_queried"]
    rows = rows_with(figure, "queried")
    assert [(row["model"], row["what"], row["queried"]) for row in rows] == [
        (MODEL, "the whole model", 0),
        (MODEL, "the whole model", 1),
        (MODEL, "the whole model", 2),
        (MODEL, "its own circuit alone", 0),
        ("tuned", "the whole model", 0),
    ]
    assert (rows[3]["value"], rows[3]["low"], rows[3]["high"], rows[3]["hits"]) == (0.5, 0.25, 0.75, "4 / 8")
    offsets = figure.to_dict()["layer"][0]["encoding"]["xOffset"]["sort"]
    assert len(offsets) == len(set(offsets)) == 3


def test_specs_are_strict_json(drawn):
    for figure in drawn.values():
        assert data_of(figure) or figure.to_dict()["datasets"]


def test_a_model_of_eighty_layers_of_sixty_four_heads_is_drawn(results):
    values = ((0.5,) * 64,) * 80
    tables = dict.fromkeys(("effects", "low", "high", "adjusted_p"), values)
    stage = replace(results.discovery[OURS].stages[0], **tables)
    assert len(rows_with(figures(with_stages(results, stage))[FIRST], "value", "status")) == 80 * 64


def test_every_circuit_stands_in_every_model_where_there_is_more_than_one():
    cells = {MODEL: cell(0.75), "tuned": cell(None, note="the model scores 0")}
    rows = rows_with(figures(results_of(faithfulness={OURS: cells}))["matrix"], "circuit", "model")
    assert [(row["model"], row["value"], row["short"], row["note"]) for row in rows] == [
        (MODEL, 0.75, "0.750", ""),
        ("tuned", None, "–", "the model scores 0"),
    ]
    assert "matrix" not in figures(results_of(faithfulness={OURS: {MODEL: cell(0.75)}}))
