"""Two runs of a study, made up, to be compared."""

from __future__ import annotations

from typing import Any

from circuitdiff.models.checks import Check
from circuitdiff.study.estimates import Estimate, GroupHeads, Share
from circuitdiff.study.results import CommonResults, StudyHeader
from circuitdiff.study.sections.accuracy import Accuracy
from circuitdiff.study.sections.discovery import FoundCircuit, Sweep
from helpers.invented_results import around, model, results_of


def near(value: float | None, spread: float = 0.1) -> Accuracy:
    estimate = around(value, spread)
    return Accuracy(Share(**vars(estimate), hits=0, n=80), Estimate(None, None, None), (), ())


def sweep(**different: Any) -> Sweep:
    tables = {
        "effects": ((-0.5, 0.0), (None, 0.25)),
        "adjusted_p": ((0.5, 0.5), (0.5, 0.5)),
        "low": ((-0.6, -0.1), (None, 0.2)),
        "high": ((-0.4, 0.1), (None, 0.3)),
    }
    plain = {"at": "last", "via": None, "receivers": (), "receivers_from": None, "receivers_at": None}
    plain |= {"metric": "logit_difference", "split": "discovery", "n_prompts": 70, "n_choosing": 70}
    plain |= {"noise_floor": 0.0, "selected": (), "hurting": (), "not_replicated": ()}
    return Sweep("fetcher", **plain | tables | {"rule": "TopK"} | different)


GROUPS = {"fetcher": GroupHeads("last", ((1, 0), (1, 1), (2, 3))), "reader": GroupHeads("last", ((0, 1),))}


def circuit(
    stage: Sweep | None = None, groups: dict[str, GroupHeads] | None = None, home: str = "base"
) -> FoundCircuit:
    return FoundCircuit(home, "main", "logit_difference", groups or GROUPS, (stage or sweep(),))


def results(**parts: Any) -> CommonResults:
    plain = {
        "study": StudyHeader("one", "entity_tracking", 0, {"seed": 0, "prompts": {"discovery": 70}}),
        "versions": {"torch": "2.13.0"},
        "checks": (Check("same logits", "base", 1e-7, 1.0, True, ""),),
        "models": {"base": model(), "tuned": model()},
        "accuracy": {"base": near(0.5), "tuned": near(0.8)},
        "discovery": {"base": circuit()},
    }
    return results_of(**plain | parts)
