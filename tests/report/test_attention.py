"""The part of the page on where heads attend."""

from __future__ import annotations

from circuitdiff.report import attention, report_page
from circuitdiff.report.parts import Part
from circuitdiff.study.sections.attention import AttentionShares, CircuitAttention, GroupAttention, HeadAttention
from helpers.invented_results import around, results_of, rows_with

VARIANT = "tuned <b>"


def shares(plain: float | None, weighted: float | None, n: int = 48) -> AttentionShares:
    return AttentionShares(n, around(plain), around(weighted))


def head(layer: int, index: int, label: float, answer: float) -> HeadAttention:
    """Half a share to the label where it is weighted; next to nothing to the role "unseen", and to "later" none."""
    to = {"label": shares(label, label / 2), "answer": shares(answer, answer, 40), "unseen": shares(0.049, 0.02)}
    return HeadAttention((layer, index), to | {"later": shares(None, None, 0)}, other=shares(0.5, 0.25))


def attended(label: float) -> CircuitAttention:
    fetcher = GroupAttention("last", (head(3, 1, label, 0.3), head(2, 0, 0.01, 0.2), head(2, 5, 0.9, 0.04)))
    return CircuitAttention(48, 47, {"fetcher": fetcher, "reader": GroupAttention("label", (head(0, 2, 0.04, 0.01),))})


def results(**models: CircuitAttention):
    return results_of(attention={"base & co": {"base": attended(0.4), VARIANT: attended(0.8)} | models})


def part() -> Part:
    return attention.view(results())


def test_a_group_has_a_figure_with_every_share_in_every_model():
    figures = part().figures
    assert list(figures) == ["attention/base & co/fetcher", "attention/base & co/reader"]
    rows = rows_with(figures["attention/base & co/fetcher"], "kind")
    assert len(rows) == 2 * 2 * 3 * 3  # kinds, models, heads and roles
    assert [
        (row["role"], row["value"], row["n"]) for row in rows if row["model"] == VARIANT and row["head"] == "3.1"
    ] == [
        ("label", 0.8, 48),
        ("answer", 0.3, 40),
        ("other tokens", 0.5, 48),
        ("label", 0.4, 48),
        ("answer", 0.3, 40),
        ("other tokens", 0.25, 48),
    ]
    assert {row["role"] for row in rows_with(figures["attention/base & co/reader"], "kind")} == {"other tokens"}
    assert attention.view(results_of()).empty


def test_a_switch_chooses_the_shares_that_are_drawn():
    spec = part().figures["attention/base & co/fetcher"].to_dict()
    (switch,) = (each for each in spec["params"] if each["name"] == "kind")
    assert (switch["value"], switch["bind"]["options"]) == ("attention", ["attention", "weighted by values"])
    for layer in spec["layer"]:
        assert layer["transform"][0]["filter"] == "(datum['kind'] === kind)"


def test_a_figure_fits_a_page_of_900_pixels_and_cells_with_room_have_numbers():
    for n_models, with_numbers in ((1, True), (2, True), (3, True), (9, False), (24, False)):
        models = {f"m{i}": attended(0.4) for i in range(n_models)}
        figure = attention.view(results_of(attention={"c": models})).figures["attention/c/fetcher"].to_dict()
        assert figure["width"] <= 600
        assert ("text" in {layer["mark"]["type"] for layer in figure["layer"]}) == with_numbers


def test_the_sentence_names_the_role_that_most_heads_attend_to_by_value_and_model():
    assert list(part().sentences) == [
        "fetcher of base & co: the role with the largest share, weighted by values, is most often answer "
        f"(2 of 3 heads in base), label (2 of 3 heads in {VARIANT}).",
        "reader of base & co: the role with the largest share, weighted by values, is most often label "
        f"(1 of 1 heads in base, 1 of 1 heads in {VARIANT}).",
    ]


def test_each_model_has_a_folded_table_of_its_own_numbers():
    base, tuned = part().tables
    assert base.caption == "Attention of base & co's heads in base, on 48 prompts of 47 scenarios"
    assert base.folded
    assert tuned.folded
    assert [row["role"] for row in tuned.rows] == ["label", "answer", "other tokens"] * 3 + ["other tokens"]
    assert [tuned.rows[0][key] for key in tuned.columns] == [
        "fetcher", "3.1", "label", 48, "0.800 (0.750 to 0.850)", "0.400 (0.350 to 0.450)"
    ]  # fmt: skip
    assert base.rows[0]["attention"] == "0.400 (0.350 to 0.450)"
    page = report_page(results())
    assert page.count("<details><summary") == page.count("</table></div>\n\n</details>") == 2
    assert page.count("Attention of base &amp; co&#39;s heads in base") == 1
