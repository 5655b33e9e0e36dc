"""A study's YAML: what is not known is refused, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from circuitdiff.errors import InputError
from circuitdiff.methods.discovery import Stage
from circuitdiff.stats.selection import Discoveries, TopK
from circuitdiff.study.registry import parse_study, read_study
from circuitdiff.tasks import get_task
from helpers.tiny_folder import study_yaml

SMALL = {"name": "x", "base": "m", "task": "ioi"}
STUDY = """
name: small
task: ioi
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
    settings = read_study(path)
    assert settings.base.adapters == ("one", "two")
    assert list(settings.models) == ["base-model", "chat"]
    plan = settings.plans["main"]
    assert plan.metric == "log_prob"
    assert plan.stages[0] == Stage("first", "last", TopK(7), n_receivers=3)
    assert plan.stages[1].select == Discoveries(error_rate=0.1, replicated=False)
    assert plan.stages[2] == Stage("third", "query_label", Discoveries(), "v", "second", "last")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            SMALL | {"sede": 1},
            r"s.yaml: there is no key 'sede' here \(did you mean 'seed'\?\); choose one of name, base",
        ),
        ({"name": "x"}, "base: this is missing"),
        (SMALL | {"prompts": {"discovery": 1}}, "prompts.discovery: expected at least 2; got 1"),
        (SMALL | {"variants": {"m": "n"}}, "a variant is called 'm', like the base"),
        (SMALL | {"plans": {"p": {"stages": []}}}, "plans.p.stages"),
        ([1], "s.yaml: expected a mapping of keys to values"),
    ],
)
def test_what_cannot_be_a_study_is_refused_by_name(data, message):
    with pytest.raises(InputError, match=message):
        parse_study(data, "s.yaml")


def test_a_file_that_is_missing_or_not_yaml_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"there is no .*none\.yaml: .* has no 'none.yaml'"):
        read_study(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1\nb: }")
    with pytest.raises(InputError, match=r"bad\.yaml: line 2: expected") as caught:
        read_study(tmp_path / "bad.yaml")
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
        read_study(tmp_path / "s.yaml")


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
    for folder in ("org/base", "lora", "base+chat"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "weights.gguf").write_text("")
    models = "\n".join(
        [
            "name: s",
            "task: ioi",
            "base: {source: org/base, adapters: [./lora, smollm2, hub/lora]}",
            f"variants: {{file: weights.gguf, hub: org/other, whole: {tmp_path}/lora,",
            f"  above: ./../{tmp_path.name}/lora,",
            "  chat: smollm2+./lora+hub/lora, plus: ./base+chat, both: ./base+chat+./lora}",
        ]
    )
    (tmp_path / "s.yaml").write_text(models)
    study = read_study(tmp_path / "s.yaml")
    assert study.base.source == str(tmp_path / "org" / "base")
    assert study.base.adapters == (str(tmp_path / "lora"), "smollm2", "hub/lora")
    found = {name: model.source for name, model in study.variants.items()}
    assert found == {
        "file": str(tmp_path / "weights.gguf"),
        "hub": "org/other",
        "whole": str(tmp_path / "lora"),
        "above": str(tmp_path / ".." / tmp_path.name / "lora"),
        "chat": "smollm2",
        "plus": str(tmp_path / "base+chat"),
        "both": str(tmp_path / "base+chat"),
    }
    adapters = {name: model.adapters for name, model in study.variants.items() if model.adapters}
    assert adapters == {"chat": (str(tmp_path / "lora"), "hub/lora"), "both": (str(tmp_path / "lora"),)}
    assert study.base.name == "base"


@pytest.mark.parametrize("sweep", [False, None])
def test_a_sweep_and_a_verdict_can_be_left_out(sweep):
    study = parse_study(SMALL | {"verdict": False, "functions": {"sweep": sweep}}, "s")
    assert study.verdict is False
    assert study.functions


PLAN = {"stages": [{"name": "first", "at": "last"}]}


def plan(select: object) -> dict:
    return {"plans": {"main": {"stages": [{"name": "first", "at": "last", "select": select}]}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"functions": {"sweep": {"penalties": [-0.1]}}}, "functions.sweep.penalties.0: expected at least 0; got -0.1"),
        ({"functions": {"sweep": {"penalties": [0.1, float("nan")]}}}, "penalties.1: expected a finite number"),
        ({"functions": {"learning_rate": float("inf")}}, "functions.learning_rate: expected a finite number"),
        ({"minimality": {"threshold": float("nan")}}, "minimality.threshold: expected a finite number; got nan"),
        ({"verdict": {"faithful": float("inf")}}, "verdict.faithful: expected a finite number"),
        ({"memory_gb": float("inf")}, "memory_gb: expected a finite number"),
        ({"memory_gb": 1e-9}, "memory_gb: expected at least 0.001; got 1e-09"),
        (plan({"top": True}), "plans.main.stages.0.select.top: expected a valid integer; got True"),
        (plan({"top": "3"}), "select.top: expected a valid integer; got '3'"),
        (plan({"tpo": 3}), r"select: there is no key 'tpo' here \(did you mean 'top'"),
        (plan({"error_rate": 2}), "select.error_rate: expected less than 1; got 2"),
        ({"seed": -5}, "seed: expected at least 0; got -5"),
        ({"seed": 2**63}, "seed: expected less than 9223372036854775808"),
        ({"prompts": {"evaluation": 10**9}}, "prompts.evaluation: expected at most 100000"),
        ({"prompts": {"evaluation": "300"}}, "prompts.evaluation: expected a valid integer; got '300'"),
        ({"variants": {"v": "n"}, "series": {"s": {"m": 0, "v": -1}}}, "series.s.v: expected at least 0"),
        ({"dtype": "flaot32"}, r"dtype: unknown 'flaot32' \(did you mean 'float32'\?\); choose one of float32, "),
        ({"plans": {"p": {"stages": [{"name": "a", "at": "b"}], "metric": "logprob"}}}, "did you mean 'log_prob'"),
        ({"minimality": {"promts": 3}}, r"minimality: there is no key 'promts' here \(did you mean 'prompts'\?"),
        ({"cross_model": {"heads": "yes"}}, "cross_model.heads: expected true or false; got 'yes'"),
        ({"variants": {"chat": "base+"}}, "variants.chat: expected SOURCE or SOURCE.ADAPTER; got 'base.'"),
        ({"device": "banana"}, "device.0: expected one of torch's devices, such as cpu, cuda or cuda:1; got 'banana'"),
        ({"device": []}, "device: .*at least 1 item"),
        ({"device": ["cpu", "cuda"]}, "device: expected devices of one kind; got cpu and cuda"),
        (
            {"plans": {"a": PLAN, "b": PLAN}, "variants": {"m (b)": "n"}},
            r"a variant is called 'm \(b\)', like a circuit of the base",
        ),
        ({"discover_in": ["chta"], "variants": {"chat": "n"}}, r"discover_in names 'chta'.*did you mean 'chat'"),
    ],
)
def test_a_value_that_would_be_converted_or_makes_no_sense_is_refused(changes, message):
    with pytest.raises(InputError, match=f"^s: .*{message}"):
        parse_study(SMALL | changes, "s")


def test_a_whole_number_will_do_where_a_fraction_may_stand():
    study = parse_study(SMALL | {"memory_gb": 2, "variants": {"v": "n"}}, "s")
    assert study.memory_gb == 2.0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("../t_ful", "/t_ful: .* has no 't_ful'; did you mean 't_full'"),
        ("./t_full/deep/base", "has no 'deep'; check the path"),
        ("nowhere/t_full/base", "has no 'nowhere'"),
        ("m.ggfu/m.gguf", "has no 'm.ggfu'"),
        ("~/no-such-folder-of-mine", "has no 'no-such-folder-of-mine'"),
        (r"C:\models\base", "there is no "),
        ("./t_full+../t_ful", "did you mean 't_full'"),
    ],
)
def test_a_path_that_is_not_there_is_refused_before_a_library_sees_it(tmp_path, source, message):
    (tmp_path / "t_full").mkdir()
    (tmp_path / "studies" / "t_full").mkdir(parents=True)
    (tmp_path / "studies" / "s.yaml").write_text(
        f"name: s\nbase: m\ntask: {{name: ioi}}\nvariants: {{v: '{source}'}}\n"
    )
    with pytest.raises(InputError, match=message) as caught:
        read_study(tmp_path / "studies" / "s.yaml")
    assert len(str(caught.value)) < 600


def test_an_unknown_task_or_option_is_named_with_what_there_is():
    with pytest.raises(
        InputError, match=r"unknown task 'colours'; choose one of .*entity_tracking, .*or give the path of a task file"
    ):
        get_task("colours")
    with pytest.raises(
        InputError, match=r"unknown task 'iio' \(did you mean 'ioi'\?\); choose one of .*entity_tracking"
    ):
        get_task("iio")
    with pytest.raises(InputError, match=r"no option 'n_boxs' \(did you mean 'n_boxes'\?\); choose one of n_boxes"):
        get_task("entity_tracking", n_boxs=3)
    with pytest.raises(InputError, match="option n_boxes: expected a whole number; got True"):
        get_task("entity_tracking", n_boxes=True)
