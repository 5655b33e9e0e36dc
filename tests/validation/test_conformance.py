"""The published tables give the published circuits; a change in any table is noticed and located."""

import json
from pathlib import Path

import pytest

from circuitdiff.config.validation import validated
from circuitdiff.errors import InputError
from validation.conformance import PublishedTables, check_table, conformance, llama_circuit

TABLES = Path(__file__).resolve().parents[3] / "shared" / "conformance"
pytestmark = pytest.mark.skipif(not TABLES.is_dir(), reason=f"the published tables are not at {TABLES}")


@pytest.fixture
def llama():
    return json.loads((TABLES / "llama.json").read_text())


@pytest.fixture
def float_tables():
    return json.loads((TABLES / "float.json").read_text())


def claims(data, others=()):
    """The six claims for tables as they come from a file."""
    table, *others = (validated(PublishedTables, each, "the table") for each in (data, *others))
    return check_table(table, others)


def failing(results):
    return {result.claim[0]: result.detail for result in results if result.holds is False}


@pytest.mark.parametrize(
    ("model", "details"),
    [
        (
            "llama",
            [
                "value_fetcher 50, pos_transmitter 10, pos_detector 25, struct_reader 5",
                "value_fetcher 40, pos_transmitter 7, pos_detector 20, struct_reader 5",
                "zeros: pos_transmitter 64, pos_detector 416, struct_reader 608",
                "12 sets that occur in more than one place agree",
                "23 masks",
                "llama/float 72/175/54",
            ],
        ),
        (
            "float",
            [
                "value_fetcher 80, pos_transmitter 30, pos_detector 50, struct_reader 40",
                "value_fetcher 68, pos_transmitter 29, pos_detector 40, struct_reader 38",
                "zeros: pos_transmitter 32, pos_detector 416, struct_reader 608",
                "55 sets that occur in more than one place agree",
                "12 masks",
                "llama/float 72/175/54",
            ],
        ),
    ],
)
def test_the_published_tables_give_the_published_circuit(model, details):
    result = conformance(TABLES / f"{model}.json")
    assert result.model == model
    assert result.holds
    assert [claim.detail for claim in result.claims] == details


def test_a_swap_of_two_effects_is_noticed_with_its_place(llama):
    table = llama["path_patching"]["struct_reader"]
    table[8][21], table[12][23] = table[12][23], table[8][21]
    assert failing(claims(llama)) == {
        "1": "struct_reader: 5 heads expected, 5 came; at place 1 expected 8.21, came 12.23"
    }


def test_value_fetchers_that_transmit_position_are_dropped(llama):
    llama["parameters"]["candidates"]["pos_transmitter"] = 1
    detail = failing(claims(llama))["1"]
    assert "value_fetcher: 50 heads expected, 5" in detail
    assert "pos_transmitter: 10 heads expected, 1 came; at place 2 expected 11.23, came no head" in detail


def test_another_threshold_gives_another_circuit(float_tables):
    float_tables["parameters"]["theta"] = 0.01
    detail = failing(claims(float_tables))["2"]
    for sizes in ("68 heads expected, 37 came", "29 heads expected, 18 came", "40 heads expected, 23 came"):
        assert sizes in detail
    assert "struct_reader: 38 heads expected, 19 came" in detail


def test_a_constant_where_nothing_can_act_is_noticed(llama):
    # what a lost adapter looks like: senders after the last receiver have an effect
    for row in llama["path_patching"]["pos_detector"][19:]:
        row[:] = [-0.001] * 32
    assert failing(claims(llama)) == {
        "3": "pos_detector: 416 of 416 effects from layer 19 on are not 0, median -0.0010: "
        "19.0 -0.001; 19.1 -0.001; 19.2 -0.001; and 413 more"
    }


def test_a_single_effect_where_nothing_can_act_is_named(float_tables):
    float_tables["path_patching"]["struct_reader"][30][2] = 1e-9
    assert "1 of 608 effects" in failing(claims(float_tables))["3"]
    assert failing(claims(float_tables))["3"].endswith(": 30.2 +1e-09")


def test_scores_that_contradict_each_other_are_noticed_with_their_places(llama):
    rows = llama["minimality"]["struct_reader"]["significance"]
    rows[0]["before"] -= 0.01
    detail = failing(claims(llama))["4"]
    assert "struct_reader: without" in detail
    assert "before 8.21" in detail


def test_a_pair_that_scores_otherwise_in_the_other_order_is_noticed(llama):
    pair = llama["minimality"]["pos_transmitter"]["pair_table"][9]["with"][2]
    assert pair == [[12, 23], 0.55]
    pair[1] = 0.551
    assert failing(claims(llama)) == {
        "4": "pos_transmitter: without 12.23 16.16: pair 12.23, 16.16 0.55, pair 16.16, 12.23 0.551"
    }


def test_pairs_with_the_same_index_are_left_out_of_the_comparison(llama):
    for row in llama["minimality"]["pos_detector"]["pair_table"]:
        for entry in row["with"]:
            if entry[0][1] == row["head"][1] and entry[0] != row["head"] and entry[1] > 0.5:
                entry[1] += 1e-9
    assert not failing(claims(llama))


def test_a_mask_that_rounds_otherwise_is_noticed(llama):
    llama["dcm"]["positional"]["pos_transmitter"]["mask"][2] = 0.51
    llama["dcm"]["no_comma"]["pos_transmitter"]["mask"].append(0.0)
    assert failing(claims(llama)) == {
        "5": "positional/pos_transmitter: 5 heads expected, 4 came; at place 3 expected 12.23, came 19.12; "
        "no_comma/pos_transmitter: 8 weights for 7 heads"
    }


def test_the_quoted_heads_of_the_base_model_are_those_of_its_table(llama):
    quoted = {name: group["heads"] for name, group in llama_circuit().to_dict()["groups"].items()}
    assert quoted == llama["circuit"]


def test_the_overlap_with_the_base_model_needs_no_second_file(float_tables):
    assert claims(float_tables)[5].detail == "llama/float 72/175/54"
    float_tables["circuit"]["struct_reader"].remove([8, 21])
    assert failing(claims(float_tables))["6"] == "llama/float struct_reader: expected 5/38/5, came 5/37/4"


def test_an_overlap_that_cannot_be_checked_does_not_pass(llama, tmp_path):
    alone = tmp_path / "llama.json"
    alone.write_text(json.dumps(llama))
    result = conformance(alone)
    assert result.claims[5].holds is None
    assert "no goat.json or float.json beside" in result.claims[5].detail
    assert not result.holds


def test_a_third_model_is_compared_with_both_others(llama, float_tables):
    # float's circuit under the third model's name: sizes and overlaps are those of float, not the published ones
    goat = {**float_tables, "model": "goat"}
    detail = failing(claims(goat, [llama, float_tables]))["6"]
    assert "llama/goat pos_transmitter: expected 7/28/6, came 7/29/7" in detail
    assert "llama/goat pos_detector: expected 20/40/16, came 20/40/15" in detail


def test_an_unknown_model_has_no_published_overlap(llama):
    llama["model"] = "mine"
    assert "no overlap is published for 'mine'" in claims(llama)[5].detail


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no .*tables.json"),
        ("{", "tables.json is not JSON: column"),
        ("[1]", "a mapping of keys to values; got a list"),
        ('{"groups": {}}', "model: this is missing"),
    ],
)
def test_a_file_of_another_form_is_one_line_about_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "tables.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        conformance(path)
    assert "\n" not in str(caught.value)


def test_tables_that_refer_to_what_is_not_there_are_refused(llama):
    del llama["path_patching"]["pos_detector"]
    with pytest.raises(InputError, match="lacks pos_detector beside value_fetcher, pos_transmitter, struct_reader"):
        claims(llama)


def test_tables_that_lack_receivers_or_mask_an_unknown_group_are_refused(llama, float_tables):
    del llama["parameters"]["receivers"]["pos_detector"]
    with pytest.raises(InputError, match="lacks pos_detector beside value_fetcher, pos_transmitter"):
        claims(llama)
    float_tables["dcm"]["positional"]["movers"] = float_tables["dcm"]["positional"].pop("pos_detector")
    with pytest.raises(InputError, match="lacks movers beside"):
        claims(float_tables)


def test_tables_of_another_size_or_with_more_receivers_than_heads_are_refused(llama, float_tables):
    """Else there would be nothing that could fail to be zero."""
    del llama["path_patching"]["pos_detector"][16:]
    with pytest.raises(InputError, match=r"one size; got value_fetcher 32 x 32, .*pos_detector 16 x 32"):
        claims(llama)
    float_tables["parameters"]["receivers"]["value_fetcher"] = 1025
    with pytest.raises(InputError, match="1025 receivers of value_fetcher, of 1024 heads"):
        claims(float_tables)


def test_tables_with_rows_of_different_lengths_or_stray_heads_are_refused(llama, float_tables):
    llama["path_patching"]["pos_detector"][3].pop()
    with pytest.raises(InputError, match="effects of pos_detector are not a table"):
        claims(llama)
    float_tables["minimality"]["pos_detector"]["significance"][0]["head"] = [31, 31]
    with pytest.raises(InputError, match=r"31\.31 has a significance but no row"):
        claims(float_tables)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (("circuit", "pos_transmitter"), "circuit of pos_transmitter names 99.99, of 32 layers of 32 heads"),
        (("dcm", "positional", "pos_transmitter", "selected"), "positional mask of pos_transmitter names 99.99"),
    ],
)
def test_a_head_that_the_model_does_not_have_is_refused(llama, part, message):
    group = llama
    for key in part:
        group = group[key]
    group[0] = [99, 99]
    with pytest.raises(InputError, match=message):
        claims(llama)


def test_a_pair_table_with_a_row_or_a_score_missing_is_refused(llama, float_tables):
    rows = llama["minimality"]["pos_transmitter"]["pair_table"]
    dropped = rows.pop()["head"]
    with pytest.raises(InputError, match=r"pos_transmitter: \S+ has a significance but no row|has no row for 16.16"):
        claims(llama)
    assert dropped == [16, 16]
    del float_tables["minimality"]["struct_reader"]["pair_table"][0]["with"][3]
    with pytest.raises(InputError, match="struct_reader: the pair table lacks"):
        claims(float_tables)
