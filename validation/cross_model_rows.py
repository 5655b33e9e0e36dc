"""Claims about a planted variant and its base: what the gain comes from, and whether the circuit is the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from circuitdiff.circuit import Circuit
from circuitdiff.engine import Model
from circuitdiff.evaluation.shapes import random_group
from circuitdiff.methods.cross_model.patching import CrossPatch, patch_across
from circuitdiff.methods.graft import Graft, graft, graft_alone
from circuitdiff.models import load_model
from circuitdiff.planted import build_planted
from circuitdiff.prompts import Pairs
from circuitdiff.stats.intervals import mean_interval
from circuitdiff.stats.proportions import difference_interval
from circuitdiff.stats.shapley import ALONE, IN_ORDER, SYMMETRIC, Attribution, Credit
from circuitdiff.study.claims_on_parts import judged_parts
from circuitdiff.study.estimates import estimate, mean_logit_difference, share
from circuitdiff.study.evidence import JUDGED as SCORES
from circuitdiff.study.evidence import Ability, Behaviour, Evidence, Judged, Parts, PartsEvidence, Thresholds
from circuitdiff.study.gains import GraftControl, RandomGroups, attribution_result, random_groups
from circuitdiff.study.registry import parse_study, part_of, read_results
from circuitdiff.study.runner import run_study
from circuitdiff.study.sections.verdict import SECTION as VERDICT
from circuitdiff.study.settings import CommonSettings
from circuitdiff.study.verdict import Sentence, sentences
from circuitdiff.tasks.soundness import guessing
from validation.subjects import NAME_BINDERS, PLAN, Row, Sizes, Subject, at_least, between, exactly

_CREDITED = 0.9  # of the gain
_N_RANDOM = 100  # groups of random heads, as many as a verdict asks for
# Where the planted part is no group of the circuit: which weights it is.
_KINDS = {"mlp": "mlps", "unembedding": "unembedding", "negative": "other heads"}
# The improved group, and a later one whose z holds what it did: both show all of the gain alone.
_SPLIT = {"planted-transmitters-among-changes": ("position_transmitter", "value_fetcher")}
_TURNED = "planted-rotated-values"


def cross_model_rows(subject: Subject) -> list[Row]:
    """What is said of a planted variant and its base, on the base's circuit; none for a base or another circuit.

    None either where the improved part's weights are all that differ: what grafts and patches say follows from that.
    """
    truth = subject.truth
    if truth.base == truth.name or not truth.same_circuit:
        return []
    base, pairs = load_model(truth.base), subject.prompts["evaluation"]
    circuit = _circuit_of_base(subject)
    grafted = graft(subject.model, base, circuit, pairs)
    if truth.improved_parts and len({*grafted.order} - {*grafted.unchanged}) == 1:
        return []
    patched = patch_across(subject.model, base, circuit, pairs, what="contribution")
    rows = [_verdict_row(subject, grafted, patched, _controls(subject.model, base, circuit, grafted, pairs))]
    if len(truth.improved_parts) == 1:
        [part] = _named(truth.improved_parts)
        rows += _grafted_rows(truth.name, part, grafted.attribution())
        rows += _patched_rows(truth.name, part, circuit, patched.attribution())
    if truth.name in _SPLIT:
        rows += _split_rows(truth.name, circuit, patch_across(subject.model, base, circuit, pairs).attribution())
    if truth.name == _TURNED:
        rows += _turned_rows(truth.name, base, subject.model, circuit, pairs)
    return rows


def _circuit_of_base(subject: Subject) -> Circuit:
    """The base's circuit; the null that moves heads within layers has another one, and is patched at the base's."""
    return build_planted(subject.truth.base).circuit


def _grafted_rows(name: str, part: str, found: Attribution) -> list[Row]:
    """The improved part brings the gain alone, takes it away when it is left out, and no other part has a share."""
    others = [each for each in found.parts if each != part]
    return [
        *(_credited(name, f"graft of {part}: share, {how}", credit) for how, credit in found.parts[part].items()),
        _nothing(name, "graft: other parts whose share is not 0", others, found, ALONE),
    ]


def _patched_rows(name: str, part: str, circuit: Circuit, found: Attribution) -> list[Row]:
    """In causal order the improved group gets the gain, and where none is, what no group explains is the gain."""
    others = [group for group in circuit.groups if group != part]
    nothing = _nothing(name, "patched, causal order: other groups whose share is not 0", others, found, IN_ORDER)
    if part in circuit.groups:
        return [nothing, _credited(name, f"patched {part}: share, causal order", found.parts[part][IN_ORDER])]
    return [nothing, _credited(name, "patched: share that no head group explains", found.unexplained)]


def _split_rows(name: str, circuit: Circuit, found: Attribution) -> list[Row]:
    """With z patched, causal order credits the improved group, and symmetric Shapley values are split."""
    improved, shows = _SPLIT[name]
    others = [group for group in circuit.groups if group != improved]
    rows = [
        _credited(name, f"patched z of {improved}: share, causal order", found.parts[improved][IN_ORDER]),
        _nothing(name, "patched z, causal order: other groups whose share is not 0", others, found, IN_ORDER),
    ]
    for group in (improved, shows):
        split = found.parts[group][SYMMETRIC]
        claim = f"patched z of {group}: share, symmetric Shapley, is split"
        rows.append(between(name, claim, split.share, 0.35, 0.65, _interval(split)))
    return rows


def _credited(name: str, claim: str, credit: Credit) -> Row:
    return at_least(name, claim, credit.share, _CREDITED, _interval(credit))


def _nothing(name: str, claim: str, parts: Sequence[str], found: Attribution, how: str) -> Row:
    """How many parts have a share whose interval does not cover 0."""
    some = [part for part in parts if not _covers_0(found.parts[part][how])]
    listed = ", ".join(f"{part} {_interval(found.parts[part][how])}" for part in some)
    return exactly(name, claim, len(some), 0, listed)


def _controls(
    variant: Model, base: Model, circuit: Circuit, grafted: Graft, pairs: Pairs
) -> dict[str, dict[GraftControl, RandomGroups]]:
    """Random heads of the same layers, grafted in the stead of the group that brings most."""
    parts = grafted.attribution().parts
    best = max(circuit.groups, key=lambda group: parts[group][ALONE].value)
    group, g = circuit.groups[best], torch.Generator().manual_seed(0)
    drawn = [random_group(group, base.n_layers, base.n_heads, g) for _ in range(_N_RANDOM)]
    own, *others = graft_alone(variant, base, [group, *drawn], pairs)
    return {best: {"same_layers": random_groups(grafted.donor, grafted.recipient, own, others)}}


def _verdict_row(subject: Subject, grafted: Graft, patched: CrossPatch, controls: dict[str, Any]) -> Row:
    """The verdict names the improved part, and no other; or says that nothing is established."""
    name, parts, pairs = subject.truth.name, subject.truth.improved_parts, subject.prompts["evaluation"]
    weights: dict[Judged, Parts] = {score: attribution_result(grafted.attribution(score)).parts for score in SCORES}
    found = PartsEvidence(weights, grafted.unchanged, controls)
    activations: dict[Judged, Parts] = {score: attribution_result(patched.attribution(score)).parts for score in SCORES}
    evidence = Evidence(
        base=subject.truth.base,
        variant=name,
        donor=name,
        scope="planted models",
        failed_checks=(),
        behaviour=_behaviour(grafted, pairs),
        n_scenarios=len(grafted.donor.scenarios.unique()),
        patched=PartsEvidence(activations),
        graft=found,
    )
    sentence = next(each for each in sentences(evidence, Thresholds()) if each.claim == "improved_part")
    if not parts:
        return exactly(name, "verdict: no improved part is named", float(sentence.answer != "yes"), 1, sentence.text)
    judged = [each for each in judged_parts(found, Thresholds()) if each.improved == "yes"]
    right = {each.part for each in judged} == set(_named(parts))
    claim = "verdict: the improved part is named"
    if len(parts) > 1:
        right &= all(each.sole == "no" for each in judged)
        claim = "verdict: each improved part is named, and none as the sole one"
    return exactly(name, claim, float(right), 1, sentence.text)


def _named(parts: Sequence[str]) -> list[str]:
    """As grafts call them."""
    return [_KINDS.get(part, part) for part in parts]


def _behaviour(grafted: Graft, pairs: Pairs) -> Behaviour:
    donor, recipient, scenarios = grafted.donor, grafted.recipient, grafted.donor.scenarios.numpy()
    base, variant = (
        Ability(share(each.hits, each.scenarios), mean_logit_difference(each), guessing(pairs))
        for each in (recipient, donor)
    )
    logits = (donor.logit_differences.double() - recipient.logit_differences.double()).numpy()
    gain = estimate(difference_interval(donor.hits.numpy(), recipient.hits.numpy(), scenarios))
    return Behaviour(base, variant, gain, estimate(mean_interval(logits, scenarios)))


def _turned_rows(name: str, base: Model, variant: Model, circuit: Circuit, pairs: Pairs) -> list[Row]:
    """z in another basis fits nowhere: every run with it is incompatible, and none has a share."""
    found = patch_across(variant, base, circuit, pairs)
    far = found.incompatible()
    missed = [subset for subset in found.runs if subset and subset not in far]
    shares = [c for by in found.attribution().parts.values() for c in by.values() if c.undefined is None]
    return [
        exactly(name, "patched z in another basis: runs that pass as compatible", len(missed), 0),
        exactly(name, "patched z in another basis: shares", len(shares), 0),
    ]


def _covers_0(credit: Credit) -> bool:
    return credit.undefined is not None or credit.share_low <= 0 <= credit.share_high


def _interval(credit: Credit) -> str:
    return credit.undefined or f"{credit.share_low:.2f} to {credit.share_high:.2f}"


# The variants that are better than the base, and its circuit or another one.
_LEFT_OUT = ("faithfulness", "minimality", "completeness", "ablations", "knockout", "attention", "functions")
_LEFT_OUT += ("cross_model", "graft")
JUDGED = ("planted-sharper-fetchers", "planted-clearer-addresses", "planted-new-route")


def same_circuit_rows(names: Sequence[str], sizes: Sizes, folder: Path) -> list[Row]:
    """What the verdict of a study of these variants says about their circuits."""
    run_study(study_of(names, sizes), folder)
    verdicts = part_of(read_results(folder), VERDICT) or {}
    return [same_circuit_row(name, verdicts[name].sentences) for name in names]


def study_of(names: Sequence[str], sizes: Sizes) -> CommonSettings:
    """Discovery with name binders as one stage more, so that either route is found whole; then circuits alone.

    Of the other sections only overlap and verdict run. In float64: in the base the stage of name binders has effects of
    7e-6 logits, which is float32's own noise.
    """
    base = build_planted(names[0]).base
    data: dict[str, Any] = {
        "name": "planted",
        "base": base,
        "task": "entity_tracking",
        "variants": {name: name for name in names},
        "plans": {"main": {"stages": [asdict(stage) for stage in (*PLAN.stages, NAME_BINDERS)]}},
        "prompts": {
            "discovery": sizes.discovery,
            "replication": sizes.discovery,
            "evaluation": sizes.evaluation,
            "means": sizes.evaluation,
        },
        "dtype": "float64",
        "overlap": {"prompts": 2},  # for edges and profiles, which are not asked here
        **dict.fromkeys(_LEFT_OUT, False),
    }
    return parse_study(data, "planted")


def same_circuit_row(name: str, said: Sequence[Sentence]) -> Row:
    """The verdict says that the circuit is the same, or that it is not, as it is by the wiring."""
    sentence = next(each for each in said if each.claim == "same_circuit")
    same = build_planted(name).same_circuit
    claim = f"verdict: {'the same circuit' if same else 'a different circuit'}"
    return exactly(name, claim, float(sentence.answer == ("yes" if same else "no")), 1, sentence.text)
