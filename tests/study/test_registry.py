"""Settings and results follow from the list of sections; results.json has a form that is written down."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from circuitdiff.errors import InputError
from circuitdiff.study.registry import SECTIONS, StudySettings, read_results, results_bytes, results_schema
from circuitdiff.study.settings_page import settings_page
from helpers.invented_results import invented_results

SCHEMA = Path(__file__).parents[2] / "docs" / "results.schema.json"


def written(folder: Path, content: bytes) -> Path:
    (folder / "results.json").write_bytes(content)
    return folder


def test_the_schema_in_the_docs_is_that_of_the_classes():
    assert json.loads(SCHEMA.read_text()) == results_schema(), "run `circuitdiff schema`"


def test_the_page_of_settings_has_every_setting_with_its_default_and_is_that_of_the_classes():
    page = (SCHEMA.parent / "settings.md").read_text()
    assert page == settings_page(), "run `circuitdiff schema`"
    for setting in (*StudySettings.model_fields, *fields_of_sections()):
        assert re.search(rf"^(## )?`?{setting}(`|:)", page, re.MULTILINE), setting


def fields_of_sections() -> list[str]:
    return [field.name for each in SECTIONS if each.options is not None for field in fields(each.options)]


def test_results_are_read_as_they_were_written(tmp_path):
    results = invented_results()
    assert read_results(written(tmp_path, results_bytes(results))) == results


def test_what_is_undefined_is_null(tmp_path):
    results = invented_results()
    name = next(iter(results.accuracy))
    undefined = replace(results.accuracy[name].accuracy, low=None)
    results.accuracy[name] = replace(results.accuracy[name], accuracy=undefined)
    data = json.loads(results_bytes(results))
    assert data["accuracy"][name]["accuracy"]["low"] is None
    assert read_results(written(tmp_path, results_bytes(results))).accuracy[name].accuracy.low is None


@pytest.mark.parametrize("content", [b'{"a":', b"", b"\xff\xfe{}", b"[]", b"null", b"1", b"[" * 100_000])
def test_results_of_no_run_or_damaged_ones_are_refused(tmp_path, content):
    with pytest.raises(InputError, match="not a finished run"):
        read_results(tmp_path)
    with pytest.raises(InputError, match=r"results\.json.*run the study again, finished records are kept"):
        read_results(written(tmp_path, content))


def test_results_of_an_earlier_version_and_of_another_form_are_refused(tmp_path):
    data = json.loads(results_bytes(invented_results()))
    for change, message in (
        ({"schema_version": 1}, "expected schema_version 3; got 1; run the study again"),
        ({"schema_version": None}, "expected schema_version 3; got None"),
        ({"cmap": {}}, "there is no key 'cmap' here"),
        ({"accuracy": {"m": {"accuracy": "high"}}}, r"accuracy\.m\.accuracy: .*got 'high'"),
    ):
        with pytest.raises(InputError, match=message):
            read_results(written(tmp_path, json.dumps(data | change).encode()))


def test_every_section_with_options_is_a_setting_that_can_be_turned_off():
    named = {section.name for section in SECTIONS if section.options is not None}
    assert named < set(StudySettings.model_fields)
    assert len({section.name for section in SECTIONS}) == len(SECTIONS)
