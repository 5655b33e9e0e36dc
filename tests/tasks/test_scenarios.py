"""Draws are balanced, disjoint between splits and the same everywhere."""

from collections import Counter
from itertools import chain, islice, pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitdiff.errors import InputError
from circuitdiff.tasks.scenarios import (
    SPLITS,
    Context,
    Question,
    distinct_contexts,
    draw_context,
    draw_counterfactual,
    generator,
    queried_segments,
)

OBJECTS, LABELS = tuple("abcdefghijklmn"), tuple("ABCDEFGHIJKLMNOP")
ALL_OF_TWO = [Context(o, x) for o in permutations(OBJECTS[:3], 2) for x in permutations(LABELS[:3], 2)]


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(2, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), st.integers(0, 99))
def test_every_prefix_queries_each_segment_equally_often_up_to_one(sizes, seed):
    n_boxes, n_queries = sizes
    scenarios = list(islice(queried_segments(generator(seed), n_boxes, n_queries), 20))
    assert all(len(set(chosen)) == n_queries for chosen in scenarios)
    asked = list(chain.from_iterable(scenarios))
    for length in range(1, len(asked) + 1):
        counts = Counter(asked[:length])
        assert max(counts.values()) - min(counts[i] for i in range(n_boxes)) <= 1


def test_splits_share_no_combination_even_when_nearly_all_are_drawn():
    objects, labels = OBJECTS[:4], LABELS[:4]  # 6 * 6 combinations, 4 orders each
    drawn = {}
    for split in SPLITS:
        contexts = [draw_context(generator(split, seed), split, objects, labels, 2) for seed in range(200)]
        drawn[split] = {(frozenset(c.objects), frozenset(c.labels)) for c in contexts}
    assert sum(map(len, drawn.values())) == len(set().union(*drawn.values())) == 36


def test_a_split_is_about_a_fifth_of_all_combinations():
    random = generator("all")
    draws = [Context(tuple(random.sample(OBJECTS, 3)), tuple(random.sample(LABELS, 3))) for _ in range(5000)]
    counts = Counter(context.split for context in draws)
    assert all(abs(counts[split] - 1000) < 150 for split in SPLITS)  # five standard deviations of 28


def test_the_split_does_not_depend_on_the_order():
    assert Context(("a", "b"), ("F", "K")).split == Context(("b", "a"), ("K", "F")).split
    assert len({Context(("a", "b"), pair).split for pair in pairwise(LABELS)}) > 1


def test_draws_are_those_written_down_here_in_every_process():
    assert draw_context(generator("task", 7, "mask", 0), "mask", OBJECTS, LABELS, 3) == GOLDEN


GOLDEN = Context(("i", "c", "k"), ("J", "C", "H"))


def test_no_context_comes_twice_and_running_out_of_them_is_said():
    contexts = distinct_contexts(generator(0), "discovery", OBJECTS[:3], LABELS[:3], 2)
    possible = [c for c in ALL_OF_TWO if c.split == "discovery"]
    drawn = list(islice(contexts, len(possible)))
    assert sorted(map(repr, drawn)) == sorted(map(repr, possible))
    with pytest.raises(InputError, match=rf"'discovery' has only some {len(possible)} scenarios: ask for fewer"):
        next(contexts)


def test_a_split_without_any_combination_is_said():
    only = Context(OBJECTS[:2], LABELS[:2])
    others = [split for split in SPLITS if split != only.split]
    with pytest.raises(InputError, match="2 objects and 2 labels leave no combination of 2 boxes"):
        draw_context(generator(0), others[0], OBJECTS[:2], LABELS[:2], 2)


def question():
    return Question(Context(("apple", "book", "cup"), ("F", "K", "M")), "K", queried=1, other=2)


def test_minimal_pairs_are_those_worked_out_by_hand():
    # The query is Box K (segment 1), the control is segment 2: only segment 0 is left to change places with.
    other, objects, labels = (
        draw_counterfactual(generator(0), kind, question(), (), ())
        for kind in ("other_query", "objects_swapped", "labels_swapped")
    )
    same = question().context
    assert other == Question(same, "F", queried=0, other=1)
    assert objects == Question(Context(("book", "apple", "cup"), same.labels), "K", queried=1, other=2)
    assert labels == Question(Context(same.objects, ("K", "F", "M")), "K", queried=0, other=1)
    assert (question().answer, other.answer, objects.answer, labels.answer) == ("book", "apple", "apple", "apple")


def test_of_two_boxes_the_other_one_stands_in():
    two = Question(Context(("apple", "book"), ("F", "K")), "K", queried=1, other=0)
    assert draw_counterfactual(generator(0), "other_query", two, (), ()).answer == "apple"


def test_stand_in_segments_are_all_but_the_clean_ones_equally_often():
    drawn = Counter()
    for seed in range(1000):
        context = Context(tuple("abcde"), tuple("ABCDE"))
        asked = Question(context, "B", queried=1, other=3)
        drawn[draw_counterfactual(generator(seed), "other_query", asked, (), ()).queried] += 1
    assert set(drawn) == {0, 2, 4}
    assert all(abs(n - 333) < 75 for n in drawn.values())  # five standard deviations of 15
