"""Draws are balanced, disjoint between splits and the same everywhere."""

from collections import Counter
from itertools import chain, combinations, islice, pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitdiff.errors import InputError
from circuitdiff.tasks.counterfactuals import draw_counterfactual
from circuitdiff.tasks.scenarios import (
    SPLITS,
    Pools,
    Question,
    Scenario,
    balanced,
    distinct_scenarios,
    draw_scenario,
    generator,
    split_of,
)
from circuitdiff.tasks.template_file import Counterfactual

OBJECTS, LABELS = tuple("abcdefghijklmn"), tuple("ABCDEFGHIJKLMNOP")


def pools(objects=OBJECTS, labels=LABELS, n_items=2):
    words = {"object": tuple(objects), "label": tuple(labels)}
    return Pools(n_items=n_items, items=words, draws={}, categories={"object": "objects", "label": "labels"})


def scenario(objects, labels):
    return Scenario(0, {"object": tuple(objects), "label": tuple(labels)}, {})


ALL_OF_TWO = [scenario(o, x) for o in combinations(OBJECTS[:3], 2) for x in permutations(LABELS[:3], 2)]


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(2, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), st.integers(0, 99))
def test_every_prefix_asks_for_each_item_equally_often_up_to_one(sizes, seed):
    n_items, n_queries = sizes
    scenarios = list(islice(balanced(generator(seed), n_items, n_queries), 20))
    assert all(len(set(chosen)) == n_queries for chosen in scenarios)
    asked = list(chain.from_iterable(scenarios))
    for length in range(1, len(asked) + 1):
        counts = Counter(asked[:length])
        assert max(counts.values()) - min(counts[i] for i in range(n_items)) <= 1


def test_splits_share_no_combination_even_when_nearly_all_are_drawn():
    few = pools(OBJECTS[:4], LABELS[:4])  # 6 * 6 combinations, 4 orders each
    drawn = {}
    for split in SPLITS:
        scenarios = [draw_scenario(generator(split, seed), split, few, 0) for seed in range(200)]
        drawn[split] = {tuple(map(frozenset, each.items.values())) for each in scenarios}
    assert sum(map(len, drawn.values())) == len(set().union(*drawn.values())) == 36


def test_a_split_is_about_a_fifth_of_all_combinations():
    random = generator("all")
    draws = [scenario(random.sample(OBJECTS, 3), random.sample(LABELS, 3)) for _ in range(5000)]
    counts = Counter(split_of(each.words) for each in draws)
    assert all(abs(counts[split] - 1000) < 150 for split in SPLITS)  # five standard deviations of 28


def test_the_split_does_not_depend_on_the_order():
    assert scenario("ab", "FK").words == scenario("ba", "KF").words
    assert len({split_of(scenario("ab", pair).words) for pair in pairwise(LABELS)}) > 1


def test_draws_are_those_written_down_here_in_every_process():
    assert draw_scenario(generator("task", 7, "mask", 0), "mask", pools(n_items=3), 0) == GOLDEN


GOLDEN = scenario("ick", "JCH")


def test_no_scenario_comes_twice_not_even_in_another_order_and_running_out_of_them_is_said():
    scenarios = distinct_scenarios((0,), "discovery", pools(OBJECTS[:3], LABELS[:3]))
    possible = [each for each in ALL_OF_TWO if split_of(each.words) == "discovery"]
    drawn = list(islice(scenarios, len(possible)))
    assert {frozenset(zip(*each.items.values(), strict=True)) for each in drawn} == {
        frozenset(zip(*each.items.values(), strict=True)) for each in possible
    }
    with pytest.raises(InputError, match=rf"'discovery' has only some {len(possible)} scenarios: ask for fewer"):
        next(scenarios)


def test_a_split_without_any_combination_is_said():
    own = split_of(scenario(OBJECTS[:2], LABELS[:2]).words)
    other = next(split for split in SPLITS if split != own)
    with pytest.raises(InputError, match=rf"2 objects, 2 labels leave no combination to split '{other}'; 2 items"):
        draw_scenario(generator(0), other, pools(OBJECTS[:2], LABELS[:2]), 0)


def question():
    return Question(scenario(("apple", "book", "cup"), "FKM"), asked=1, other=2)


def changed(random, rule, asked):
    n = len(asked.scenario.items["object"])
    return draw_counterfactual(random, Counterfactual(**rule), asked, pools(n_items=n), "label", ["0"])


def test_minimal_pairs_are_those_worked_out_by_hand():
    # The query is Box K (item 1), the control is item 2: only item 0 is left to change places with.
    other, objects, labels = (
        changed(generator(0), rule, question())
        for rule in ({"ask": "other"}, {"swap": "object"}, {"swap": "label", "ask": "other"})
    )
    same = question().scenario
    assert other == Question(same, asked=0, other=1)
    assert objects == Question(scenario(("book", "apple", "cup"), "FKM"), asked=1, other=2)
    assert labels == Question(scenario(("apple", "book", "cup"), "KFM"), asked=0, other=1)


def test_of_two_items_the_other_one_stands_in():
    two = Question(scenario(("apple", "book"), "FK"), asked=1, other=0)
    assert changed(generator(0), {"ask": "other"}, two).asked == 0


def test_stand_in_items_are_all_but_the_clean_ones_equally_often():
    drawn = Counter()
    for seed in range(1000):
        asked = Question(scenario("abcde", "ABCDE"), asked=1, other=3)
        drawn[changed(generator(seed), {"ask": "other"}, asked).asked] += 1
    assert set(drawn) == {0, 2, 4}
    assert all(abs(n - 333) < 75 for n in drawn.values())  # five standard deviations of 15
