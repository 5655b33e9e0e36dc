"""All settings of a study as a page, from the classes that read them."""

from __future__ import annotations

import ast
import inspect
from dataclasses import is_dataclass
from textwrap import dedent

from circuitdiff.methods.auto_plan import AutoPlan
from circuitdiff.methods.discovery import Plan, Stage
from circuitdiff.stats.selection import Discoveries, TopK
from circuitdiff.study.registry import SECTIONS
from circuitdiff.study.sections.functions_options import GroupSweep, Redraw
from circuitdiff.study.settings import AskedModel, CommonSettings, PromptSettings, TaskSettings

_TITLES = {
    CommonSettings: "A study",
    AskedModel: "A model, of `base` and `variants`",
    TaskSettings: "`task`",
    PromptSettings: "`prompts`",
    Plan: "A plan, of `plans`",
    AutoPlan: "An automatic plan, of `plans`; `auto` for the defaults",
    Stage: "A stage of a plan",
    Discoveries: "A rule, `select` of a stage: heads that are discoveries",
    TopK: "A rule, `select` of a stage: so many heads, the strongest",
}
_INNER = {GroupSweep: "`sweep` of `functions`", Redraw: "`redraw` of `functions`"}


def settings_page() -> str:
    """In Markdown: each setting with its type and default, as the code has them."""
    sections = {each.options: f"`{each.name}`" for each in SECTIONS if each.options is not None}
    parts = [f"## {title}\n\n{_described(kind)}" for kind, title in (_TITLES | sections | _INNER).items()]
    return "\n".join(["# Settings of a study\n\nMade by `circuitdiff schema`; do not edit.\n", *parts])


def _described(kind: type) -> str:
    """Its docstring, and the lines of its fields and of those that it inherits."""
    lines = [line for each in reversed(kind.__mro__) for line in _fields(each)]
    prose = inspect.cleandoc(kind.__doc__ or "").split("\n\n    Raises:")[0]
    return f"{prose}\n\n```python\n" + "\n".join(lines) + "\n```\n" if lines else f"{prose}\n"


def _fields(kind: type) -> list[str]:
    if not (is_dataclass(kind) or hasattr(kind, "model_fields")) or not kind.__module__.startswith("circuitdiff."):
        return []
    source = dedent(inspect.getsource(kind))
    lines, [definition] = source.splitlines(), ast.parse(source).body
    named = [each for each in getattr(definition, "body", ()) if isinstance(each, ast.AnnAssign)]
    return [line.removeprefix("    ") for each in named for line in lines[each.lineno - 1 : each.end_lineno]]
