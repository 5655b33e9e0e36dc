"""Figures, tables and sentences on gains, from invented results."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace

from circuitdiff.report import cross_model, graft, verdict
from circuitdiff.report.gains import GRAFTED
from circuitdiff.report.numbers import printed
from circuitdiff.report.page import figures, report_page
from circuitdiff.report.parts import Part, Table, anchor
from circuitdiff.study.estimates import GroupHeads
from circuitdiff.study.evidence import Thresholds
from circuitdiff.study.results import CommonResults
from circuitdiff.study.sections.cross_model import CrossPatchResult, PatchedMaskHeads
from circuitdiff.study.verdict import TRIED, Sensitivity
from helpers.invented_results import accuracy, around, changed, data_of, model, results_of
from helpers.invented_sections import (
    BASE,
    VARIANT,
    control,
    credit,
    gain_parts,
    grafted,
    patch_controls,
    patched,
)
from helpers.invented_sections import verdict as invented_verdict

INTO = f"gain/{VARIANT}/into {BASE}"


def gains(**more) -> CommonResults:
    return results_of(**gain_parts() | more)


def with_scores(shares, **different):
    """The same shares with another division of the accuracy."""
    return replace(shares, scores={"accuracy": replace(shares.scores["accuracy"], **different)})


def captions(part: Part) -> list[str]:
    return [table.caption for table in part.tables if table.rows]


def side_by_side(results: CommonResults) -> Table:
    return cross_model.view(results).tables[0]


def test_there_is_a_figure_for_each_method_and_each_group_among_random_ones():
    assert set(figures(gains())) == {
        f"{INTO}/patched z",
        f"{INTO}/patched z, single heads of fetcher",
        f"{INTO}/{GRAFTED}",
        f"{INTO}/grafted weights of layers",
        f"gain-controls/{VARIANT}/fetcher",
    }
    assert cross_model.view(results_of()).empty
    assert graft.view(results_of()).empty


def test_every_method_has_a_sentence_those_by_group_first():
    said = [str(each).split(": ")[0] for each in cross_model.view(gains()).sentences]
    assert said == [
        f"Patched z of {VARIANT} in base",
        f"Patched z of base in {VARIANT}",
        f"Patched z, single heads of fetcher of {VARIANT} in base",
        "Patched z, from untuned instead of untuned in base",
    ]
    said = [str(each).split(": ")[0] for each in graft.view(gains()).sentences]
    assert said == [f"Grafted weights of {VARIANT} in base", f"Grafted weights of layers of {VARIANT} in base"]


def test_where_a_gain_is_visible_stands_beside_what_caused_it():
    found = grafted()
    parts = found.scores["accuracy"].parts
    parts |= {"mlps": {"alone": credit(0.0625, 0.25)}, "fetcher": parts["fetcher"] | {"alone": credit(0.125, 0.5)}}
    both = side_by_side(gains(graft={VARIANT: with_scores(found, parts=parts)}))
    assert list(both.columns.values()) == ["part", "counted", "patched z", "share", "grafted weights", "share"]
    rows = {(row["part"], row["how"]): row for row in both.rows}
    cells = ("patched z", "share, patched z", GRAFTED, f"share, {GRAFTED}")
    assert [rows["fetcher", "alone"][key] for key in cells] == [
        "0.250 (0.200 to 0.300)",
        "0.750 (0.625 to 0.875)",
        "0.125 (0.075 to 0.175)",
        "0.500 (0.375 to 0.625)",
    ]
    assert (rows["mlps", "alone"]["patched z"], rows["mlps", "alone"][GRAFTED]) == ("", "0.062 (0.012 to 0.113)")
    symmetric = rows["fetcher", "Shapley, symmetric"]
    assert (symmetric["share, patched z"], symmetric[GRAFTED]) == ("0.938 (0.812 to 1.062)", "")
    assert next(iter(rows)) == ("the gain", "")
    assert rows["the gain", ""]["patched z"] == "0.312 (0.263 to 0.362)"
    assert list(rows)[-2:] == [("all together", ""), ("what no part explains", "")]
    far = "the run with reader lies far from clean activations <so>"
    undefined = f"No share is defined: {far} (patched z of reader, {GRAFTED} of reader). "
    assert both.note == f"{undefined}The same in both models: norms."
    assert "norms" not in {part for part, _ in rows}, "a part that is the same in both models says nothing"


def test_heads_of_masks_stand_beside_whole_groups_with_how_many_they_are():
    way, whole = patched().to_base["z"], GroupHeads("last", ((1, 0), (1, 2), (3, 1)))
    groups = {"reader": whole, "fetcher": GroupHeads("last", ((3, 1),))}
    masked = PatchedMaskHeads(**vars(way), functions={"fetcher": "object"}, groups=groups)
    of_masks = replace(patched(), groups={"reader": whole, "fetcher": whole}, mask_heads=masked)
    results = gains(cross_model={VARIANT: of_masks})
    table = side_by_side(results)
    assert list(table.columns.values())[2::2] == ["patched z", "patched z, heads of masks", GRAFTED]
    row = next(row for row in table.rows if (row["part"], row["how"]) == ("fetcher", "alone"))
    assert row["share, patched z, heads of masks"] == "0.750 (0.625 to 0.875)"
    said = "Heads of masks: reader 3 of 3 (carries nothing that was asked), fetcher 1 of 3 (object). "
    assert said in table.note
    assert f"{INTO}/patched z, heads of masks" in figures(results)


def test_groups_beside_mlps_have_a_table_and_a_figure_of_their_own():
    with_mlps = replace(patched().to_base["z"], order=("reader", "fetcher", "MLPs at last"))
    results = gains(cross_model={VARIANT: replace(patched(), with_mlps=with_mlps)})
    assert f"patched z, with MLPs of {VARIANT} in base" in captions(cross_model.view(results))
    assert f"{INTO}/patched z, with MLPs" in figures(results)


def test_no_number_of_a_gain_stands_in_two_tables():
    assert captions(cross_model.view(gains())) == [
        f"The gain of {VARIANT} over base: where it is visible (patched activations) and what caused it (grafted "
        "weights); what each part adds to the accuracy, and its share of the gain",
        f"patched z, single heads of fetcher of {VARIANT} in base",
        f"patched z of {VARIANT} in base: every run",
        f"Controls of patching, {VARIANT}",
    ]
    assert captions(graft.view(gains())) == [
        f"Seen here, caused there: {VARIANT}",
        f"grafted weights of layers of {VARIANT} in base",
        f"grafted weights of {VARIANT} in base: every run",
        f"Controls of grafts, {VARIANT}",
    ]


def test_what_is_seen_at_a_part_stands_beside_what_its_weights_cause():
    found = grafted()
    by_role = replace(found.layers, order=("query_label",), scores=found.scores)
    parts = {"query_label": {"alone": credit(0.125, 0.5)}}
    results = gains(graft={VARIANT: replace(found, roles=with_scores(by_role, parts=parts))})
    table = next(each for each in graft.view(results).tables if each.caption == f"Seen here, caused there: {VARIANT}")
    rows = {(row["weights"], row["part"]): row for row in table.rows}
    assert list(rows)[:2] == [("of heads", "reader"), ("of heads", "fetcher")]
    assert rows["of heads", "fetcher"]["seen, accuracy"] == "0.750 (0.625 to 0.875)"
    assert rows["of heads", "fetcher"]["caused, accuracy"] == "0.750 (0.625 to 0.875)"
    role = rows["at the tokens of roles", "query_label"]
    assert (role["seen, accuracy"], role["caused, accuracy"]) == ("", "0.500 (0.375 to 0.625)")
    assert rows["of layers", "fetcher"]["seen, accuracy"] == "", "only groups of heads were patched"
    assert ("of heads", "norms") not in rows, "its weights are the same"
    assert "seen, accuracy" in table.columns
    alone = graft.view(gains(cross_model=None)).tables[1]
    assert "seen, accuracy" not in alone.columns


def test_grafts_have_a_table_of_their_own_where_nothing_was_patched():
    (alone, *_) = graft.view(gains(cross_model=None)).tables
    assert alone.caption.startswith(f"The gain of {VARIANT} over base: what caused it (grafted weights);")
    assert list(alone.ids) == [anchor("graft", VARIANT)]


def test_every_column_of_a_table_is_in_its_rows():
    """A page prints nothing for what it does not find."""
    for part in (cross_model.view(gains()), graft.view(gains()), verdict.evidence(gains())):
        for table in part.tables:
            for row in table.rows:
                assert set(table.headings) <= set(row), table.caption


def test_sentences_on_a_gain_link_to_the_direction_in_which_weights_went():
    way = patched().to_base["z"]
    back = replace(way, donor=BASE, recipient=VARIANT)
    both = replace(patched(), to_variant={"z": back})
    onto_variant = grafted(donor=BASE, recipient=VARIANT)
    first, second, *_ = cross_model.view(gains(cross_model={VARIANT: both}, graft={VARIANT: onto_variant})).tables
    assert GRAFTED in first.columns
    assert list(first.ids) == [anchor("cross_model", VARIANT), anchor("graft", VARIANT)]
    assert GRAFTED not in second.columns
    assert list(second.ids) == []
    one_way = gains(cross_model={VARIANT: replace(both, to_variant={})}, graft={VARIANT: onto_variant})
    assert list(cross_model.view(one_way).tables[0].ids) == [anchor("cross_model", VARIANT)]
    assert list(graft.view(one_way).tables[0].ids) == [anchor("graft", VARIANT)]


def test_a_share_that_is_undefined_is_pale_and_says_why():
    figure = cross_model.view(gains()).figures[f"{INTO}/patched z"]
    readers = [row for row in data_of(figure) if row.get("part") == "reader"]
    assert {row["share"] for row in readers} == {"undefined"}
    assert all("far from clean activations" in row["note"] for row in readers)
    bars, *_ = figure.to_dict()["layer"]
    assert bars["mark"]["type"] == "bar"
    assert "===" in json.dumps(bars["encoding"]["opacity"]["condition"]), "only rows without a note are dark"


def test_controls_are_drawn_beside_the_group_that_they_stand_in_for():
    controls = replace(patch_controls(), noise=control(0.015625, 0.05))
    found = cross_model.view(gains(cross_model={VARIANT: replace(patched(), controls={"fetcher": controls})})).figures
    by_how = {row["how"]: row for row in data_of(found[f"{INTO}/patched z"]) if "how" in row}
    assert by_how["control: noise"]["value"] == 0.015625
    random = by_how["control: random heads of its layers"]
    assert (random["part"], random["value"]) == ("fetcher", 0.0078125)
    others = data_of(found[f"{INTO}/patched z, single heads of fetcher"])
    assert not [row for row in others if str(row.get("how")).startswith("control")]


def test_the_page_says_which_weights_went_along_and_which_are_the_same():
    both = side_by_side(gains(graft={VARIANT: grafted(also_touched={"fetcher": ((3, 1), (3, 2))})}))
    assert "With fetcher the keys and values of 3.1, 3.2 were grafted, too: they are the same weights." in both.note
    assert both.note.endswith("The same in both models: norms.")


def test_every_run_and_the_other_scores_stand_in_tables():
    way: CrossPatchResult = patched().to_base["z"]
    scores = way.scores | {"log_prob": replace(way.scores["accuracy"], gain=around(2.0))}
    results = gains(cross_model={VARIANT: replace(patched(), to_base={"z": replace(way, scores=scores)})})
    tables = {table.caption: table for table in cross_model.view(results).tables if table.rows}
    runs = tables[f"patched z of {VARIANT} in base: every run"].rows
    assert [row["from the donor"] for row in runs] == ["none", "reader + fetcher"]
    assert [str(row["share"]).split(" ")[0] for row in runs] == ["–", "0.812"]  # of each subset of the parts
    assert (runs[1]["distance from clean runs"], runs[1][""]) == ("1.250", "far <away>")
    other = tables[f"patched z of {VARIANT} in base: answer's log probability"]
    assert other.columns["printed"] == "adds to the answer's log probability"
    by_layers = next(table for table in graft.view(results).tables if "of layers" in table.caption)
    assert list(by_layers.ids) == [anchor("layers", VARIANT)]


def test_controls_print_what_was_measured_and_nothing_else():
    rows = {row["how"]: row for row in cross_model.control_rows(patched())}
    assert set(rows) == {
        "the group itself",
        "the same heads at another role",
        "mean of 3 random groups of its layers, with the range of all groups "
        "(the group: 0.750; largest of 3 random groups: 0.531)",
    }
    assert rows["the same heads at another role"]["note"] == "ends far from clean runs"
    assert [row["how"] for row in graft.control_rows(grafted())] == ["other heads that read the same keys and values"]
    random = cross_model.view(gains()).figures[f"gain-controls/{VARIANT}/fetcher"]
    assert [row["accuracy"] for row in data_of(random) if "what" not in row] == [0.5, 0.53125, 0.5]


def test_sentences_on_gains_name_the_shares_or_why_there_are_none():
    first, second, *_ = map(str, cross_model.view(gains()).sentences)
    assert f"Patched z of {VARIANT} in base: the gain is 0.312" in first
    assert first.endswith("its shares in causal order are fetcher 0.875.")
    assert second.endswith("; covers 0.")


def test_missing_numbers_are_dashes_not_crashes():
    way = patched().to_base["z"]
    parts = way.scores["accuracy"].parts
    parts["fetcher"]["alone"] = replace(credit(0.0, None), value=None)
    results = gains(
        cross_model={VARIANT: replace(patched(), to_base={"z": with_scores(way, gain=around(None), parts=parts)})}
    )
    part = cross_model.view(results)
    assert any(row.get("value", 0) is None for row in data_of(part.figures[f"{INTO}/patched z"]))
    assert "the gain is –;" in str(part.sentences[0])


# The verdict


def sentences(results: CommonResults) -> list:
    return [sentence for part in verdict.view(results).parts for sentence in part.sentences]


def test_every_sentence_of_the_verdict_has_its_scope_and_a_table_to_look_at():
    rows = sentences(gains())
    assert [row.look for row in rows] == ["yes", "not-established"]
    assert all(row.scope for row in rows)
    assert [row.link for row in rows] == [anchor("accuracy"), anchor("graft", VARIANT)]
    assert anchor("graft", "a b<c>") == "table-graft-a-b-c-"
    assert verdict.view(results_of()).empty


def test_a_sentence_says_for_which_thresholds_its_answer_is_the_same():
    first, second = sentences(gains())
    assert first.scope.endswith("; the same answer for a margin of accuracy of 0.02 to 0.2")
    assert "same answer" not in second.scope


def test_the_evidence_has_every_number_why_one_is_undefined_and_the_thresholds():
    circuits, parts, layers, thresholds = verdict.evidence(gains()).tables
    assert list(circuits.ids) == [anchor("circuits", VARIANT)]
    assert [(row["value (95 % interval)"], row[""]) for row in circuits.rows] == [
        ("0.900 (0.850 to 0.950)", ""),
        ("0.875 (0.800 to 0.950)", ""),
        ("0.000 (−0.020 to 0.020)", ""),
        ("–", "few"),
        *((printed(around(value)), "") for value in (0.25, 0.125, -0.125)),
        ("0.900 (0.850 to 0.950)", ""),
    ]
    [row] = parts.rows
    assert [row[name] for name in ("part", "sufficient", "necessary", "sole", "note")] == [
        *("fetcher", "yes", "no", "not established", "a control"),
    ]
    assert layers.caption.endswith(", by layers")
    values = {row["threshold"]: row["value"] for row in thresholds.rows}
    assert values["least normalised faithfulness"] == "0.8"
    assert len(values) == len(fields(Thresholds))


def test_each_sentence_of_the_page_carries_its_own_scope():
    scopes = ("accuracy on 500 prompts", "accuracy on 200 prompts")
    found = invented_verdict(scopes)
    page = report_page(results_of(verdict={VARIANT: found}))
    for sentence, scope in zip(found.sentences, scopes, strict=True):
        line = next(line for line in page.splitlines() if sentence.text.split(",")[0] in line)
        assert f"{scope}." in line or f"{scope}; the same answer" in line


def test_reasons_that_a_sentence_has_no_room_for_are_all_on_the_page():
    found = invented_verdict(("a", "b"))
    first, second = found.sentences
    many = (replace(first, reasons=("one", "two", "no <third>")), replace(second, reasons=("one", "two")))
    page = report_page(results_of(verdict={VARIANT: replace(found, sentences=many)}))
    assert page.count("<summary>all ") == 1
    assert "<summary>all 3 reasons</summary><ul><li>one</li><li>two</li><li>no &lt;third&gt;</li></ul>" in page


def test_an_answer_that_no_threshold_changes_says_so_in_few_words():
    assert (
        verdict.in_words(Sensitivity("share", TRIED[0], TRIED[-1])) == "the same answer for any least share of the gain"
    )
    assert verdict.in_words(Sensitivity("share", 0.05, TRIED[-1])).endswith("of 0.05 to 0.98")


def test_a_sentence_links_to_its_table_or_to_nothing():
    """As where a section was left out."""
    models = {"models": {BASE: model()}, "accuracy": {BASE: accuracy(0.5)}}
    for results in (gains(**models), changed(gains(**models), graft=None)):
        html = report_page(results)
        links, ids = set(re.findall(r'href="#(table-[^"]+)"', html)), set(re.findall(r'id="(table-[^"]+)"', html))
        assert links
        assert links <= ids
    assert anchor("graft", VARIANT) not in links


def test_the_page_has_the_tables_with_their_notes_and_unbroken_intervals():
    html = report_page(gains())
    assert "No share is defined: the run with reader lies far" in html
    assert "<td>0.281 (0.231\u00a0to\u00a00.331)</td>" in html
