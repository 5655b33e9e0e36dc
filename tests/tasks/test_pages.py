"""Every shipped task has a page, and its example is what the task yields."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from circuitdiff.models.sources import read_outline
from circuitdiff.tasks import built_in, get_task

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
