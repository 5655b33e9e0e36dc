"""Every desideratum tests what it says: over many samples, in two tokenizers, and word by word."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from circuitdiff.tasks.desiderata.source_prompts import Source, conflicting
from circuitdiff.tasks.desiderata.table import POINTERS, at_label, at_position
from circuitdiff.tasks.desiderata.triples import Drawing

from circuitdiff.errors import InputError
from circuitdiff.models.sources import read_outline
from circuitdiff.prompts import Triples, split_by_scenario
from circuitdiff.tasks import get_task
from circuitdiff.tasks.desiderata import (
    CONFLICTS,
    DESIDERATA,
    MAIN,
    REWORDED,
    Desideratum,
    sample_desiderata,
    sample_triples,
)
from circuitdiff.tasks.scenarios import Context, Question
from circuitdiff.vocabulary import LABELS, OBJECTS, TRAIN_OBJECTS
from helpers.tiny_tokenizers import FRAME, byte_pairs, word_level

INSERTED = re.findall(
    r"\w+", "There are a bunch of boxes containing objects these three additional and contained not there"
)
N_SAMPLES = 300  # of words, and of tokens in each of two tokenizers
TASK = get_task("entity_tracking")
NEEDED = ("last", "query_label", "previous_query_label", "after_previous_query_label", "correct_object")
PAIRINGS = {each.pairing for each in DESIDERATA.values()}
BOX, WORD, KNOWN = re.compile(r"Box ([A-Z])"), re.compile(r"[a-z]+"), frozenset(OBJECTS)


def _tokenizer(kind: str):
    if kind == "words":
        return word_level([*FRAME, *INSERTED, *LABELS, *OBJECTS, *TRAIN_OBJECTS])
    if kind == "smollm2":
        return read_outline("smollm2").tokenizer
    return byte_pairs(OBJECTS[::2], trim_offsets=False)


@pytest.fixture(scope="module", params=["pieces", pytest.param("smollm2", marks=pytest.mark.smollm2)])
def drawn(request) -> dict[str, Triples]:
    """Triples of every desideratum, in the tokens of two tokenizers: a tiny one and a real one."""
    drawn = sample_desiderata(TASK, _tokenizer(request.param), list(DESIDERATA), N_SAMPLES)
    return {triples.name: triples for triples in drawn}


def read(prompts, role: str) -> torch.Tensor:
    return prompts.tokens.gather(1, prompts.positions[role][:, None])[:, 0]


def listed(prompts) -> torch.Tensor:
    """The objects of a prompt, by segment, read where its own roles say."""
    return torch.stack(
        [prompts.tokens.gather(1, prompts.positions[f"segment_{i}.object"][:, None])[:, 0] for i in range(7)], 1
    )


def labels_listed(prompts) -> torch.Tensor:
    return torch.stack(
        [prompts.tokens.gather(1, prompts.positions[f"segment_{i}.label"][:, None])[:, 0] for i in range(7)], 1
    )


def test_there_are_the_fourteen_published_desiderata_and_three_conflicts():
    assert (len(MAIN), len(REWORDED), len(CONFLICTS), len(DESIDERATA)) == (3, 11, 3, 17)


@pytest.mark.parametrize("name", DESIDERATA)
def test_targets_are_what_the_desideratum_says_read_from_the_prompts(drawn, name):
    triples = drawn[name]
    base, source = listed(triples.base), listed(triples.source)
    row, asked = torch.arange(N_SAMPLES), triples.source_queried
    same_label = labels_listed(triples.base) == read(triples.source, "query_label")[:, None]
    expected = {
        "object": source[row, asked],
        "label": (base * same_label).sum(1),
        "next_segment": base[row, (asked + 1) % 7],
    }
    assert (same_label.sum(1) == 1).all()
    kind = name.removeprefix("conflict_")
    assert torch.equal(triples.targets, expected.get(kind, base[row, asked]))
    assert torch.equal(triples.answers, base[row, triples.queried])
    assert torch.equal(read(triples.base, "correct_object"), triples.answers)
    for pointer, tokens in triples.pointers.items():
        assert torch.equal(tokens, expected.get(pointer, base[row, asked]))


@pytest.mark.parametrize("name", DESIDERATA)
def test_answer_object_position_and_label_are_four_different_tokens_in_every_triple(drawn, name):
    triples = drawn[name]
    four = torch.stack([triples.answers, *triples.pointers.values()], 1)
    assert four.shape[1] == 4
    assert (four.sort(1).values.diff(dim=1) > 0).all()
    assert (triples.targets != triples.answers).all()
    if name == "next_segment":
        assert (triples.targets[:, None] != four).all()


@pytest.mark.parametrize("name", DESIDERATA)
def test_roles_lead_to_the_right_tokens_in_base_and_source_separately(drawn, name):
    triples = drawn[name]
    for prompts, asked in ((triples.base, triples.queried), (triples.source, triples.source_queried)):
        row = torch.arange(N_SAMPLES)
        for role in NEEDED:
            triples.check_role(role)
        assert torch.equal(prompts.positions["last"], prompts.lengths - 1)
        assert torch.equal(read(prompts, "query_label"), read(prompts, "previous_query_label"))
        assert torch.equal(read(prompts, "correct_object"), listed(prompts)[row, asked])
        after = prompts.positions["after_previous_query_label"] - prompts.positions["previous_query_label"]
        assert (after == 1).all()
        assert (prompts.positions["after_correct_object"] - prompts.positions["correct_object"] == 1).all()


@pytest.fixture(scope="module")
def questions():
    """By pairing: base questions, each with its source, in words."""
    drawing = Drawing(TASK, _tokenizer("words"), N_SAMPLES, 1, "mask", 0)
    return {pairing: list(zip(drawing.questions, drawing.sources(pairing), strict=True)) for pairing in PAIRINGS}


@pytest.mark.parametrize("name", DESIDERATA)
def test_over_hundreds_of_samples_no_two_answers_coincide_and_no_box_or_object_is_named_twice(questions, name):
    wanted, mixed = DESIDERATA[name], name.startswith("conflict")
    for base, source in questions[wanted.pairing]:
        pointed = [pointer(base, source.question) for pointer in POINTERS.values()]
        assert len({base.answer, *pointed}) == 4
        assert wanted.target(base, source.question) not in (base.answer, None)
        if name == "next_segment":
            assert len({base.answer, *pointed, wanted.target(base, source.question)}) == 5
        if mixed:
            assert set(pointed) < set(base.context.objects)
        assert base.context.split == source.question.context.split == "mask"
        context, _, asked = wanted.wording(source).text.rpartition(". Box ")
        boxes, things = BOX.findall(context), [word for word in WORD.findall(context) if word in KNOWN]
        assert len(set(boxes)) == len(boxes)
        assert len(set(things)) == len(things)
        assert asked[0] == source.question.label in boxes
        assert {*boxes} & {*base.context.labels} == {source.question.label}
        assert {*things} & {*base.context.objects} == ({pointed[0]} if mixed else set())


def test_in_a_conflict_all_four_answers_are_listed_in_the_base(drawn):
    for each in CONFLICTS:
        triples = drawn[each.name]
        for tokens in (triples.answers, *triples.pointers.values()):
            assert (listed(triples.base) == tokens[:, None]).any(1).all()


def test_base_prompts_are_one_and_the_same_for_all_desiderata_and_sources_where_they_are_alike(drawn):
    by_name = drawn
    assert all(t.base is by_name["object"].base for t in by_name.values())
    assert by_name["position"].source is by_name["label"].source is by_name["object"].source
    assert by_name["conflict_label"].source is by_name["conflict_object"].source
    assert by_name["comma"].source is not by_name["object"].source


def test_every_segment_is_asked_for_equally_often_in_the_base_and_pointed_to_in_the_source(drawn):
    triples = drawn["position"]
    assert set(Counter(triples.queried.tolist()).values()) <= {N_SAMPLES // 7, N_SAMPLES // 7 + 1}
    assert min(Counter(triples.source_queried.tolist()).values()) > N_SAMPLES / 7 / 3
    assert len(triples.scenarios.unique()) == N_SAMPLES


def test_the_same_arguments_give_the_same_triples_and_a_redraw_other_sources():
    tokenizer = _tokenizer("words")
    first, again = (sample_triples(TASK, tokenizer, "position", n, seed=3) for n in (20, 9))
    assert torch.equal(first.source.tokens[:9], again.source.tokens)
    redrawn = sample_triples(TASK, tokenizer, "position", 9, seed=3, redraw=1)
    assert torch.equal(redrawn.base.tokens, again.base.tokens)
    assert (redrawn.source.tokens != again.source.tokens).any(1).all()


CONTEXT = Context(("apple", "book", "cup"), ("F", "K", "M"))
FIRST, SECOND, THIRD = "the apple is in Box F", "the book is in Box K", "the cup is in Box M"
REST, ALL = f"{SECOND}, {THIRD}.", f"The{FIRST[3:]}, {SECOND}, {THIRD}"
EMPTY = "here are three additional boxes, Box X, Box Y and Box Z"


@pytest.mark.parametrize(
    ("name", "queried", "text"),
    [
        ("text_before", 1, f"There are a bunch of boxes containing objects, {FIRST}, {REST}"),
        ("text_after", 1, f"{ALL}, these are a bunch of boxes containing objects."),
        ("tokens_between", 0, f"The apple is contained in the Box F, {REST}"),
        ("segment_before", 1, f"The pen is in Box X, {FIRST}, {REST}"),
        ("segment_after", 1, f"{ALL}, the pen is in Box X."),
        ("extra_boxes", 0, f"T{EMPTY}, {FIRST}, {REST}"),
        ("extra_boxes", 2, f"The apple is in Box F, {SECOND}, t{EMPTY}, {THIRD}."),
        ("order", 0, f"Box F contains the apple, {REST}"),
        ("order", 2, f"The apple is in Box F, {SECOND}, Box M contains the cup."),
        ("association", 1, f"The apple is in Box F, the book is not in Box K, {THIRD}."),
        ("no_comma", 1, f"The apple is in Box F {SECOND} {THIRD}."),
        ("comma", 1, "The apple, is in Box F, the book, is in Box K, the cup, is in Box M."),
    ],
)
def test_a_reworded_source_reads_as_published(name, queried, text):
    question = Question(CONTEXT, CONTEXT.labels[queried], queried, (queried + 1) % 3)
    prompt = DESIDERATA[name].wording(Source(question, ("pen",), ("X", "Y", "Z")))
    assert prompt.text == f"{text} Box {question.label} contains the"


def test_a_role_that_a_changed_source_lacks_is_refused_by_name():
    triples = sample_triples(TASK, _tokenizer("words"), "order", 20)
    slot = f"segment_{int(triples.source_queried[0])}.in"
    with pytest.raises(
        InputError, match=rf"'order' cannot be tested at role '{slot}': \d+ of 20 source prompts lack it"
    ):
        triples.check_role(slot)
    with pytest.raises(InputError, match=r"20 of 20 base prompts lack it"):
        triples.check_role("nowhere")


def test_a_word_that_the_tokenizer_does_not_know_is_refused():
    tokenizer = word_level([*FRAME, *LABELS, *OBJECTS])
    with pytest.raises(InputError, match=r"does not know every word of 'There are a bunch"):
        sample_triples(TASK, tokenizer, "text_before", 5)


def test_a_desideratum_written_in_python_is_used_and_its_mistakes_are_named():
    tokenizer = _tokenizer("words")

    def same_segment(random, base, objects, labels):
        return replace(conflicting(random, base, objects, labels), queried=base.queried)

    def shy(source: Source):
        prompt = DESIDERATA["comma"].wording(source)
        return replace(prompt, roles={})

    own = sample_triples(TASK, tokenizer, Desideratum("shy", "no roles", at_position, shy), 5)
    with pytest.raises(InputError, match="'shy' cannot be tested at role 'previous_query_label'"):
        own.check_role("previous_query_label")
    with pytest.raises(InputError, match="another answer than the unpatched one; triple 1"):
        sample_triples(TASK, tokenizer, Desideratum("same", "", at_position, lambda s: shy(s), same_segment), 5)
    with pytest.raises(InputError, match="'kiwi' is not one token after the prompt"):
        sample_triples(TASK, tokenizer, Desideratum("fruit", "", lambda base, source: "kiwi"), 5)
    with pytest.raises(InputError, match="'gone' has no target for triple 1"):
        sample_triples(TASK, tokenizer, Desideratum("gone", "", lambda base, source: None), 5)


def test_what_cannot_be_sampled_is_refused():
    tokenizer = _tokenizer("words")
    with pytest.raises(InputError, match=r"there is no desideratum 'colour'.*; choose one of object, position"):
        sample_triples(TASK, tokenizer, "colour")
    with pytest.raises(InputError, match="3 boxes are too few"):
        sample_triples(get_task("entity_tracking", n_boxes=3), tokenizer, "conflict_label", 3)
    with pytest.raises(InputError, match=r"'exam'"):
        sample_triples(TASK, tokenizer, "label", 3, split="exam")


def test_a_label_without_a_box_points_nowhere():
    base, source = Question(CONTEXT, "K", 1, 0), Question(CONTEXT, "Z", 2, 0)
    assert at_label(base, source) is None


def test_no_scenario_is_in_two_parts():
    scenarios = torch.tensor([4, 4, 7, 4, 2, 2, 9, 1])
    parts = split_by_scenario(scenarios, (2, 1, 2))
    assert [part.tolist() for part in parts] == [[0, 1, 3], [2], [4, 5]]
    with pytest.raises(InputError, match=r"3 \+ 4 triples.*6 triples of 3 scenarios are too few"):
        split_by_scenario(scenarios[:6], (3, 4))
