import math

import pytest
import torch

from circuitdiff.circuit import Circuit, Group, Head, beyond, circuit_overlap, overlap, total_overlap
from circuitdiff.errors import InputError
from circuitdiff.methods.component_mask.training import kept, selected
from circuitdiff.methods.minimality import PairTable, keep, pair_removal, removal_set
from circuitdiff.stats.metrics import negligible
from circuitdiff.stats.selection import Discoveries, Sample, TopK, drop_shared, lowest, select

NAN = math.nan
EFFECTS = torch.tensor([[-0.2, 0.3, -0.5], [NAN, -0.5, -0.1]])
HELPER, HURTER, LOTTERY, WEAK = Head(0, 1), Head(1, 2), Head(2, 0), Head(3, 1)
A, B, C, D = Head(4, 1), Head(5, 2), Head(6, 3), Head(7, 1)


def names(heads):
    return [str(head) for head in heads]


def sweep(seed, lottery=0.0):
    """4 x 3 heads on 60 scenarios of 2 prompts: one helps, one hurts, one is consistent but weak, the rest is noise."""
    generator = torch.Generator().manual_seed(seed)
    effects = 0.3 * torch.randn(4, 3, 120, generator=generator)
    effects[HELPER.layer, HELPER.index] -= 0.5
    effects[HURTER.layer, HURTER.index] += 0.4
    effects[LOTTERY.layer, LOTTERY.index] -= lottery
    effects[WEAK.layer, WEAK.index] = -0.015 + 0.001 * torch.randn(120, generator=generator)
    effects[3, 2] = NAN
    return Sample(effects, torch.arange(60).repeat_interleave(2))


def test_the_lowest_come_in_order_with_ties_row_by_row_and_never_a_nan():
    assert names(lowest(EFFECTS, 3)) == ["0.2", "1.1", "0.0"]
    assert names(lowest(EFFECTS, 99)) == ["0.2", "1.1", "0.0", "1.2", "0.1"]
    assert names(lowest(EFFECTS, 99, helping_only=True)) == ["0.2", "1.1", "0.0", "1.2"]


def test_ties_keep_their_order_in_a_large_table():
    # torch sorts 16 values or fewer stably whether asked to or not
    assert lowest(torch.zeros(40, 30), 1200) == [Head(layer, i) for layer in range(40) for i in range(30)]


def test_shared_heads_leave_the_first_group_by_value_with_its_order_kept():
    first = [Head(300, 1), Head(2, 300), Head(5, 5)]
    assert drop_shared(first, [Head(2, 300), Head(9, 9)]) == [Head(300, 1), Head(5, 5)]


def test_top_k_takes_helpers_and_hurters_strongest_first():
    chosen = select(*sweep(0), TopK(2), noise_floor=0.0)
    assert chosen.helping[0] == HELPER
    assert chosen.hurting[0] == HURTER
    assert len(chosen.helping) == len(chosen.hurting) == 2


def test_nothing_at_or_below_the_noise_floor_is_selected_by_any_rule():
    for rule in (TopK(12), Discoveries(replicated=False), Discoveries(replicated=False, method="max_t")):
        chosen = select(*sweep(0), rule, noise_floor=0.45)
        assert (chosen.helping, chosen.hurting) == ((HELPER,), ())


@pytest.mark.parametrize("method", ["bh", "max_t"])
def test_discoveries_are_two_sided_and_weak_ones_count_unless_a_minimum_is_set(method):
    rule = Discoveries(replicated=False, method=method, minimum=0.0)
    chosen = select(*sweep(0), rule, noise_floor=0.001)
    assert (chosen.helping, chosen.hurting) == ((HELPER, WEAK), (HURTER,))
    large = Discoveries(replicated=False, method=method, minimum=0.1)
    assert select(*sweep(0), large, noise_floor=0.001).helping == (HELPER,)


@pytest.mark.parametrize(
    ("metric", "smallest", "weak"),
    [
        ("logit_difference", 0.02, ()),
        ("log_prob", 0.02, ()),
        ("relative_probability", 0.02, ()),
        ("probability_difference", 0.01, (WEAK,)),
        ("my_own", 0.0, (WEAK,)),
    ],
)
def test_unless_a_minimum_is_given_it_is_the_metrics(metric, smallest, weak):
    chosen = select(*sweep(0), Discoveries(replicated=False), noise_floor=0.001, metric=metric)
    assert chosen.helping == (HELPER, *weak)
    assert chosen.rule.minimum == smallest


def test_the_smallest_effects_that_matter_are_2_percent_of_the_odds():
    odds = 1.02
    assert negligible("logit_difference") == pytest.approx(math.log(odds), abs=2e-4)
    at_even_odds = odds / (1 + odds) - 0.5  # of the answer's probability against a foil's
    assert at_even_odds == pytest.approx(0.005, abs=1e-4)
    assert negligible("probability_difference") == pytest.approx(2 * at_even_odds, abs=1e-4)


def test_a_discovery_must_show_again_with_the_same_sign_on_the_second_split():
    rule = Discoveries(minimum=0.1)
    first = sweep(0, lottery=0.3)
    kinds = {lottery: select(*first, rule, 0.001, sweep(1, lottery)) for lottery in (0.3, 0.0, -0.3)}
    assert kinds[0.3].helping == (HELPER, LOTTERY)
    assert kinds[0.0].helping == kinds[-0.3].helping == (HELPER,)
    assert [kind.not_replicated for kind in kinds.values()] == [(), (LOTTERY,), (LOTTERY,)]
    assert all(kind.hurting == (HURTER,) for kind in kinds.values())


def test_a_replication_that_is_asked_for_but_not_given_is_an_error():
    with pytest.raises(InputError, match="second split"):
        select(*sweep(0), Discoveries(), noise_floor=0.0)


def test_of_pure_noise_nearly_nothing_is_discovered():
    generator = torch.Generator().manual_seed(3)
    noise = [Sample(torch.randn(20, 15, 60, generator=generator), torch.arange(60)) for _ in range(2)]
    chosen = select(*noise[0], Discoveries(), 0.0, noise[1])
    assert (chosen.helping, chosen.hurting) == ((), ())
    assert (chosen.p < 0.05).sum() > 5


def pair_table():
    """B and C stand in for A; without B, removing A costs 40 hits. Diagonal: A, B, C, D removed alone."""
    scores = [[90, 50, 80, 88], [50, 90, 85, 95], [80, 85, 90, 90], [88, 95, 90, 90]]
    return PairTable((A, B, C, D), torch.tensor(scores, dtype=torch.float64))


def test_equal_drops_keep_the_tables_order():
    heads = tuple(Head(layer, 7) for layer in range(39, -1, -1))  # 40: torch sorts few values stably by chance
    table = PairTable(heads, torch.full((40, 40), 50.0, dtype=torch.float64).fill_diagonal_(60.0))
    head = Head(3, 7)
    assert removal_set(table, head, fraction=1.0) == [other for other in heads if other != head]


def test_unmeasured_pairs_stand_in_for_nothing():
    scores = pair_table().scores.clone()
    scores[0, 1] = NAN
    assert removal_set(PairTable((A, B, C, D), scores), A) == [C, D]


def test_the_removal_set_is_a_share_of_the_group_rounded_up_and_ends_where_nothing_is_gained():
    assert removal_set(pair_table(), A) == [B, C]  # ceil(0.3 * 4) = 2
    assert removal_set(pair_table(), A, fraction=1.0) == [B, C, D]  # A itself gains 0
    assert removal_set(pair_table(), B, fraction=1.0) == [A, C]  # D: 90 - 95 < 0
    hundred = PairTable(tuple(Head(0, i) for i in range(100)), torch.eye(100, dtype=torch.float64))
    assert len(removal_set(hundred, Head(0, 99), fraction=0.07)) == 7  # in floats 0.07 * 100 is above 7


def test_a_pair_of_heads_with_the_same_index_is_removed_together():
    far = Head(8, int("300")), Head(9, int("300"))  # equal numbers that are two objects
    assert pair_removal(*far) == {*far}
    assert pair_removal(*far, joint_removal_of_same_index=False) == {far[0]}
    assert pair_removal(A, D) == {A, D}
    assert pair_removal(A, D, joint_removal_of_same_index=False) == {A}
    assert pair_removal(A, B, joint_removal_of_same_index=False) == {A, B}
    assert pair_removal(A, A) == {A}


@pytest.mark.parametrize(
    ("before", "after", "threshold", "needs"),
    [
        (66, 65, 0.01, True),
        (101, 100, 0.01, True),
        (660, 655, 0.01, False),
        (50, 50, 0.0, True),
        (50, 51, 0.0, False),
        (3, 0, 0.01, True),
        (0, 0, 0.01, False),
        (0, 0, 0.0, True),
    ],
)
def test_a_head_is_needed_when_losing_it_costs_at_least_the_threshold(before, after, threshold, needs):
    assert keep(before, after, threshold) is needs


def test_masks_are_clamped_and_rounded_half_to_even():
    mask = torch.tensor([-0.6, 0.5, 0.500001, 1.7])
    assert kept(mask).tolist() == [False, False, True, True]
    assert selected(mask, [A, B, C, D]) == [A, B]


def test_the_overlap_counts_heads_by_value_once():
    shared = overlap([Head(1, 300), Head(2, 2), Head(2, 2)], [Head(1, 300), Head(3, 3), Head(4, 4)])
    assert shared == (2, 3, 1)
    assert (shared.precision, shared.recall, shared.jaccard) == (1 / 2, 1 / 3, 1 / 4)


def test_empty_groups_have_no_shares():
    empty = overlap([], [])
    assert all(math.isnan(share) for share in (empty.precision, empty.recall, empty.jaccard))


def test_circuits_overlap_group_by_group_and_a_lacking_group_is_empty():
    first = Circuit({"movers": Group("last", (A, B)), "readers": Group("query_label", (A,))})
    second = Circuit({"movers": Group("last", (B,)), "others": Group("last", (A,))})
    assert circuit_overlap(first, second) == {"movers": (2, 1, 1), "readers": (1, 0, 0), "others": (0, 1, 0)}


def test_whole_circuits_have_a_head_in_common_whatever_its_group_but_not_at_another_role():
    first = Circuit({"movers": Group("last", (A, B)), "readers": Group("query_label", (C,))})
    second = Circuit({"others": Group("last", (A, C, D)), "movers": Group("last", (B,))})
    assert total_overlap(first, second) == (3, 4, 2)
    assert beyond(second, first) == Circuit({"others": Group("last", (C, D))})
