"""Whose is a gain? What patched activations and grafted weights have in common: figures, sentences and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import altair as alt

from circuitdiff.evaluation.answers import Score
from circuitdiff.report import charts
from circuitdiff.report.numbers import heads, number, printed
from circuitdiff.report.parts import Table
from circuitdiff.study.estimates import Estimate, GroupHeads
from circuitdiff.study.gains import Credit, GainShares
from circuitdiff.study.registry import CommonResults, part_of
from circuitdiff.study.sections import cross_model, graft
from circuitdiff.study.sections.cross_model import PatchedMaskHeads, PatchRun
from circuitdiff.study.sections.graft import GraftedParts

GRAFTED = "grafted weights"
CARRIED = {
    "z": "patched z",
    "q": "patched q",
    "k": "patched k",
    "v": "patched v",
    "pattern": "patched attention patterns",
    "contribution": "patched contributions",
}
_HOW = {"alone": "alone", "left_out": "left out of all", "in_order": "in causal order", "shapley": "Shapley, symmetric"}
_OTHER_SCORES: dict[Score, str] = {"logit_difference": "logit difference", "log_prob": "answer's log probability"}
_ENDS = ("all together", "what no part explains")
_NAMED = 10  # parts in a sentence; the table has all
_ALONG = charts.Along("x", "what the part adds to the accuracy")
_SHARE_COLUMNS = {"part": "part", "how": "counted", "printed": "adds to the accuracy", "share": "share", "note": ""}
CONTROL_COLUMNS = _SHARE_COLUMNS | {"part": "group", "how": "in its stead"}


@dataclass(frozen=True)
class Method:
    """One way of bringing the donor's parts into the recipient, by its name on the page."""

    name: str
    shares: GainShares
    note: str = ""

    @property
    def title(self) -> str:
        return f"{self.name} of {self.shares.donor} in {self.shares.recipient}"

    @property
    def unchanged(self) -> tuple[str, ...]:
        """Parts that are the same in both models, which say nothing."""
        return self.shares.unchanged if isinstance(self.shares, GraftedParts) else ()


def patched_by_group(results: CommonResults, variant: str) -> list[Method]:
    """Into the base, then into the variant, by each kind of activation; and of the groups only the heads of masks."""
    patched = part_of(results, cross_model.SECTION).get(variant)
    if patched is None:
        return []
    both = (patched.to_base, patched.to_variant)
    methods = [Method(CARRIED[what], shares) for direction in both for what, shares in direction.items()]
    if patched.mask_heads is not None:
        note = _on_masks(patched.groups, patched.mask_heads)
        methods.append(Method(f"{CARRIED[patched.mask_heads.what]}, heads of masks", patched.mask_heads, note))
    return methods


def _on_masks(groups: Mapping[str, GroupHeads], masked: PatchedMaskHeads) -> str:
    """How many heads of each group were patched, and for what its mask was learned."""
    listed = []
    for name, group in masked.groups.items():
        carries = masked.functions.get(name, "carries nothing that was asked")
        listed.append(f"{name} {len(group.heads)} of {len(groups[name].heads)} ({carries})")
    return f"Heads of masks: {', '.join(listed)}."


def grafted_by_group(results: CommonResults, variant: str) -> list[Method]:
    """At most one; its parts are also all else by kind."""
    grafted = part_of(results, graft.SECTION).get(variant)
    return [] if grafted is None else [Method(GRAFTED, grafted)]


def credit_row(part: str, how: str, credit: Credit) -> dict:
    return {"part": part, "how": how, "share": share(credit), "note": credit.undefined or ""} | charts.bounds(credit)


def share(credit: Credit | None) -> str:
    """With its interval; nothing of what was not measured."""
    if credit is None:
        return ""
    if credit.undefined:
        return "undefined"
    return printed(Estimate(credit.share, credit.share_low, credit.share_high))


def share_rows(method: Method, score: Score = "accuracy") -> list[dict]:
    """One row per part and way of counting, what it adds and its share, each printed with its interval."""
    if score not in method.shares.scores:
        return []
    found = method.shares.scores[score]
    rows = [
        credit_row(part, name, credits[how])
        for part, credits in found.parts.items()
        if part not in method.unchanged
        for how, name in _HOW.items()
        if how in credits
    ]
    whole = zip(_ENDS, (found.together, found.unexplained), strict=True)
    return rows + [credit_row(end, "", credit) for end, credit in whole if rows]


def sentence(method: Method) -> str:
    """Where the gain goes, in causal order, in words."""
    found = method.shares.scores["accuracy"]
    start = f"{method.title[0].upper()}{method.title[1:]}: the gain is {printed(found.gain)}"
    credits = {part: each["in_order"] for part, each in found.parts.items() if "in_order" in each}
    shares = {part: credit.share for part, credit in credits.items() if credit.share is not None}
    if not shares:
        return f"{start}; {found.together.undefined or 'no share is defined'}."
    largest = sorted(shares, key=lambda part: -abs(shares[part]))[:_NAMED]
    listed = ", ".join(f"{part} {number(share)}" for part, share in shares.items() if part in largest)
    which = "its" if len(shares) <= _NAMED else f"the {_NAMED} largest of its {len(shares)}"
    return f"{start}; {which} shares in causal order are {listed}."


def figures(
    variant: str, methods: Sequence[Method], controls: Sequence[dict] = (), controlled: Method | None = None
) -> dict[str, charts.Figure]:
    """One per method; `controls`, of the method `controlled`, stand beside the parts that they replace."""
    return {
        f"gain/{variant}/into {each.shares.recipient}/{each.name}": _bars(each, controls if each == controlled else ())
        for each in methods
        if share_rows(each)
    }


def _bars(method: Method, controls: Sequence[dict]) -> charts.Figure:
    """What each part adds to the accuracy, with intervals; the dashed line is the donor. Pale: without a share."""
    shares, gain = method.shares, method.shares.scores["accuracy"].gain
    rows = [row for row in share_rows(method) if row["how"]]
    rows += [row for row in controls if row["part"] in charts.distinct(rows, "part") and row["value"] is not None]
    base = alt.Chart(charts.inline(rows)).encode(
        y=charts.names_along("y", rows, "part"),
        yOffset=charts.side_by_side("y", rows, "how"),
        tooltip=charts.tips(part="part", how="counted", printed="adds", share="share of the gain", note=""),
    )
    color = charts.colour("how", charts.distinct(rows, "how"), "counted")
    layers = [
        _ALONG.bars(base, color=color, opacity=alt.condition(alt.datum.note == "", alt.value(0.85), alt.value(0.3))),
        _ALONG.intervals(base, color=charts.INK),
        *_ALONG.dashed(0.0),
        *_ALONG.dashed(gain.value, says=f"{shares.donor}: the gain", color=charts.INK),
    ]
    title = f"{method.name[0].upper()}{method.name[1:]}: {shares.donor} into {shares.recipient}"
    subtitle = [
        f"dashed: the donor, {printed(gain)} above the recipient; {shares.n_scenarios} scenarios",
        "with 95 % intervals; pale: no share, the note says why",
    ]
    return charts.finish(layers, title, subtitle, width=420, height=alt.Step(11))


def share_table(method: Method, ids: Sequence[str] = ()) -> Table:
    return Table(method.title, share_rows(method), _SHARE_COLUMNS, ids, shared_weights(method))


def score_tables(method: Method) -> list[Table]:
    """The same in the other scores, and every run."""
    tables = [
        Table(f"{method.title}: {says}", share_rows(method, score), _SHARE_COLUMNS | {"printed": f"adds to the {says}"})
        for score, says in _OTHER_SCORES.items()
    ]
    return [*tables, Table(f"{method.title}: every run", run_rows(method))]


def run_rows(method: Method) -> list[dict]:
    """Which parts came from the donor, the accuracy, its share, and how far from clean it ends."""
    credits = {credit.parts: credit for credit in method.shares.scores["accuracy"].runs}
    return [
        {
            "from the donor": " + ".join(run.parts) or "none",
            "accuracy": printed(run.accuracy),
            "share": share(credits[run.parts]) if run.parts in credits else number(None),
            "logit difference": number(run.logit_difference.value),
            "log probability": number(run.log_prob.value),
            "distance from clean runs": number(run.distance if isinstance(run, PatchRun) else None),
            "": (run.incompatible or "") if isinstance(run, PatchRun) else "",
        }
        for run in getattr(method.shares, "runs", ())
    ]


def side_by_side_table(methods: Sequence[Method], ids: Sequence[str]) -> Table:
    """Where a gain is visible beside what caused it: methods of one donor and recipient, in columns of their own."""
    methods = [method for method in methods if share_rows(method)]
    columns = {"part": "part", "how": "counted"}
    for method in methods:
        columns |= {method.name: method.name, f"share, {method.name}": "share"}
    weights = map(shared_weights, methods)
    note = " ".join(filter(None, [_without_share(methods), *(method.note for method in methods), *weights]))
    kinds = dict.fromkeys(isinstance(method.shares, GraftedParts) for method in methods)
    asks = {False: "where it is visible (patched activations)", True: "what caused it (grafted weights)"}
    over = "".join(f"The gain of {each.shares.donor} over {each.shares.recipient}" for each in methods[:1])
    caption = f"{over}: {' and '.join(asks[kind] for kind in kinds)}"
    caption += "; what each part adds to the accuracy, and its share of the gain"
    return Table(caption, _side_by_side_rows(methods), columns, ids, note)


def _side_by_side_rows(methods: Sequence[Method]) -> list[dict]:
    """The gain itself, then one row per part and way of counting; blank where a method has no such number."""
    cells = {m.name: {(row["part"], row["how"]): row for row in share_rows(m)} for m in methods}
    keys = dict.fromkeys(key for rows in cells.values() for key in rows)
    parts = dict.fromkeys(part for part, how in keys if how)
    in_order = [(part, how) for part in parts for how in _HOW.values()] + [(end, "") for end in _ENDS]
    gains = {"part": "the gain", "how": ""}
    for method in methods:  # methods that ran on other prompts have another one
        gains |= {method.name: printed(method.shares.scores["accuracy"].gain), f"share, {method.name}": ""}
    rows = [gains] if keys else []
    for part, how in filter(keys.__contains__, in_order):
        row = {"part": part, "how": how}
        for name, found in cells.items():
            cell = found.get((part, how), {})
            row |= {name: cell.get("printed", ""), f"share, {name}": cell.get("share", "")}
        rows.append(row)
    return rows


def _without_share(methods: Sequence[Method]) -> str:
    """Why parts have no share, each reason once."""
    reasons: dict[str, list[str]] = {}
    for method in methods:
        for row in share_rows(method):
            if row["note"]:
                reasons.setdefault(row["note"], []).append(f"{method.name} of {row['part']}")
    listed = [f"{note} ({', '.join(dict.fromkeys(where))})" for note, where in reasons.items()]
    return f"No share is defined: {'; '.join(listed)}." if listed else ""


def shared_weights(method: Method) -> str:
    """What was grafted along with a group's heads, and what is the same in both models."""
    if not isinstance(method.shares, GraftedParts):
        return ""
    touched = [
        f"With {part} the keys and values of {heads(places)} were grafted, too: they are the same weights."
        for part, places in method.shares.also_touched.items()
        if places
    ]
    unchanged = f"The same in both models: {', '.join(method.unchanged)}." if method.unchanged else ""
    return " ".join([*touched, unchanged]).strip()
