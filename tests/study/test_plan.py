"""The plan that is printed before the work: its arithmetic, by hand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from circuitdiff.models import load_model
from circuitdiff.prompts import halves
from circuitdiff.study.context import current_rank
from circuitdiff.study.facts import facts_of, speed_of
from circuitdiff.study.host import LoadedModel
from circuitdiff.study.plan import Part, Sizes, planned_cost
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.registry import planned_parts, read_study
from circuitdiff.study.runner import run_study
from circuitdiff.study.settings import CommonSettings, expected, plans_of, task_of
from circuitdiff.study.workers import ThisProcess
from helpers.tiny_folder import CIRCUIT_ONLY, N_HEADS, N_LAYERS, save_tiny_model, settings_of, silent, study_yaml


def sizes_of(study: CommonSettings, loaded: LoadedModel) -> Sizes:
    task = task_of(study)
    return Sizes(study, expected(plans_of(study), task), task, facts_of(loaded), speed_of(loaded), loaded.prompts)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Parts of a study by the changes to its settings; and the sizes that they follow from."""
    folder = tmp_path_factory.mktemp("planned")
    model = load_model(save_tiny_model(folder / "model"))

    def parts_of(**changes: object):
        (folder / "s.yaml").write_text(study_yaml(folder / "model", **changes))
        study = read_study(folder / "s.yaml")
        loaded = LoadedModel(model, study, lambda *_: None)
        sizes = sizes_of(study, loaded)
        return {part.what.partition(" (")[0]: part for part in planned_parts(sizes)}, sizes

    return parts_of


Flop = tuple[dict[str, float], dict[str, float]]  # planned, by part; counted, by function and section


class Counting(ThisProcess):
    """Counts what each section's units take, by the functions that carry them out; checks are not in the plan."""

    def __init__(self, settings: CommonSettings) -> None:
        super().__init__(settings, "cpu", silent)
        self.flop: dict[str, float] = defaultdict(float)

    async def call(self, method: str, *arguments: Any) -> Any:
        if method != "run" or arguments[0].run.__module__ == "circuitdiff.study.checks":
            return await super().call(method, *arguments)
        with FlopCounterMode(display=False) as counter:
            answer = await super().call(method, *arguments)
        self.flop[f"{arguments[0].run.__name__} {current_rank.get()[0]}"] += counter.get_total_flops()
        return answer


WIDE = {"hidden_size": 96, "head_dim": 12, "intermediate_size": 256, "num_hidden_layers": 4}
SMALL = {
    "prompts": "{discovery: 12, replication: 12, evaluation: 24, means: 24}",
    "faithfulness": "{random_circuits: 4}",
    "completeness": "{prompts: 12, random_parts: 3, greedy_steps: 1, greedy_candidates: 3, greedy_prompts: 6}",
    "minimality": "{prompts: 40}",
    "ablations": "{prompts: 12}",
    "knockout": "{prompts: 12, layer_step: 1}",
    "attention": "{prompts: 12}",
    "curves": "{prompts: 24}",
    "locate": "{prompts: 8, layer_step: 2, roles: [last, query_label, after_correct_object]}",
    "functions": "{desiderata: [position], train: 16, validation: 8, test: 16, steps: 8, random_groups: 1,"
    " control_triples: 8, sweep: false, redraw: {times: 1, triples: 8}}",
    "cross_model": "{prompts: 12, random_groups: 0}",
    "overlap": "{prompts: 6}",
    "graft": "{random_groups: 0, roles: null}",
}
# Other numbers of layers, heads and prompts; all heads read the same keys and values; three groups at two roles.
OTHER_SHAPE = WIDE | {"num_hidden_layers": 5, "num_attention_heads": 6, "num_key_value_heads": 1}
OTHER = {
    "prompts": "{discovery: 9, replication: 9, evaluation: 18, means: 24, queries_per_scenario: 3}",
    "faithfulness": "{random_circuits: 1}",
    "minimality": "{prompts: 18, held_out: false, fraction: 0.5}",
    "overlap": "{prompts: 9}",
    "attention": "{prompts: 18}",
    "curves": "{prompts: 12, steps: 2}",
    "locate": "{prompts: 12, layer_step: 3, roles: [query_label, after_correct_object]}",
    "graft": "{prompts: 12, random_groups: 0, heads: true, layers: [2, 3], matrices: false}",
    "plans": """
  main:
    stages:
      - {name: fetcher, at: last, select: {top: 4}}
      - {name: transmitter, at: last, via: q, receivers_from: fetcher, select: {top: 3}}
      - {name: reader, at: query_label, via: v, receivers_from: fetcher, receivers_at: last, select: {top: 3}}""",
}


def planned_and_counted(folder: Path, shape: Mapping[str, int], settings: Mapping[str, str]) -> Flop:
    """FLOP of a small study on a model whose attention is a small part of its work: planned and counted, by section."""
    model = save_tiny_model(folder / "model", **shape)
    variants = f"{{second: {save_tiny_model(folder / 'second', seed=1, **shape)}}}"
    study = settings_of(folder, model, variants=variants, **settings)
    loaded = LoadedModel(load_model(model), study, silent)
    sizes = sizes_of(study, loaded)
    worker = Counting(study)
    run_study(study, folder / "run", silent, workers=[worker])
    return {part.what: part.flop for part in planned_parts(sizes)}, dict(worker.flop)


@pytest.fixture(scope="module")
def counted(tmp_path_factory) -> Flop:
    return planned_and_counted(tmp_path_factory.mktemp("counted"), WIDE, SMALL)


@pytest.fixture(scope="module")
def counted_in_other_shape(tmp_path_factory) -> Flop:
    return planned_and_counted(tmp_path_factory.mktemp("other"), OTHER_SHAPE, OTHER)


@pytest.mark.parametrize(
    ("parts", "functions"),
    [
        (["accuracy and means"], ["model_alone", "slot_means"]),
        (["runs that sweeps share", "fetcher (at last)", "transmitter (at last, via q)"], ["sweep"]),
        (["every circuit in every model", "curves of rankings"], ["circuits_alone 2", "circuits_alone 14"]),
        (["attribution", "rankings by gradient"], ["attributed"]),
        (["completeness"], ["parts_removed"]),
        (["ablations"], ["circuits_alone 5"]),
        (["circuits of base and variants, for the verdict"], ["circuits_alone 12"]),
        (["knockouts"], ["knocked_out 6"]),
        (["residual streams exchanged"], ["exchanged"]),
        (["attention between all roles"], ["knocked_out 15"]),
        (["ceiling of roles"], ["ceiling_of_roles"]),
        (["attention to roles"], ["attended"]),
        (["functions"], ["learned_mask", "answers_of_patched"]),
        (["cross-model patching"], ["patches"]),
        (["minimality"], ["cost_of_heads"]),
        (["overlap"], ["group_work"]),
        (["grafts"], ["grafts", "grafted_by_role"]),
    ],
)
def test_the_plan_is_what_torch_counts_within_a_fifth(counted, parts, functions):
    assert_planned(counted, parts, functions)


@pytest.mark.parametrize(
    ("part", "functions"),
    [
        ("minimality", ["cost_of_heads"]),
        ("overlap", ["group_work"]),
        ("attention to roles", ["attended"]),
        ("grafts", ["grafts", "grafted_heads"]),
        ("residual streams exchanged", ["exchanged"]),
        ("attention between all roles", ["knocked_out 15"]),
        ("ceiling of roles", ["ceiling_of_roles"]),
    ],
)
def test_the_plan_is_what_torch_counts_in_another_shape(counted_in_other_shape, part, functions):
    assert_planned(counted_in_other_shape, [part], functions)


def assert_planned(flop: Flop, parts: Sequence[str], functions: Sequence[str]) -> None:
    planned, counted = flop
    run = sum(n for name, n in counted.items() if any(name.startswith(function) for function in functions))
    assert sum(planned[part] for part in parts) == pytest.approx(run, rel=0.2)


def token_flop(sizes: Sizes) -> tuple[float, float]:
    """Of all layers (attention, MLP, two norms), and of the unembedding."""
    layer = 2 * 28 * 4 * 6 + 2 * 28 * 2 * 6 + 3 * 28 * 20 + 2 * 28
    return 2 * layer * N_LAYERS, 2 * 28 * len(sizes.base.tokenizer)


def test_a_stage_that_two_plans_share_counts_once_and_a_section_that_is_off_not_at_all(planned):
    parts, _ = planned(**CIRCUIT_ONLY)
    assert list(parts) == [
        "accuracy and means",
        "runs that sweeps share",
        "fetcher",
        "transmitter",
        "every circuit in every model",
        "attribution",
    ]


def test_every_section_that_runs_is_counted(planned):
    base, _ = planned()
    further = ["minimality", "completeness", "ablations", "knockouts", "attention to roles", "functions"]
    last = ["curves of rankings", "rankings by gradient"]
    assert list(base)[6:] == [*further, *last]
    both, sizes = planned(variants="{other: planted-base}")
    of_variants = ["overlap", "cross-model patching", "grafts", "circuits of base and variants, for the verdict"]
    assert list(both)[6:] == [*further, *of_variants, *last]
    assert len(sizes.settings.models) == 2
    for what in ("accuracy and means", "fetcher", "minimality", "knockouts"):
        assert both[what].flop == pytest.approx(2 * base[what].flop), what
    attended = "attention to roles"  # the base's circuit in both, and the variant's own in the variant
    assert both[attended].flop == pytest.approx(3 * base[attended].flop)
    assert both["every circuit in every model"].flop > 2 * base["every circuit in every model"].flop


def test_functions_are_counted_for_each_circuit_that_is_asked(planned):
    def flop(settings: str) -> float:
        parts, _ = planned(variants="{other: planted-base}", functions=settings)
        return parts["functions"].flop

    alone, _ = planned(functions="{}")
    one = flop("{circuits: [other]}")
    assert alone["functions"].flop < one < 2 * alone["functions"].flop, "penalties are swept in the circuit's own model"
    assert flop("{}") == pytest.approx(2 * one)
    assert flop("{circuits: [other], models: [model]}") == one, "masks to be moved are learned in the circuit's own"
    assert flop("{circuits: [model], models: [model]}") == alone["functions"].flop


def test_a_sweep_straight_into_the_logits_costs_one_token_in_half_of_the_layers(planned):
    parts, sizes = planned()
    layers, head = token_flop(sizes)
    runs = 6 * N_LAYERS * N_HEADS  # prompts x senders
    assert parts["fetcher"].forwards == runs
    assert parts["fetcher"].flop == pytest.approx(runs * (layers / 2 + head))


def test_a_sweep_into_q_at_the_last_token_adds_one_token_more(planned):
    parts, sizes = planned()
    layers, _ = token_flop(sizes)
    runs = 6 * N_LAYERS * N_HEADS
    assert parts["transmitter"].forwards == 2 * runs
    assert parts["transmitter"].flop - parts["fetcher"].flop == pytest.approx(runs * layers / 2)


def test_minimality_takes_every_pair_and_two_circuits_a_head_from_their_first_head_on(planned):
    parts, sizes = planned(minimality="{prompts: 8}")
    layers, head = token_flop(sizes)
    # The first of one head in three layers is in layer 1, of two in layer 5/9; in the two layers below the last of
    # three fetchers (5/3 of them, on average) in 1/2 and 1/4. Removal sets have one head.
    fetchers = (3 + 3) * (1 - 1 / 3) + (3 + 3) * (1 - 5 / 27)
    transmitters = (2 + 2) * (1 - 1 / 6) + (1 + 2) * (1 - 1 / 12)
    halves_of = halves(sizes.prompts.pairs(PromptsOf("evaluation", first=8, beyond=True)))
    lone = sizes.constant_tokens(halves_of, [sizes.sample])
    runs = (2 + fetchers + transmitters) * layers + (2 + 12 + 7) * head  # one role; the whole circuit for each half
    assert parts["minimality"].flop == pytest.approx(4 * runs + lone * layers)


def test_a_lone_token_counts_once_at_its_place_and_by_sixty_four(planned):
    _, sizes = planned(**CIRCUIT_ONLY)
    prompts = sizes.sample
    once = sizes.constant_tokens([prompts])
    places = {  # all prompts are of one length and one sequence of slots, and groups are at the last token
        (place, token) for row in prompts.clean.tolist() for place, token in enumerate(row[:-1])
    }
    assert len(prompts.clean_prompts.slots.unique(dim=0)) == 1
    assert once == 64 * -(-len(places) // 64)
    assert sizes.constant_tokens([prompts, prompts]) == once
    assert sizes.constant_tokens([prompts], known=[prompts]) == 0


def test_sources_drawn_anew_are_read_once_for_all_groups_and_main_desiderata(planned):
    without, sizes = planned(functions="{redraw: {times: 0}}")
    with_redraws, _ = planned(functions="{redraw: {times: 5, triples: 4}}")
    layers, head = token_flop(sizes)
    windows = 2 * 3 * 20 * (layers / 2 + head)  # groups, both at the last token, and desiderata
    assert with_redraws["functions"].forwards - without["functions"].forwards == pytest.approx(20 + 2 * 3 * 20)
    assert with_redraws["functions"].flop - without["functions"].flop == pytest.approx(sizes.passes(20) + windows)


def test_a_desideratum_of_one_group_is_cheaper_than_one_of_all_groups(planned):
    names = "desiderata: [object, position], sweep: null"
    few, *_ = planned(functions=f"{{{names}}}")
    one, *_ = planned(functions=f"{{{names}, further: {{fetcher: [comma]}}}}")
    everyone, *_ = planned(functions="{desiderata: [object, position, comma], sweep: null}")
    assert few["functions"].flop < one["functions"].flop < everyone["functions"].flop


def test_questions_about_one_scenario_cost_their_own_tokens_and_a_share_of_the_context(planned):
    of_one, sizes = planned(variants="{other: planted-base}", graft="{prompts: 8}")
    of_two, *_ = planned(variants="{other: planted-base}", graft="{prompts: 8, queries_per_scenario: 2}")
    n_own = 4  # " Box B contains the"
    layers, head = token_flop(sizes)
    whole, shared = sizes.length * layers + head, (n_own + (sizes.length - n_own) / 2) * layers + head
    assert of_two["grafts"].forwards == of_one["grafts"].forwards
    assert of_two["grafts"].flop / of_one["grafts"].flop == pytest.approx(
        shared / whole, rel=0.03
    )  # and eight prompts of the donor


def test_the_runs_of_a_matrix_are_those_of_curves_from_the_first_layer_upward(planned):
    upward, sizes = planned(knockout="{roles: [last, query_label], layer_step: 1}")
    single, *_ = planned(knockout="{roles: [last, query_label], layer_step: 1, single_layers: true}")
    assert single["knockouts"].flop > upward["knockouts"].flop > sizes.passes(9)


def test_minutes_are_flop_at_the_measured_speed_shared_out_to_workers(planned):
    parts, sizes = planned()
    expected, shared = (planned_cost(list(parts.values()), sizes, workers) for workers in (1, 3))
    assert [part.flop for part in expected.parts] == [part.flop for part in parts.values()]
    speeds = {part.flop / part.minutes for part in expected.parts}
    assert max(speeds) == pytest.approx(min(speeds)) == pytest.approx(sizes.speed.flop_per_second * 60)
    assert sum(part.minutes for part in shared.parts) == pytest.approx(sum(p.minutes for p in expected.parts) / 3)
    assert shared.memory_gb == pytest.approx(3 * expected.memory_gb)
    slow = replace(sizes, speed=replace(sizes.speed, load_seconds=30.0))
    loading = planned_cost(list(parts.values()), slow, 1).minutes - sum(part.minutes for part in expected.parts)
    assert loading == pytest.approx(sizes.n_models / 2)
    assert expected.memory_gb > 0.6


def test_with_variants_two_models_are_counted(planned):
    parts, sizes = planned(**CIRCUIT_ONLY)
    study = sizes.settings
    both = study.model_copy(update={"variants": {"tuned": study.base}})
    more = [planned_cost(list(parts.values()), replace(sizes, settings=each), 1).memory_gb for each in (study, both)]
    assert more[1] - more[0] == pytest.approx(sizes.speed.weights_gb)


def test_kept_clean_runs_are_counted_as_far_as_they_may_or_can_be_kept(planned):
    _, sizes = planned(**CIRCUIT_ONLY)
    per_token = N_LAYERS * (2 * 28 + (N_HEADS + 2 * 2) * 6)
    can = (6 + 6 + 9 + 12) * 4 * (sizes.length * per_token + len(sizes.base.tokenizer)) / 2**30
    small, large = can / 4, can / 2

    def memory(memory_gb: float, kept_gb: float = 0.0) -> float:
        chosen = sizes.settings.model_copy(update={"memory_gb": memory_gb})
        return planned_cost([Part("any", 1, 1.0, kept_gb)], replace(sizes, settings=chosen), 1).memory_gb

    rows_and_all = memory(1.0) - can  # a memory of more than can be kept
    assert memory(2.0) == pytest.approx(rows_and_all + can)
    assert memory(small, large) - memory(small) == pytest.approx(large - small)
    assert memory(small, small / 2) == pytest.approx(memory(small))
