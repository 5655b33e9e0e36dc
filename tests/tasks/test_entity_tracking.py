"""What `sample` promises, read from the decoded text and not from the code's own positions."""

import re
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from circuitdiff.errors import InputError
from circuitdiff.tasks import entity_tracking, get_task
from circuitdiff.tasks.scenarios import SPLITS
from circuitdiff.tasks.tokens import one_token_words
from circuitdiff.vocabulary import LABELS, OBJECTS, TRAIN_OBJECTS
from helpers.reading import texts, word, words_at
from helpers.tiny_tokenizers import FRAME, word_level

SEGMENT = re.compile(r"(\w+) is in Box (\w)")
COUNTERFACTUALS = entity_tracking().counterfactuals
MINIMAL = [kind for kind in COUNTERFACTUALS if kind != "unrelated"]


def read(text):
    """Objects, labels and the label asked for, by reading."""
    objects, labels = zip(*SEGMENT.findall(text), strict=True)
    return objects, labels, re.search(r"Box (\w) contains the$", text)[1]


@pytest.mark.parametrize("kind", COUNTERFACTUALS)
def test_prompts_read_as_the_template_says_with_distinct_objects_and_labels(tokenizer, kind):
    pairs = entity_tracking(n_boxes=5).sample(tokenizer, n_prompts=40, counterfactual=kind)
    frame = r"The \w+ is in Box [A-Z](, the \w+ is in Box [A-Z]){4}\. Box [A-Z] contains the"
    for text in texts(tokenizer, pairs.clean_prompts) + texts(tokenizer, pairs.counterfactual_prompts):
        assert re.fullmatch(frame, text)
        objects, labels, _ = read(text)
        assert len(set(objects)) == len(set(labels)) == 5


def test_answers_and_alternatives_are_the_objects_of_the_context(tokenizer):
    pairs = entity_tracking(n_boxes=5).sample(tokenizer, n_prompts=40)
    for i, text in enumerate(texts(tokenizer, pairs.clean_prompts)):
        objects, labels, asked = read(text)
        right = objects[labels.index(asked)]
        assert word(tokenizer, pairs.answers[i]) == right
        assert [word(tokenizer, t) for t in pairs.foils[i]] == [o for o in objects if o != right]
        assert int(pairs.queried[i]) == labels.index(asked)


def test_roles_are_at_the_words_that_they_name(tokenizer):
    task = entity_tracking(n_boxes=5)
    prompts = task.sample(tokenizer, n_prompts=40).clean_prompts
    at = {role: words_at(tokenizer, prompts, role) for role in task.roles}
    for i, text in enumerate(texts(tokenizer, prompts)):
        objects, labels, asked = read(text)
        queried = labels.index(asked)
        stops = [",", ",", ",", ",", "."]
        assert [at[f"segment_{j}.label"][i] for j in range(5)] == list(labels)
        assert [at[f"segment_{j}.object"][i] for j in range(5)] == list(objects)
        assert [at[f"segment_{j}.after_label"][i] for j in range(5)] == stops
        assert at["previous_query_label"][i] == at["query_label"][i] == asked
        assert at["after_previous_query_label"][i] == stops[queried]
        assert (at["correct_object"][i], at["after_correct_object"][i]) == (objects[queried], "is")
        assert (at["query_box"][i], at["after_query_label"][i], at["last"][i]) == ("Box", "contains", "the")
        other = labels.index(at["other_label"][i])
        assert other != queried
        assert (at["after_other_label"][i], at["other_object"][i]) == (stops[other], objects[other])
    assert torch.equal(prompts.positions["last"], prompts.lengths - 1)
    assert set(prompts.positions) == set(task.roles)


def test_previous_labels_come_before_the_query_and_slots_name_their_roles(tokenizer):
    prompts = entity_tracking(n_boxes=4).sample(tokenizer, n_prompts=30).clean_prompts
    assert (prompts.positions["previous_query_label"] < prompts.positions["query_label"]).all()
    for slot in ("segment_2.label", "query_label", "last"):
        index = torch.tensor(list(prompts.slot_names).index(slot))
        assert torch.equal((prompts.slots == index).long().argmax(1), prompts.positions[slot])


def test_unrelated_counterfactuals_share_no_object_or_label_and_ask_for_a_box_that_is_nowhere(tokenizer):
    pairs = entity_tracking().sample(tokenizer, n_prompts=100)
    assert pairs.counterfactual_answers is None
    both = zip(texts(tokenizer, pairs.clean_prompts), texts(tokenizer, pairs.counterfactual_prompts), strict=True)
    for clean, changed in both:
        (objects, labels, asked), (new_objects, new_labels, new_asked) = read(clean), read(changed)
        assert not {*objects} & {*new_objects}
        assert not {*labels} & {*new_labels}
        assert new_asked not in {*labels, *new_labels}
        assert asked in labels


def test_stand_ins_sit_in_one_other_segment_at_the_same_kind_of_slot(tokenizer):
    pairs = entity_tracking().sample(tokenizer, n_prompts=100)
    slots = [pairs.counterfactual_prompts.slot_names[s] for s in range(len(pairs.counterfactual_prompts.slot_names))]
    follows = ("previous_query_label", "after_previous_query_label", "correct_object", "after_correct_object")
    kinds = ("label", "after_label", "object", "after_object")
    controls = ("other_label", "after_other_label", "other_object", "after_other_object")
    seen = Counter()
    for i in range(len(pairs)):
        at = {
            role: slots[pairs.counterfactual_prompts.slots[i, p[i]]]
            for role, p in pairs.counterfactual_positions.items()
        }
        segment = at["previous_query_label"].partition(".")[0]
        assert [at[role] for role in follows] == [f"{segment}.{kind}" for kind in kinds]
        assert segment != f"segment_{int(pairs.queried[i])}"
        control = at["other_label"].partition(".")[0]
        assert [at[role] for role in controls] == [f"{control}.{kind}" for kind in kinds]
        assert control != segment
        assert pairs.counterfactual_positions["other_label"][i] != pairs.positions["other_label"][i]
        seen[segment] += 1
    assert len(seen) == 7


@pytest.mark.parametrize("kind", MINIMAL)
def test_minimal_pairs_change_one_thing_and_have_an_answer_of_their_own(tokenizer, kind):
    pairs = entity_tracking(n_boxes=5).sample(tokenizer, n_prompts=60, counterfactual=kind)
    changed_words = {"other_query": 1, "objects_swapped": 2, "labels_swapped": 2}[kind]
    both = zip(texts(tokenizer, pairs.clean_prompts), texts(tokenizer, pairs.counterfactual_prompts), strict=True)
    for i, (clean, changed) in enumerate(both):
        objects, labels, asked = read(changed)
        right = objects[labels.index(asked)]
        assert word(tokenizer, pairs.counterfactual_answers[i]) == right
        assert pairs.counterfactual_answers[i] in pairs.foils[i]
        assert sum(a != b for a, b in zip(re.findall(r"\w+", clean), re.findall(r"\w+", changed), strict=True)) == (
            changed_words
        )
        assert (asked != read(clean)[2]) == (kind == "other_query")
    at = {role: words_at(tokenizer, pairs.counterfactual_prompts, role) for role in pairs.positions}
    assert at["previous_query_label"] == at["query_label"]
    assert at["correct_object"] == [word(tokenizer, token) for token in pairs.counterfactual_answers]


def test_the_clean_prompts_do_not_depend_on_the_counterfactual_or_on_how_many_follow(whole_words):
    task = entity_tracking()
    few = task.sample(whole_words, n_prompts=20)
    for kind in COUNTERFACTUALS:
        many = task.sample(whole_words, n_prompts=25, counterfactual=kind)
        assert torch.equal(many.clean[:20], few.clean)
        assert torch.equal(many.positions["other_label"][:20], few.positions["other_label"])


def test_one_of_many_is_the_same_in_every_process(whole_words):
    pairs = entity_tracking(n_boxes=3).sample(whole_words, n_prompts=2, seed=5, split="mask")
    assert (texts(whole_words, pairs.clean_prompts)[1], texts(whole_words, pairs.counterfactual_prompts)[1]) == GOLDEN


GOLDEN = (
    "The chain is in Box A, the sword is in Box K, the purse is in Box B. Box B contains the",
    "The bottle is in Box R, the plate is in Box T, the hat is in Box G. Box H contains the",
)


@settings(deadline=None, derandomize=True, max_examples=12)
@given(st.integers(0, 10**6), st.sampled_from(SPLITS), st.integers(2, 8), st.data())
def test_queries_of_a_scenario_share_its_context_and_segments_are_stratified(whole_words, seed, split, n_boxes, data):
    n_queries = data.draw(st.integers(1, n_boxes))
    pairs = entity_tracking(n_boxes).sample(whole_words, 30, seed, split, n_queries)
    assert len(pairs) == 30
    assert pairs.scenarios.tolist() == [i // n_queries for i in range(30)]
    read_prompts = [read(text) for text in texts(whole_words, pairs.clean_prompts)]
    contexts = [(scenario, *p[:2]) for scenario, p in zip(pairs.scenarios.tolist(), read_prompts, strict=True)]
    assert len(set(contexts)) == len(set(pairs.scenarios.tolist())) == len({c[1:] for c in contexts})
    assert len({(c, p[2]) for c, p in zip(contexts, read_prompts, strict=True)}) == 30
    counts = torch.bincount(pairs.queried, minlength=n_boxes)
    assert counts.max() - counts.min() <= 1


def test_splits_share_no_combination_seeds_differ_and_training_has_objects_of_its_own(whole_words):
    task = entity_tracking()
    combinations, objects = {}, {}
    for split in SPLITS:
        for seed in (0, 1):
            pairs = task.sample(whole_words, n_prompts=25, seed=seed, split=split)
            prompts = (*texts(whole_words, pairs.clean_prompts), *texts(whole_words, pairs.counterfactual_prompts))
            combinations[split, seed] = {(frozenset(p[0]), frozenset(p[1])) for p in map(read, prompts)}
            objects.setdefault(split, set()).update(*(read(text)[0] for text in prompts))
    everything = [c for drawn in combinations.values() for c in drawn]
    assert len(everything) == len(set(everything)) == 500
    assert objects["train"] <= set(TRAIN_OBJECTS)
    assert all(objects[split] <= set(OBJECTS) for split in SPLITS if split != "train")


def test_words_that_are_not_one_token_are_left_out_and_named(pieces):
    task = entity_tracking()
    usable = task.usable("objects", pieces)
    assert (*usable.ids, *usable.left_out) != OBJECTS
    assert sorted([*usable.ids, *usable.left_out]) == sorted(OBJECTS)
    assert 14 <= len(usable.ids) < len(OBJECTS)
    assert len(set(usable.ids.values())) == len(usable.ids)
    assert all(pieces.decode([token]) == f" {name}" for name, token in usable.ids.items())
    assert all(len(pieces.encode(f" {name}")) > 1 for name in usable.left_out)
    drawn = {o for text in texts(pieces, task.sample(pieces, n_prompts=100).clean_prompts) for o in read(text)[0]}
    assert drawn == set(usable.ids)


def test_unknown_words_are_left_out():
    usable = entity_tracking().usable("objects", word_level([*FRAME, *LABELS, *OBJECTS[:20]]))
    assert (tuple(usable.ids), usable.left_out) == (OBJECTS[:20], OBJECTS[20:])


def test_of_two_words_with_one_token_the_first_stays():
    blind = word_level(["the", "apple", "book"])
    blind.backend_tokenizer.normalizer = normalizers.Lowercase()
    usable = one_token_words(blind, ("apple", "Book", "Apple", "book"), "the", [" is"])
    assert (tuple(usable.ids), usable.left_out) == (("apple", "Book"), ("Apple", "book"))


def test_a_word_that_melts_into_what_follows_is_left_out():
    melting = word_level(["the", "apple", "book", "is"])
    melting.backend_tokenizer.normalizer = normalizers.Replace("book is", "bookis")
    assert one_token_words(melting, ("apple", "book"), "the", [" is"]).left_out == ("book",)


def test_words_for_two_contexts_are_enough_and_one_fewer_is_not():
    def tokenizer(n_objects, n_labels):
        return word_level([*FRAME, *LABELS[:n_labels], *OBJECTS[:n_objects]])

    assert len(entity_tracking().sample(tokenizer(14, 26), n_prompts=50)) == 50
    assert len(entity_tracking(n_boxes=3).sample(tokenizer(9, 9), n_prompts=50)) == 50
    with pytest.raises(InputError, match=r"6 objects of one token each, but the tokenizer keeps 5 of 99 whole"):
        entity_tracking(n_boxes=3).sample(tokenizer(5, 26))
    with pytest.raises(InputError, match=r"7 labels of one token each, but the tokenizer keeps 6 of 26 whole"):
        entity_tracking(n_boxes=3).sample(tokenizer(14, 6))
    with pytest.raises(InputError, match=r"15 labels"):  # 7 + 7 and one that neither context has
        entity_tracking(n_boxes=7).sample(tokenizer(14, 14))


@pytest.mark.parametrize(("first", "second"), [(6, 7), (2, 3)])  # a label and its comma, an object and `is`
def test_wrong_offsets_are_found_out(whole_words, monkeypatch, first, second):
    call = PreTrainedTokenizerFast.__call__

    def exchanged(self, *args, **options):
        encoded = call(self, *args, **options)
        if "offset_mapping" in encoded:
            for row in encoded["offset_mapping"]:
                row[first], row[second] = row[second], row[first]
        return encoded

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", exchanged)
    with pytest.raises(InputError, match="offsets lead to"):
        entity_tracking(n_boxes=3).sample(whole_words)


def test_roles_at_every_segment_and_at_a_wrong_one():
    task = entity_tracking(n_boxes=3)
    assert task.answer_roles == ("correct_object",)
    labels = ["segment_0.label", "segment_1.label", "segment_2.label"]
    for role in ("previous_query_label", "other_label", "segment_1.label"):
        assert task.every_segment(role) == labels
    assert task.every_segment("after_correct_object")[2] == "segment_2.after_object"
    assert task.every_segment("last") == ["last"]
    pairs = {"previous_query_label": "other_label", "after_previous_query_label": "after_other_label"}
    pairs |= {"correct_object": "other_object", "after_correct_object": "after_other_object", "last": "last"}
    assert {role: task.wrong_segment(role) for role in pairs} == pairs
    assert set(task.every_segment("correct_object")) < set(task.roles)
    for function in (task.every_segment, task.wrong_segment):
        with pytest.raises(InputError, match="no role 'middle'; choose one of segment_0"):
            function("middle")


def test_a_described_pair_shows_each_token_with_its_slot_and_roles(whole_words):
    task = entity_tracking(n_boxes=2)
    pairs = task.sample(whole_words, n_prompts=3, counterfactual="other_query")
    shown = task.describe(pairs, 1, whole_words)
    assert len(shown.clean.tokens) == len(shown.clean.slots) == len(shown.clean.roles) == int(pairs.lengths[1])
    assert shown.clean.tokens[0] == "<s>"
    assert (shown.clean.slots[0], shown.clean.roles[0]) == ("start", ())
    at = {role: token for token, roles in zip(shown.clean.tokens, shown.clean.roles, strict=True) for role in roles}
    assert set(at) == set(task.roles)
    assert (at["correct_object"], at["last"]) == (shown.answer, "the")
    changed = {r: t for t, rs in zip(shown.counterfactual.tokens, shown.counterfactual.roles, strict=True) for r in rs}
    assert changed["correct_object"] == shown.counterfactual_answer == at["other_object"]
    unrelated = task.describe(task.sample(whole_words, n_prompts=3), 0, whole_words)
    assert unrelated.counterfactual_answer is None


def test_bad_options_say_what_is_allowed(whole_words):
    task = entity_tracking(n_boxes=3)
    for options, message in (
        ({"split": "test"}, "unknown split 'test'; choose one of train"),
        ({"counterfactual": "same"}, "unknown counterfactual 'same'; choose one of unrelated"),
        ({"n_prompts": 0}, "n_prompts must be from 1 to 1,000,000; got 0"),
        ({"queries_per_scenario": 4}, "from 1 to 3; got 4"),
    ):
        with pytest.raises(InputError, match=message):
            task.sample(whole_words, **options)
    with pytest.raises(InputError, match="2 to 100 items; got 1"):
        entity_tracking(n_boxes=1)
    with pytest.raises(InputError, match="both have apple"):
        entity_tracking(objects=("apple",), train_objects=("apple",))


def test_tasks_are_found_by_name():
    assert get_task("entity_tracking", n_boxes=4) == entity_tracking(n_boxes=4)
    assert get_task("entity_tracking").name == "entity_tracking"
    with pytest.raises(InputError, match=r"unknown task 'boxs'.*; choose one of .*entity_tracking"):
        get_task("boxs")
    with pytest.raises(InputError, match=r"option 'boxes'.*choose one of n_boxes, objects"):
        get_task("entity_tracking", boxes=4)
    with pytest.raises(InputError, match=r"option n_boxes: .*got 'seven'"):
        get_task("entity_tracking", n_boxes="seven")
    with pytest.raises(InputError, match="option objects"):
        get_task("entity_tracking", objects="apple")
    with pytest.raises(InputError, match="2 to 100 items"):
        get_task("entity_tracking", n_boxes=1)


def test_the_two_lists_of_objects_are_long_and_disjoint():
    assert len(set(OBJECTS)) == len(OBJECTS) >= 85
    assert len(set(TRAIN_OBJECTS)) == len(TRAIN_OBJECTS) >= 60
    assert not set(OBJECTS) & set(TRAIN_OBJECTS)
