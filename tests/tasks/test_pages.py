"""Every shipped task has a page, and its example is what the task yields."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from circuitdiff.models.sources import read_outline
from circuitdiff.study.task_check import plans_finding
from circuitdiff.tasks import built_in, get_task
from circuitdiff.tasks.soundness import examine

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def tokenizer():
    return read_outline("smollm2", None).tokenizer


@pytest.mark.parametrize("name", built_in())
def test_the_pages_prompts_are_the_tasks_first_ones(name, tokenizer):
    page = (DOCS / "tasks" / f"{name}.md").read_text()
    example = page.split("```")[1].replace("\n                ", "\n")
    clean, counterfactual = re.fullmatch(r"text\nclean: +(.*)\ncounterfactual: (.*)\n", example, re.S).groups()
    task = get_task(name)
    pairs = task.sample(tokenizer, 8)
    assert clean == tokenizer.decode(pairs.clean_prompts.rows()[0])
    assert counterfactual == tokenizer.decode(pairs.counterfactual_prompts.rows()[0])
    stages = [stage["name"] for plan in task.plans.values() for stage in plan["stages"] if name != "entity_tracking"]
    for stated in (*task.counterfactuals, *stages):
        assert f"`{stated}`" in page, stated
    assert f"(tasks/{name}.md)" in (DOCS / "tasks.md").read_text()


def test_the_template_of_the_docs_is_sound_as_it_stands(tmp_path, tokenizer):
    template = (DOCS / "tasks.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "my_task.yaml").write_text(template)
    task = get_task(str(tmp_path / "my_task.yaml"))
    findings = [*examine(task, tokenizer), plans_finding(task, tokenizer)]
    assert [each for each in findings if each.passed is False] == []
