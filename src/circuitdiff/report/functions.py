"""What each group encodes: accuracies of component masks above their floor, in figures and tables."""

from __future__ import annotations

from collections.abc import Iterator

import altair as alt

from circuitdiff.circuit import Head
from circuitdiff.report.look import CATEGORIES, INK, MUTED, Figure, finish, inline
from circuitdiff.report.numbers import finite, hits, interval, number
from circuitdiff.report.table import Table
from circuitdiff.report.verdict import anchor

_CARRIES, _NOT = "above its floor", "not above its floor"
_FOLLOWED = {"unpatched": "the answer without a patch", "other": "anything else"}  # the others go by their kind
_PATCHED = {"mask": "the mask's heads", "all": "all heads"}
_MAIN = ("object", "label", "position")  # in the order and colours of every figure; others follow


def functions_key(circuit: str, model: str) -> str:
    return f"functions/{circuit}/{model}"


def redrawn_key(circuit: str, desideratum: str) -> str:
    return f"functions/{circuit}/sources drawn anew/{desideratum}"


def trade_off_key(circuit: str, model: str, group: str) -> str:
    return f"functions/{circuit}/{model}/{group}/trade-off"


def conflict_key(circuit: str, model: str, group: str) -> str:
    return f"functions/{circuit}/{model}/{group}/by index"


def functions_figures(results: dict) -> dict[str, Figure]:
    """Per circuit and model: bars, trade-offs, conflicts by index; per circuit: activation patching in all models."""
    drawn: dict[str, Figure] = {}
    for circuit, models in (results.get("functions") or {}).items():
        for model, groups in models.items():
            if rows := bar_rows(groups):
                drawn[functions_key(circuit, model)] = bars(f"What groups of {circuit} encode in {model}", rows)
            for group, entries in groups.items():
                if rows := trade_off_rows(entries):
                    drawn[trade_off_key(circuit, model, group)] = trade_off(f"{group} of {circuit} in {model}", rows)
                if rows := conflict_rows(entries):
                    drawn[conflict_key(circuit, model, group)] = by_index(f"{group} of {circuit} in {model}", rows)
        for desideratum in _redrawn(models):
            rows = redrawn_rows(models, desideratum)
            drawn[redrawn_key(circuit, desideratum)] = redrawn_bars(f"{circuit}: {desideratum}", rows)
    return drawn


def bar_rows(groups: dict) -> list[dict]:
    """One row per group and desideratum."""
    return [_row(group, name, entry) for group, entries in groups.items() for name, entry in _ordered(entries)]


def _ordered(entries: dict) -> list[tuple[str, dict]]:
    return sorted(entries.items(), key=lambda item: _MAIN.index(item[0]) if item[0] in _MAIN else len(_MAIN))


def _row(group: str, desideratum: str, entry: dict) -> dict:
    above = entry.get("above_floor") or {}
    return {
        "group": group,
        "desideratum": desideratum,
        "accuracy": finite(entry.get("accuracy")),
        "low": finite(entry.get("low")),
        "high": finite(entry.get("high")),
        "floor": finite(entry.get("floor")),
        "printed": number(entry.get("accuracy")),
        "interval": interval(entry),
        "floor_printed": f"{number(entry.get('floor'))} ({entry.get('floor_is') or '–'})",
        "above": f"{number(above.get('value'))} ({interval(above)})",
        "carries": _CARRIES if entry.get("carries") else _NOT,
        "heads": f"{len(entry.get('heads') or [])} of {len(entry.get('group') or [])}",
    }


def bars(title: str, rows: list[dict]) -> Figure:
    """Test accuracy of each mask with its interval; the dark tick is the floor. Pale: not above it."""
    names = list(dict.fromkeys(row["desideratum"] for row in rows))
    base = alt.Chart(inline(rows)).encode(
        x=_groups(rows),
        xOffset=alt.XOffset("desideratum:N", sort=names),
        tooltip=[
            "group:N",
            "desideratum:N",
            alt.Tooltip("printed:N", title="accuracy"),
            alt.Tooltip("interval:N", title="95 % interval"),
            alt.Tooltip("floor_printed:N", title="floor"),
            alt.Tooltip("above:N", title="above the floor"),
            alt.Tooltip("heads:N", title="heads patched"),
        ],
    )
    opacity = alt.Opacity("carries:N", scale=alt.Scale(domain=[_CARRIES, _NOT], range=[1, 0.35]), title=None)
    filled = base.mark_bar().encode(y=_accuracy("accuracy"), color=_colour("desideratum", names), opacity=opacity)
    ends = base.mark_rule(strokeWidth=1.5, color=INK).encode(y=_accuracy("low"), y2="high:Q")
    floor = base.mark_tick(thickness=2.5, color=INK, orient="horizontal").encode(y=_accuracy("floor"))
    said = ["share of test triples whose target became the answer, with 95 % intervals; tick: the floor"]
    return finish([filled, ends, floor], title, said, width=_width(rows, names), height=220)


def _groups(rows: list[dict]) -> alt.X:
    names = list(dict.fromkeys(row["group"] for row in rows))
    return alt.X("group:N", sort=names, title=None, axis=alt.Axis(labelAngle=0, labelLimit=200))


def _width(rows: list[dict], offsets: list[str]) -> int:
    """Room for each bar and for each group's name."""
    return len({row["group"] for row in rows}) * max(130, 16 * len(offsets))


def _accuracy(field: str) -> alt.Y:
    return alt.Y(f"{field}:Q", title="accuracy", scale=alt.Scale(domain=[0, 1]))


def _colour(field: str, names: list[str]) -> alt.Color:
    colours = [CATEGORIES[i % len(CATEGORIES)] for i in range(len(names))]
    return alt.Color(f"{field}:N", sort=names, scale=alt.Scale(domain=names, range=colours), title=field)


def trade_off_rows(entries: dict) -> list[dict]:
    """One row per mask of every desideratum that has more than one."""
    return [
        {
            "desideratum": name,
            "n_heads": mask["n_heads"],
            "accuracy": finite(mask.get("value")),
            "low": finite(mask.get("low")),
            "high": finite(mask.get("high")),
            "interval": interval(mask),
            "penalty": f"{mask['penalty']:g}",
            "seed": mask["seed"],
            "heads": _names(mask["heads"]),
        }
        for name, entry in _ordered(entries)
        if len(entry.get("trade_off") or []) > 1
        for mask in entry["trade_off"]
    ]


def trade_off(title: str, rows: list[dict]) -> Figure:
    """Heads patched against test accuracy, one dot per penalty and seed."""
    names = list(dict.fromkeys(row["desideratum"] for row in rows))
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("n_heads:Q", title="heads patched", axis=alt.Axis(tickMinStep=1, format="d")),
        color=_colour("desideratum", names),
        tooltip=["desideratum:N", "penalty:N", "seed:N", "n_heads:Q", "accuracy:Q", "interval:N", "heads:N"],
    )
    ends = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(y=_accuracy("low"), y2="high:Q")
    dots = base.mark_point(filled=True, size=60, opacity=1).encode(y=_accuracy("accuracy"))
    said = ["a dot for each penalty and seed; with 95 % intervals"]
    return finish([ends, dots], f"Heads against accuracy: {title}", said, width=360, height=220)


def conflict_rows(entries: dict) -> list[dict]:
    """Accuracy by the index asked for in the source, for conflict desiderata."""
    return [
        {
            "desideratum": name,
            "index": point["queried"],
            "accuracy": finite(point.get("value")),
            "low": finite(point.get("low")),
            "high": finite(point.get("high")),
            "interval": interval(point),
            "hits": hits(point),
        }
        for name, entry in entries.items()
        if name.startswith("conflict")
        for point in entry.get("by_queried") or []
    ]


def by_index(title: str, rows: list[dict]) -> Figure:
    """Where position, label and object point to three listed answers: which is followed, by the source's index."""
    names = list(dict.fromkeys(row["desideratum"] for row in rows))
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("index:O", title="index asked for in the source, from zero", axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("desideratum:N", sort=names),
        color=_colour("desideratum", names),
        tooltip=["desideratum:N", "index:O", "accuracy:Q", "interval:N", "hits:N"],
    )
    ends = base.mark_rule(strokeWidth=2).encode(y=_accuracy("low"), y2="high:Q")
    dots = base.mark_point(filled=True, size=60, opacity=1).encode(y=_accuracy("accuracy"))
    said = ["position, label and object point to three answers of the list; with 95 % intervals"]
    return finish([ends, dots], f"In conflict: {title}", said, width=420, height=220)


def _redrawn(models: dict) -> list[str]:
    """The desiderata for which sources were drawn anew."""
    entries = [item for groups in models.values() for each in groups.values() for item in _ordered(each)]
    return list(dict.fromkeys(name for name, entry in entries if entry.get("redrawn")))


def redrawn_rows(models: dict, desideratum: str) -> list[dict]:
    """One row per group and model: the mean over redraws, and one standard deviation to either side."""
    return [
        {
            "group": group,
            "model": model,
            "mean": finite(found.get("mean")),
            "below": _plus(found, -1),
            "above": _plus(found, 1),
            "printed": f"{number(found.get('mean'))} ± {number(found.get('sd'))}",
            "redraws": len(found.get("accuracies") or []),
            "heads": len(found.get("heads") or []),
        }
        for model, groups in models.items()
        for group, entries in groups.items()
        if (found := (entries.get(desideratum) or {}).get("redrawn"))
    ]


def _plus(found: dict, side: int) -> float | None:
    mean, sd = finite(found.get("mean")), finite(found.get("sd"))
    return None if mean is None or sd is None else mean + side * sd


def redrawn_bars(title: str, rows: list[dict]) -> Figure:
    """Activation patching of the heads found in the circuit's own model, in every model."""
    names = list(dict.fromkeys(row["model"] for row in rows))
    base = alt.Chart(inline(rows)).encode(
        x=_groups(rows),
        xOffset=alt.XOffset("model:N", sort=names),
        tooltip=["group:N", "model:N", alt.Tooltip("printed:N", title="mean ± sd"), "redraws:Q", "heads:Q"],
    )
    filled = base.mark_bar().encode(y=_accuracy("mean"), color=_colour("model", names))
    ends = base.mark_rule(strokeWidth=1.5, color=MUTED).encode(y=_accuracy("below"), y2="above:Q")
    said = ["activation patching of the heads found in the circuit's own model; mean ± sd over sources drawn anew"]
    return finish([filled, ends], title, said, width=_width(rows, names), height=200)


def function_rows(results: dict) -> list[dict]:
    """The table: one row per circuit, model, group and desideratum, with which heads and every control."""
    return [
        {"circuit": circuit, "model": model, **_row(group, name, entry), **_controls(entry)}
        | {"which": _names(entry.get("heads") or []), "transferred": _transferred(entry)}
        for circuit, model, group, name, entry in _entries(results)
    ]


def _entries(results: dict) -> Iterator[tuple[str, str, str, str, dict]]:
    for circuit, models in (results.get("functions") or {}).items():
        for model, groups in models.items():
            for group, entries in groups.items():
                for name, entry in _ordered(entries):
                    yield circuit, model, group, name, entry


def function_tables(results: dict) -> list[Table]:
    """Two tables per circuit and model: numbers, and which heads.

    The verdict's sentence on a model links to where a mask was carried over.
    """
    by_table: dict[tuple[str, str], list[dict]] = {}
    for row in function_rows(results):
        by_table.setdefault((row["circuit"], row["model"]), []).append(row)
    linked: dict[str, str] = {}  # by model: the first circuit with a mask from elsewhere, else the first
    for circuit, model in sorted(by_table, key=lambda key: not any(row["transferred"] for row in by_table[key])):
        linked.setdefault(model, circuit)
    tables: list[Table] = []
    for (circuit, model), rows in by_table.items():
        masks, ids = f"masks of {circuit}'s groups in {model}", [anchor("masks", model)]
        tables.append(Table(f"M{masks[1:]}", _columns(rows), rows, ids if linked[model] == circuit else []))
        heads = {"group": "group", "desideratum": "desideratum", "heads": "patched", "which": "heads"}
        tables.append(Table(f"Heads that the {masks} patch", heads, rows))
        if followed := followed_rows(results["functions"][circuit][model]):
            kinds = list(dict.fromkeys(kind for row in followed for kind in row["kinds"]))
            columns = {"group": "group", "desideratum": "desideratum", "patched": "patched"}
            columns |= {kind: _FOLLOWED.get(kind, kind) for kind in kinds}
            tables.append(Table(f"In conflict, what is followed: {masks}", columns, followed))
    return tables


def followed_rows(groups: dict) -> list[dict]:
    """Where position, label and object point to three listed answers: the share of test triples that follow each."""
    return [
        {"group": group, "desideratum": name, "patched": _PATCHED[patched], "kinds": list(shares)}
        | {kind: number(share) for kind, share in shares.items()}
        for group, entries in groups.items()
        for name, entry in _ordered(entries)
        for patched, shares in (entry.get("pointed") or {}).items()
        if name.startswith("conflict")
    ]


def _columns(rows: list[dict]) -> dict[str, str]:
    """Controls that no mask has are left out."""
    columns = {"group": "group", "desideratum": "desideratum", "printed": "accuracy", "interval": "95 % interval"}
    columns |= {"floor_printed": "floor", "shuffled": "trained floor", "above": "above the floor"}
    few = min((row["n_controls"] for row in rows if row["n_controls"]), default=None)
    on = "" if few is None else f", {few} triples"
    columns |= {"all": f"all heads{on}", "random": f"random heads{on}", "ranked": f"strongest heads{on}"}
    columns |= {"transferred": "the mask of the circuit's own model"}
    optional = ("shuffled", "transferred")
    return {key: said for key, said in columns.items() if key not in optional or any(row[key] for row in rows)}


def _controls(entry: dict) -> dict:
    found = entry.get("controls") or {}
    shares = {name: number((found.get(name) or {}).get("value")) for name in ("nothing", "all", "ranked")}
    trained = found.get("shuffled")
    shares |= {"random": number(found.get("random")), "shuffled": _printed(trained) if trained else ""}
    return shares | {"n_controls": (found.get("all") or {}).get("n")}


def _transferred(entry: dict) -> str:
    """The mask of the circuit's own model, unchanged in this one."""
    found = entry.get("transferred")
    above = (found or {}).get("above_floor")
    return _printed(found) + (f"; {_printed(above)} above the floor" if above else "") if found else ""


def _printed(found: dict) -> str:
    return f"{number(found.get('value'))} ({interval(found)})"


def _names(places: list) -> str:
    return ", ".join(str(Head(*place)) for place in places) or "none"


def function_sentences(results: dict) -> list[str]:
    """What each group encodes, per circuit and model, and nothing more than the intervals allow."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for circuit, model, group, name, entry in _entries(results):
        carried = found.setdefault((circuit, model), {}).setdefault(group, [])
        if entry.get("carries"):
            above = entry.get("above_floor") or {}
            carried.append(f"{name} ({number(above.get('value'))} above the floor, {interval(above)})")
    return [
        f"{circuit} in {model}: "
        + "; ".join(f"{group} encodes {_listed(names)}" for group, names in groups.items())
        + "."
        for (circuit, model), groups in found.items()
    ]


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none of what was asked"
