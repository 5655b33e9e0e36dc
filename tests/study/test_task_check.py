"""Whether a study can ask a task: its plans as a study reads them, and the rule by which a model does the task."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from circuitdiff.methods.auto_plan import AutoPlan
from circuitdiff.study import task_check
from circuitdiff.study.estimates import Estimate, Share
from circuitdiff.study.evidence import Ability
from circuitdiff.study.settings import own_plans
from circuitdiff.study.task_check import ability_finding, plans_finding
from circuitdiff.tasks import get_task
from helpers.tiny_tokenizers import word_level

WORDS = ["red", "blue", "key", "box", "The", "is", "not", "but"]
ROW = {"prompt": "The key is not red but", "answer": "blue", "foils": ["red"], "roles": {"thing": "key"}}
ROW |= {"counterfactual": "The key is not blue but", "counterfactual_answer": "red", "split": "evaluation"}


def task(folder, second: str | None):
    """A table, with a plan of two stages if the second is given."""
    (folder / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    stages = f"plans: {{main: {{stages: [{{name: mover, at: last}}, {{name: finder, {second}}}]}}}}\n" if second else ""
    (folder / "t.yaml").write_text(f"table: rows.jsonl\n{stages}")
    return get_task(str(folder / "t.yaml"))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("at: last, via: q, receivers_from: mver", "which is not an earlier stage (did you mean 'mover'?)"),
        ("at: last, via: z, receivers_from: mover", "via: unknown 'z'; choose one of q, k, v"),
        ("at: last, select: {minimum: small}", "minimum: expected a valid number; got 'small'"),
        ("at: thing", "plans.main: stage 'finder': straight into the logits only the last position has an effect"),
    ],
)
def test_a_plan_that_a_study_would_refuse_is_found_by_the_check(tmp_path, second, message):
    found = plans_finding(task(tmp_path, second), word_level(WORDS))
    assert found.passed is False
    assert message in found.detail


def test_a_task_without_a_plan_has_an_automatic_one(tmp_path):
    assert own_plans(task(tmp_path, None)) == {"main": AutoPlan()}
    assert plans_finding(task(tmp_path, None), word_level(WORDS)).passed is True


@pytest.mark.parametrize(
    ("hits", "logits", "passed", "says"),
    [
        ((0.23, 0.15, 0.31), -0.1, False, "smollm2 does not surely do better"),  # perhaps no better than a guess
        ((0.23, 0.15, 0.31), 0.1, True, "guessing gives 0.25"),  # right answers stand before wrong ones
        ((0.5, 0.4, 0.6), -0.1, True, "guessing gives 0.25"),
        ((0.15, 0.1, 0.19), 0.1, False, "below 0.2"),
    ],
)
def test_a_model_does_a_task_by_the_rule_of_a_study_and_above_a_level(
    monkeypatch, tmp_path, hits, logits, passed, says
):
    found = Ability(Share(*hits, hits=0, n=9), Estimate(0.5, logits, 1.0), 0.25)
    monkeypatch.setattr(task_check, "load_model", lambda *_, **__: SimpleNamespace(tokenizer=word_level(WORDS)))
    monkeypatch.setattr(task_check, "evaluate_model", lambda *_: None)
    monkeypatch.setattr(task_check, "ability", lambda *_: found)
    finding = ability_finding(task(tmp_path, None), "smollm2", 0.2)
    assert finding.passed is passed
    assert says in finding.detail
