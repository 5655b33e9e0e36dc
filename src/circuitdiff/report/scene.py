"""What the drawing of a circuit shows: the circuit, its stages, and the prompt it lies over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import altair as alt

from circuitdiff.circuit import Circuit, Head
from circuitdiff.report.layout import Column, columns
from circuitdiff.report.look import CATEGORIES

COLUMN_PX = 14.0


@dataclass(frozen=True)
class Scene:
    """A circuit with the prompt that it is drawn over."""

    circuit: Circuit
    n_layers: int
    stages: Sequence[dict]
    tokens: Sequence[str]
    roles: Mapping[str, int]  # only roles that the prompt has

    @property
    def placed_groups(self) -> list[str]:
        return [name for name, group in self.circuit.groups.items() if group.heads and group.at in self.roles]

    def heads_at(self, position: int) -> list[tuple[Head, str]]:
        """The heads drawn at a token, each with its group; two roles may share the token."""
        groups = ((name, self.circuit.groups[name]) for name in self.placed_groups)
        return [(head, name) for name, group in groups if self.roles[group.at] == position for head in group.heads]

    @property
    def columns(self) -> list[Column]:
        most = {
            position: max(Counter(head.layer for head, _ in self.heads_at(position)).values())
            for position in {self.roles[self.circuit.groups[name].at] for name in self.placed_groups}
        }
        return columns(self.tokens, self.shown_roles.values(), most)

    @property
    def shown_roles(self) -> dict[str, int]:
        """The roles at which this circuit sends or receives, in the prompt's order."""
        named = set(self.circuit.roles) | {s.get(key) for s in self.stages for key in ("at", "receivers_at")}
        return {role: p for role, p in sorted(self.roles.items(), key=lambda item: item[1]) if role in named}

    @property
    def layer_px(self) -> float:
        return min(max(220, 13 * self.n_layers), 480) / (self.n_layers + 1)


def scene(results: dict, circuit: str) -> Scene | None:
    """What is to be drawn for `circuit`, or None without an example or without a head that has a place."""
    example, named = results.get("example") or {}, results["circuits"][circuit]
    tokens, roles = example.get("tokens") or [], example.get("roles") or {}
    known = Circuit.from_dict(named, source=f"circuit {circuit!r} in the results")
    model = (results.get("models") or {}).get(named.get("model")) or {}
    highest = max((head.layer for group in known.groups.values() for head in group.heads), default=0)
    stages = ((results.get("discovery") or {}).get(circuit) or {}).get("stages") or []
    found = Scene(
        known,
        max(model.get("n_layers") or 0, highest + 1),
        stages,
        tokens,
        {role: at for role, at in roles.items() if isinstance(at, int) and 0 <= at < len(tokens)},
    )
    return found if found.placed_groups else None


def group_colour(scene: Scene) -> alt.Color:
    scale = alt.Scale(domain=scene.placed_groups, range=CATEGORIES)
    return alt.Color("group:N", scale=scale, title="group", legend=alt.Legend(symbolType="circle", symbolOpacity=1))
