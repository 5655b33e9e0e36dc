"""The report: one HTML file that opens from disk and asks the network for nothing."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import altair as alt
import jinja2
import vl_convert
import yaml
from markupsafe import Markup

from circuitdiff.cache.files import write_whole
from circuitdiff.circuit import Head
from circuitdiff.report import look, numbers
from circuitdiff.report.effects import HURTING, SELECTED, describe, effect_rows
from circuitdiff.report.figures import ACCURACY_BY_QUERIED, circuit_names, figures
from circuitdiff.report.layout import visible
from circuitdiff.report.look import Figure
from circuitdiff.report.parts import Part, parts
from circuitdiff.report.summary import alarms, summary
from circuitdiff.report.verdict import anchor, threshold_sentence, verdict_rows


def write_report(results: dict, path: str | Path) -> Path:
    """The report on `results` (the content of a run's results.json), written whole or not at all.

    Raises: InputError if the file cannot be written.
    """
    write_whole(Path(path), report_page(results).encode())
    return Path(path)


def report_page(results: dict) -> str:
    """The report's HTML. The same results give the same text."""
    shown = parts(results)
    drawn = figures(results, shown)  # drawing takes seconds: once
    return (
        _environment()
        .get_template("template.html.jinja")
        .render(
            results=results,
            alarms=alarms(results),
            summary=summary(results),
            verdict=verdict_rows(results),
            thresholds=_thresholds(results),
            linked=_linked(results, shown),
            parts=shown,
            circuit_names=circuit_names(results),
            used_roles=_used_roles(results),
            figure_ids={key: f"figure-{number}" for number, key in enumerate(drawn, start=1)},
            specs={key: _embedded_json(figure) for key, figure in drawn.items()},
            javascript=_javascript(),
        )
    )


def _linked(results: dict, shown: list[Part]) -> set[str]:
    """The ids of the tables that are on the page: a section that did not run has none."""
    models = {anchor("models")} if results.get("models") else set()
    return models | {each for part in shown for table in part.tables if table.rows for each in table.ids}


def _thresholds(results: dict) -> str:
    """What all verdicts of a study were held against."""
    return next((threshold_sentence(entry) for entry in (results.get("verdict") or {}).values()), "")


def _used_roles(results: dict) -> set[str]:
    """The roles at which some circuit or stage sends or receives; a task has many more."""
    groups = [g for circuit in (results.get("circuits") or {}).values() for g in circuit["groups"].values()]
    stages = [s for found in (results.get("discovery") or {}).values() for s in found.get("stages") or []]
    named = [*(group["at"] for group in groups), *(s.get(key) for s in stages for key in ("at", "receivers_at"))]
    return {role for role in named if role}


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("circuitdiff.report", "."),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,  # a section may lack any number: it prints as a dash
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=numbers.number,
        significant=numbers.significant,
        interval=numbers.interval,
        hits=numbers.hits,
        unbroken=numbers.unbroken,
        yaml=_yaml,
        heads=_heads,
        token=visible,
        describe=describe,
        chosen=_chosen,
    )
    environment.tests.update(unsure=_holds_zero)
    environment.globals.update(
        circuit_key=look.circuit_key,
        stage_key=look.stage_key,
        random_key=look.random_key,
        anchor=anchor,
        ACCURACY_BY_QUERIED=ACCURACY_BY_QUERIED,
        HURTING=HURTING,
    )
    return environment


def _yaml(settings: object) -> str:
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _heads(places: list) -> str:
    return ", ".join(str(Head(*place)) for place in places) or "none"


def _chosen(stage: dict) -> list[dict]:
    """The heads that the stage selected, helping ones first, each in order of strength."""
    found = [row for row in effect_rows(stage) if row["status"] in (SELECTED, HURTING)]
    return sorted(found, key=lambda row: (row["status"] == HURTING, -abs(row["effect"] or 0.0)))


def _holds_zero(row: dict) -> bool:
    """Whether the interval of a head's effect holds 0, so that the head may do nothing."""
    return row["low"] is not None and row["high"] is not None and row["low"] <= 0 <= row["high"]


def _embedded_json(figure: Figure) -> Markup:
    """The figure as JSON that no text in it can end early: `<` is written as an escape."""
    text = json.dumps(figure.to_dict(validate=False), allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


@cache
def _javascript() -> Markup:
    """Vega, Vega-Lite and Vega-Embed, once for all figures, in the version that Altair writes for."""
    major_minor = ".".join(alt.SCHEMA_VERSION.split(".")[:2])
    return Markup(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed", vl_version=major_minor))
