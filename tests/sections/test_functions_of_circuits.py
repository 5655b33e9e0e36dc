"""Which circuits' groups are asked for their functions: found or given ones, each in every model that is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from circuitdiff.errors import InputError
from circuitdiff.sections.whole_study import WholeStudy, asked_circuits, read_study
from circuitdiff.study import run_study
from circuitdiff.workbench import Workbench
from helpers.tiny_folder import CIRCUIT_ONLY, study_yaml
from helpers.two_tiny_folders import two_model_bench

SMALL = (
    "desiderata: [position], train: 6, validation: 4, test: 4, steps: 6, check_every: 1, random_groups: 1, "
    "sweep: null, redraw: {times: 1, triples: 4}"
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Workbench:
    return two_model_bench(tmp_path_factory.mktemp("models"))


def study_of(bench: Workbench, folder: Path, functions: str, **changes: object) -> WholeStudy:
    models = bench.settings.models
    base, tuned = (Path(models[name].source) for name in (bench.base, "tuned"))
    given = {"groups": {"mine": {"at": "last", "heads": [[0, 1], [2, 3]]}}}
    (folder / "given.json").write_text(json.dumps(given))
    whole = {
        "overlap": "false",
        "plans": "\n  main: {stages: [{name: fetcher, at: last, select: {top: 2}}]}",
        "evaluation": "{random_circuits: 0}",
        "variants": f"{{tuned: {tuned}}}",
        "circuits": f"{{given: {folder / 'given.json'}}}",
        "functions": f"{{{functions}}}",
    }
    (folder / "study.yaml").write_text(study_yaml(base, **CIRCUIT_ONLY | whole | changes))
    return read_study(folder / "study.yaml")


def functions_of(study: WholeStudy, folder: Path) -> dict:
    run_study(study, folder / "run", lambda *_: None)
    return json.loads((folder / "run" / "results.json").read_text())["functions"]


def test_every_circuit_that_is_asked_is_asked_in_every_model_and_its_own_masks_are_moved(bench, tmp_path):
    homes = {"given": "base", "tuned": "tuned"}
    found = functions_of(study_of(bench, tmp_path, SMALL + ", circuits: [given, tuned]"), tmp_path)
    assert set(found) == set(homes)
    for circuit, home in homes.items():
        assert set(found[circuit]) == {"base", "tuned"}
        for model, groups in found[circuit].items():
            assert set(groups) == ({"mine"} if circuit == "given" else {"fetcher"})
            for group, cells in groups.items():
                cell, own = cells["position"], found[circuit][home][group]["position"]
                assert cell["redrawn"]["from"] == home
                assert ("transferred" in cell) == (model != home)
                if model != home:
                    assert (cell["transferred"]["from"], cell["transferred"]["heads"]) == (home, own["heads"])


def test_a_circuit_without_heads_is_not_asked(bench, tmp_path):
    plan = "\n  main: {stages: [{name: fetcher, at: last, select: {minimum: 1000.0}}]}"
    study = study_of(bench, tmp_path, SMALL + ", circuits: [tuned, given]", plans=plan)
    assert set(functions_of(study, tmp_path)) == {"given"}


def test_a_circuit_is_asked_once_and_only_those_that_are_looked_for_unless_they_are_named(bench, tmp_path):
    def asked(functions: str, **changes: object) -> list[str]:
        return asked_circuits(study_of(bench, tmp_path, functions, **changes))

    assert asked(SMALL) == ["base", "tuned"]
    assert asked(SMALL, discover_in="[]") == ["base"]
    study = study_of(bench, tmp_path, SMALL)
    assert asked(f"{SMALL}, circuits: [given, base, given]") == ["given", "base"]
    assert asked_circuits(study.model_copy(update={"functions": False})) == []


@pytest.mark.parametrize(
    ("chosen", "changes", "message"),
    [
        ("circuits: [base, tined]", {}, r"functions\.circuits names 'tined'.*choose one of base, tuned, given$"),
        ("circuits: [tuned]", {"discover_in": "[]"}, r"functions\.circuits names 'tuned'.*choose one of base, given$"),
        (
            "models: [base, given]",
            {},
            r"functions\.models names 'given', .* lacks; choose one of base, tuned$",
        ),
    ],
)
def test_a_name_that_is_no_circuit_or_model_of_the_study_is_refused_before_any_work(
    bench, tmp_path, monkeypatch, chosen, changes, message
):
    monkeypatch.setattr("circuitdiff.workbench.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(InputError, match=message):
        functions_of(study_of(bench, tmp_path, chosen, **changes), tmp_path)
    assert not (tmp_path / "run").exists()
