"""Component masks against their definition, one prompt at a time, and against targets whose heads are known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitdiff.circuit import Group, Head
from circuitdiff.engine import Edit
from circuitdiff.errors import InputError
from circuitdiff.methods.component_mask import patching as component_patching
from circuitdiff.methods.component_mask.fit import MaskOptions, Sweep, dealt_order, fit_mask, fit_shared
from circuitdiff.methods.component_mask.patching import Patching, SharedRuns
from circuitdiff.methods.component_mask.training import GATES, Training, cross_entropy, gradient, target_logit
from circuitdiff.models import load_model
from circuitdiff.planted import build_planted
from circuitdiff.tasks import entity_tracking
from circuitdiff.triples import Triples
from helpers.fake_triples import N_TRIPLES, fake_triples
from helpers.masked_subject import HEADS, patching_of
from helpers.tiny_models import Subject, subject

KEEP = torch.tensor([0.25, 0.0, 0.75, 0.5], dtype=torch.float64)
ROWS = torch.tensor([0, 3, 4, 7, 8, 13, 22])
OPTIONS = MaskOptions(train=12, validation=4, test=6, random_groups=2)


def by_definition(chosen: Subject, triples: Triples, at: str, i: int, source: int, keep: Tensor) -> Tensor:
    """Logits after one base prompt, run on its own, without padding and without the engine."""
    base = triples.base.tokens[i : i + 1, : triples.base.lengths[i]]
    other = triples.source.tokens[source : source + 1, : triples.source.lengths[source]]
    here, there = int(triples.base.positions[at][i]), int(triples.source.positions[at][source])
    seen = chosen.reference.clean(other).seen
    edits = []
    for layer in sorted({head.layer for head in HEADS}):
        mine = [n for n, head in enumerate(HEADS) if head.layer == layer]
        index = [HEADS[n].index for n in mine]
        z = torch.stack([seen[layer, "z"][:, there, j] for j in index], 1)[None]
        edits.append(Edit(layer, "z", here, torch.tensor(index), torch.tensor([0]), z, keep[mine][None, None]))
    return chosen.reference.run(base, edits, 1)[0]


def patched_keep(patched) -> Tensor:
    return torch.tensor([0.0 if head in patched else 1.0 for head in HEADS], dtype=torch.float64)


@pytest.mark.parametrize("executor", ["window", "full"])
@pytest.mark.parametrize("at", ["last", "middle"])
@pytest.mark.parametrize("loss", ["cross_entropy", "target_logit"])
def test_the_gradient_is_that_of_the_looped_definition(at, loss, executor):
    chosen, triples = subject("llama"), fake_triples()
    patching, penalty = patching_of(chosen, triples, at, executor=executor), 0.3
    quantity = {"cross_entropy": cross_entropy, "target_logit": target_logit}[loss](triples.targets)
    actual = gradient(
        patching,
        HEADS,
        KEEP.clone().requires_grad_(),
        GATES["clamped"],
        penalty,
        ROWS,
        quantity,
        torch.Generator(),
    )
    keep = KEEP.clone().requires_grad_()
    losses = []
    for i in ROWS.tolist():
        logits = by_definition(chosen, triples, at, i, i, keep)[0]
        shares = torch.log(torch.exp(logits) / torch.exp(logits).sum()) if loss == "cross_entropy" else logits
        losses.append(-shares[triples.targets[i]])
    (expected,) = torch.autograd.grad(sum(losses) / len(losses) + penalty * (1 - keep).sum(), keep)
    assert expected.abs().min() > 1e-4
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


def first_logit(logits: Tensor, _: Tensor) -> Tensor:
    return logits[:, 3]


def values(patching: Patching, patched) -> Tensor:
    """The quantity above of all prompts in ROWS, through buckets."""
    found = torch.full((N_TRIPLES,), torch.nan, dtype=torch.float64)
    for bucket in patching.buckets(ROWS, training=False):
        found[bucket.prompts] = patching.values(list(patched), torch.zeros(len(patched)), bucket, first_logit)
    return found[ROWS]


@pytest.mark.parametrize("memory_gb", [1.0, 1.5e-4, 0.0])
@pytest.mark.parametrize("at", ["last", "middle"])
def test_patched_runs_are_those_of_the_looped_definition_however_few_clean_runs_are_kept(at, memory_gb):
    chosen, triples = subject("gemma2"), fake_triples()
    patching = patching_of(chosen, triples, at, memory_gb=memory_gb)
    n_kept = patching.runs.n_kept
    assert {1.0: n_kept == N_TRIPLES, 1.5e-4: 4 <= n_kept <= 20, 0.0: n_kept == 0}[memory_gb]
    clean = values(patching, ())
    for patched in ((), (Head(2, 4),), (Head(3, 2), Head(1, 5)), HEADS):
        logits = [by_definition(chosen, triples, at, i, i, patched_keep(patched)) for i in ROWS.tolist()]
        expected = torch.stack(logits)[:, 0, 3]
        torch.testing.assert_close(values(patching, patched), expected, rtol=0, atol=1e-10)
        assert ((expected - clean).abs() > 1e-6).all() == bool(patched)


@pytest.mark.parametrize("allowed", [0, -1])
def test_few_prompts_run_with_those_whose_window_begins_earlier(monkeypatch, allowed):
    """Until they would cost more positions than a run of their own."""
    patching = patching_of(subject("llama"), fake_triples(), "middle")
    base, everyone = patching.runs.prompts, torch.arange(N_TRIPLES)
    length, at = 9, base.positions["middle"]
    late, early = (everyone[(base.lengths == length) & (at == position)] for position in (5, 4))
    monkeypatch.setattr(component_patching, "_A_RUN", len(late) + allowed)
    found = [b for b in patching.buckets(everyone, training=True) if b.length == length]
    expected = (
        [(4, {*late.tolist(), *early.tolist()})] if allowed == 0 else [(5, {*late.tolist()}), (4, {*early.tolist()})]
    )
    assert [(b.positions["middle"], {*b.prompts.tolist()}) for b in found] == expected


def test_prompts_that_are_kept_do_not_run_with_those_that_are_not():
    patching = patching_of(subject("llama"), fake_triples(), "middle", memory_gb=1.5e-4)
    kept = [b.prompts < patching.runs.n_kept for b in patching.buckets(torch.arange(N_TRIPLES), training=False)]
    assert all(bool(each.all()) or not bool(each.any()) for each in kept)
    assert len({bool(each.all()) for each in kept}) == 2


def test_a_bucket_is_no_larger_than_memory_allows(monkeypatch):
    patching = patching_of(subject("llama"), fake_triples(), "middle", memory_gb=1.0)
    width = int(patching.widths.max())
    monkeypatch.setattr(component_patching, "rows_at_once", lambda *_: 3 * width)
    sizes = [len(b.prompts) for b in patching.buckets(torch.arange(N_TRIPLES), training=True)]
    assert (max(sizes), sum(sizes)) == (3, N_TRIPLES)


def test_answers_are_the_most_likely_tokens_of_the_looped_definition():
    chosen, triples = subject("llama"), fake_triples()
    patching = patching_of(chosen, triples, "last")
    logits = [by_definition(chosen, triples, "last", i, i, patched_keep(HEADS)) for i in range(N_TRIPLES)]
    expected = torch.stack(logits)[:, 0].argmax(1)
    assert torch.equal(patching.answers(HEADS, torch.arange(N_TRIPLES)), expected)
    assert (patching.answers((), torch.arange(N_TRIPLES)) != expected).any()


def test_dealt_sources_are_read_at_the_dealt_prompts_own_roles():
    chosen, triples = subject("llama"), fake_triples()
    order = dealt_order([torch.arange(12), torch.arange(12, N_TRIPLES)], N_TRIPLES, seed=0)
    patching = patching_of(chosen, triples, "middle").dealt(order)
    logits = [by_definition(chosen, triples, "middle", i, int(order[i]), 0 * KEEP) for i in ROWS.tolist()]
    torch.testing.assert_close(values(patching, HEADS), torch.stack(logits)[:, 0, 3], rtol=0, atol=1e-10)


def test_answers_with_dealt_sources_are_not_those_with_ones_own():
    chosen, triples = subject("llama"), fake_triples()
    own, order, everyone = (
        patching_of(chosen, triples, "last"),
        torch.arange(N_TRIPLES).roll(5),
        torch.arange(N_TRIPLES),
    )
    before = own.answers(HEADS, everyone)
    logits = [by_definition(chosen, triples, "last", i, int(order[i]), 0 * KEEP) for i in range(N_TRIPLES)]
    expected = torch.stack(logits)[:, 0].argmax(1)
    assert (before != expected).any()
    assert torch.equal(own.dealt(order).answers(HEADS, everyone), expected)


def test_sources_are_dealt_within_their_part_and_never_to_their_own_base():
    parts = [torch.tensor([0, 2, 5, 7]), torch.tensor([1, 6]), torch.tensor([4, 3, 8])]
    order = dealt_order(parts, 9, seed=1)
    for part in parts:
        assert sorted(order[part].tolist()) == sorted(part.tolist())
    assert (order != torch.arange(9)).all()


def test_prompts_with_the_same_heads_patched_are_run_once_and_always_together():
    """So that no answer depends on what was asked before."""
    chosen, triples = subject("llama"), fake_triples()
    runs = SharedRuns(chosen.model, {"group": Group("last", HEADS)}, triples.base)
    patching, calls = runs.patching("group", triples), []

    class Counting:
        def run(self, batch, *rest):
            calls.append(batch.n_prompts)
            return real.run(batch, *rest)

    real = patching.executor
    object.__setattr__(patching, "executor", Counting())
    patching.answers(HEADS[:2], ROWS)
    again = runs.patching("group", replace(triples, name="another", targets=triples.targets + 1))
    assert again is patching
    again.answers(reversed(HEADS[:2]), ROWS)
    again.answers(HEADS[:2], torch.tensor([0, 1]))
    assert sum(calls) == len(ROWS) + 2


@pytest.fixture(scope="module")
def planted():
    """The base's transmitters among heads that do nothing, and its fetchers, with few triples of two desiderata."""
    model, truth = load_model("planted-base"), build_planted("planted-base").circuit
    wired = truth.groups["position_transmitter"].heads
    idle = [Head(head.layer, (head.index + 1) % model.n_heads) for head in wired]
    groups = {"transmitters": Group("last", (*idle, *wired)), "fetchers": truth.groups["value_fetcher"]}
    assert not set(idle) & {head for group in truth.groups.values() for head in group.heads}
    drawn = entity_tracking().triples(model.tokenizer, ["position", "object"], 120, seed=0)
    triples = dict(zip(("position", "object"), drawn, strict=True))
    return SharedRuns(model, groups, drawn[0].base, n_random=2), triples, wired


FEW = MaskOptions(train=48, validation=24, test=48, random_groups=2, steps=20, prompts_per_step=16)


@pytest.mark.parametrize("gates", ["clamped", "hard_concrete"])
def test_of_a_group_the_heads_that_carry_the_position_are_found_and_no_others(planted, gates):
    shared, triples, wired = planted
    how = replace(FEW, steps=None, gates=gates)  # steps and patience as the gates need
    fit = fit_shared(shared, "transmitters", triples["position"], how)
    assert set(fit.heads) == set(wired)
    assert fit.above_floor.low > 0.2
    assert fit.pointed()["position"] == fit.accuracy().value > 0.5
    assert fit.accuracy("nothing").value < 0.2


def test_transmitters_carry_no_object_and_fetchers_do(planted):
    shared, triples, _ = planted
    unmoved = fit_shared(shared, "transmitters", triples["object"], FEW)
    assert unmoved.above_floor.value <= 0
    assert not unmoved.carries
    fetched = fit_shared(shared, "fetchers", triples["object"], replace(FEW, control_triples=30))
    assert set(fetched.heads) == set(shared.groups["fetchers"].heads)
    assert fetched.above_floor.low > 0.3
    assert torch.equal(fetched.answers["all"], fetched.answers["mask"][:30])


@pytest.mark.parametrize(("minimum", "learned"), [(0.0, True), (0.4, True), (0.9, False), (1.1, False)])
def test_the_trained_floor_is_learned_only_where_the_group_may_carry_something(planted, minimum, learned):
    shared, triples, _ = planted
    fit = fit_shared(shared, "transmitters", triples["position"], replace(FEW, minimum=minimum))
    assert (fit.shuffled is not None, "shuffled" in fit.answers) == (learned, learned)
    assert learned == (fit.above("nothing").value >= minimum)
    unmoved = fit_shared(shared, "transmitters", triples["object"], replace(FEW, minimum=0.0))
    assert unmoved.accuracy() == unmoved.accuracy("nothing")
    assert (unmoved.shuffled, unmoved.carries) == (None, False)


def layers_run(model, action) -> set[int]:
    """The layers whose attention ran while `action` lasted."""
    seen: set[int] = set()
    handles = [
        attention.register_forward_hook(lambda *_, n=n: seen.add(n)) for n, attention in enumerate(model.attentions)
    ]
    action()
    for handle in handles:
        handle.remove()
    return seen


def test_a_mask_runs_only_the_layers_from_its_first_patched_head_on():
    model = subject("llama").model
    patching = patching_of(subject("llama"), fake_triples(), "middle")
    assert layers_run(model, lambda: patching.answers([Head(3, 2)], ROWS)) == {3}
    assert layers_run(model, lambda: patching.answers([Head(3, 2), Head(2, 4)], ROWS)) == {2, 3}
    assert layers_run(model, lambda: patching.answers([], ROWS)) == set()


def test_of_source_prompts_only_the_groups_that_are_tested_on_them_are_read():
    model, triples = subject("llama").model, fake_triples()
    groups = {"low": Group("last", (Head(1, 0),)), "high": Group("middle", (Head(3, 2), Head(2, 4)))}
    others = replace(triples, source=replace(triples.source))
    shared = SharedRuns(model, groups, triples.base, n_random=1)
    assert shared.runs.n_kept == N_TRIPLES
    assert layers_run(model, lambda: shared.patching("low", triples, tested=["low"])) == {0, 1}
    assert layers_run(model, lambda: shared.patching("high", triples)) == {0, 1, 2, 3}
    assert layers_run(model, lambda: shared.patching("low", triples)) == set()
    assert layers_run(model, lambda: shared.patching("low", triples, tested=["low"])) == {0, 1}
    assert layers_run(model, lambda: shared.patching("low", others)) == {0, 1, 2, 3}
    rows = torch.arange(N_TRIPLES)
    expected = SharedRuns(model, groups, triples.base, n_random=1).patching("high", triples)
    for heads in ([Head(3, 2)], [Head(2, 4), Head(3, 2)]):
        assert torch.equal(shared.patching("high", triples).answers(heads, rows), expected.answers(heads, rows))


def test_every_control_answers_as_its_heads_do(planted):
    shared, triples, _ = planted
    fit = fit_shared(shared, "transmitters", triples["position"], replace(FEW, control_triples=30))
    test, heads, n = torch.arange(72, 120), shared.groups["transmitters"].heads, len(fit.heads)
    assert torch.equal(fit.test.targets, triples["position"].targets[test])
    patching = shared.patching("transmitters", triples["position"])
    expected = {"mask": fit.heads, "nothing": (), "all": heads, "ranked": heads[:n]}
    expected |= {f"random {i}": order[:n] for i, order in enumerate(shared.random["transmitters"])}
    for name, chosen in expected.items():
        tested = test if name in ("mask", "nothing") else test[:30]
        assert torch.equal(fit.answers[name], patching.answers(chosen, tested)), name
    assert len(fit.answers["shuffled"]) == 48
    assert fit.above("ranked").value == pytest.approx(
        float((fit.hits()[:30].double() - fit.hits("ranked").double()).mean())
    )
    assert sum(fit.pointed("all").values()) == pytest.approx(1)
    assert {*fit.answers} == {*expected, "shuffled"}
    assert not torch.equal(fit.answers["mask"], fit.answers["nothing"])
    assert not torch.equal(fit.answers["mask"], fit.answers["shuffled"])
    assert fit.random_accuracy == np.mean([float(fit.hits(f"random {i}").double().mean()) for i in range(2)])


def test_random_heads_are_others_of_the_same_layers():
    shared = SharedRuns(subject("llama").model, {"a": Group("last", HEADS)}, fake_triples().base, n_random=3)
    for heads in shared.random["a"]:
        assert sorted(head.layer for head in heads) == [1, 1, 2, 3]
        assert not set(heads) & set(HEADS)
    assert len({*shared.random["a"]}) == 3


def test_a_higher_penalty_patches_fewer_heads_and_the_trade_off_holds_every_mask():
    chosen = subject("llama")
    triples = fake_triples()
    options, sweep = replace(OPTIONS, penalty=0.0, steps=10, prompts_per_step=12), Sweep((50.0, 0.0), seeds=2)
    steps: list[tuple[int, int]] = []
    group = Group("last", HEADS)
    fit = fit_mask(chosen.model, group, triples, options, sweep=sweep, progress=lambda *s: steps.append(s))
    found = fit.trade_off()
    (accuracy,) = (interval.value for mask, interval in found if mask.penalty == 50 and not mask.patched)
    assert accuracy == fit.accuracy("nothing").value
    assert [len(mask.patched) for mask, _ in found] == sorted(len(mask.patched) for mask, _ in found)
    assert [mask.seed for mask, _ in found if mask.penalty == 0] in ([0, 1], [1, 0])
    assert len(found) == 3
    assert steps[-1] == (40, 40)  # two seeds, another penalty, and the trained floor


def test_the_higher_floor_counts_and_differences_are_paired():
    fit = fit_mask(subject("llama").model, Group("last", HEADS), fake_triples(), replace(OPTIONS, steps=1))
    hits = {"mask": [1, 1, 1, 0, 1, 0], "nothing": [1, 0, 0, 0, 0, 0], "shuffled": [1, 1, 0, 0, 0, 0]}
    targets = fit.test.targets
    answers = {name: torch.where(torch.tensor(each) == 1, targets, targets + 1) for name, each in hits.items()}
    fit = replace(fit, answers=answers, test=replace(fit.test, pointers={"position": targets, "label": targets + 1}))
    assert fit.floor == "shuffled"
    assert fit.above_floor.value == pytest.approx(2 / 6)
    assert fit.above("nothing").value == pytest.approx(3 / 6)
    sure = replace(fit, answers=answers | {"mask": targets, "shuffled": targets + 1, "nothing": targets + 1})
    sure = replace(sure, test=replace(sure.test, scenarios=torch.arange(6)))  # six of two scenarios are not sure
    assert (sure.carries, replace(sure, minimum=1.1).carries, replace(fit, minimum=0.0).carries) == (True, False, False)
    unlearned = replace(sure, answers={name: each for name, each in sure.answers.items() if name != "shuffled"})
    assert unlearned.floor == "nothing"
    assert fit.pointed() == pytest.approx({"unpatched": 0, "position": 4 / 6, "label": 2 / 6, "other": 0})
    assert math.isnan(fit.random_accuracy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": Group("last", ())}, "group 'group' has no heads"),
        ({"group": Group("last", (Head(4, 0),))}, r"names head 4\.0, but the model has 4 layers"),
        ({"group": Group("nowhere", HEADS)}, "cannot be tested at role 'nowhere': 23 of 23 base prompts lack it"),
        (
            {"group": Group("absent", HEADS)},
            "'invented' cannot be tested at role 'absent': 11 of 23 source prompts lack it",
        ),
        ({"options": replace(OPTIONS, train=30, validation=2, test=2)}, "23 triples of 12 scenarios are too few"),
        ({"executor": "fast"}, "'window' or 'full'"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_anything_runs(change, message, monkeypatch):
    model = subject("llama").model
    monkeypatch.setattr(type(model), "forward", lambda *_: pytest.fail("the model ran"))
    arguments = {"group": Group("last", HEADS), "triples": fake_triples(), "options": OPTIONS} | change
    with pytest.raises(InputError, match=message):
        fit_mask(model, arguments.pop("group"), arguments.pop("triples"), **arguments)


def misspelt(**options: str) -> None:
    """As outside tests, where no type checker stands before it."""
    training = Training()
    vars(training).update(options)
    training.__post_init__()


def test_options_out_of_range_are_refused():
    with pytest.raises(InputError, match=r"penalty: expected at least 0; got -1\.0"):
        MaskOptions(penalty=-1.0)
    with pytest.raises(InputError, match=r"minimum: expected at least 0; got -0\.1"):
        MaskOptions(minimum=-0.1)
    with pytest.raises(InputError, match="validation: expected at least 2; got 0"):
        MaskOptions(validation=0)
    with pytest.raises(InputError, match=r"penalties\.0: expected at least 0; got -1\.0"):
        Sweep(penalties=(-1.0,))
    with pytest.raises(InputError, match="gates: unknown 'soft'; choose one of clamped, hard_concrete"):
        misspelt(gates="soft")
    with pytest.raises(InputError, match="loss: unknown 'hinge'; choose one of cross_entropy, target_logit"):
        misspelt(loss="hinge")
    with pytest.raises(InputError, match="steps: expected at least 1; got 0"):
        Training(steps=0)
    with pytest.raises(InputError, match=r"learning_rate: expected greater than 0; got 0\.0"):
        Training(learning_rate=0.0)
