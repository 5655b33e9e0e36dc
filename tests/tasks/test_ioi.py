"""What indirect object identification promises, read from the decoded text and not from the code's own positions."""

import re
from collections import Counter
from itertools import combinations, cycle, islice
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from circuitdiff.errors import InputError
from circuitdiff.study.registry import parse_study, read_study
from circuitdiff.study.settings import plans_of
from circuitdiff.tasks import get_task, ioi
from circuitdiff.tasks.scenarios import SPLITS, Pools, distinct_scenarios, draw_scenario, split_of
from circuitdiff.vocabulary import WORDS
from helpers.reading import texts, word, words_at
from helpers.tiny_tokenizers import learned_byte_pairs, word_level

NAMES, TRAIN_NAMES, PLACES, OBJECTS = (
    tuple((WORDS / f"{name}.txt").read_text().split()) for name in ("names", "training_names", "places", "gifts")
)
COUNTERFACTUALS = ioi().counterfactuals
FIELDS = {"{0.name}": "{first}", "{1.name}": "{second}", "{s2=other.name}": "{repeated}"}
TEMPLATES = [
    re.sub("|".join(map(re.escape, FIELDS)), lambda field: FIELDS[field[0]], wording.text)
    for wording in ioi().form.written
]
PEOPLE = {*NAMES, *TRAIN_NAMES}
WORDING = [w for template in TEMPLATES for w in re.findall(r"\w+|[.,]", re.sub(r"\{\w+\}", "", template))]
AFTER = {"after_io": "io", "after_s1": "s1", "after_s2": "s2"} | {
    f"segment_{i}.after_name": f"segment_{i}.name" for i in range(2)
}


@pytest.fixture(scope="session")
def whole():
    return word_level([*WORDING, *NAMES, *TRAIN_NAMES, *PLACES, *OBJECTS])


@pytest.fixture(scope="session")
def learned():
    """One token for every second name; of the words of the last two sentences some are several tokens."""
    names, places, objects = cycle(NAMES[::2] + TRAIN_NAMES[::2]), cycle(PLACES), cycle(OBJECTS)
    filled = [
        TEMPLATES[i % 6].format(first=a, second=a, place=next(places), repeated=a, object=next(objects)) + f" {a}"
        for i, a in zip(range(120), names, strict=False)
    ]
    return learned_byte_pairs(filled, trim_offsets=False)


@pytest.fixture(params=["whole", "learned"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def people(text):
    """The names of a prompt, in reading order."""
    return [w for w in re.findall(r"\w+", text) if w in PEOPLE]


def frame(text):
    """The prompt with a gap for each name."""
    return re.sub(r"\w+", lambda found: "_" if found[0] in PEOPLE else found[0], text)


def missing(names):
    """Of the two names listed first, the one that does not come again."""
    first, second, repeated = names
    return {first: second, second: first}[repeated]


def places_of_names(tokenizer, prompts, i):
    """The positions of the tokens that are names."""
    row = prompts.tokens[i, : prompts.lengths[i]].tolist()
    return [at for at, token in enumerate(row) if word(tokenizer, token) in PEOPLE]


@pytest.mark.parametrize("kind", COUNTERFACTUALS)
def test_prompts_list_two_people_at_a_place_then_one_of_them_gives_an_object(tokenizer, kind):
    pairs = ioi().sample(tokenizer, n_prompts=40, counterfactual=kind)
    for text in texts(tokenizer, pairs.clean_prompts) + texts(tokenizer, pairs.counterfactual_prompts):
        first, second, repeated = people(text)
        assert first != second
        assert re.fullmatch(rf"[A-Z][\w ]* {first} and {second} .+ {repeated} \w+.* a \w+ to", text)
        assert re.search(r"the (\w+)", text)[1] in PLACES or re.search(r"the (\w+)", text)[1] == "morning"
        assert re.search(r" a (\w+) to$", text)[1] in OBJECTS
    for text in texts(tokenizer, pairs.clean_prompts):
        assert people(text)[2] in people(text)[:2]


def test_the_answer_is_the_name_that_does_not_come_again_and_the_alternative_the_one_that_does(tokenizer):
    pairs = ioi().sample(tokenizer, n_prompts=40)
    assert pairs.foils.shape == (40, 1)
    for i, text in enumerate(texts(tokenizer, pairs.clean_prompts)):
        names = people(text)
        assert word(tokenizer, pairs.answers[i]) == missing(names)
        assert word(tokenizer, pairs.foils[i, 0]) == names[2]
        assert names[int(pairs.queried[i])] == missing(names)


def test_roles_are_at_the_words_that_they_name(tokenizer):
    task = ioi()
    prompts = task.sample(tokenizer, n_prompts=40).clean_prompts
    assert set(prompts.positions) == set(task.roles)
    at = {role: words_at(tokenizer, prompts, role) for role in task.roles}
    for i, text in enumerate(texts(tokenizer, prompts)):
        first, second, repeated = people(text)
        io = missing([first, second, repeated])
        assert (at["segment_0.name"][i], at["segment_1.name"][i]) == (first, second)
        assert (at["io"][i], at["s1"][i], at["s2"][i]) == (io, repeated, repeated)
        assert at["place"][i] in PLACES
        assert re.search(rf"the {at['place'][i]}\b", text)
        assert (at["object"][i], at["last"][i]) == (re.search(r" a (\w+) to$", text)[1], "to")
        listed = places_of_names(tokenizer, prompts, i)
        s1, io_place = (0, 1) if first == repeated else (1, 0)
        expected = {"segment_0.name": 0, "segment_1.name": 1, "io": io_place, "s1": s1, "s2": 2}
        assert {role: int(prompts.positions[role][i]) for role in expected} == {
            role: listed[nth] for role, nth in expected.items()
        }
    assert torch.equal(prompts.positions["last"], prompts.lengths - 1)


def test_the_role_after_a_name_is_the_very_next_token_even_of_a_word_of_several(tokenizer):
    prompts = ioi().sample(tokenizer, n_prompts=40).clean_prompts
    for after, name in AFTER.items():
        assert torch.equal(prompts.positions[after], prompts.positions[name] + 1)
        slots = prompts.slots[torch.arange(40), prompts.positions[after]]
        named = {prompts.slot_names[slot].partition(".")[2] for slot in slots.tolist()}
        assert all(re.fullmatch(r"(segment_[01]\.after_name|after_s2)", slot) for slot in named)


def test_the_learned_tokenizer_does_split_words_of_the_sentences(learned):
    prompts = ioi().sample(learned, n_prompts=40).clean_prompts
    split = {name.partition("#")[0].partition(".")[2] for name in prompts.slot_names if "#" in name}
    assert "after_s2" in split
    assert split & {each.lower() for each in WORDING}


def test_unrelated_counterfactuals_have_three_other_names_in_the_same_sentence_at_the_same_places(tokenizer):
    pairs = ioi().sample(tokenizer, n_prompts=80)
    assert pairs.counterfactual_answers is None
    both = zip(texts(tokenizer, pairs.clean_prompts), texts(tokenizer, pairs.counterfactual_prompts), strict=True)
    for clean, changed in both:
        assert len({*people(changed)}) == 3
        assert not {*people(changed)} & {*people(clean)}
        assert frame(changed) == frame(clean)
    for role, positions in pairs.positions.items():
        assert torch.equal(pairs.counterfactual_positions[role], positions)


def test_minimal_pairs_have_the_other_name_as_their_answer(tokenizer):
    for kind in ("names_swapped", "repeated_name_swapped"):
        pairs = ioi().sample(tokenizer, n_prompts=40, counterfactual=kind)
        at = {role: words_at(tokenizer, pairs.counterfactual_prompts, role) for role in ("io", "s1", "s2")}
        clean_texts = texts(tokenizer, pairs.clean_prompts)
        for i, (clean, changed) in enumerate(
            zip(clean_texts, texts(tokenizer, pairs.counterfactual_prompts), strict=True)
        ):
            first, second, repeated = people(clean)
            other = missing(people(clean))
            wanted = [second, first, other] if kind == "names_swapped" else [first, second, other]
            assert people(changed) == wanted
            assert frame(changed) == frame(clean)
            assert word(tokenizer, pairs.counterfactual_answers[i]) == missing(wanted) == repeated
            assert (at["io"][i], at["s1"][i], at["s2"][i]) == (repeated, other, other)
        assert torch.equal(pairs.counterfactual_answers, pairs.foils[:, 0])


def test_the_clean_prompts_do_not_depend_on_the_counterfactual_or_on_how_many_follow(whole):
    few = ioi().sample(whole, n_prompts=20)
    for kind in COUNTERFACTUALS:
        many = ioi().sample(whole, n_prompts=25, counterfactual=kind)
        assert torch.equal(many.clean[:20], few.clean)
        assert torch.equal(many.positions["io"][:20], few.positions["io"])


def test_one_of_many_is_the_same_in_every_process(whole):
    pairs = ioi().sample(whole, n_prompts=2, seed=5, split="mask")
    assert (texts(whole, pairs.clean_prompts)[1], texts(whole, pairs.counterfactual_prompts)[1]) == GOLDEN


GOLDEN = (
    "While Anna and George sat together outside the bank, Anna handed a sandwich to",
    "While Catherine and Simon sat together outside the bank, Rebecca handed a sandwich to",
)


@settings(deadline=None, derandomize=True, max_examples=8)
@given(st.integers(0, 10**6), st.sampled_from(SPLITS), st.integers(1, 2), st.sampled_from(["whole", "learned"]))
def test_templates_and_orders_are_balanced_and_scenarios_distinct(request, seed, split, n_queries, which):
    tokenizer = request.getfixturevalue(which)
    pairs = ioi().sample(tokenizer, 43, seed, split, n_queries)
    assert pairs.scenarios.tolist() == [i // n_queries for i in range(43)]
    clean = texts(tokenizer, pairs.clean_prompts)
    assert len(set(clean)) == 43
    scenes = [(frozenset(people(text)), re.sub(r"_[^_]*$", "", frame(text)), frame(text)) for text in clean]
    assert len(set(scenes)) == len(set(pairs.scenarios.tolist()))
    openings = [text.split()[0] for text in clean]  # no two templates share one
    for length in range(1, 44):
        orders = torch.bincount(pairs.queried[:length], minlength=2)
        counts = Counter(openings[:length:n_queries])
        assert orders.max() - orders.min() <= 1
        assert max(counts.values()) - min(counts.values() if len(counts) == len(TEMPLATES) else [0]) <= 1


def test_splits_share_no_pair_of_listed_names_and_training_has_names_of_its_own(whole):
    listed, used = {}, {}
    for split in SPLITS:
        pairs = ioi().sample(whole, n_prompts=70, split=split)
        both = texts(whole, pairs.clean_prompts) + texts(whole, pairs.counterfactual_prompts)
        listed[split] = {frozenset(people(text)[:2]) for text in both}
        used[split] = {name for text in both for name in people(text)}
    assert sum(map(len, listed.values())) == len(set().union(*listed.values())) > 500
    assert used["train"] <= set(TRAIN_NAMES)
    assert all(used[split] <= set(NAMES) for split in SPLITS if split != "train")


def test_a_slot_has_one_index_in_every_sample_so_that_means_of_one_serve_prompts_of_another(tokenizer):
    task = ioi()
    samples = [
        task.sample(tokenizer, n, seed, split, counterfactual=kind)
        for n, seed, split, kind in ((1, 0, "mask", "unrelated"), (30, 3, "evaluation", "names_swapped"))
    ]
    few, many = (pairs.clean_prompts for pairs in samples)
    assert list(few.slot_names) == list(many.slot_names) == list(samples[1].counterfactual_prompts.slot_names)
    fixed: dict[int, set[str]] = {}
    for prompts in (few, many):
        for row, slots, n in zip(prompts.tokens, prompts.slots, prompts.lengths, strict=True):
            for token, slot in zip(row[:n].tolist(), slots[:n].tolist(), strict=True):
                fixed.setdefault(slot, set()).add(word(tokenizer, token))
    varied = re.compile(r"\.(segment_[01]\.name|s2|place|object)$")
    for slot, words in fixed.items():
        assert len(words) == 1 or varied.search(few.slot_names[slot])


def test_no_two_templates_share_a_slot_and_kinds_pool_the_listed_names(whole):
    prompts = ioi().sample(whole, n_prompts=8).clean_prompts
    assert len({text.split()[0] for text in texts(whole, prompts)}) == len(TEMPLATES)  # each template once
    own = [set(row[row >= 0].tolist()) for row in prompts.slots]
    start = list(prompts.slot_names).index("start")
    assert all(one & other == {start} for one, other in combinations(own, 2))
    kinds = dict(zip(prompts.slot_names, prompts.slot_kinds, strict=True))
    for i in range(len(TEMPLATES)):
        for slot in ("name", "after_name"):
            pooled = [name for name, kind in kinds.items() if kind == f"template_{i}.segment.{slot}"]
            assert pooled == [f"template_{i}.segment_0.{slot}", f"template_{i}.segment_1.{slot}"]
    assert len(set(kinds.values())) == len(kinds) - 2 * len(TEMPLATES)


def test_names_that_are_not_one_token_are_left_out_and_named(learned):
    usable = ioi().usable("names", learned)
    assert sorted([*usable.ids, *usable.left_out]) == sorted(NAMES)
    assert 14 <= len(usable.ids) < len(NAMES)
    assert all(learned.decode([token]) == f" {name}" for name, token in usable.ids.items())
    assert all(len(learned.encode(f" {name}")) > 1 for name in usable.left_out)
    drawn = {name for t in texts(learned, ioi().sample(learned, n_prompts=150).clean_prompts) for name in people(t)}
    assert drawn <= set(usable.ids)


def test_names_for_two_prompts_and_one_of_each_other_word_are_enough_and_fewer_are_not():
    def tokenizer(n_names, n_places, n_objects):
        return word_level([*WORDING, *NAMES[:n_names], *PLACES[:n_places], *OBJECTS[:n_objects]])

    assert len(ioi().sample(tokenizer(14, 1, 1), n_prompts=10)) == 10
    for sizes, message in (
        (
            (4, 1, 1),
            "5 names of one token each, but the tokenizer keeps 4 of 80 whole: give the task other names, or fewer",
        ),
        ((14, 0, 1), r"1 places of one token each.*keeps 0"),
        ((14, 1, 0), r"1 objects of one token each.*keeps 0"),
    ):
        with pytest.raises(InputError, match=message):
            ioi().sample(tokenizer(*sizes))


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 3), (3, 4)])  # the first word, a name, `and`, a name
def test_wrong_offsets_are_found_out(whole, monkeypatch, first, second):
    call = PreTrainedTokenizerFast.__call__

    def exchanged(self, *args, **options):
        encoded = call(self, *args, **options)
        if "offset_mapping" in encoded:
            for row in encoded["offset_mapping"]:
                row[first], row[second] = row[second], row[first]
        return encoded

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", exchanged)
    with pytest.raises(InputError, match="offsets lead to"):
        ioi().sample(whole, n_prompts=16)


def test_roles_at_every_listed_name_and_at_the_wrong_one():
    task = ioi()
    assert task.answer_roles == ("io",)
    names, after = (["segment_0.name", "segment_1.name"], ["segment_0.after_name", "segment_1.after_name"])
    assert [task.every_segment(role) for role in ("io", "s1", "segment_1.name")] == [names] * 3
    assert [task.every_segment(role) for role in ("after_io", "after_s1", "segment_0.after_name")] == [after] * 3
    assert [task.every_segment(role) for role in ("s2", "last", "after_s2")] == [["s2"], ["last"], ["after_s2"]]
    wrong = {"io": "s1", "s1": "io", "after_io": "after_s1", "after_s1": "after_io", "s2": "s2", "last": "last"}
    assert {role: task.wrong_segment(role) for role in wrong} == wrong
    for function in (task.every_segment, task.wrong_segment):
        with pytest.raises(InputError, match="ioi has no role 'middle'; choose one of segment_0"):
            function("middle")


def test_the_task_has_a_plan_of_its_roles_and_is_found_by_name(whole):
    task = get_task("ioi")
    assert task == ioi()
    assert task.name == "ioi"
    assert list(plans_of(parse_study({"name": "s", "base": "m", "task": "ioi"}, "s"))) == list(task.plans)
    assert task.desiderata == ()
    with pytest.raises(
        InputError, match="the task ioi has no desideratum 'object'; choose one of none; or give a JSONL file"
    ):
        task.triples(whole, ["object"], 3, 0)
    shown = task.describe(task.sample(whole, n_prompts=3, counterfactual="names_swapped"), 1, whole)
    at = {role: token for token, roles in zip(shown.clean.tokens, shown.clean.roles, strict=True) for role in roles}
    assert (at["io"], at["s1"]) == (shown.answer, shown.counterfactual_answer)
    with pytest.raises(InputError, match=r"option 'n_boxes'; choose one of names, places, objects, train_names"):
        get_task("ioi", n_boxes=3)


def test_the_study_file_runs_the_tasks_own_plan():
    study = read_study(Path(__file__).parents[2] / "studies" / "ioi.yaml")
    assert study.task.name == "ioi"
    assert study.plans == plans_of(study.model_copy(update={"plans": {}}))


def test_bad_options_say_what_is_allowed(whole):
    for options, message in (
        ({"split": "test"}, "unknown split 'test'; choose one of train"),
        ({"counterfactual": "other_query"}, "unknown counterfactual 'other_query'; choose one of unrelated"),
        ({"n_prompts": 0}, "n_prompts must be from 1 to 1,000,000; got 0"),
        ({"queries_per_scenario": 3}, "from 1 to 2; got 3"),
    ):
        with pytest.raises(InputError, match=message):
            ioi().sample(whole, **options)
    with pytest.raises(InputError, match="both have Mary"):
        ioi(train_names=("Mary", "Tom B"))


def pools(names):
    draws, categories = {"place": ("park",), "object": ("cup", "hat")}, {"place": "places", "object": "objects"}
    return Pools(n_items=2, items={"name": tuple(names)}, draws=draws, categories={"name": "names", **categories})


def test_no_scene_comes_twice_and_running_out_of_them_is_said():
    pairs = [pair for pair in combinations("abcdef", 2) if split_of(pair) == "mask"]
    drawn = distinct_scenarios(("test",), "mask", pools("abcdef"))
    scenes = list(islice(drawn, 2 * len(pairs)))
    assert {(frozenset(scene.items["name"]), scene.draws["object"]) for scene in scenes} == {
        (frozenset(pair), thing) for pair in pairs for thing in ("cup", "hat")
    }
    with pytest.raises(InputError, match=rf"'mask' has only some {2 * len(pairs)} scenarios: ask for fewer"):
        next(drawn)


def test_names_without_a_pair_in_the_split_are_said():
    other = next(split for split in SPLITS if split_of("ab") != split)
    with pytest.raises(InputError, match=f"2 names, 1 places, 2 objects leave no combination to split '{other}'"):
        draw_scenario(Random(0), other, pools("ab"), 0)


def test_the_lists_of_words_are_long_and_disjoint_and_objects_go_with_a():
    lists = (NAMES, TRAIN_NAMES, PLACES, OBJECTS, tuple({*WORDING}))
    assert sum(map(len, lists)) == len({w for words in lists for w in words})
    assert min(len(NAMES), len(TRAIN_NAMES)) >= 60
    assert min(len(PLACES), len(OBJECTS)) >= 28
    assert not [thing for thing in OBJECTS if thing[0] in "aeiou"]
