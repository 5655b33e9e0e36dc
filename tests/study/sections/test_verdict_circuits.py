"""What the verdict is given of circuits: each alone in base and variant, how alike they are, where they have gaps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from circuitdiff import Circuit, Group, Head, evaluate_circuit, evaluate_model, load_model, mean_activations
from circuitdiff.evaluation import Evaluation
from circuitdiff.study.estimates import Estimate, Ratio
from circuitdiff.study.evidence import SimilarityEvidence, StabilityEvidence
from circuitdiff.study.prompts import PromptsOf, PromptSource
from circuitdiff.study.registry import read_results
from circuitdiff.study.runner import run_study
from circuitdiff.study.sections.completeness import PartsRemoved, Removed, RemovedGroup
from circuitdiff.study.sections.overlap import StageOverlap, VariantOverlap
from circuitdiff.study.sections.overlap_profiles import SameWork
from circuitdiff.study.sections.verdict_circuits import (
    gaps,
    has_moved,
    needed_heads,
    similarity_evidence,
    stability,
)
from helpers.invented_evidence import evidence, said
from helpers.invented_results import invented_results
from helpers.invented_sections import pruned_circuit
from helpers.tiny_folder import save_tiny_model, settings_of, silent


def near(value: float, spread: float = 0.1) -> Estimate:
    return Estimate(value, value - spread, value + spread)


def correlation(value: float) -> Ratio:
    return Ratio(**vars(near(value)), note=None)


PLANS = """
  main:
    stages:
      - {name: fetcher, at: last, select: {top: 3}}
      - {name: reader, at: correct_object, via: v, receivers_from: fetcher, receivers_at: last, select: {top: 2}}"""


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A study of two tiny models, and what the library says of each circuit alone, by model and groups."""
    folder = tmp_path_factory.mktemp("study")
    base, other = save_tiny_model(folder / "base"), save_tiny_model(folder / "other", seed=1)
    settings = settings_of(folder, base, variants=f"{{second: {other}}}", overlap="false", plans=PLANS)
    run_study(settings, folder / "run", silent)
    results, loaded = read_results(folder / "run"), {"base": load_model(base), "second": load_model(other)}
    circuits = {
        name: {group: frozenset(each.heads) for group, each in results.discovery[model].groups.items()}
        for name, model in (("base", "base"), ("second", "second"))
    }
    return Judged(settings, results.verdict["second"], circuits, loaded)


class Judged:
    def __init__(self, settings, verdict, circuits, loaded):
        self.settings, self.verdict, self.circuits, self.loaded = settings, verdict, circuits, loaded

    def alone(self, model: str, heads: dict[str, frozenset[tuple[int, int]]], by: str) -> Evaluation:
        own = self.loaded[model]
        source = PromptSource(self.settings, self.settings.base.name, own.tokenizer)
        kept = {name: tuple(Head(*place) for place in sorted(each)) for name, each in heads.items() if each}
        groups = {"fetcher": Group("last", kept["fetcher"])} if "fetcher" in kept else {}
        at = [f"segment_{i}.object" for i in range(3)] if by == "kind" else ["correct_object"]
        groups |= {role: Group(role, kept["reader"]) for role in at if "reader" in kept}
        means = mean_activations(own, source.pairs(PromptsOf("means")), by)
        return evaluate_circuit(own, Circuit(groups), source.pairs(PromptsOf("evaluation")), means)

    def whole(self, model: str) -> Evaluation:
        own = self.loaded[model]
        source = PromptSource(self.settings, self.settings.base.name, own.tokenizer)
        return evaluate_model(own, source.pairs(PromptsOf("evaluation")))


def less(first: Evaluation, second: Evaluation) -> float:
    return float((first.hits.double() - second.hits.double()).mean())


@pytest.mark.parametrize("by", ["slot", "kind"])
def test_circuits_are_held_against_one_another_and_against_whole_models(judged, by):
    [found] = [each for each in judged.verdict.transfers if each.by == by]
    first, second = judged.circuits["base"], judged.circuits["second"]
    further = {name: heads - first[name] for name, heads in second.items()}
    assert any(further.values())  # both circuits have heads of their own
    assert any(first[name] - heads for name, heads in second.items())
    theirs, own = judged.alone("second", first, by), judged.alone("second", second, by)
    both = judged.alone("second", {name: first[name] | further[name] for name in first}, by)
    nothing = judged.alone("second", {}, by)
    assert found.over_base.value == pytest.approx(less(theirs, judged.whole("base")))
    assert found.over_own.value == pytest.approx(less(theirs, own))
    assert found.reverse.value == pytest.approx(less(judged.alone("base", second, by), judged.whole("base")))
    assert found.extras_add.value == pytest.approx(less(both, theirs))
    assert found.extras_alone.value == pytest.approx(less(judged.alone("second", further, by), nothing))


def test_the_bases_circuit_is_held_against_whole_models_without_one_of_the_variants_own(judged, tmp_path):
    run_study(judged.settings.model_copy(update={"discover_in": ()}), tmp_path, silent)
    verdict = read_results(tmp_path).verdict["second"]
    assert verdict.circuits == ()
    own = {"over_own": None, "reverse": None, "extras_add": None, "extras_alone": None}
    assert list(verdict.transfers) == [replace(each, **own) for each in judged.verdict.transfers]
    answers = {each.claim: each.answer for each in verdict.sentences}
    assert {answers[each] for each in ("same_circuit", "beats_own", "further_heads")} == {"not asked"}
    assert "not asked" not in {answers["beats_base"], answers["stable_choice"], answers["beats_rival"]}


@pytest.mark.parametrize("by", ["slot", "kind"])
def test_faithfulness_is_that_of_the_logit_difference_too(judged, by):
    [found] = [each for each in judged.verdict.circuits if (each.by, each.score) == (by, "logit_difference")]
    first, second = judged.circuits["base"], judged.circuits["second"]

    def mean(model: str, heads=None) -> float:
        answers = judged.whole(model) if heads is None else judged.alone(model, heads, by)
        return float(answers.logit_differences.double().mean())

    for given, model, heads in ((found.base_own, "base", first), (found.variant_own, "second", second)):
        expected = (mean(model, heads) - mean(model, {})) / (mean(model) - mean(model, {}))
        assert given.value == pytest.approx(expected) if given.note is None else np.isfinite(expected)
    if found.transfer.note is None:
        room = mean("second") - mean("second", {})
        assert found.transfer.value == pytest.approx((mean("second", first) - mean("second", second)) / room)
    assert found.transfer_where_only_variant_right is None


def removed(group: str, difference: float) -> RemovedGroup:
    zero = near(0.0)
    return RemovedGroup(1, zero, zero, near(difference), zero, group=group)


def test_gaps_are_those_of_each_own_circuit_on_a_scale_from_0_to_1():
    zero = Removed(0, *[near(0.0)] * 4)
    found = PartsRemoved("probability", 9, (), (removed("a", 0.3), removed("b", 0.0)), zero, zero, None, near(0.5))
    rows = gaps({"base": {"base": found, "second": found}, "second": {}}, ("base", "second"))
    assert [(row.model, row.group, row.difference) for row in rows] == [
        ("base", "a", near(0.3)),
        ("base", "b", near(0.0)),
    ]
    logits = replace(found, quantity="logit_difference")
    assert gaps({"base": {"base": logits}}, ("base",)) == ()


def test_heads_needed_in_one_circuit_and_surely_not_in_the_other_are_named():
    """As the invented section has them: 4.1 and 1.0 are needed, 3.0 is not, 2.2 is open."""
    own = pruned_circuit()
    fetchers = own.groups["value_fetcher"]
    turned = {"needed": "not_needed", "not_needed": "needed", "open": "needed"}
    other = replace(
        own, groups={"value_fetcher": tuple(replace(each, outcome=turned[each.outcome]) for each in fetchers)}
    )
    found = needed_heads({"base": own, "second": other}, "base", "second")
    opposed = [each for each in fetchers if each.outcome != "open"]
    assert found is not None
    assert found.opposed == tuple(
        f"{layer}.{index} (value_fetcher)" for layer, index in (each.head for each in opposed)
    )
    counts = [sum(each.outcome == "needed" for heads in one.groups.values() for each in heads) for one in (own, other)]
    assert [found.base, found.variant] == counts
    same = needed_heads({"base": own, "second": own}, "base", "second")
    assert same is not None
    assert same.opposed == ()
    assert needed_heads({"base": own}, "base", "second") is None


def same_work(base: str, variant: str, attention: float, effect: float) -> SameWork:
    return SameWork(base, variant, near(attention), near(effect))


def stage(name: str = "fetcher", n_chosen: tuple[int, int] = (5, 6), alike: float = 0.6) -> StageOverlap:
    maps = (correlation(alike), correlation(0.3), None)
    return StageOverlap(name, True, n_chosen, *maps, near(0.9), near(0.9), (), (), 0.02)


def compared(rows: list[SameWork], alike: float = 0.6) -> VariantOverlap:
    return VariantOverlap(stages=(stage(alike=alike),), moved=tuple(rows), n_scenarios=70)


def test_groups_do_the_same_work_if_each_is_most_like_its_namesake():
    same = [same_work("a", "a", 0.95, 0.95), same_work("b", "b", 0.92, 0.95)]
    others = [same_work("a", "b", 0.5, 0.2), same_work("b", "a", 0.5, 0.2)]

    def judged(rows: list[SameWork]) -> bool:
        return has_moved(compared(rows), 0.9)

    assert judged([*same, *others])
    assert not judged([*same, others[0], same_work("b", "a", 0.75, 0.2)])  # it may look like the other group
    assert not judged([same[0], same_work("b", "b", 0.92, 0.3), *others])  # it may act like the other group
    assert not judged([same[0], same_work("b", "b", 0.89, 0.95), *others])  # most like it, but perhaps not alike
    assert not judged([same[0], *others])  # the variant's circuit has no such group
    assert not judged(same[:1])  # nothing to tell it from
    assert not judged([])
    assert not has_moved(VariantOverlap(), 0.9)


def test_heads_whose_effects_may_be_alike_have_not_moved():
    rows = [same_work("a", "a", 0.95, 0.95), same_work("b", "b", 0.95, 0.95)]
    rows += [same_work("a", "b", 0.5, 0.2), same_work("b", "a", 0.5, 0.2)]
    assert has_moved(compared(rows), 0.9)
    assert not has_moved(compared(rows, alike=0.85), 0.9)


def test_effects_are_compared_stage_by_stage_where_heads_were_chosen():
    nothing = stage("reader", (0, 0))
    rows = similarity_evidence(VariantOverlap(stages=(stage(), nothing), not_run=("writer",)))
    assert rows == (
        SimilarityEvidence("fetcher", correlation(0.6), correlation(0.3)),
        SimilarityEvidence("writer", None, None),
    )
    assert similarity_evidence(None) == ()


def test_stability_is_asked_of_every_stage_that_chose_heads_and_open_where_it_is_not_known():
    known, unknown = Estimate(0.9, 0.8, 1.0), Estimate(None, None, None)
    circuit = next(iter(invented_results().discovery.values()))
    told = {"plain": (((3, 1),), known), "screened": (((2, 0),), unknown), "empty": ((), unknown)}
    stages = (replace(circuit.stages[0], name=n, selected=heads, stability=each) for n, (heads, each) in told.items())
    found = {"base": replace(circuit, stages=tuple(stages))}
    asked = stability(found, ["base", "tuned"])
    assert [(each.stage, each.jaccard) for each in asked] == [("plain", known), ("screened", unknown)]
    both = [*asked, StabilityEvidence("tuned", "plain", known)]
    found_open = said(evidence(stability=both), "stable_choice")
    assert found_open.answer == "not established"
    assert "a screen left others out" in found_open.text
    assert "nan" not in found_open.text
