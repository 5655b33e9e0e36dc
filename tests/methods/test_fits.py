"""Prompts and answers that a model cannot take are refused by whatever runs it, in one line, before it runs."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace

import pytest
import torch

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.engine.model import Model
from circuitdiff.errors import InputError
from circuitdiff.evaluation import Means, evaluate_circuit, evaluate_model, evaluate_without, mean_activations
from circuitdiff.methods.ablations import compare_ablations
from circuitdiff.methods.attention import attention_to_roles
from circuitdiff.methods.attribution_patching import attribution
from circuitdiff.methods.completeness import completeness
from circuitdiff.methods.component_mask.fit import MaskOptions, fit_mask
from circuitdiff.methods.cross_model.patching import patch_across
from circuitdiff.methods.graft import graft
from circuitdiff.methods.group_profile import effect_by_role
from circuitdiff.methods.knockout import Blocking, attention_knockout
from circuitdiff.methods.minimality import minimality
from circuitdiff.methods.path_patching import Path, group_path_effects, path_effects
from circuitdiff.prompts import Pairs, PromptSet
from circuitdiff.triples import Triples
from helpers.fake_pairs import D_VOCAB, SLOTS, fake_pairs
from helpers.fake_triples import fake_triples
from helpers.tiny_models import D_HEAD, N_HEADS, N_LAYERS, subject

MODEL = subject("gpt2").model
N_POSITIONS = 71
GROUP = Group("last", (Head(2, 1), Head(1, 4)))
CIRCUIT = Circuit({"group": GROUP})
MEANS = Means(torch.zeros(len(SLOTS), N_LAYERS, N_HEADS, D_HEAD, dtype=torch.float64), "slot", tuple(SLOTS))

DOORS: dict[str, Callable[[Pairs], object]] = {
    "path_effects": lambda p: path_effects(MODEL, p, "last"),
    "group_path_effects": lambda p: group_path_effects(MODEL, p, GROUP.heads, Path("last")),
    "attribution": lambda p: attribution(MODEL, p, "last"),
    "attention_to_roles": lambda p: attention_to_roles(MODEL, CIRCUIT, p),
    "effect_by_role": lambda p: effect_by_role(MODEL, {"group": GROUP}, p, ["query_label"]),
    "mean_activations": lambda p: mean_activations(MODEL, p),
    "evaluate_model": lambda p: evaluate_model(MODEL, p),
    "evaluate_circuit": lambda p: evaluate_circuit(MODEL, CIRCUIT, p, MEANS),
    "evaluate_without": lambda p: evaluate_without(MODEL, [CIRCUIT], p, "resample"),
    "compare_ablations": lambda p: compare_ablations(MODEL, CIRCUIT, p, {"slot": MEANS, "kind": MEANS}),
    "minimality": lambda p: minimality(MODEL, CIRCUIT, p, MEANS),
    "completeness": lambda p: completeness(MODEL, CIRCUIT, [CIRCUIT], p, MEANS),
    "attention_knockout": lambda p: attention_knockout(MODEL, p, [Blocking("last", "query_label")]),
    "patch_across": lambda p: patch_across(MODEL, MODEL, GROUP, p),
    "graft": lambda p: graft(MODEL, MODEL, GROUP, p),
}


def long(prompts: PromptSet) -> PromptSet:
    """The second prompt is longer than the model has positions."""
    width, lengths = N_POSITIONS + 1, prompts.lengths.clone()
    lengths[1] = width
    more = width - prompts.tokens.shape[1]
    slots = torch.nn.functional.pad(prompts.slots, (0, more), value=-1)
    slots[1] = slots[1].clamp(min=0)
    tokens = torch.nn.functional.pad(prompts.tokens, (0, more))
    tokens[1] = tokens[1].clamp(min=3)
    positions = {**prompts.positions, "last": lengths - 1}
    return replace(prompts, tokens=tokens, lengths=lengths, slots=slots, positions=positions)


def with_strange_token(prompts: PromptSet) -> PromptSet:
    tokens = prompts.tokens.clone()
    tokens[3, 5] = D_VOCAB
    return replace(prompts, tokens=tokens)


PAIRS = fake_pairs(own_answers=True)
CLEAN, OTHER = PAIRS.clean_prompts, PAIRS.counterfactual_prompts
NOT_FROM_HERE = "expected tokens of gpt2, from 0 to 60; got 61: use this model's tokenizer"
FAULTS = {
    "clean token": ({"clean_prompts": with_strange_token(CLEAN)}, rf"^clean prompts, row 3 .*{NOT_FROM_HERE}$"),
    "counterfactual token": (
        {"counterfactual_prompts": with_strange_token(OTHER)},
        rf"counterfactual prompts, row 3 .*{NOT_FROM_HERE}",
    ),
    "long": ({"clean_prompts": long(CLEAN)}, r"clean prompts, row 1 .*at most 71 tokens.*gpt2 has; got 72: shorten"),
    "answer": ({"answers": torch.tensor([7, 9, 61, 13, 15])}, rf"answers, row 2 .*{NOT_FROM_HERE}"),
    "alternative": ({"foils": PAIRS.foils + 27}, rf"foils, row 4 .*{NOT_FROM_HERE}"),
    "counterfactual answer": (
        {"counterfactual_answers": torch.tensor([61, 8, 8, 8, 8])},
        rf"counterfactual answers, row 0 .*{NOT_FROM_HERE}",
    ),
}


@pytest.fixture
def _never_runs(monkeypatch):
    def forward(*_: object) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(Model, "forward", forward)


@pytest.mark.usefixtures("_never_runs")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("door", DOORS)
def test_what_the_model_cannot_take_is_refused_before_it_runs(door, fault):
    changes, message = FAULTS[fault]
    with pytest.raises(InputError, match=message):
        DOORS[door](replace(PAIRS, **changes))


@pytest.mark.usefixtures("_never_runs")
@pytest.mark.parametrize("door", DOORS)
def test_no_prompts_are_refused_in_one_line(door):
    with pytest.raises(InputError, match="clean prompts: expected at least one; got none"):
        DOORS[door](PAIRS.select(torch.arange(0)))


WHOLE = ("evaluate_model", "mean_activations", "attention_to_roles")  # what reads all tokens of an answer, or none


@pytest.mark.usefixtures("_never_runs")
@pytest.mark.parametrize("door", [door for door in DOORS if door not in WHOLE])
def test_what_compares_the_next_token_refuses_longer_answers_by_name(door):
    several = replace(PAIRS, continuations=torch.tensor([[-1], [-1], [3], [-1], [5]]))
    name = {
        "attribution": "attribution patching",
        "attention_knockout": "attention knockout",
        "graft": "grafting",
    }
    expected = name.get(door, r"\w[\w -]+")
    with pytest.raises(
        InputError, match=rf"^{expected} compares the next token only, and 2 of 5 .*row 2.*: first`.*one"
    ):
        DOORS[door](several)


def with_strange_targets(triples: Triples) -> Triples:
    targets = triples.targets.clone()
    targets[4] = D_VOCAB
    return replace(triples, targets=targets)


@pytest.mark.usefixtures("_never_runs")
@pytest.mark.parametrize(
    ("triples", "message"),
    [
        (with_strange_targets(fake_triples()), rf"^targets, row 4 .*{NOT_FROM_HERE}"),
        (replace(fake_triples(), answers=torch.full((23,), D_VOCAB)), rf"^answers, row 0 .*{NOT_FROM_HERE}"),
        (
            replace(fake_triples(), base=with_strange_token(fake_triples().base)),
            rf"base prompts, row 3 .*{NOT_FROM_HERE}",
        ),
        (replace(fake_triples(), source=with_strange_token(fake_triples().source)), r"source prompts, row 3 "),
    ],
)
def test_triples_that_are_not_the_models_are_refused_before_it_runs(triples, message):
    with pytest.raises(InputError, match=message):
        fit_mask(MODEL, GROUP, triples, MaskOptions(train=4, validation=4, test=4))


def test_as_many_tokens_as_there_are_positions_are_taken():
    n = N_POSITIONS
    prompts, row = long(CLEAN), torch.tensor([1])
    cut = replace(
        prompts.select(row),
        tokens=prompts.tokens[row, :n],
        lengths=torch.tensor([n]),
        slots=prompts.slots[row, :n],
        positions={"last": torch.tensor([n - 1])},
    )
    pairs = replace(PAIRS.select(row), clean_prompts=cut, counterfactual_prompts=cut)
    assert evaluate_model(MODEL, pairs).log_probs.isfinite().all()


def test_prompts_of_which_some_begin_with_padding_are_refused():
    padded = replace(MODEL, tokenizer=copy(MODEL.tokenizer))
    padded.tokenizer.pad_token = "the"  # token 0
    pairs = fake_pairs()
    tokens = pairs.clean.clone()
    tokens[2, 0] = 0
    left = replace(pairs, clean_prompts=replace(pairs.clean_prompts, tokens=tokens))
    with pytest.raises(InputError, match=r"clean prompts, row 2 .*begins with the padding token 'the'.*right"):
        path_effects(padded, left, "last")
    tokens[:, 0] = 0  # as where it is also what every prompt begins with
    path_effects(padded, replace(pairs, clean_prompts=replace(pairs.clean_prompts, tokens=tokens)), "last")
