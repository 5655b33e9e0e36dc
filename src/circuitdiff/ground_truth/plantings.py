"""Which planted models are asked, and with which seeds; and what every study of them is told."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from circuitdiff.methods.discovery import Plan, Stage
from circuitdiff.planted.table import PLANTED
from circuitdiff.stats.selection import Discoveries
from circuitdiff.study.registry import parse_study
from circuitdiff.study.settings import CommonSettings

_RULE = Discoveries(minimum=0.05)  # logits
# The plan of Prakash et al. 2024 (arXiv:2402.14811), section 3.2, without their numbers of heads, and one stage more
# for what their circuit does not have: heads that write at the label what fetchers read there.
PLAN = Plan(
    stages=(
        Stage("value_fetcher", "last", _RULE),
        Stage("position_transmitter", "last", _RULE, "q", "value_fetcher"),
        Stage("position_detector", "query_label", _RULE, "v", "position_transmitter"),
        Stage("structure_reader", "previous_query_label", _RULE, "v", "position_detector", "query_label"),
        Stage("name_binder", "previous_query_label", _RULE, "v", "value_fetcher", "last"),
    )
)

# What each group does is asked where this adds a case: masks take as long as all else together.
# Those of the base are the same for every variant of it.
MASKED = "planted-transmitters-in-noise"
QUICK = (MASKED, "planted-saturated", "planted-outvoted")

# Labels instead of addresses. Other models without the base's circuit are not meant to be held against it.
OTHER_ROUTES = ("planted-new-route", "planted-lexical")

# Drawn with `secrets.randbelow(10**6)` when methods and these rules were fixed. One that led to a change is drawn anew,
# as that of `planted-new-route` was: in 282432 float32's noise at a stage without effects failed a self-check.
HELD_OUT: tuple[tuple[str, int], ...] = (
    ("planted-fetchers-in-noise", 45516),
    ("planted-transmitters-in-noise", 406391),
    ("planted-detectors-in-noise", 453119),
    ("planted-mlp-in-noise", 587012),
    ("planted-both-in-noise", 885435),
    ("planted-nothing-in-noise", 802341),
    ("planted-half-transmitters-in-noise", 571094),
    ("planted-recoded-in-noise", 902061),
    ("planted-shared-keys-in-noise", 939727),
    ("planted-new-route", 458209),
)


@dataclass(frozen=True)
class Planting:
    """A planted model, to be compared with its base of the same seed, or asked alone."""

    name: str
    seed: int = 0
    held_out: bool = False

    @property
    def title(self) -> str:
        return self.name if not self.seed else f"{self.name}@{self.seed}"

    @property
    def base(self) -> str | None:
        """What it is compared with; None for a base, and for a circuit of another shape."""
        entry = PLANTED[self.name]
        return entry.base if entry.base != self.name and (entry.same_circuit or self.name in OTHER_ROUTES) else None

    @property
    def models(self) -> dict[str, str]:
        """The planted models that it is about, by their names in the study, the base first."""
        return {f"{name}@{self.seed}": name for name in filter(None, (self.base, self.name))}


def chosen(*, quick: bool = False) -> list[Planting]:
    """Planted models, each once, and those that are held out; or three, for a first look.

    Where all other parts compute just what they did, whose the gain is follows from that: those are left out.
    """
    if quick:
        return [Planting(name) for name in QUICK]
    telling = [
        name for name, each in PLANTED.items() if each.wiring.noise or not (each.improved_parts or each.wiring.harmless)
    ]
    return [*map(Planting, telling), *(Planting(*each, held_out=True) for each in HELD_OUT)]


def study_of(planting: Planting, *, n_prompts: int = 105, evaluation: int = 140) -> CommonSettings:
    """The same prompts, plan and rules for all."""
    first, *variants = planting.models
    data: dict[str, Any] = {
        "name": planting.title.replace("@", "-"),
        "base": first,
        "variants": dict(zip(variants, variants, strict=True)),
        "task": "entity_tracking",
        "plans": {"main": {"stages": [asdict(stage) for stage in PLAN.stages]}},
        "prompts": {"discovery": n_prompts, "replication": n_prompts, "evaluation": evaluation, "means": evaluation},
        "faithfulness": {"random_circuits": 10},
        "overlap": {"prompts": 10},
        "cross_model": {"random_groups": 0, "both_directions": False, "heads": False},
        "graft": {"random_groups": 0, "layers": []},
        "functions": False,
        **dict.fromkeys(("minimality", "completeness", "ablations", "knockout", "attention", "curves"), False),
    }
    if planting.held_out or planting.name == MASKED:
        few = {"train": 60, "validation": 40, "test": 120, "control_triples": 40, "sweep": False}
        data["functions"] = {"circuits": [first], "redraw": {"times": 0}, **few}
    return parse_study(data, "ground truth")
