"""How large a study is: sections follow the study's prompts, budgets shrink both, thresholds stay."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from circuitdiff.study.comparison import STUDY_FILE, write_study
from circuitdiff.study.registry import StudySettings, parse_study, read_study
from circuitdiff.study.runner import plan_study
from circuitdiff.study.sizes import ever_smaller, first_look, note_on_rows, shrunk
from helpers.tiny_folder import save_tiny_model, settings_of, silent

SIZES = {  # what each section takes at most, and what it takes unless told otherwise
    "overlap.prompts": 100,
    "cross_model.prompts": 200,
    "cross_model.without_gain": 100,
    "graft.prompts": 200,
    "graft.without_gain": 100,
    "minimality.prompts": 300,
    "completeness.prompts": 100,
    "completeness.greedy_prompts": 50,
    "knockout.prompts": 200,
    "attention.prompts": 100,
    "curves.prompts": 100,
    "locate.prompts": 100,
    "functions.train": 300,
    "functions.validation": 150,
    "functions.test": 300,
    "functions.control_triples": 100,
}


def study(**keys: object) -> StudySettings:
    return parse_study({"name": "s", "base": "tracker-base", "task": "entity_tracking", "locate": {}, **keys}, "s")


def size(settings: StudySettings, name: str) -> int:
    section, _, field = name.partition(".")
    return getattr(getattr(settings, section), field)


@pytest.mark.parametrize("name", SIZES)
def test_one_number_for_all_prompts_is_the_most_that_any_section_takes(name):
    assert size(study(), name) == SIZES[name]
    assert size(study(prompts=40), name) == min(40, SIZES[name])
    purposes = study(prompts=40).prompts
    assert {purposes.discovery, purposes.replication, purposes.evaluation, purposes.means} == {40}


def test_a_size_that_is_given_stays_and_so_do_thresholds_and_draws():
    settings = study(prompts=40, graft={"prompts": 120})
    assert (settings.graft.prompts, settings.graft.without_gain) == (120, 40)
    assert asdict(settings.verdict) == asdict(study().verdict)
    assert asdict(first_look(settings).verdict) == asdict(study().verdict)
    assert settings.cross_model.random_groups == study().cross_model.random_groups


def test_a_smaller_study_has_no_size_that_is_larger_and_none_below_what_a_verdict_needs():
    whole = study()
    for share in (1.0, 0.5, 0.12, 0.001):
        smaller = shrunk(whole, share)
        for name, most in SIZES.items():
            assert min(50, most) <= size(smaller, name) <= most
        assert 60 <= smaller.prompts.evaluation <= 300
        assert 50 <= smaller.prompts.discovery <= 100
        assert 50 <= smaller.prompts.replication <= 100
        assert 20 <= smaller.faithfulness.random_circuits <= 100
    assert shrunk(whole, 1.0) == whole
    assert shrunk(study(prompts=8), 0.5).prompts == study(prompts=8).prompts


def test_studies_get_ever_smaller_and_then_lose_the_sections_that_take_long():
    every = list(ever_smaller(study()))
    evaluation = [each.prompts.evaluation for each in every]
    assert evaluation == sorted(evaluation, reverse=True)
    assert every[0] == study()
    assert every[-1].functions is every[-1].minimality is False
    assert every[-1].graft
    assert every[-1].cross_model


def test_a_budget_takes_the_first_study_that_fits_and_else_the_smallest(tmp_path):
    settings = settings_of(tmp_path, save_tiny_model(tmp_path / "tiny"), prompts="90")
    same, cost = plan_study(settings, silent, minutes=1e9)
    assert same == settings
    smallest, least = plan_study(settings, silent, minutes=1e-9)
    assert smallest.prompts.evaluation == 60
    assert 0 < sum(part.flop for part in least.parts) < sum(part.flop for part in cost.parts)
    assert {part.what for part in least.parts} <= {part.what for part in cost.parts}


def test_the_study_file_of_a_comparison_is_the_study_wherever_it_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path / "models" / "tiny")
    for name in ("tracker-base", "notes"):
        (tmp_path / name).mkdir()  # a family's member keeps its name, whatever folder is called so
    data = {
        "base": "./models/tiny",
        "variants": {"b": "tracker-base"},
        "task": {"name": "recall", "options": {"n_pairs": 4}},
    }
    settings = shrunk(parse_study({"name": "s", **data}, "s"), 0.3)
    write_study(settings, Path("runs/deep/s"))
    again = read_study("runs/deep/s/" + STUDY_FILE)
    assert again.variants["b"].source == "tracker-base"
    assert Path(again.base.source).resolve() == tmp_path / "models" / "tiny"
    same = {"base": settings.base, "variants": settings.variants}
    assert again.model_copy(update=same) == settings


def table_study(folder, n_rows: int, **keys: object) -> StudySettings:
    """A study of a table with so many rows in each split."""
    rows = [
        {"prompt": f"{split} {i}", "answer": "a", "foils": ["b"], "counterfactual": f"not {split} {i}", "split": split}
        for split in ("discovery", "replication", "mask", "evaluation")
        for i in range(n_rows)
    ]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return study(task=str(folder / "t.jsonl"), **keys)


def test_default_sizes_are_no_larger_than_a_table_and_leave_a_quarter_for_what_lies_beyond(tmp_path):
    settings = table_study(tmp_path, 80)
    sizes = settings.prompts
    assert (sizes.discovery, sizes.replication, sizes.means, sizes.evaluation) == (80, 80, 80, 59)
    assert (settings.minimality.prompts, settings.completeness.greedy_prompts) == (20, 20)
    assert note_on_rows(settings).endswith("prompts here: discovery 80, replication 80, evaluation 59, means 80")
    assert note_on_rows(study()) == ""


def test_sizes_that_are_given_stay_though_a_table_is_small(tmp_path):
    settings = table_study(tmp_path, 80, prompts={"evaluation": 70}, minimality={"prompts": 12})
    assert (settings.prompts.evaluation, settings.prompts.discovery) == (70, 80)
    assert (settings.minimality.prompts, settings.completeness.greedy_prompts) == (12, 9)


def test_a_large_table_changes_nothing(tmp_path):
    assert table_study(tmp_path, 600).prompts == study().prompts
    assert note_on_rows(table_study(tmp_path, 600)) == ""
