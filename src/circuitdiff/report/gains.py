"""The tables on a gain: where it is visible beside what caused it, then all that is divided otherwise."""

from __future__ import annotations

from collections.abc import Mapping

from circuitdiff.circuit import Head
from circuitdiff.report.cross_model import (
    DIRECTIONS,
    GRAFTED,
    GRAFTED_LAYERS,
    HOW,
    by_group,
    control_rows,
    divided_otherwise,
    is_graft,
    run_rows,
    share_rows,
)
from circuitdiff.report.numbers import interval, number
from circuitdiff.report.table import Table
from circuitdiff.report.verdict import anchor

_ENDS = ("all together", "what no part explains")
_SECTIONS = ("cmap", "graft")
_OTHER_SCORES = {"probability": "answer's probability", "log_prob": "answer's log probability"}
_RUN_COLUMNS = {"parts": "from the donor", "accuracy": "accuracy", "share": "share", "probability": "probability"}
_RUN_COLUMNS |= {"log_prob": "log probability", "distance": "distance from clean runs", "note": ""}


def gain_tables(results: dict, variant: str) -> list[Table]:
    """One table per direction, with every method that divides the model into groups; then further ones, and controls.

    The direction in which weights were grafted comes first. A section's sentences link to its first table.
    """
    both: dict[str, dict[str, dict]] = {direction: {} for direction in DIRECTIONS}
    for direction, method, entry in by_group(results, variant):
        both[direction][method] = entry
    tables: list[Table] = []
    for direction in sorted(DIRECTIONS, key=lambda each: GRAFTED not in both[each]):
        tables.append(_side_by_side(both[direction], variant, {each for table in tables for each in table.ids}))
    columns = {"part": "part", "how": "counted", "printed": "adds to the accuracy", "share": "share", "note": ""}
    for _, method, entry in divided_otherwise(results, variant):
        ids = [anchor("layers", variant)] if method == GRAFTED_LAYERS else []
        tables.append(Table(_title(method, entry), columns, share_rows(entry, method), ids, _shared_weights(entry)))
    for _, method, entry in by_group(results, variant):
        for score, said in _OTHER_SCORES.items():
            adds = columns | {"printed": f"adds to the {said}"}
            tables.append(Table(_title(method, entry, said), adds, share_rows(entry, method, score)))
        tables.append(Table(_title(method, entry, "every run"), _RUN_COLUMNS, run_rows(entry)))
    controls = {"part": "group", "how": "in its stead", "method": "method"}
    controls |= {"printed": "adds to the accuracy", "share": "share", "note": ""}
    return [*tables, Table(f"Controls, {variant}", controls, control_rows(results, variant))]


def _title(method: str, entry: dict, what: str = "") -> str:
    return f"{method} of {entry.get('donor')} in {entry.get('recipient')}" + (what and f": {what}")


def _side_by_side(methods: Mapping[str, dict], variant: str, linked: set[str]) -> Table:
    known = {method: entry for method, entry in methods.items() if share_rows(entry, method)}
    columns = {"part": "part", "how": "counted"}
    for method in known:
        columns |= {method: method, _share(method): "share"}
    sections = [section for section in _SECTIONS if any(is_graft(method) == (section == "graft") for method in known)]
    ids = [each for section in sections if (each := anchor(section, variant)) not in linked]
    weights = " ".join(_shared_weights(entry) for method, entry in known.items() if is_graft(method))
    note = " ".join(filter(None, [_notes(known), weights]))
    return Table(_caption(known, sections), columns, side_by_side_rows(known), ids, note)


def _shared_weights(entry: dict) -> str:
    """What was grafted along with a group's heads, and what is the same in both models."""
    said = [
        f"With {part} the keys and values of {', '.join(str(Head(*head)) for head in heads)} were grafted, too: they "
        f"are the same weights."
        for part, heads in (entry.get("also_touched") or {}).items()
    ]
    unchanged = entry.get("unchanged") or []
    return " ".join([*said, f"The same in both models: {', '.join(unchanged)}." if unchanged else ""]).strip()


def _caption(methods: Mapping[str, dict], sections: list[str]) -> str:
    said = {"cmap": "where it is visible (patched activations)", "graft": "what caused it (grafted weights)"}
    entry = next(iter(methods.values()), {})
    over = f"The gain of {entry.get('donor')} over {entry.get('recipient')}"
    asked = " and ".join(said[section] for section in sections)
    return f"{over}: {asked}; what each part adds to the accuracy, and its share of the gain"


def side_by_side_rows(methods: Mapping[str, dict]) -> list[dict]:
    """One row per part and way of counting, with every method's number in columns of its own; blank if it has none."""
    cells = {m: {(row["part"], row["how"]): row for row in share_rows(entry, m)} for m, entry in methods.items()}
    parts = dict.fromkeys(part for rows in cells.values() for part, how in rows if how)
    wanted = [(part, how) for part in parts for how in HOW.values()] + [(end, "") for end in _ENDS]
    rows = [_beside(key, cells) for key in wanted if any(key in each for each in cells.values())]
    return [_whole(methods), *rows] if rows else []


def _beside(key: tuple[str, str], cells: Mapping[str, dict[tuple[str, str], dict]]) -> dict:
    row = {"part": key[0], "how": key[1]}
    for method, found in cells.items():
        cell = found.get(key) or {}
        row |= {method: cell.get("printed", ""), _share(method): cell.get("share", "")}
    return row


def _notes(methods: Mapping[str, dict]) -> str:
    """Why parts have no share, each reason once."""
    found: dict[str, list[str]] = {}
    for method, entry in methods.items():
        for row in share_rows(entry, method):
            if row["note"]:
                found.setdefault(row["note"], []).append(f"{method} of {row['part']}")
    said = [f"{note} ({', '.join(dict.fromkeys(where))})" for note, where in found.items()]
    return f"No share is defined: {'; '.join(said)}." if said else ""


def _whole(methods: Mapping[str, dict]) -> dict:
    """The gain itself; methods that ran on other prompts have another one."""
    row = {"part": "the gain", "how": ""}
    for method, entry in methods.items():
        gain = entry["scores"]["accuracy"].get("gain") or {}
        row |= {method: f"{number(gain.get('value'))} ({interval(gain)})", _share(method): ""}
    return row


def _share(method: str) -> str:
    return f"share, {method}"
