"""The page holds the facts, escaped, and needs nothing but itself."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from circuitdiff.errors import InputError
from circuitdiff.report import report_page, write_report
from circuitdiff.report.parts import Part, Table
from circuitdiff.study.estimates import GroupHeads
from circuitdiff.study.sections.discovery import FoundCircuit
from helpers.invented_results import EXAMPLE, MODEL, OURS, changed, results_of


class Page(HTMLParser):
    """The page's visible text, and every tag with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self._hidden = "", [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag in ("script", "style")
        self.text += " "

    def handle_endtag(self, tag):
        self._hidden = False

    def handle_data(self, data):
        self.text += "" if self._hidden else data


@pytest.fixture
def html(page) -> str:
    return page.read_text(encoding="utf-8")


@pytest.fixture
def text(html) -> str:
    return re.sub(r"\s+", " ", Page(html).text)


def test_the_page_shows_what_the_results_say(text):
    for fact in [
        "boxes & <labels>",
        "tiny <b>&co</b> 0.719 0.600 to 0.810 46 / 64 5 × 3 models/tiny",
        "faithfulness 0.913 0.810 to 0.990",
        "normalised faithfulness 0.895 0.790 to 0.980",
        "agreement with the model 0.844",
        "accuracy, circuit alone 0.656 0.530 to 0.760 42 / 64",
        "accuracy, every head ablated 0.125 0.060 to 0.220 8 / 64",
        "accuracy, all heads at the circuit's roles 0.688",
        "mean of 100 random circuits 0.221",
        "circuit, slot means 0.656 0.530 to 0.760 42 / 64 – –",
        "circuit, kind means 0.219 0.130 to 0.330 14 / 64 0.304 (0.170 to 0.460) −1.500 (−1.750 to −1.250) the seg",
        "position_detector query_label 2 1.1, 1.0",
        "chosen on 41 prompts (discovery); effects and intervals are of 37 others (replication)",
        "rule: max-T at 0.05, |effect| > 0.1 · rounding errors up to 2.5e−06",
        "3.0 −1.250 −1.312 to −1.188 −1.25",
        "4.2 0.600 0.537 to 0.662 0.6 hurts",
        "0.2 −0.013 −0.075 to 0.050 −0.013 may be 0",
        "same logits tiny <b>&co</b> 3.1e−07 1e−05 passed",
        "window = full tiny <b>&co</b> 0.25 1e−05 FAILED v at <query_label>",
        "circuitdiff run STUDY.yaml n_boxes: 7",
        "torch 2.13.0",
    ]:
        assert fact in text


def test_the_page_says_when_heads_were_chosen_and_measured_on_the_same_prompts(results, text):
    biased = "chosen and measured on the same 37 prompts (discovery): effects of the chosen heads are biased"
    assert biased not in text
    circuit = results.discovery[OURS]
    stages = tuple(replace(stage, split="discovery") for stage in circuit.stages)
    same = changed(results, discovery={OURS: replace(circuit, stages=stages, gaps=("stage x was not run: y",))})
    page = re.sub(r"\s+", " ", Page(report_page(same)).text)
    assert page.count(biased) == len(stages)
    assert "stage x was not run: y" in page


def test_a_failed_check_stands_above_the_summary_in_the_failed_style(html):
    assert html.index('class="alarm failed"') < html.index("answers 46 of 64")
    assert html.count('<tr class="failed">') == 1


def test_nothing_from_the_results_becomes_markup(html):
    tags = Page(html).tags
    assert not any(tag in ("b", "labels", "the", "kiwi", "few", "query_label") for tag, _ in tags)
    assert "<b>&co" not in html


def test_text_in_a_figure_cannot_end_its_script(results):
    tokens = ("The", "</script><script>alert(1)</script>", *EXAMPLE.tokens[2:])
    html = report_page(changed(results, example=replace(EXAMPLE, tokens=tokens), faithfulness=None))
    assert "alert(1)" in html
    assert "<script>alert" not in html


def test_every_figure_has_one_place_and_one_spec(html, drawn):
    tags = Page(html).tags
    places = [attributes["id"] for _, attributes in tags if attributes.get("class") == "drawing"]
    specs = [attributes["data-figure"] for _, attributes in tags if "data-figure" in attributes]
    assert places == specs == [f"figure-{i + 1}" for i in range(len(drawn))]


def test_the_page_points_at_nothing_outside_itself(html):
    attributes = {name for _, found in Page(html).tags for name in found}
    assert not attributes & {"src", "href", "srcset", "action", "data", "poster"}
    css = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in css
    assert "@import" not in css


def test_the_charting_code_is_embedded_once(html):
    assert html.count("window.vegaEmbed") == 1


def test_a_missing_section_is_left_out(results):
    results = changed(results, discovery=None, warnings=())  # the others are quick to draw
    heading = {"faithfulness": "How much of it", "checks": "Self-checks", "accuracy": "How well the models"}
    for section, words in heading.items():
        empty = {"checks": ()} if section == "checks" else {section: None}
        rest = changed(results, **empty | ({"models": {}} if section == "accuracy" else {}))
        text = Page(report_page(rest)).text
        assert words not in text
        assert all(other in text for name, other in heading.items() if name != section)


def test_circuits_without_an_example_models_or_numbers_make_a_page():
    circuit = FoundCircuit(MODEL, None, None, {"fetcher": GroupHeads("last", ((3, 0), (4, 1)))}, ())
    page = report_page(results_of(discovery={"mine": circuit}))
    assert "3.0, 4.1" in page
    assert 'class="drawing"' not in page


def test_results_without_any_section_make_a_page():
    assert "How to repeat this" in Page(report_page(results_of())).text


def test_only_roles_in_use_are_marked_in_the_prompt(html):
    assert "<sub>query_label</sub>" in html
    assert "<sub>unused</sub>" not in html


def test_the_same_results_give_the_same_bytes(results, page, tmp_path):
    again = write_report(results, tmp_path / "again.html")
    assert again.read_bytes() == page.read_bytes()
    assert list(tmp_path.iterdir()) == [again]


def test_a_report_that_cannot_be_written_is_refused(results, tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(InputError, match=r"report\.html"):
        write_report(results_of(), tmp_path / "report.html")
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_a_table_without_rows_is_no_place_to_link_to():
    empty, full = Table("", [], ids=["table-empty"]), Table("", [{"a": 1}], ids=["table-full"])
    assert Part("", parts=[Part("", tables=[empty, full])]).ids == {"table-full"}
    assert Part("", tables=[empty], parts=[Part("")]).empty
