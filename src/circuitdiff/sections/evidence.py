"""What the verdict needs of the overlap and functions sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Results = Mapping[str, Any]

_BOUNDS: tuple[str, ...] = ("value", "low", "high")
_PROFILES = ("attention", "effect")
_ALIKE = 0.8  # cosine of two profiles, above which they are called alike


def similarity_evidence(results: Results, variant: str) -> dict[str, Any]:
    """How alike base and variant are, stage by stage, with the lower of their retests and a control.

    Of effect maps, the control is another stage's; of the chosen heads, it is chance. A stage that chose heads in
    neither model has nothing to be alike in; one that could not be run in the variant leaves its rows open.
    """
    entry = (results.get("overlap") or {}).get(variant) or {}
    found: dict[str, Any] = {}
    for stage in entry.get("stages") or []:
        name, most = stage["stage"], max(stage["n_chosen"])
        if most:
            found[f"the correlation of effects, stage {name},"] = _alike(stage["correlation"], stage["different"])
            shared = next(each for each in stage["jaccard"] if each["k"] == most)
            chance = dict.fromkeys(_BOUNDS, shared["floor"])
            found[f"the overlap of the {most} strongest heads, stage {name},"] = _alike(shared, chance)
    return found | {f"the effects of stage {name}": {} for name in entry.get("not_run") or []}


def _alike(measured: Mapping[str, Any], different: Mapping[str, Any] | None) -> dict[str, Any]:
    retest = min(measured["base"], measured["variant"], key=lambda spread: spread["low"])
    return {"value": measured["between"], "retest": retest, "different": different}


def same_work(results: Results, variant: str) -> dict[str, Any]:
    """Whether other heads do the same work in the variant ("moved"), and on how many scenarios that was seen.

    They do if at some stage fewer of the strongest heads are common than one model repeats, surely, and each group of
    the base looks and acts like its namesake in the variant's own circuit, and surely more than like any other of it.
    """
    entry = (results.get("overlap") or {}).get(variant) or {}
    rows = entry.get("moved") or []
    groups = dict.fromkeys(row["base"] for row in rows)
    alike = len(groups) > 1 and all(_like_its_namesake(group, rows, how) for group in groups for how in _PROFILES)
    others = any(_surely_fewer(stage) for stage in entry.get("stages") or [])
    return {"moved": alike and others, "n_scenarios": entry.get("n_scenarios", 0)}


def _surely_fewer(stage: Mapping[str, Any]) -> bool:
    """Whether base and variant share surely fewer of their strongest heads than either shares with itself."""
    shared = next((each for each in stage["jaccard"] if each["k"] == max(stage["n_chosen"])), None)
    return shared is not None and shared["between"]["high"] < min(shared[model]["low"] for model in ("base", "variant"))


def _like_its_namesake(group: str, rows: Sequence[Mapping[str, Any]], how: str) -> bool:
    alike = {row["variant"]: row[how] for row in rows if row["base"] == group}
    own, others = alike.get(group), [each["high"] for name, each in alike.items() if name != group]
    return own is not None and bool(others) and own["low"] > max(_ALIKE, *others)


def functions_evidence(results: Results, base: str, variant: str) -> dict[str, Any]:
    """By group of the base's circuit: its mask, of the desideratum that it carries best, unchanged in the variant.

    Further desiderata, which are asked in the base alone, say nothing of the variant; nothing does if none was asked.
    """
    models = (results.get("functions") or {}).get(base) or {}
    found = {}
    for group, cells in (models.get(base) or {}).items() if variant in models else ():
        theirs = models[variant].get(group) or {}
        carried = [name for name in _carried(cells) if name in theirs]
        if not carried:
            continue
        best = max(carried, key=lambda name: cells[name]["above_floor"]["value"])
        cell = theirs.get(best) or {}
        moved = cell.get("transferred") or {}
        found[f"{group} ({best})"] = {
            "difference": moved.get("above_own_mask"),
            "above_floor": moved.get("above_floor"),
            "trained": "shuffled" in (cell.get("controls") or {}),
        }
    return found


def mask_cells(results: Results, base: str, variant: str) -> list[Mapping[str, Any]]:
    """Every mask of the base's circuit in base and variant, as results.json has them."""
    models = (results.get("functions") or {}).get(base) or {}
    groups = [cells for model in (base, variant) for cells in (models.get(model) or {}).values()]
    return [cell for cells in groups for cell in cells.values()]


def groups_without_function(results: Results, base: str) -> list[str]:
    """The groups of the base's circuit that carry nothing that was asked for."""
    groups = ((results.get("functions") or {}).get(base) or {}).get(base) or {}
    return [group for group, cells in groups.items() if not _carried(cells)]


def _carried(cells: Mapping[str, Any]) -> list[str]:
    return [name for name, cell in cells.items() if cell.get("carries")]
