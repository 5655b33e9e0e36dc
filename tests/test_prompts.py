"""Hand-made prompts, pairs and triples: what does not go together is refused in one line."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from jaxtyping import config
from torch import Tensor

from circuitdiff.errors import InputError
from circuitdiff.prompts import Pairs, PromptSet
from circuitdiff.triples import Triples
from helpers.fake_pairs import KINDS, LENGTHS, SLOTS, fake_pairs, prompt_set
from helpers.fake_triples import fake_triples


@pytest.fixture(autouse=True)
def _as_users_run_it(monkeypatch):
    """The tests' own checks of annotations would come first."""
    monkeypatch.setattr(config, "jaxtyping_disable", True)


def changed(values: Tensor, row: int, column: int | None, value: int) -> Tensor:
    """The same numbers but for one."""
    new = values.clone()
    new[row if column is None else (row, column)] = value
    return new


def left_padded(rows: list[list[int]], padding: int) -> PromptSet:
    """As a tokenizer that pads on the left gives them, with lengths counted from its attention mask."""
    width = max(map(len, rows))
    tokens = torch.tensor([[padding] * (width - len(row)) + row for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    slots = torch.where(torch.arange(width) < lengths[:, None], 0, -1)
    return PromptSet(tokens, lengths, {"last": lengths - 1}, slots, ["word"], ["word"])


PROMPTS = prompt_set(1)
ABSENT = {**PROMPTS.positions, "absent": torch.tensor([3, -2, 3, 3, 3])}
TOO_LATE = {**PROMPTS.positions, "last": changed(PROMPTS.positions["last"], 1, None, 9)}
WRONG_PROMPTS = {
    "tokens of floats": ({"tokens": PROMPTS.tokens.float()}, r"^PromptSet\.tokens: expected an int64 .*float32 on cpu"),
    "tokens of bools": ({"tokens": PROMPTS.tokens > 9}, r"PromptSet\.tokens: expected an int64 tensor.*torch\.bool"),
    "tokens as a list": ({"tokens": PROMPTS.tokens.tolist()}, r"PromptSet\.tokens: expected an int64 tensor.*list"),
    "tokens elsewhere": ({"tokens": PROMPTS.tokens.to("meta")}, r"int64 tensor on the CPU; got torch.int64 on meta"),
    "tokens of one axis": ({"tokens": PROMPTS.tokens[0]}, r"PromptSet\.tokens: expected the shape \[any, any\]"),
    "a negative token": ({"tokens": changed(PROMPTS.tokens, 2, 4, -7)}, r"tokens, row 2 \(from 0\).*from 0; got -7"),
    "lengths of int32": ({"lengths": PROMPTS.lengths.int()}, r"PromptSet\.lengths: expected an int64.*int32 on cpu"),
    "too few lengths": ({"lengths": PROMPTS.lengths[:4]}, r"PromptSet\.lengths: expected the shape \[5\]; got \[4\]"),
    "no length": ({"lengths": changed(PROMPTS.lengths, 3, None, 0)}, r"lengths, row 3 .*expected 1 to 13; got 0"),
    "beyond the width": ({"lengths": changed(PROMPTS.lengths, 3, None, 14)}, r"lengths, row 3 .*1 to 13; got 14"),
    "a role before -1": ({"positions": ABSENT}, r"positions\['absent'\], row 1 .*numbers from -1; got -2"),
    "a role after the end": (
        {"positions": TOO_LATE},
        r"positions\['last'\], row 1 .*before the prompt's length.*got 9",
    ),
    "a role of few prompts": ({"positions": {"last": torch.tensor([1, 2])}}, r"\['last'\]: expected the shape \[5\]"),
    "slots of another width": ({"slots": PROMPTS.slots[:, :9]}, r"PromptSet\.slots: expected the shape \[5, 13\]"),
    "a slot on padding": ({"slots": changed(PROMPTS.slots, 1, 11, 0)}, r"slots, row 1 .*-1 beyond it; got 0"),
    "no slot on a token": ({"slots": changed(PROMPTS.slots, 4, 0, -1)}, r"slots, row 4 .*from 0 to 6 within.*got -1"),
    "a slot below -1": ({"slots": changed(PROMPTS.slots, 1, 11, -3)}, r"slots, row 1 .*got -3"),
    "a slot without a name": ({"slots": changed(PROMPTS.slots, 0, 3, 7)}, r"slots, row 0 .*0 to 6 .*got 7"),
    "a name twice": (
        {"slot_names": ("end", *SLOTS[1:])},
        r"slot_names: expected names that differ.*7 names, 6 of them",
    ),
    "too few kinds": ({"slot_kinds": KINDS[1:]}, r"slot_names: .*a kind for each; got 7 names.*and 6 slot_kinds"),
}


@pytest.mark.parametrize("fault", WRONG_PROMPTS)
def test_prompts_whose_fields_do_not_go_together_are_refused(fault):
    changes, message = WRONG_PROMPTS[fault]
    with pytest.raises(InputError, match=message):
        replace(PROMPTS, **changes)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([[9, 4, 5, 6, 7], [9, 8, 7], [9, 5]], id="real tokens beyond a length"),
        pytest.param([[9, 4, 5, 7], [9, 8, 7]], id="one token, in which all prompts end, beyond the length"),
    ],
)
def test_padding_on_the_left_is_refused(rows):
    with pytest.raises(InputError, match=r"PromptSet\.tokens, row \d \(from 0\).*padding_side = 'right'"):
        left_padded(rows, padding=0)


def test_padding_on_the_right_is_taken_whatever_the_token():
    for padding in (0, 60, -100):
        tokens = torch.where(PROMPTS.slots < 0, padding, PROMPTS.tokens)
        assert torch.equal(replace(PROMPTS, tokens=tokens).lengths, torch.tensor(LENGTHS))


PAIRS = fake_pairs(own_answers=True)
OTHER = PAIRS.counterfactual_prompts
SETS = torch.stack([PAIRS.answers, PAIRS.answers + torch.tensor([33, 33, 0, 33, 33])], dim=1)
MORE = torch.tensor([[-1, -1, -1], [5, 6, -1], [5, -1, -1], [-1, -1, -1], [-1, -1, -1]])
FEWER_ROLES = replace(OTHER, positions={"last": OTHER.positions["last"]})
OTHER_SLOTS = replace(OTHER, slot_names=SLOTS[::-1])
WRONG_PAIRS = {
    "a counterfactual missing": ({"counterfactual_prompts": OTHER.select(torch.arange(4))}, "expected 5 .*got 4"),
    "other roles": ({"counterfactual_prompts": FEWER_ROLES}, r"roles \(last, .*got roles last, .*agree"),
    "other slots": (
        {"counterfactual_prompts": OTHER_SLOTS},
        r"Pairs\.counterfactual_prompts: .*slot_names that differ",
    ),
    "an answer too few": ({"answers": PAIRS.answers[:4]}, r"Pairs\.answers: expected the shape \[5\]; got \[4\]"),
    "a negative answer": ({"answers": changed(PAIRS.answers, 2, None, -1)}, r"Pairs\.answers, row 2 .*got -1"),
    "answers of int32": ({"answers": PAIRS.answers.int()}, r"Pairs\.answers: expected an int64 tensor"),
    "foils of one axis": ({"foils": PAIRS.answers + 1}, r"Pairs\.foils: .*\[5, any\]; got \[5\]"),
    "no foils": ({"foils": PAIRS.foils[:, :0]}, r"Pairs\.foils: expected at least one"),
    "a negative alternative": (
        {"foils": changed(PAIRS.foils, 3, 1, -2)},
        r"foils, row 3 .*got -2",
    ),
    "the answer twice": ({"foils": changed(PAIRS.foils, 3, 1, 13)}, r"row 3 .*than the answer; got 13"),
    "right answers of one axis": ({"right": PAIRS.answers}, r"Pairs\.right: expected the shape \[5, any\]; got \[5\]"),
    "no right answers": ({"right": SETS[:, :0]}, r"Pairs\.right: expected at least one right answer of each"),
    "a right answer below 0": ({"right": changed(SETS, 3, 1, -1)}, r"Pairs\.right, row 3 .*from 0; got -1"),
    "another first answer": ({"right": SETS.flip(1)}, r"Pairs\.right, row 0 .*answer in the first column; got 40"),
    "a right alternative": ({"right": changed(SETS, 2, 1, 32)}, r"foils, row 2 .*than the answer; got 32"),
    "continuations of a few": ({"continuations": MORE[:2]}, r"Pairs\.continuations: .*\[5, any\]; got \[2, 3\]"),
    "a continuation below -1": ({"continuations": MORE - 1}, r"Pairs\.continuations, row 0 .*from -1; got -2"),
    "a gap in a continuation": (
        {"continuations": changed(MORE, 0, 2, 6)},
        r"continuations, row 0 .*expected -1 behind a -1; got 6",
    ),
    "continued sets": (
        {"right": SETS, "continuations": MORE},
        r"continuations, row 1 .*expected -1, as several answers are right; got 5",
    ),
    "no counterfactual answer": (
        {"counterfactual_answers": torch.tensor([8, -1, 8, 8, 8])},
        r"Pairs\.counterfactual_answers, row 1 .*got -1",
    ),
    "a scenario too many": ({"scenarios": torch.arange(6)}, r"Pairs\.scenarios: expected the shape \[5\]; got \[6\]"),
    "nothing queried": ({"queried": torch.full((5,), -1)}, r"Pairs\.queried, row 0 .*numbers from 0; got -1"),
}


@pytest.mark.parametrize("fault", WRONG_PAIRS)
def test_pairs_whose_fields_do_not_go_together_are_refused(fault):
    changes, message = WRONG_PAIRS[fault]
    with pytest.raises(InputError, match=message):
        replace(PAIRS, **changes)


TRIPLES = fake_triples()
WRONG_TRIPLES = {
    "a source missing": ({"source": TRIPLES.source.select(torch.arange(22))}, r"Triples\.source: expected 23 .*got 22"),
    "a negative answer": ({"answers": changed(TRIPLES.answers, 4, None, -1)}, r"Triples\.answers, row 4 .*got -1"),
    "no target": ({"targets": changed(TRIPLES.targets, 4, None, -1)}, r"Triples\.targets, row 4 .*got -1"),
    "a target that is the answer": ({"targets": TRIPLES.answers}, r"triple 1 \(and 22 more\) wants the same"),
    "few pointers": ({"pointers": {"label": TRIPLES.targets[:3]}}, r"pointers\['label'\]: expected the shape \[23\]"),
    "a pointer below -1": ({"pointers": {"label": TRIPLES.targets - 9}}, r"pointers\['label'\], row 0 .*got -6"),
    "scenarios of floats": ({"scenarios": TRIPLES.scenarios / 2}, r"Triples\.scenarios: expected an int64 tensor"),
    "a query below -1": ({"queried": changed(TRIPLES.queried, 1, None, -2)}, r"Triples\.queried, row 1 .*got -2"),
    "few source queries": ({"source_queried": TRIPLES.queried[1:]}, r"Triples\.source_queried: expected the shape"),
}


@pytest.mark.parametrize("fault", WRONG_TRIPLES)
def test_triples_whose_fields_do_not_go_together_are_refused(fault):
    changes, message = WRONG_TRIPLES[fault]
    with pytest.raises(InputError, match=message):
        replace(TRIPLES, **changes)


def test_what_is_selected_is_what_the_constructor_would_make_of_the_rows():
    rows = torch.tensor([3, 0, 3])
    part, made = PAIRS.select(rows), PAIRS.clean_prompts
    assert torch.equal(part.clean_prompts.tokens, made.tokens[rows])
    assert torch.equal(part.counterfactual_lengths, PAIRS.counterfactual_lengths[rows])
    assert torch.equal(part.foils, PAIRS.foils[rows])
    assert torch.equal(part.positions["query_label"], made.positions["query_label"][rows])
    assert isinstance(replace(part), Pairs)
    assert isinstance(replace(TRIPLES.select(rows)), Triples)
    assert len(PAIRS) == 5, "the whole is what it was"


def test_what_pads_a_prompt_is_no_part_of_its_content():
    prompts = fake_pairs().clean_prompts
    inside = torch.arange(prompts.tokens.shape[1]) < prompts.lengths[:, None]
    other = replace(prompts, tokens=torch.where(inside, prompts.tokens, 10_000))
    assert not torch.equal(other.tokens, prompts.tokens)
    assert other.fingerprint() == prompts.fingerprint()
    assert other.rows() == prompts.rows()
    changed = prompts.tokens.clone()
    changed[1, 0] += 1
    assert replace(prompts, tokens=changed).fingerprint() != prompts.fingerprint()


def test_pairs_without_sets_keep_their_fingerprint_and_sets_and_continuations_have_their_own():
    assert PAIRS.fingerprint() == "b4a09fb1e2b96505bbc764f21817e3aaee189a3aed721d076c26b4423072c7ef"
    of_sets, longer = replace(PAIRS, right=SETS), replace(PAIRS, continuations=MORE)
    others = [replace(PAIRS, right=SETS[:, :1]), replace(PAIRS, continuations=MORE.clamp(max=4))]
    assert len({each.fingerprint() for each in (PAIRS, of_sets, longer, *others)}) == 5
    rows = torch.tensor([4, 1])
    assert torch.equal(of_sets.select(rows).right_answers, SETS[rows])
    assert torch.equal(longer.select(rows).right_answers, PAIRS.answers[rows, None])
    assert longer.select(rows).continuations.tolist() == [[-1, -1, -1], [5, 6, -1]]
