"""Cross-model patching as a section of a study on two tiny models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from circuitdiff.circuit import Circuit, Group, Head, Mlps
from circuitdiff.errors import InputError
from circuitdiff.evaluation import Evaluation
from circuitdiff.methods.component_mask.fit import MaskFit
from circuitdiff.methods.cross_model.activations import read_several
from circuitdiff.methods.cross_model.patching import control_groups, patch_across, patch_across_several, run_controls
from circuitdiff.models.checks import CheckError
from circuitdiff.stats.shapley import IN_ORDER
from circuitdiff.study.context import StudyContext
from circuitdiff.study.estimates import circuit_from
from circuitdiff.study.gains import Direction, largest_part
from circuitdiff.study.host import Host
from circuitdiff.study.plan import Sizes
from circuitdiff.study.preflight import outlined
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.records import record_of, value_of
from circuitdiff.study.registry import parse_study
from circuitdiff.study.sections import cross_model, functions
from circuitdiff.study.sections.cross_model import SECTION, CrossModelOptions
from circuitdiff.study.sections.discovery import Discovered
from circuitdiff.study.sections.functions import MaskCell
from helpers.invented_sections import mask
from helpers.tiny_context import PLANS, TinyContext, tiny_context, tiny_study, without_sections
from helpers.tiny_folder import save_tiny_model

FOUND = Circuit(
    {
        "fetcher": Group("last", (Head(2, 1), Head(1, 3))),
        "reader": Group("previous_query_label", (Head(0, 2), Head(1, 0))),
        "nothing": Group("query_label", ()),
    }
)
TESTED = Circuit({name: FOUND.groups[name] for name in ("fetcher", "reader")})
OPTIONS = CrossModelOptions(prompts=5, random_groups=3, null_donors=("tuned",))


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> TinyContext:
    return tiny_context(tmp_path_factory.mktemp("study"), tuned=True)


def compared(
    context: TinyContext,
    monkeypatch: pytest.MonkeyPatch,
    options: CrossModelOptions = OPTIONS,
    donor: str | None = None,
    circuit: Circuit = FOUND,
    masks: Mapping[str, tuple[str, MaskCell]] | None = None,
) -> Any:
    """Of this circuit, with these masks; as if the donor were better at 95 %, which nine prompts of a random model do
    not say.
    """
    base = context.study.base

    async def main_masks(*_: Any) -> Mapping[str, tuple[str, MaskCell]]:
        return masks or {}

    async def discovered(*_: Any) -> Discovered:
        return Discovered(base, None, circuit, ())

    async def direction_of(*_: Any) -> Direction:
        return Direction("tuned", base, gains=True) if donor == "tuned" else Direction(base, "tuned", gains=True)

    monkeypatch.setattr(cross_model, "discovered", discovered)
    monkeypatch.setattr(cross_model, "main_masks", main_masks)
    if donor is not None:
        monkeypatch.setattr(cross_model, "direction_of", direction_of)
    return context.run(SECTION.run(context.study, options)).get("tuned")


def first(context: TinyContext, n: int):
    return context.loaded().pairs(PromptsOf("evaluation", first=n))


def both(context: TinyContext):
    return context.loaded().model, context.loaded("tuned").model


def test_every_run_and_credit_is_the_librarys_number_in_both_directions(context, monkeypatch):
    result, (base, tuned) = compared(context, monkeypatch), both(context)
    for by_what, donor, recipient in ((result.to_base, tuned, base), (result.to_variant, base, tuned)):
        assert tuple(by_what) == OPTIONS.what
        for what, patched in by_what.items():
            patch = patch_across(donor, recipient, TESTED, first(context, 5), what=what)
            assert patched.order == ("reader", "fetcher")
            assert (patched.donor, patched.recipient, patched.what) == (donor.name, recipient.name, what)
            for row, (subset, ran) in zip(patched.runs, patch.runs.items(), strict=True):
                assert set(row.parts) == subset
                assert row.log_prob.value == pytest.approx(float(ran.answers.log_probs.mean()), abs=1e-4)
                assert row.distance == pytest.approx(float(ran.distance.mean()), abs=1e-4)
            expected, given = patch.attribution("log_prob"), patched.scores["log_prob"]
            assert given.gain.value == pytest.approx(expected.gain.value, abs=1e-4)
            for part, credits in expected.parts.items():
                for how, credit in credits.items():
                    assert given.parts[part][how].value == pytest.approx(credit.value, abs=1e-4)
    assert circuit_from(result.groups) == TESTED
    assert set(result.null_donors) == {"tuned"}


def test_both_executors_and_a_recipient_given_its_own_activations_are_checked(context, monkeypatch):
    again = context.again(context.study.store.folder)
    compared(again, monkeypatch, replace(OPTIONS, null_donors=()))
    base = context.study.base
    titles = {f"{what} of {a} in {b}" for what in OPTIONS.what for a, b in ((base, "tuned"), ("tuned", base))}
    own = [check for check in again.study.checks if check.name == "a recipient given its own activations"]
    executors = [check for check in again.study.checks if check.detail.endswith("relative log probability")]
    assert {check.detail for check in own} == titles
    assert {check.detail for check in executors} == {
        f"{title}: 4 runs x 2 prompts, relative log probability" for title in titles
    }
    assert all(check.passed for check in (*own, *executors))


def test_a_recipient_that_its_own_activations_change_ends_the_study(context, tmp_path, monkeypatch):
    several = patch_across_several
    spoilt = lambda *a, **k: {w: replace(p, noise_floor=1.0) for w, p in several(*a, **k).items()}  # noqa: E731
    monkeypatch.setattr("circuitdiff.study.sections.cross_model_units.patch_across_several", spoilt)
    with pytest.raises(CheckError, match="given its own activations"):
        compared(context.again(tmp_path), monkeypatch)


def test_executors_that_disagree_end_the_study(context, tmp_path, monkeypatch):
    def spoilt(*args: Any, executor: str, **more: Any):
        patch = patch_across(*args, executor=executor, **more)
        if executor == "full":
            patch.runs[frozenset(["reader"])].answers.log_probs.add_(1.0)
        return patch

    monkeypatch.setattr("circuitdiff.study.sections.cross_model_units.patch_across", spoilt)
    with pytest.raises(CheckError, match="full executor"):
        compared(context.again(tmp_path), monkeypatch)


def test_single_heads_of_the_group_that_shows_most_are_the_librarys(context, monkeypatch):
    result = compared(context, monkeypatch, donor="tuned")
    base, tuned = both(context)
    heads = result.heads
    assert heads is not None
    assert heads.group == largest_part(result.to_base["z"].scores["accuracy"].parts, IN_ORDER)
    group, pairs = TESTED.groups[heads.group], first(context, 5)
    patch = patch_across_several(read_several(tuned, pairs, [group], ["z"]), base, group, pairs, per_head=True)["z"]
    assert heads.order == patch.order
    for row, (subset, ran) in zip(heads.runs, patch.runs.items(), strict=True):
        assert set(row.parts) == subset
        assert row.log_prob.value == pytest.approx(float(ran.answers.log_probs.mean()), abs=1e-4)


def test_only_the_heads_of_masks_are_patched_beside_whole_groups(context, monkeypatch):
    """A group without a mask keeps all of its heads."""
    masks = {"fetcher": ("object", mask(0.75, 0.25, heads=((1, 3),)))}
    found, (base, tuned) = compared(context, monkeypatch, donor="tuned", masks=masks).mask_heads, both(context)
    chosen = Circuit(TESTED.groups | {"fetcher": Group("last", (Head(1, 3),))})
    patch = patch_across(tuned, base, chosen, first(context, 5), what="z")
    assert (found.donor, found.recipient, found.what, found.order) == ("tuned", base.name, "z", ("reader", "fetcher"))
    assert (found.functions, circuit_from(found.groups)) == ({"fetcher": "object"}, chosen)
    for row, (subset, ran) in zip(found.runs, patch.runs.items(), strict=True):
        assert set(row.parts) == subset
        assert row.log_prob.value == pytest.approx(float(ran.answers.log_probs.mean()), abs=1e-5)
    whole = patch_across(tuned, base, TESTED, first(context, 5), what="z").runs[frozenset(["fetcher"])]
    alone = next(row for row in found.runs if row.parts == ("fetcher",))
    assert abs(alone.log_prob.value - float(whole.answers.log_probs.mean())) > 1e-4
    expected = patch.attribution("log_prob").parts["fetcher"]["alone"]
    assert found.scores["log_prob"].parts["fetcher"]["alone"].value == pytest.approx(expected.value, abs=1e-5)


def test_mlps_at_the_circuits_roles_are_parts_beside_the_groups_and_last_in_order(context, monkeypatch):
    again, options = context.again(context.study.store.folder), replace(OPTIONS, mlps=True)
    found, (base, tuned) = compared(again, monkeypatch, options, donor="tuned").with_mlps, both(context)
    roles, layers = TESTED.roles, tuple(range(base.n_layers))
    parts = {f"MLPs at {role}": Mlps(role, layers) for role in roles} | TESTED.groups
    pairs = first(context, 5)
    theirs = read_several(tuned, pairs, parts.values(), ["z"])
    patch = patch_across_several(theirs, base, parts, pairs, every_subset=False)["z"]
    assert found.order == patch.order == ("reader", "fetcher", "MLPs at previous_query_label", "MLPs at last")
    for row, (subset, ran) in zip(found.runs, patch.runs.items(), strict=True):
        assert set(row.parts) == subset
        assert row.log_prob.value == pytest.approx(float(ran.answers.log_probs.mean()), abs=1e-5)
    alone = {row.parts: row.log_prob.value for row in found.runs}
    assert abs(alone["MLPs at last",] - alone[()]) > 1e-4
    title = f"z of tuned in {context.study.base}, with MLPs"
    checks = [check.name for check in again.study.checks if check.detail.startswith(title)]
    assert len(checks) == 2, "both executors, and the recipient given its own"
    assert all(check.passed for check in again.study.checks)


def test_mlps_are_patched_only_if_asked_and_where_there_is_a_gain(context, monkeypatch):
    assert compared(context, monkeypatch, replace(OPTIONS, mlps=True)).with_mlps is None
    assert compared(context, monkeypatch, donor="tuned").with_mlps is None


@pytest.mark.parametrize("heads", [None, ((1, 3), (2, 1))], ids=["no mask", "all heads of the group"])
def test_masks_that_leave_no_head_out_are_not_patched(context, monkeypatch, heads):
    masks = {} if heads is None else {"fetcher": ("object", mask(0.75, 0.25, heads=heads))}
    assert compared(context, monkeypatch, donor="tuned", masks=masks).mask_heads is None


def test_masks_are_learned_once_whoever_waits_for_them(tmp_path, monkeypatch):
    """As if each group's first head carried what was asked, which masks of a random model do not say."""
    small = {"desiderata": ["object"], "train": 6, "validation": 4, "test": 4, "steps": 2, "random_groups": 0}
    small |= {"sweep": False, "redraw": {"times": 0}}
    variants = {"second": str(save_tiny_model(tmp_path / "second", seed=1))}
    more = {"cross_model": {"prompts": 4, "random_groups": 0}, "functions": small, "variants": variants}
    fresh = tiny_context(tmp_path, **without_sections("cross_model", "functions") | more)
    cell_of, learned = functions.cell_of, list[str]()

    def carries(fit: MaskFit) -> MaskCell:
        learned.append(fit.desideratum)
        cell = cell_of(fit)
        return replace(cell, heads=cell.group[:1], carries=True)

    async def gains(study: StudyContext, variant: str) -> Direction:
        return Direction(variant, study.base, gains=True)

    async def parts(study: StudyContext) -> list[Any]:
        return await study.each((SECTION, functions.SECTION), study.part)

    monkeypatch.setattr(functions, "cell_of", carries)
    monkeypatch.setattr(cross_model, "direction_of", gains)
    patched, masks = fresh.run(parts(fresh.study))
    groups, found = masks[fresh.study.base][fresh.study.base], patched["second"].mask_heads
    assert len(learned) == sum(len(groups) for models in masks.values() for groups in models.values())
    assert found.functions == dict.fromkeys(groups, "object")
    assert {name: group.heads for name, group in found.groups.items()} == {
        name: cells["object"].heads for name, cells in groups.items()
    }


def test_controls_say_what_was_done_and_are_the_librarys(context, monkeypatch):
    result, (base, tuned) = compared(context, monkeypatch, donor="tuned"), both(context)
    pairs = first(context, 5)
    assert set(result.controls) == set(TESTED.groups)
    for name, group in TESTED.groups.items():
        controls = result.controls[name]
        assert (controls.what, controls.n_prompts) == ("z", 5)
        chosen = control_groups(group, base.n_layers, base.n_heads, n_random=3, other_role=controls.other_role)
        of_donor = read_several(tuned, pairs, [group, *chosen], ["z"])["z"]
        ran = run_controls(of_donor, base, group, chosen, pairs)
        for control in ("group", "elsewhere", "noise", "scaled"):
            answers, distance = getattr(ran, control)
            given = getattr(controls, control)
            assert given.accuracy.hits == int(answers.hits.sum())
            assert given.distance == pytest.approx(float(distance.mean()), abs=1e-4)
        accuracies = [float(each.answers.hits.double().mean()) for each in ran.same_layers]
        assert controls.same_layers.accuracies == pytest.approx(accuracies)
    assert result.controls["reader"].other_role == "other_label"
    assert result.controls["fetcher"].other_role == "after_query_label"


@pytest.mark.parametrize(("distance", "n_far"), [(1e-9, 4), (1e9, 0)])
def test_a_control_that_ends_far_from_clean_runs_has_no_share(context, monkeypatch, distance, n_far):
    asked: list[bool] = []
    control_result = cross_model.control_result
    monkeypatch.setattr(
        cross_model,
        "control_result",
        lambda *args, compatible: asked.append(compatible) or control_result(*args, compatible=compatible),
    )
    controls = compared(context, monkeypatch, replace(OPTIONS, distance=distance), donor="tuned").controls["reader"]
    named = [controls.group, controls.elsewhere, controls.noise, controls.scaled]
    assert [each is not None and each.incompatible for each in named] == [n_far == 4] * 4
    assert asked == [n_far == 0] * 8
    assert controls.same_layers.n_far == (3 if n_far else 0)


def test_of_a_variant_that_is_worse_the_base_is_the_donor(context, monkeypatch):
    result = compared(context, monkeypatch, replace(OPTIONS, both_directions=False), donor="base")
    assert (result.recipient, result.to_base, result.null_donors) == ("tuned", {}, {})
    assert result.heads is not None
    assert (result.heads.donor, result.heads.recipient) == (context.study.base, "tuned")
    assert set(result.controls) == set(TESTED.groups)


def test_without_a_gain_fewer_prompts_are_run_and_neither_heads_nor_controls(context, monkeypatch):
    masks = {"fetcher": ("object", mask(0.75, 0.25, heads=((1, 3),)))}
    result = compared(context, monkeypatch, replace(OPTIONS, without_gain=3), masks=masks)
    for patched in (*result.to_base.values(), *result.to_variant.values(), *result.null_donors.values()):
        assert patched.n_prompts == 3
        assert "covers 0" in (patched.scores["accuracy"].together.undefined or "")
    assert (result.heads, result.controls, result.mask_heads) == (None, {}, None)


def test_a_second_time_nothing_is_computed_and_the_same_comes_back(context, monkeypatch):
    once = compared(context, monkeypatch, donor="tuned")
    monkeypatch.setattr(Host, "run", lambda *_: pytest.fail("computed again"))
    assert compared(context.again(context.study.store.folder), monkeypatch, donor="tuned") == once


def test_what_a_worker_has_read_before_changes_no_byte_of_a_record(context, tmp_path, monkeypatch):
    contents = []
    for i, name in enumerate(("shared", "alone")):
        if i:
            monkeypatch.setattr("circuitdiff.study.host.LoadedModel.cached", lambda self, kind, key, make: make())
        fresh = context.again(tmp_path / name)
        few = replace(OPTIONS, prompts=2, random_groups=1, null_donors=())
        compared(fresh, monkeypatch, few, donor="tuned")
        records = sorted((fresh.study.store.folder / "records").rglob("*.safetensors"))
        contents.append({path.name: path.read_bytes() for path in records})
    assert len(contents[0]) > 8
    assert contents[0] == contents[1]


def test_a_circuit_without_heads_has_no_results(context, monkeypatch):
    assert compared(context, monkeypatch, circuit=Circuit({"nothing": Group("last", ())})) is None


def test_records_come_back_as_they_were(context):
    (base, tuned), pairs = both(context), first(context, 4)
    read = [read_several(model, pairs, TESTED.groups.values(), ["z", "pattern"]) for model in (tuned, base)]
    patches = patch_across_several(read[0], base, TESTED, pairs, own=read[1])
    back = value_of(record_of(patches))
    assert list(back) == ["z", "pattern"]
    for what, patch in patches.items():
        assert (back[what].bases, back[what].order) == (patch.bases, patch.order)
        assert (back[what].noise_floor, back[what].what) == (patch.noise_floor, what)
        assert list(back[what].runs) == list(patch.runs)
        assert same(back[what].donor, patch.donor)
        for subset, ran in patch.runs.items():
            assert same(back[what].runs[subset].answers, ran.answers)
            assert torch.equal(back[what].runs[subset].distance, ran.distance)
    for n_heads in (2, 3, 4):  # of three heads, as many runs are needed as there are subsets, in another order
        group = Group("query_label", tuple(Head(1, i) for i in range(n_heads)))
        heads = patch_across_several(read_several(tuned, pairs, [group], ["z"]), base, group, pairs, per_head=True)
        assert list(value_of(record_of(heads))["z"].runs) == list(heads["z"].runs)


def test_controls_come_back_as_they_were_also_those_that_there_are_not(context):
    (base, tuned), pairs, group = both(context), first(context, 4), TESTED.groups["reader"]
    for what in ("z", "pattern"):
        chosen = control_groups(group, base.n_layers, base.n_heads, n_random=2)
        of_donor = read_several(tuned, pairs, [group, *chosen], [what])[what]
        controls = run_controls(of_donor, base, group, chosen, pairs)
        donor, back = value_of(record_of((of_donor.answers, controls)))
        assert same(donor, of_donor.answers)
        assert (back.elsewhere, back.noise is None) == (None, what == "pattern")
        assert same(back.group.answers, controls.group.answers)
        assert torch.equal(back.same_layers[1].distance, controls.same_layers[1].distance)
        assert len(back.same_layers) == 2


def same(one: Evaluation, other: Evaluation) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in vars(other))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"promts": 3}, "prompts"),
        ({"heads": "yes"}, "cross_model.heads: expected true or false; got 'yes'"),
        ({"what": []}, "cross_model.what"),
        ({"what": ["y"]}, "cross_model.what"),
        ({"distance": 0.0}, "greater than 0"),
        ({"turned": -1.0}, "greater than 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, setting, message):
    with pytest.raises(InputError, match=message):
        parse_study(tiny_study(tmp_path, cross_model=setting), "test")


def refuse(context: TinyContext, options: CrossModelOptions, **plan: Any) -> None:
    data = tiny_study(context.study.settings.base.source, variants={"second": str(context.study.settings.base.source)})
    settings = parse_study(data | ({"plans": {"main": plan}} if plan else {}), "test")
    SECTION.check(outlined(settings), options)


def test_a_null_donor_must_be_a_variant(context):
    with pytest.raises(InputError, match=r"cross_model\.null_donors names 'nope', .* choose one of second"):
        refuse(context, CrossModelOptions(null_donors=("nope",)))
    refuse(context, CrossModelOptions(null_donors=("second",)))


def test_more_groups_than_can_be_patched_are_refused(context):
    stages = [{"name": name, "at": "last"} for name in "abcdefg"]
    with pytest.raises(InputError, match="at most 6 groups, and the main plan has 7 stages"):
        refuse(context, OPTIONS_OF_SECOND, stages=stages)
    refuse(context, OPTIONS_OF_SECOND, stages=stages[:6])


def test_a_head_in_two_groups_is_refused_only_where_contributions_are_patched(context):
    stages = PLANS["main"]["stages"]
    with pytest.raises(InputError, match="would be patched twice"):
        refuse(context, OPTIONS_OF_SECOND, stages=stages, shared_heads="both")
    refuse(context, replace(OPTIONS_OF_SECOND, what=("z",)), stages=stages, shared_heads="both")
    refuse(context, OPTIONS_OF_SECOND, stages=stages, shared_heads="later")


OPTIONS_OF_SECOND = replace(OPTIONS, null_donors=())


def test_the_plan_counts_every_subset_the_single_heads_and_the_controls(context):
    async def sizes(study: StudyContext) -> Sizes:
        prompts = await study.prompts_of(study.base)
        base, speed = await study.facts(study.base), await study.speed()
        return Sizes(study.settings, study.plans, study.task, base, speed, prompts)

    known = context.run(sizes(context.study))
    [part] = SECTION.cost(known, CrossModelOptions(prompts=10, random_groups=7))
    subsets = (2 * 2 + 1) * 4  # two kinds both ways, and the heads of masks
    assert part.forwards == 10 * (subsets + 8) + 2 * 7 * 10, "and three heads; two groups' controls"
    asks_nothing = replace(known, settings=known.settings.model_copy(update={"functions": False}))
    [unmasked] = SECTION.cost(asks_nothing, CrossModelOptions(prompts=10, random_groups=7))
    assert part.forwards - unmasked.forwards == 10 * 4
    few = CrossModelOptions(
        prompts=10, what=("z",), both_directions=False, heads=False, mask_heads=False, random_groups=0
    )
    [part] = SECTION.cost(known, few)
    assert part.forwards == 10 * 4
    [with_mlps] = SECTION.cost(known, replace(few, mlps=True))
    assert with_mlps.forwards == 10 * (4 + 8), "of two groups, and of MLPs at the one role of both, what is needed"
    assert with_mlps.flop > part.flop
