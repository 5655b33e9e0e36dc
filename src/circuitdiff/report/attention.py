"""Where the heads of circuits attend: shares by role, of attention and weighted by values, models side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import altair as alt

from circuitdiff.circuit import Head
from circuitdiff.report import charts
from circuitdiff.report.numbers import all_printed
from circuitdiff.report.parts import Part, Table
from circuitdiff.study.registry import CommonResults, part_of
from circuitdiff.study.sections.attention import SECTION, AttentionShares, CircuitAttention

_SMALLEST = 0.05  # roles to which no head of a group gives as much, in any model, are left out
_KINDS = {"attention": "attention", "value_weighted": "weighted by values"}
_OTHER = "other tokens"
_COLUMNS = {"group": "group", "head": "head", "role": "attends to", "n_prompts": "prompts", **_KINDS}
_WIDTH, _CELL, _LEAST_WITH_NUMBERS = 600, 30, 24  # pixels: of a figure at most, of a cell, and of one with a number

Models = Mapping[str, CircuitAttention]


def view(results: CommonResults) -> Part:
    circuits = part_of(results, SECTION)
    return Part(
        "Where do its heads attend?",
        "Shares of each head's attention, from its group's role, that go to the token of each role, as means over "
        "prompts. Weighted by values, a token counts by the length of what the head writes from it, too. Roles that "
        f"no head gives {_SMALLEST} are left out; of two roles at one token each has its share.",
        [sentence for name, models in circuits.items() for sentence in _sentences(name, models)],
        {
            f"attention/{name}/{group}": _heat_map(f"{group} of {name}, at {at}", _rows(models, group))
            for name, models in circuits.items()
            for group, at in _groups(models).items()
        },
        [_table(name, model, models) for name, models in circuits.items() for model in models],
    )


def _groups(models: Models) -> dict[str, str]:
    """The circuit's groups, with the role of each."""
    return {name: group.at for name, group in next(iter(models.values())).groups.items()}


def _cells(models: Models, group: str) -> list[tuple[str, str, str, AttentionShares]]:
    """Model, head, role and its shares: of the roles that some head gives enough, and of all other tokens."""
    cells = [
        (model, str(Head(*head.head)), role, shares)
        for model, each in models.items()
        for head in each.groups[group].heads
        for role, shares in {**head.to, _OTHER: head.other}.items()
    ]
    values = [(role, getattr(shares, kind).value or 0.0) for *_, role, shares in cells for kind in _KINDS]
    large = {_OTHER, *(role for role, value in values if value >= _SMALLEST)}
    return [cell for cell in cells if cell[2] in large]


def _sentences(name: str, models: Models) -> Iterator[str]:
    """To which role most heads of a group give most, weighted by values; other tokens are many, and no role."""
    for group in _groups(models):
        by_role: dict[str, list[str]] = {}
        for model, each in models.items():
            columns = [head.to for head in each.groups[group].heads]
            least = max(shares.n_prompts for to in columns for shares in to.values()) / 2  # rarer roles are no rivals
            largest = [
                {r: s.value_weighted.value or 0.0 for r, s in to.items() if s.n_prompts > least} for to in columns
            ]
            most = Counter(max(each, key=each.__getitem__) for each in largest)
            [(role, n)] = most.most_common(1)
            by_role.setdefault(role, []).append(f"{n} of {len(columns)} heads in {model}")
        says = ", ".join(f"{role} ({', '.join(says)})" for role, says in by_role.items())
        yield f"{group} of {name}: the role with the largest share, weighted by values, is most often {says}."


def _rows(models: Models, group: str) -> list[dict]:
    """One for each kind of share, model, head and role."""
    return [
        {"kind": says, "model": model, "head": head, "role": role, "n": shares.n_prompts}
        | charts.bounds(getattr(shares, kind))
        for kind, says in _KINDS.items()
        for model, head, role, shares in _cells(models, group)
    ]


def _heat_map(title: str, rows: list[dict]) -> charts.Figure:
    """Heads by roles; in each role's column the models, in one order. A switch shows the weighted shares."""
    models, n_roles = charts.distinct(rows, "model"), len(charts.distinct(rows, "role"))
    kinds, n_columns = list(_KINDS.values()), len(models) * n_roles
    cell = min(_CELL, _WIDTH // n_columns)
    switch = alt.param(name="kind", value=kinds[0], bind=alt.binding_radio(options=kinds, name="shares of "))
    base = (
        alt.Chart(charts.inline(rows))
        .transform_filter(alt.datum["kind"] == switch)
        .encode(
            x=charts.names_along("x", rows, "role", "attends to", labelAngle=-40),
            xOffset=charts.side_by_side("x", rows, "model"),
            y=charts.names_along("y", rows, "head", "head"),
            tooltip=charts.tips("head", "model", role="attends to", printed="share", n="prompts"),
        )
    )
    known = charts.known(base)
    scale = alt.Scale(domain=list(charts.UNIT), range=[charts.NEUTRAL, charts.HELPS], interpolate="rgb")
    layers = [
        known.mark_rect(stroke="white").encode(color=alt.Color("value:Q", scale=scale, title="share")),
        charts.struck_out(base),
    ]
    if cell >= _LEAST_WITH_NUMBERS:
        ink = alt.condition(alt.datum["value"] > 0.5, alt.value("white"), alt.value(charts.INK))
        large = known.transform_filter(alt.datum["value"] >= _SMALLEST)
        layers.append(large.mark_text(fontSize=9).encode(text=alt.Text("value:Q", format=".2f"), color=ink))
    order = f"in each column, from left: {', '.join(models)}" if len(models) > 1 else f"in {models[0]}"
    return charts.finish(layers, title, [order], width=n_columns * cell, height=alt.Step(18)).add_params(switch)


def _table(name: str, model: str, models: Models) -> Table:
    found = models[model]
    rows = [
        {"group": group, "head": head, "role": role, "n_prompts": shares.n_prompts} | all_printed(shares, _KINDS)
        for group in found.groups
        for of, head, role, shares in _cells(models, group)
        if of == model
    ]
    caption = f"Attention of {name}'s heads in {model}, on {found.n_prompts} prompts of {found.n_scenarios} scenarios"
    return Table(caption, rows, _COLUMNS, folded=True)
