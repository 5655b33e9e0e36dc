"""The report: one HTML file that opens from disk and asks the network for nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import altair as alt
import jinja2
import vl_convert
import yaml
from markupsafe import Markup

from circuitdiff.cache.files import write_whole
from circuitdiff.report import (
    ablations,
    accuracy,
    attention,
    completeness,
    cross_model,
    curves,
    discovery,
    faithfulness,
    functions,
    graft,
    knockout,
    locate,
    minimality,
    overlap,
    series,
    verdict,
    weights,
)
from circuitdiff.report.charts import Figure
from circuitdiff.report.drawing import visible
from circuitdiff.report.numbers import significant, unbroken
from circuitdiff.report.parts import Part, Sentence, Table
from circuitdiff.report.summary import alarms, summary
from circuitdiff.study.results import CommonResults

_WIDE = 7  # columns beyond which a table is set small


def write_report(results: CommonResults, path: str | Path) -> Path:
    """The report on a run's results, written whole or not at all.

    Raises: InputError if the file cannot be written.
    """
    write_whole(Path(path), report_page(results).encode())
    return Path(path)


def report_page(results: CommonResults) -> str:
    """The report's HTML. The same results give the same text."""
    parts = _parts(results)
    drawn = _figures(parts)
    return (
        _environment()
        .get_template("template.html.jinja")
        .render(
            results=results,
            parts=parts,
            linked=set().union(*(part.ids for part in parts)),
            figure_ids={key: f"figure-{number}" for number, key in enumerate(drawn, start=1)},
            specs={key: _embedded_json(figure) for key, figure in drawn.items()},
            settings=yaml.safe_dump(results.study.settings, sort_keys=False, allow_unicode=True),
            javascript=_javascript(),
            wide=_WIDE,
        )
    )


def figures(results: CommonResults) -> dict[str, Figure]:
    """The figures that `results` has numbers for, by key, in the page's order."""
    return _figures(_parts(results))


def _figures(parts: Sequence[Part]) -> dict[str, Figure]:
    return {key: figure for part in parts for key, figure in part.all_figures.items()}


_VIEWS: Sequence[Callable[[CommonResults], Part]] = (
    alarms,
    weights.view,
    verdict.view,
    summary,
    accuracy.view,
    faithfulness.view,
    curves.view,
    series.view,
    overlap.view,
    attention.view,
    cross_model.view,
    graft.view,
    functions.view,
    minimality.view,
    completeness.view,
    ablations.view,
    knockout.view,
    locate.view,
    verdict.evidence,
    weights.evidence,
    lambda results: _example(results),
    discovery.view,
    lambda results: _checks(results),
)


def _parts(results: CommonResults) -> list[Part]:
    """The parts that `results` has numbers for, in the page's order."""
    return [part for view in _VIEWS if not (part := view(results)).empty]


def _example(results: CommonResults) -> Part:
    example, used = results.example, discovery.used_roles(results)
    says = Markup("Clean")
    if example.answer is not None:
        says += Markup("; the answer is <strong>{}</strong>").format(visible(example.answer))
    sentences = [
        Sentence(says),
        Sentence(_marked(example.tokens, example.roles, used), "prompt"),
        Sentence("Counterfactual"),
        Sentence(_marked(example.counterfactual_tokens, example.counterfactual_roles, used), "prompt"),
    ]
    return Part("An example prompt", sentences=sentences if example.tokens else [])


def _marked(tokens: Sequence[str], roles: Mapping[str, int], used: set[str]) -> Markup:
    """The tokens, each with the roles in use that are at it."""
    marked = Markup()
    for place, token in enumerate(tokens):
        at = [role for role, position in roles.items() if position == place and role in used]
        subscripts = Markup().join(Markup("<sub>{}</sub>").format(role) for role in at)
        marked += Markup("<span>{}</span>{} ").format(visible(token), subscripts)
    return marked


def _checks(results: CommonResults) -> Part:
    rows = [
        {
            "check": check.name,
            "model": check.model,
            "value": significant(check.value),
            "tolerance": ("> " if check.above else "") + significant(check.tolerance),
            "result": "passed" if check.passed else "FAILED",
            "detail": check.detail,
        }
        for check in results.checks
    ]
    return Part("Self-checks", tables=[Table("", rows, numeric=("value", "tolerance"))])


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("circuitdiff.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = unbroken
    return environment


def _embedded_json(figure: Figure) -> Markup:
    """The figure as JSON that no text in it can end early: `<` is written as an escape."""
    text = json.dumps(figure.to_dict(validate=False), allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


@cache
def _javascript() -> Markup:
    """Vega, Vega-Lite and Vega-Embed, once for all figures, in the version that Altair writes for."""
    major_minor = ".".join(alt.SCHEMA_VERSION.split(".")[:2])
    return Markup(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed", vl_version=major_minor))
