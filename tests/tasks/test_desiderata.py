"""Every desideratum tests what it says: over many samples, in two tokenizers, and word by word."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

from circuitdiff.errors import InputError
from circuitdiff.models.sources import read_outline
from circuitdiff.tasks import get_task
from circuitdiff.tasks.desiderata import _texts, pointed_to, sample_triples
from circuitdiff.tasks.scenarios import Question, Scenario, split_of
from circuitdiff.triples import Triples, split_by_scenario
from circuitdiff.vocabulary import LABELS, OBJECTS, TRAIN_OBJECTS
from helpers.reading import texts
from helpers.tiny_tokenizers import FRAME, byte_pairs, word_level

INSERTED = re.findall(
    r"\w+", "There are a bunch of boxes containing objects these three additional and contained not there"
)
N_SAMPLES = 200  # in the tokens of two tokenizers, and in words
TASK = get_task("entity_tracking")
NEEDED = ("last", "query_label", "previous_query_label", "after_previous_query_label", "correct_object")
DESIDERATA = TASK.form.desiderata
CONFLICTS = [name for name, each in DESIDERATA.items() if each.sources == "conflicting"]
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
    drawn = TASK.triples(_tokenizer(request.param), list(DESIDERATA), N_SAMPLES, seed=0)
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
    assert TASK.desiderata == ("object", "position", "label")
    assert (len(CONFLICTS), len(DESIDERATA)) == (3, 17)


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
def read_aloud():
    """Triples of every desideratum whose prompts can be read as text, word by word."""
    tokenizer = _tokenizer("words")
    drawn = TASK.triples(tokenizer, list(DESIDERATA), N_SAMPLES, seed=1)
    return tokenizer, {triples.name: triples for triples in drawn}


def words_of(tokenizer, tokens) -> list[list[str]]:
    known = dict(enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))))
    return [[known[token] for token in row] for row in tokens.tolist()]


@pytest.mark.parametrize("name", DESIDERATA)
def test_over_all_samples_no_two_answers_coincide_and_no_box_or_object_is_named_twice(read_aloud, name):
    tokenizer, by_name = read_aloud
    triples = by_name[name]
    pointed = words_of(tokenizer, torch.stack([triples.answers, *triples.pointers.values(), triples.targets], 1))
    sides = [
        zip(texts(tokenizer, p), words_of(tokenizer, listed(p)), words_of(tokenizer, labels_listed(p)), strict=True)
        for p in (triples.base, triples.source)
    ]
    for (answer, *three, target), (_, objects, labels), (text, new, new_labels) in zip(pointed, *sides, strict=True):
        assert len({answer, *three}) == 4
        assert target != answer
        if name == "next_segment":
            assert len({answer, *three, target}) == 5
        if name in CONFLICTS:
            assert {*three} < {*objects}
        assert split_of(sorted(objects) + sorted(labels)) == split_of(sorted(new) + sorted(new_labels)) == "mask"
        context, _, asked = text.rpartition(". Box ")
        boxes, things = BOX.findall(context), [word for word in WORD.findall(context) if word in KNOWN]
        assert len(set(boxes)) == len(boxes)
        assert len(set(things)) == len(things)
        assert asked[0] in boxes
        assert {*boxes} & {*labels} == {asked[0]}
        assert {*things} & {*objects} == ({three[0]} if name in CONFLICTS else set())


def test_in_a_conflict_all_four_answers_are_listed_in_the_base(drawn):
    for name in CONFLICTS:
        triples = drawn[name]
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


CONTEXT = Scenario(0, {"object": ("apple", "book", "cup"), "label": ("F", "K", "M")}, {})
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
    spare = {"object": ["pen"], "label": ["X", "Y", "Z"]}
    prompt = TASK.prompt(Question(CONTEXT, queried, (queried + 1) % 3), _texts(TASK, DESIDERATA[name]), spare)
    assert prompt.text == f"{text} Box {'FKM'[queried]} contains the"


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


CHESTS = """
name: chests
categories: {things: {words: apple book cup pen lamp door, one_token: false}, names: {words: A B C D E F G H I J K L}}
items: {count: 4, fields: {thing: things, name: names}}
list: {text: "the {thing} is in Box {name}"}
text: "{list}. Box {asked.name} contains the"
answer: " {asked.thing}"
counterfactuals: {other: {ask: other}}
desiderata: {which: {wants: position}, named: {wants: given, main: true, list: "Box {name} contains the {thing}"}}
"""


def chests(folder, *changes):
    text = CHESTS
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "chests.yaml").write_text(text)
    return get_task(str(folder / "chests.yaml"))


def test_a_desideratum_of_a_users_file_is_used_and_its_mistakes_are_named(tmp_path):
    tokenizer = _tokenizer("words")
    task = chests(tmp_path, ("lamp door", "lamp door key bell coin ring"))
    assert task.desiderata == ("named",)
    with pytest.raises(InputError, match=r"chests has no desideratum 'nmed' \(did you mean 'named'\?\)"):
        task.check_desiderata(["nmed"])
    which, named = task.triples(tokenizer, ["which", "named"], 30, seed=0)
    assert which.base is named.base
    assert list(named.pointers) == ["named"]
    for text in texts(tokenizer, named.source):
        assert re.fullmatch(
            r"(Box [A-L] contains the \w+, ){3}Box [A-L] contains the \w+\. Box [A-L] contains the", text
        )
    for i, text in enumerate(texts(tokenizer, which.base)):
        things = re.findall(r"the (\w+) is in", text)
        assert words_of(tokenizer, which.targets[i : i + 1, None]) == [[things[int(which.source_queried[i])]]]


def test_answers_of_several_tokens_and_too_few_words_of_a_users_file_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"a source prompt needs 4 other things than its base; 2 are left"):
        sample_triples(chests(tmp_path), _tokenizer("words"), "which", 3)
    several = chests(tmp_path, ("lamp door", "lamp door wheelbarrow porcupine rhubarb haystack"))
    with pytest.raises(InputError, match=r"chests.yaml: desiderata need answers of one token; ' \w+' is not"):
        sample_triples(several, _tokenizer("pieces"), "which", 30)


def test_what_cannot_be_sampled_is_refused():
    tokenizer = _tokenizer("words")
    with pytest.raises(InputError, match=r"has no desideratum 'colour'.*; choose one of object, position"):
        sample_triples(TASK, tokenizer, "colour")
    with pytest.raises(InputError, match="3 items are too few"):
        sample_triples(get_task("entity_tracking", n_boxes=3), tokenizer, "conflict_label", 3)
    with pytest.raises(InputError, match=r"'exam'"):
        sample_triples(TASK, tokenizer, "label", 3, split="exam")


def test_a_label_that_the_base_does_not_have_points_nowhere():
    base = Question(CONTEXT, 1, 0)
    source = Question(Scenario(0, {"object": ("pen", "key", "hat"), "label": ("X", "Y", "Z")}, {}), 2, 0)
    assert pointed_to("given", base, source, "label") is None
    assert pointed_to("position", base, source, "label") == Question(CONTEXT, 2, 0)


def test_no_scenario_is_in_two_parts():
    scenarios = torch.tensor([4, 4, 7, 4, 2, 2, 9, 1])
    parts = split_by_scenario(scenarios, (2, 1, 2))
    assert [part.tolist() for part in parts] == [[0, 1, 3], [2], [4, 5]]
    with pytest.raises(InputError, match=r"3 \+ 4 triples.*6 triples of 3 scenarios are too few"):
        split_by_scenario(scenarios[:6], (3, 4))
