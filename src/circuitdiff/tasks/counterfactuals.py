"""A question's counterfactual: words drawn anew, a field swapped between two items, another item or word asked for.

Differs from the published code, which let the label asked for occur in the counterfactual's context, and drew the
stand-in segment afresh for every sender.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from circuitdiff.errors import InputError
from circuitdiff.tasks.changes import holds
from circuitdiff.tasks.scenarios import MOST_DRAWS, Pools, Question, Scenario, draw_again, split_of
from circuitdiff.tasks.template_file import Counterfactual


def draw_counterfactual(
    random: Random, rule: Counterfactual, question: Question, pools: Pools, given: str | None, wordings: Sequence[str]
) -> Question:
    """The question's counterfactual by a rule, in the same split. `given`: the field by which questions name an item.

    The roles that follow the item asked for follow the other one with `ask: other`, whether or not it has an answer.
    """
    clean, here = question.scenario, question.asked
    asked, other, there = here, question.other, here
    if pools.n_items > 1 and (rule.swap is not None or rule.ask == "other"):
        there = random.choice(_others(question, pools))
    if rule.ask == "other":
        asked, other = there, (there + other - here) % max(1, pools.n_items)
    scenario = _redrawn(random, rule, clean, pools) if rule.redraw else clean
    if rule.swap is not None:
        scenario = _swapped(scenario, rule.swap, here, there)
    if rule.wording:
        name = wordings[clean.wording]
        scenario = replace(scenario, wording=wordings.index(rule.wording.get(name, name)))
    word = None
    if rule.given == "elsewhere" and given is not None:
        used = {*clean.items[given], *scenario.items[given]}
        word = random.choice([each for each in pools.items[given] if each not in used])
    return Question(scenario, asked, other, word)


def _others(question: Question, pools: Pools) -> list[int]:
    """Items that are neither asked for nor the control's, if there are such, and hold one thing where things move."""
    scenario, n = question.scenario, pools.n_items
    held = holds(scenario.changes, n)
    alone = [i for i in range(n) if i != question.asked and len(held[i]) == 1]
    return [i for i in alone if i != question.other] or alone


def _redrawn(random: Random, rule: Counterfactual, clean: Scenario, pools: Pools) -> Scenario:
    """Other words in the fields that the rule names, none of them in the clean prompt.

    Where all that decides the split is drawn anew, the split stays: no prompt of another one is shown here.

    Raises: InputError if no such words are left.
    """
    fresh, whole = pools.without(clean), set(rule.redraw) >= set(pools.items or pools.draws)
    for _ in range(MOST_DRAWS):
        scenario = draw_again(random, rule.redraw, clean, fresh)
        if not whole or split_of(scenario.words) == split_of(clean.words):
            return scenario
    raise InputError(
        f"no counterfactual with other words for {', '.join(rule.redraw)} is left: give the task more words, or "
        f"redraw less"
    )


def _swapped(scenario: Scenario, field: str, i: int, j: int) -> Scenario:
    words = list(scenario.items[field])
    words[i], words[j] = words[j], words[i]
    return replace(scenario, items={**scenario.items, field: tuple(words)})
