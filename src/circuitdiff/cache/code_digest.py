"""Our own code, as one more thing that cached numbers depend on."""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any

_HOME = Path(__file__).parent.parent
# What computes: folders and modules. Neither what shows, judges or plans, nor what makes prompts and weights:
# these have fingerprints of their own.
COMPUTES = (
    *("engine", "evaluation", "methods", "stats", "prompts", "triples", "circuit", "cache.records"),
    *("models.checks", "models.probe", "models.structure", "models.weight_changes", "study.records", "study.checks"),
    *("study.sections.cross_model_units", "study.sections.functions_units"),
)


@cache
def digest_of_code(package: Path | None = None) -> str:
    """The same as long as no file of the package, circuitdiff if none is named, has changed."""
    home = package or _HOME
    return _digest(home, {path: path.read_bytes() for path in home.rglob("*.py")})


@cache
def digest_of_computation() -> str:
    """The same as long as no line that computes has changed; comments, docstrings and layout do not count."""
    modules = {path: path.relative_to(_HOME).with_suffix("").parts for path in _HOME.rglob("*.py")}
    computing = [path for path, module in modules.items() if module[0] in COMPUTES or ".".join(module) in COMPUTES]
    return _digest(_HOME, {path: without_prose(path.read_text("utf-8")).encode() for path in computing})


@cache
def digest_of_function(function: Callable[..., Any]) -> str:
    """The same as long as no line of this function has changed."""
    return hashlib.sha256(without_prose(dedent(inspect.getsource(function))).encode()).hexdigest()[:16]


def without_prose(source: str) -> str:
    """The code alone: what is the same for two sources that compute the same, line by line."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        definition = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if definition and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def _digest(home: Path, contents: dict[Path, bytes]) -> str:
    digest = hashlib.sha256()
    for path in sorted(contents):
        digest.update(str(path.relative_to(home)).encode() + b"\0" + contents[path])
    return digest.hexdigest()[:16]
