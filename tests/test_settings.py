"""A study's YAML: what is not known is refused, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from circuitdiff.discovery import Stage
from circuitdiff.errors import InputError
from circuitdiff.sections.whole_study import WholeStudy, read_study
from circuitdiff.selection import Discoveries, TopK
from circuitdiff.settings import parse_settings, read_settings
from tiny_folder import study_yaml

STUDY = """
name: small
base: {source: base-model, adapters: [one, two]}
variants: {chat: chat-model}
prompts: {discovery: 40}
plans:
  main:
    metric: log_prob
    stages:
      - {name: first, at: last, n_receivers: 3, select: {top: 7}}
      - {name: second, at: last, via: q, receivers_from: first, select: {error_rate: 0.1, replicated: false}}
      - {name: third, at: query_label, via: v, receivers_from: second, receivers_at: last}
"""


def test_a_study_reads_as_written(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(STUDY)
    settings = read_settings(path)
    assert settings.base.adapters == ("one", "two")
    assert list(settings.models) == ["base-model", "chat"]
    plan = settings.plans["main"].plan()
    assert plan.metric == "log_prob"
    assert plan.stages[0] == Stage("first", "last", TopK(7), n_receivers=3)
    assert plan.stages[1].rule == Discoveries(error_rate=0.1, replicated=False)
    assert plan.stages[2] == Stage("third", "query_label", Discoveries(), "v", "second", "last")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "x", "base": "m", "sede": 1}, "s.yaml: sede: Extra inputs"),
        ({"name": "x"}, "base: Field required"),
        ({"name": "x", "base": "m", "prompts": {"discovery": 1}}, "prompts.discovery: .*greater than or equal to 2"),
        ({"name": "x", "base": "m", "variants": {"m": "n"}}, "a variant is called 'm', like the base"),
        ({"name": "x", "base": "m", "plans": {"p": {"stages": []}}}, "plans.p.stages"),
        ([1], "s.yaml: the file: "),
    ],
)
def test_what_cannot_be_a_study_is_refused_by_name(data, message):
    with pytest.raises(InputError, match=message):
        parse_settings(data, "s.yaml")


def test_a_file_that_is_missing_or_not_yaml_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_settings(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1\nb: }")
    with pytest.raises(InputError, match="is not YAML") as caught:
        read_settings(tmp_path / "bad.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"series": "{training: {model: 0, other: 5}}"}, "series 'training' names 'other', which is no model"),
        ({"series": "{training: {model: 3}}"}, "series 'training' needs two models or more"),
        ({"circuits": "{model: c.json}"}, "a circuit file is called 'model', like a circuit that is found"),
        ({"circuits": "{model (other): c.json}"}, r"a circuit file is called 'model \(other\)'"),
    ],
)
def test_series_and_circuit_files_are_named_after_nothing_else(tmp_path, changes, message):
    (tmp_path / "s.yaml").write_text(study_yaml(Path("model"), **changes))
    with pytest.raises(InputError, match=message):
        read_settings(tmp_path / "s.yaml")


def test_paths_in_a_study_are_relative_to_it(tmp_path):
    other = tmp_path / "elsewhere.json"
    changes = {
        "circuits": f"{{mine: mine.json, theirs: {other}}}",
        "functions": "{desiderata: [position, mine.jsonl], further: {fetcher: [deep/more.jsonl, order]}}",
    }
    (tmp_path / "s.yaml").write_text(study_yaml(Path("model"), **changes))
    study = read_study(tmp_path / "s.yaml")
    assert study.circuits == {"mine": tmp_path / "mine.json", "theirs": other}
    assert study.functions
    assert study.functions.desiderata == ("position", str(tmp_path / "mine.jsonl"))
    assert study.functions.further == {"fetcher": (str(tmp_path / "deep" / "more.jsonl"), "order")}


def test_folders_of_models_and_adapters_are_relative_to_the_study_but_names_are_not(tmp_path):
    (tmp_path / "org" / "base").mkdir(parents=True)
    models = "\n".join(
        [
            "name: s",
            "base: {source: org/base, adapters: [./lora, smollm2, hub/lora]}",
            "variants: {file: weights.gguf, hub: org/other, whole: /somewhere/model, above: ../up}",
        ]
    )
    (tmp_path / "s.yaml").write_text(models)
    study = read_settings(tmp_path / "s.yaml")
    assert study.base.source == str(tmp_path / "org" / "base")
    assert study.base.adapters == (str(tmp_path / "lora"), "smollm2", "hub/lora")
    found = {name: model.source for name, model in study.variants.items()}
    assert found == {
        "file": str(tmp_path / "weights.gguf"),
        "hub": "org/other",
        "whole": "/somewhere/model",
        "above": str(tmp_path / ".." / "up"),
    }
    assert (study.base.name, list(study.variants)) == ("base", ["file", "hub", "whole", "above"])


@pytest.mark.parametrize("sweep", [False, None])
def test_a_sweep_and_a_verdict_can_be_left_out(sweep):
    study = parse_settings({"name": "s", "base": "m", "verdict": False, "functions": {"sweep": sweep}}, "s", WholeStudy)
    assert study.verdict is False
    assert study.functions
    assert study.functions.options(0, swept=True).other_penalties == ()
