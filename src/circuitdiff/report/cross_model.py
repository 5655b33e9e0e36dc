"""Whose is the gain? Patched activations and grafted weights, in one table and in figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import altair as alt

from circuitdiff.report.accuracy import among_random
from circuitdiff.report.look import CATEGORIES, INK, MUTED, Figure, finish, inline
from circuitdiff.report.numbers import finite, interval, number

HOW = {
    "alone": "alone",
    "left_out": "left out of all",
    "in_order": "in causal order",
    "shapley": "Shapley, symmetric",
}
CARRIED = {
    "z": "patched z",
    "q": "patched q",
    "k": "patched k",
    "v": "patched v",
    "pattern": "patched attention patterns",
    "contribution": "patched contributions",
}
GRAFTED = "grafted weights"
GRAFTED_LAYERS = "grafted weights of layers"
_GRAFTED_FURTHER = {"layers": GRAFTED_LAYERS, "heads": "grafted weights of single heads"}
RANDOM_GROUPS = "same_layers"
_NAMED = 10  # parts in a sentence; the table has all
DIRECTIONS = ("to_base", "to_variant")
_CONTROLS = {
    "any_layer": "as many heads of any layer",
    "elsewhere": "the same heads at another role",
    "noise": "its own values moved as far at random",
    "scaled": "its own values made as large",
}


def gain_key(variant: str, direction: str, method: str) -> str:
    return f"gain/{variant}/{direction}/{method}"


def control_key(variant: str, group: str) -> str:
    return f"gain-controls/{variant}/{group}"


def measured(results: dict, variant: str) -> Iterator[tuple[str, str, dict]]:
    """What was done to a variant and its base: (direction, method in words, its entry)."""
    yield from by_group(results, variant)
    yield from divided_otherwise(results, variant)


def by_group(results: dict, variant: str) -> Iterator[tuple[str, str, dict]]:
    """Of `measured` what has the circuit's groups as its parts; of grafted weights also all else by kind."""
    patched, grafted = _sections(results, variant)
    for direction in DIRECTIONS:
        for what, entry in (patched.get(direction) or {}).items():
            yield direction, _carried(what), entry
    if grafted:
        yield _direction(grafted, variant), GRAFTED, grafted


def divided_otherwise(results: dict, variant: str) -> Iterator[tuple[str, str, dict]]:
    """The rest of `measured`: single heads, ranges of layers, and donors that should bring nothing."""
    patched, grafted = _sections(results, variant)
    if heads := patched.get("heads"):
        yield _direction(heads, variant), f"{_carried(heads.get('what'))}, single heads of {heads.get('group')}", heads
    for donor, entry in (patched.get("null_donors") or {}).items():
        yield "to_base", f"{_carried(entry.get('what'))}, from {donor} instead", entry
    for key, said in _GRAFTED_FURTHER.items():
        if grafted.get(key):
            yield _direction(grafted[key], variant), said, grafted[key]


def _sections(results: dict, variant: str) -> tuple[dict, dict]:
    patched, grafted = (((results.get(section) or {}).get(variant)) or {} for section in ("cmap", "graft"))
    return patched, grafted


def _direction(entry: dict, variant: str) -> str:
    return "to_variant" if entry.get("recipient") == variant else "to_base"


def is_graft(method: str) -> bool:
    """Whether these are grafted weights; patched activations else."""
    return method.startswith(GRAFTED)


def _carried(what: str | None) -> str:
    return CARRIED.get(what or "") or f"patched {what}"


def variants(results: dict) -> list[str]:
    """The variants that were patched or grafted, each once."""
    return list(dict.fromkeys(name for section in ("cmap", "graft") for name in results.get(section) or {}))


def gain_figures(results: dict) -> dict[str, Figure]:
    """One figure per variant, direction and method; and each group among its random groups."""
    drawn = {}
    for variant in variants(results):
        for direction, method, entry in measured(results, variant):
            if share_rows(entry, method):
                drawn[gain_key(variant, direction, method)] = gain_bars(entry, method, _held_against(results, variant))
        drawn |= _control_figures(results, variant)
    return drawn


def share_rows(entry: dict, method: str, score: str = "accuracy") -> list[dict]:
    """The table: one row per part and way of counting, what it adds and its share, each printed with its interval."""
    found = (entry.get("scores") or {}).get(score) or {}
    unchanged = set(entry.get("unchanged") or [])
    rows = [
        _row(part, HOW[how], credits[how], method)
        for part, credits in (found.get("parts") or {}).items()
        if part not in unchanged
        for how in HOW
        if how in credits
    ]
    whole = [("all together", "together"), ("what no part explains", "unexplained")]
    return rows + [_row(said, "", found[key], method) for said, key in whole if rows and found.get(key)]


def _row(part: str, how: str, credit: dict, method: str) -> dict:
    return {
        "part": part,
        "how": how,
        "method": method,
        "value": finite(credit.get("value")),
        "low": finite(credit.get("low")),
        "high": finite(credit.get("high")),
        "printed": f"{number(credit.get('value'))} ({interval(credit)})",
        "share": _share(credit),
        "note": credit.get("undefined") or "",
    }


def _share(credit: dict) -> str:
    share = {"value": credit.get("share"), "low": credit.get("share_low"), "high": credit.get("share_high")}
    return "undefined" if credit.get("undefined") else f"{number(share['value'])} ({interval(share)})"


def _held_against(results: dict, variant: str) -> list[dict]:
    """What random heads and noise bring in a group's stead, for the figures."""
    drawn = {RANDOM_GROUPS: "random heads of its layers", "noise": "noise"}
    return [
        row | {"how": f"control: {said}"}
        for row in control_rows(results, variant)
        for which, said in drawn.items()
        if row["control"] == which
    ]


def gain_bars(entry: dict, method: str, controls: Sequence[dict] = ()) -> Figure:
    """What each part adds to the accuracy, with intervals; the dashed line is the donor. Pale: without a share.

    `controls` of the same method are drawn beside the parts that they stand in for.
    """
    rows = [row for row in share_rows(entry, method) if row["how"]]
    parts = {row["part"] for row in rows}
    rows += [
        {key: control[key] for key in rows[0]}
        for control in controls
        if control["part"] in parts and control["value"] is not None and _same_method(control, method, entry)
    ]
    gain = entry["scores"]["accuracy"]["gain"]
    ways = list(dict.fromkeys(row["how"] for row in rows))
    title = "what the part adds to the accuracy"
    base = alt.Chart(inline(rows)).encode(
        y=alt.Y("part:N", sort=None, title=None, axis=alt.Axis(labelLimit=200)),
        yOffset=alt.YOffset("how:N", sort=ways),
        color=alt.Color("how:N", sort=ways, scale=alt.Scale(domain=ways, range=CATEGORIES), title="counted"),
        opacity=alt.condition(alt.datum.note == "", alt.value(0.85), alt.value(0.3)),
        tooltip=[
            "part:N",
            "how:N",
            alt.Tooltip("printed:N", title="adds"),
            alt.Tooltip("share:N", title="share of the gain"),
            "note:N",
        ],
    )
    bars = base.mark_bar().encode(x=alt.X("value:Q", title=title))
    ends = base.mark_rule(strokeWidth=1.5).encode(
        x=alt.X("low:Q", title=title), x2="high:Q", color=alt.value(INK), opacity=alt.value(1)
    )
    rules = [("0", 0.0, MUTED), (f"{entry.get('donor')}: the gain", finite(gain.get("value")), INK)]
    lines = [
        alt.Chart(inline([{"at": at, "what": what}]))
        .mark_rule(color=colour, strokeDash=[4, 3])
        .encode(x="at:Q", tooltip="what:N")
        for what, at, colour in rules
        if at is not None
    ]
    heading = f"{method[0].upper()}{method[1:]}: {entry.get('donor')} into {entry.get('recipient')}"
    level = f"dashed: the donor, {number(gain.get('value'))} ({interval(gain)}) above the recipient"
    subtitle = [
        f"{level}; {entry.get('n_scenarios')} scenarios",
        "with 95 % intervals; pale: no share, the note says why",
    ]
    return finish([bars, ends, *lines], heading, subtitle, width=420, height=alt.Step(11))


def _same_method(control: dict, method: str, entry: dict) -> bool:
    """Controls are of grafts, or of the first kind of activation, patched from the better model."""
    return is_graft(method) if is_graft(control["method"]) else control["beside"] == (method, entry.get("recipient"))


def run_rows(entry: dict) -> list[dict]:
    """The table of runs: which parts came from the donor, the accuracy, its share, and how far from clean it ends."""
    credits = ((entry.get("scores") or {}).get("accuracy") or {}).get("runs") or []
    shares = {tuple(credit["parts"]): credit for credit in credits}
    return [
        {
            "parts": " + ".join(run["parts"]) or "none",
            "accuracy": f"{number((run.get('accuracy') or {}).get('value'))} ({interval(run.get('accuracy'))})",
            "share": _share(shares.get(tuple(run["parts"])) or {}),
            "probability": number((run.get("probability") or {}).get("value")),
            "log_prob": number((run.get("log_prob") or {}).get("value")),
            "distance": number(run.get("distance")),
            "note": run.get("incompatible") or "",
        }
        for run in entry.get("runs") or []
    ]


def control_rows(results: dict, variant: str) -> list[dict]:
    """The table of controls: what each brings in the stead of a group, patched or grafted.

    Not printed: `control`, which one it is, and `beside`, the kind of activation and the recipient.
    """
    rows = []
    patched, grafted = _sections(results, variant)
    for group, controls in (patched.get("controls") or {}).items():
        known = {"group": "the group itself"} | _CONTROLS
        named = [(name, said, controls[name]) for name, said in known.items() if controls.get(name)]
        named += [(RANDOM_GROUPS, *_among(controls["same_layers"]))] if controls.get("same_layers") else []
        beside = (_carried(controls.get("what") or "z"), _worse(results, variant))
        rows += [
            _row(group, said, credit, "patched") | {"note": _note(credit), "control": name, "beside": beside}
            for name, said, credit in named
        ]
    for group, controls in (grafted.get("controls") or {}).items():
        rows += [_row(group, said, credit, GRAFTED) | {"control": ""} for said, credit in controls.items()]
    return rows


def _worse(results: dict, variant: str) -> str | None:
    """The recipient of the controls, single heads and grafts: the worse of the two models."""
    patched, grafted = _sections(results, variant)
    return patched.get("recipient") or grafted.get("recipient")


def _among(entry: dict) -> tuple[str, dict]:
    beaten = f"{number(entry.get('percentile')).split('.')[0]} of 100"
    far = f"; {entry['n_far']} of them end far from clean runs and have no share" if entry.get("n_far") else ""
    said = f"{entry.get('n')} random groups of its layers (the group is above {beaten}{far})"
    return said, entry


def _note(credit: dict) -> str:
    return "ends far from clean runs" if credit.get("incompatible") is True else credit.get("undefined") or ""


def _control_figures(results: dict, variant: str) -> dict[str, Figure]:
    patched, _ = _sections(results, variant)
    drawn = {}
    for group, controls in (patched.get("controls") or {}).items():
        random = controls.get("same_layers") or {}
        accuracies = [a for a in map(finite, random.get("accuracies") or []) if a is not None]
        if accuracies:
            own = ((controls.get("group") or {}).get("accuracy") or {}).get("value")
            title = f"{group} patched into {_worse(results, variant)}, among random groups of its layers"
            drawn[control_key(variant, group)] = among_random(
                title, accuracies, {"the group": own}, controls.get("n_prompts"), "random groups"
            )
    return drawn


def gain_sentence(variant: str, direction: str, method: str, entry: dict) -> str:
    """Where the gain goes, in causal order, in words."""
    found = (entry.get("scores") or {}).get("accuracy") or {}
    gain, start = found.get("gain") or {}, f"{method[0].upper()}{method[1:]} of {entry.get('donor')}"
    into = f"{start} in {entry.get('recipient')}: the gain is {number(gain.get('value'))} ({interval(gain)})"
    shares = [
        (part, credits["in_order"])
        for part, credits in (found.get("parts") or {}).items()
        if finite((credits.get("in_order") or {}).get("share")) is not None
    ]
    if not shares:
        why = ((found.get("together") or {}).get("undefined")) or "no share is defined"
        return f"{into}; {why}."
    largest = sorted(shares, key=lambda each: -abs(each[1]["share"]))[:_NAMED]
    listed = ", ".join(f"{part} {number(credit['share'])}" for part, credit in shares if (part, credit) in largest)
    which = "its" if len(shares) <= _NAMED else f"the {_NAMED} largest of its {len(shares)}"
    return f"{into}; {which} shares in causal order are {listed}."
