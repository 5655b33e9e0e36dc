"""Invented parts of further sections, with gaps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from circuitdiff.methods.cross_model.patching import Limits
from circuitdiff.methods.minimality import MinimalityRule, Outcome
from circuitdiff.study.claims_on_parts import PartVerdict
from circuitdiff.study.estimates import Estimate, GroupHeads
from circuitdiff.study.evidence import (
    Ability,
    Behaviour,
    CircuitEvidence,
    Noted,
    Thresholds,
    TransferEvidence,
)
from circuitdiff.study.gains import (
    AttributionResult,
    ControlResult,
    Credit,
    Gain,
    RandomGroups,
    RunCredit,
    RunResult,
    Scores,
)
from circuitdiff.study.sections.accuracy import QueriedShare
from circuitdiff.study.sections.completeness import PartsRemoved, Removed, RemovedGroup, WorstPart
from circuitdiff.study.sections.cross_model import (
    CrossModel,
    CrossPatchResult,
    PatchControl,
    PatchControls,
    PatchedHeads,
    PatchRun,
)
from circuitdiff.study.sections.functions import Controls, MaskCell, Redrawn, TradeOff, Transferred
from circuitdiff.study.sections.graft import GraftedParts, GraftResult
from circuitdiff.study.sections.minimality import HeadCounts, HeadResult, PromptCounts, PrunedCircuit
from circuitdiff.study.sections.verdict import Verdict
from circuitdiff.study.verdict import Sensitivity, Sentence
from helpers.invented_results import around, ratio, share

CIRCUIT, TINY = "ours", "tiny"
BASE, VARIANT = "base", "tuned <b>&co</b>"


# What a circuit needs


def _head(
    layer: int, index: int, cost: float, outcome: Outcome, removed: tuple[tuple[int, int], ...] = ()
) -> HeadResult:
    p = {key: 0.004 if outcome == key else 0.6 for key in ("needed", "not_needed")}
    tested = {"needed_p": p["needed"], "not_needed_p": p["not_needed"], "outcome": outcome}
    bounds = {"cost": cost, "low": cost - 0.02, "high": cost + 0.03}
    before = {"removed_with": removed, "before": 0.5, "after": 0.5 - cost}
    return HeadResult((layer, index), **bounds, **tested, **before, cost_in_hits=around(cost / 2))


def pruned_circuit() -> PrunedCircuit:
    groups = {
        "value_fetcher": (
            _head(3, 0, 0.001, "open"),
            _head(4, 1, 0.25, "needed", removed=((3, 0), (2, 2))),
            _head(2, 2, -0.01, "not_needed"),
        ),
        "structure_reader": (_head(1, 0, 0.125, "needed"),),
        "nothing": (),
    }
    return PrunedCircuit(
        model=TINY,
        groups=groups,
        kept={"value_fetcher": GroupHeads("last", ((3, 0), (4, 1))), "structure_reader": GroupHeads("x", ((1, 0),))},
        rule=MinimalityRule(),
        n_prompts=PromptCounts(choosing=100, testing=98, fresh=300),
        faithfulness_before=ratio(0.75),
        faithfulness_pruned=ratio(0.625),
        n_heads=HeadCounts(needed=2, not_needed=1, open=1),
    )


def _removed(n: int, model: float, circuit: float) -> dict[str, Any]:
    terms = {"model": around(model), "circuit": around(circuit), "difference": around(model - circuit)}
    return {"n_removed": n, **terms, "absolute_difference": around(abs(model - circuit), 0.0625)}


def parts_removed() -> PartsRemoved:
    return PartsRemoved(
        quantity="probability",
        n_prompts=100,
        random=(Removed(**_removed(2, 0.5, 0.25)), Removed(**_removed(1, 0.625, 0.5))),
        groups=(
            RemovedGroup(**_removed(3, 0.25, 0.0625), group="value_fetcher"),
            RemovedGroup(**_removed(1, 0.5, 0.5), group="structure_reader"),
        ),
        nothing_removed=Removed(**_removed(0, 0.75, 0.625)),
        everything_removed=Removed(**_removed(4, 0.125, 0.03125)),
        greedy=WorstPart(**_removed(2, 0.5, 0.125), removed={}, search=()),
        correlation=Estimate(0.8125, 0.5, 0.9375),
    )


# What groups encode


def mask(value: float, floor: float, *, low: float = 0.1, heads: Any = ((3, 1), (2, 0)), **different: Any) -> MaskCell:
    above = value - floor
    controls = Controls(share(floor, 40), None, share(0.71, 40), share(None, 40), None, 0)
    cell = MaskCell(
        heads=heads,
        at="last",
        group=((3, 1), (2, 0), (1, 4)),
        accuracy=value,
        low=value - 0.0625,
        high=value + 0.0625,
        floor=floor,
        floor_is="nothing",
        above_floor=around(above, low),
        carries=above - low > 0,
        controls=controls,
        pointed={},
        by_queried=(),
        trade_off=(),
        penalty=0.02,
        keep=(1.0, 0.0, 1.0),
        validation_accuracy=value,
        n_test=90,
        n_scenarios=90,
    )
    return replace(cell, **different)


def trade_off(n: int, value: float, penalty: float) -> TradeOff:
    return TradeOff(**vars(around(value)), penalty=penalty, seed=0, heads=tuple((i, 2) for i in range(n)), n_heads=n)


def by_queried(*values: float) -> tuple[QueriedShare, ...]:
    return tuple(QueriedShare(value, value, value, 3, 7, i) for i, value in enumerate(values))


def redrawn(mean: float) -> Redrawn:
    return Redrawn(((3, 1),), mean, 0.125, (0.375, 0.625, 0.5), 40, "base & co")


def transferred(value: float) -> Transferred:
    own = {"hits": 5, "n": 8, "heads": ((3, 1),), "floor_is": "nothing", "from_model": "base & co"}
    return Transferred(**vars(around(value, 0.125)), **own, above_floor=around(value), above_own_mask=around(0.0))


# Whose is a gain


def credit(value: float, part: float | None, why: str | None = None) -> Credit:
    shares = (None, None, None) if part is None else (part, part - 0.125, part + 0.125)
    return Credit(*vars(around(value)).values(), *shares, why)


def control(value: float, part: float | None, **different: Any) -> PatchControl:
    more = {"n_scenarios": 48, "accuracy": share(0.75), "distance": 0.5, "incompatible": False}
    return PatchControl(**vars(credit(value, part)), **more | different)


def _attribution(how: tuple[str, ...]) -> AttributionResult:
    far = credit(-0.125, None, "the run with reader lies far from clean activations <so>")
    parts = {
        "reader": dict.fromkeys(how, far),
        "fetcher": {each: credit(0.25 + i / 64, 0.75 + i / 16) for i, each in enumerate(how)},
    }
    run = RunCredit(**vars(credit(0.25, 0.8125)), parts=("reader", "fetcher"))
    return AttributionResult(around(0.3125), parts, credit(0.28125, 0.875), credit(0.03125, 0.125), (run,))


def _scores(accuracy: float) -> Scores:
    return Scores(share(accuracy), around(0.25), around(-1.5))


def _gain(how: tuple[str, ...], **more: Any) -> dict[str, Any]:
    return {
        "donor": VARIANT,
        "recipient": BASE,
        "order": ("reader", "fetcher"),
        "n_prompts": 96,
        "n_scenarios": 80,
        "donor_scores": _scores(0.8125),
        "scores": {"accuracy": _attribution(how)},
    } | more


def _patch(how: tuple[str, ...] = ("alone", "left_out", "in_order"), **more: Any) -> dict[str, Any]:
    runs = (
        PatchRun(**vars(_scores(0.5)), parts=(), distance=None, incompatible=None),
        PatchRun(**vars(_scores(0.75)), parts=("reader", "fetcher"), distance=1.25, incompatible="far <away>"),
    )
    return _gain(how, **{"what": "z", "noise_floor": 1e-7, "bases": {}, "limits": Limits(), "runs": runs} | more)


def no_gain(**more: Any) -> CrossPatchResult:
    nothing = AttributionResult(around(0.0), {}, credit(0.0, None, "covers 0"), credit(0.0, None), ())
    return CrossPatchResult(**_patch(scores={"accuracy": nothing}, runs=(), **more))


def patch_controls() -> PatchControls:
    random = RandomGroups(
        **vars(credit(0.0078125, 0.0625)), n_scenarios=48, n=3, bounds_are="all groups", n_far=0, n_prompts=48,
        rank_p=None, group=0.75, accuracies=(0.5, 0.53125, 0.5), nothing=0.5,
    )  # fmt: skip
    return PatchControls(
        what="z",
        n_prompts=48,
        other_role="query_label",
        group=control(0.25, 0.75),
        elsewhere=control(-0.0625, -0.1875, incompatible=True),
        noise=None,
        scaled=None,
        same_layers=random,
    )


def patched() -> CrossModel:
    """From the variant into the base there is a gain; the way back has none."""
    return CrossModel(
        groups={},
        recipient=BASE,
        to_base={"z": CrossPatchResult(**_patch(("alone", "left_out", "in_order", "shapley")))},
        to_variant={"z": no_gain(donor=BASE, recipient=VARIANT)},
        heads=PatchedHeads(**_patch(), group="fetcher"),
        controls={"fetcher": patch_controls()},
        null_donors={"untuned": no_gain(donor="untuned")},
    )


def _graft(**more: Any) -> dict[str, Any]:
    runs = tuple(RunResult(**vars(_scores(0.5)), parts=parts) for parts in ((), ("reader", "fetcher")))
    own = {"unchanged": (), "also_touched": {}, "whole_graft_error": 1e-6, "runs": runs}
    return _gain(("alone", "left_out", "in_order"), **own | more)


def grafted(**more: Any) -> GraftResult:
    found = _attribution(("alone", "left_out", "in_order"))
    parts = found.parts | {"norms": {"alone": credit(0.0, 0.0)}}
    own = {"scores": {"accuracy": replace(found, parts=parts)}, "unchanged": ("norms",)} | more
    return GraftResult(
        **_graft(**own),
        groups={},
        heads=None,
        layers=GraftedParts(**_graft()),
        matrices=None,
        roles=None,
        controls={"fetcher": {"shared_kv": ControlResult(**vars(credit(0.0, 0.0)), n_scenarios=48)}},
    )


# What may be said


def verdict(scopes: tuple[str, str] = ("tuned against base; <boxes>",) * 2) -> Verdict:
    known = Sensitivity("accuracy", 0.02, 0.2)
    sentences = (
        Sentence("behaviour", "better", "Better: it is.", (), "accuracy", scopes[0], (known,)),
        Sentence(
            "improved_part",
            "not established",
            "Not established: a part improved, because fetcher: alone it brings too little.",
            ("fetcher: alone it brings too little",),
            "graft",
            scopes[1],
        ),
    )
    equal = Noted(0.0, -0.02, 0.02)
    own = (Noted(0.9, 0.85, 0.95), Noted(0.875, 0.8, 0.95))
    circuits = CircuitEvidence("slot", "accuracy", *own, equal, Noted(None, None, None, "few"))
    able = Ability(around(0.5), around(1.0), 0.2)
    behaviour = Behaviour(able, able, Gain(0.3125, 0.25, 0.375, 80, 96), around(1.0))
    transfer = TransferEvidence("slot", around(0.25), Noted(0.9, 0.85, 0.95), around(0.125), around(-0.125))
    part = PartVerdict("fetcher", "yes", "no", "not established", "yes", "alone it brings 0.9", ("a control",))
    parts = {"graft": (part,), "layers": (replace(part, part="layers 0 to 4"),)}
    return Verdict(sentences, Thresholds(), behaviour, (circuits,), (transfer,), (), (), parts)


def gain_parts() -> dict[str, Any]:
    """The parts of the results on a gain."""
    return {"cross_model": {VARIANT: patched()}, "graft": {VARIANT: grafted()}, "verdict": {VARIANT: verdict()}}
