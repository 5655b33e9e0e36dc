"""The page on planted models, in Markdown: where answers are right and plainer ones are not, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import numpy as np

from circuitdiff.ground_truth.asked import GroundTruth
from circuitdiff.ground_truth.plantings import HELD_OUT, Planting, study_of
from circuitdiff.ground_truth.rivals import ATTRIBUTION, EFFECT, WEIGHTS, Z_PATCHING, FoundHeads
from circuitdiff.ground_truth.statements import Statement
from circuitdiff.planted.table import PLANTED
from circuitdiff.stats.proportions import accuracy_interval

_INTRODUCTION = """# Ground truth

Made by `circuitdiff ground-truth`; do not edit. Circuits and causes are known here, because they were written into the
weights ([planted.md](planted.md)): so every answer can be right or wrong. Each planted model is asked by a study like
any other, with the paper's plan ({n} + {n} prompts to discover, {evaluation} to evaluate); truth follows from the
wiring, never from what came.

Where all other parts compute what they did, grafts and patches say 1.00 of the part that got better and 0.00 of the
others by identity, however their weights were moved. So whose the gain is, and where it is visible, is asked only of
models in which *every* weight of every part was moved by noise, which changes logits and some answers.

Beside ours stands what plainer methods would have said. Of heads: *attribution* (gradient times change of z, on the
prompts that discover) and *effect* (path patching, the strongest), both **told** how many heads there are, which ours
is not. Of the part that got better: *z-patching* (the groups whose z, patched alone into the base, brings half of the
gain: the paper's way) and *weights* (the parts whose weights moved most per number).

A name with `@N` is the planting of seed N. An answer is yes, no, or open ("not established"), and right or wrong where
it is yes or no. *Encodes* asks what a group's mask carries (the object, its position, the label). [Brackets] are 95 %
intervals over plantings, whose answers go together, and are as wide as these few plantings make them. Automatic plans,
screens, rivals and the stability of a choice are not asked here.
"""
_HELD_OUT = """
Seeds of the held-out plantings were drawn when methods and rules of this page were fixed, and run once; they stand here
whatever came. Another seed has other places, strengths, codes and decoys. Ten of an earlier page, which was found to be
true by identity, were looked at and are not among these. One, of `planted-new-route`, was drawn anew:
a first one had led to a change of a self-check before any answer was looked at.
"""
_WHY_WRONG = {
    "planted-outvoted": """
`planted-outvoted` is meant to be wrong here: two of three transmitters suffice, so that patching a single one changes
too little to be called a discovery; told how many heads there are, the order of their small effects is right.
""",
    "planted-cancelling": """
In `planted-cancelling` the mean effect of one head of the pair is less than a third of the others' and uncertain
(adjusted p above 0.05); told how many heads there are, path patching has it fifth.
""",
}
_OF_HEADS, _OF_PARTS = (ATTRIBUTION, EFFECT), (Z_PATCHING, WEIGHTS)


def render_page(truth: GroundTruth) -> str:
    """The whole page."""
    heads, said = truth.heads, truth.statements
    wrong_heads = [each for each in heads if not each.exact]
    settings = study_of(Planting("planted-base"))
    parts = [
        _INTRODUCTION.format(n=settings.prompts.discovery, evaluation=settings.prompts.evaluation),
        "\n## Right, where a plainer method is not\n\n",
        _causes(each for each in _pairs(said) if _settled(each) and _beaten(each)),
        "\n",
        _found(each for each in heads if each.exact and _misled(each)),
        "\n## Wrong\n\nAnswers:\n\n",
        _listed(each for each in said if each.right is False),
        "\nGroups of heads that were not found as planted:\n\n",
        _found(wrong_heads),
        *(why for model, why in _WHY_WRONG.items() if any(each.model == model for each in wrong_heads)),
        "\n## How often is an answer right?\n\n",
        "Held-out plantings:\n\n",
        rates([each for each in said if each.held_out]),
        _count([each for each in heads if each.held_out]),
        _HELD_OUT if HELD_OUT else "",
        "\nPlantings that were looked at while methods and rules were written:\n\n",
        rates([each for each in said if not each.held_out]),
        _count([each for each in heads if not each.held_out]),
        "\n## What was left open\n\n",
        _same_circuit([each for each in said if each.claim == "same circuit" and each.true]),
        _listed(each for each in said if each.right is None),
        *(
            ["\nNo answers, for a self-check ended the study:\n\n", *(f"- {each}\n" for each in truth.failed)]
            if truth.failed
            else []
        ),
        "\n## Whose is the gain? All pairs\n\n",
        _causes(_pairs(said)),
        "\n## Which heads? All groups\n\n",
        _found(heads),
        "\n## What was planted\n\n",
        table(("model", "what it is"), [(f"`{name}`", entry.note) for name, entry in PLANTED.items()]),
    ]
    return "".join(parts).rstrip() + "\n"


# Whose is the gain?


def _pairs(said: Iterable[Statement]) -> list[list[Statement]]:
    """What is said of each pair's parts."""
    asked = (each for each in said if each.claim == "improved")
    return [list(of_pair) for _, of_pair in groupby(asked, lambda each: each.planting)]


def _same_circuit(said: Sequence[Statement]) -> str:
    """That equivalence is hard to establish, in numbers."""
    n_yes = sum(each.ours == "yes" for each in said)
    return f"Of {len(said)} pairs in which the same circuit is at work, the verdict established it in {n_yes}.\n\n"


def _settled(pair: Sequence[Statement]) -> bool:
    """Exactly the parts that improved are named, and not everything is open."""
    answered = any(each.ours in ("yes", "no") for each in pair)
    return answered and _names(pair, lambda each: each.ours == "yes") == _names(pair, lambda each: each.true)


def _beaten(pair: Sequence[Statement]) -> bool:
    truth = _names(pair, lambda each: each.true)
    return any(_named_by(rival, pair) != truth for rival in _OF_PARTS)


def _named_by(rival: str, pair: Sequence[Statement]) -> str:
    return _names(pair, lambda each: each.rivals.get(rival) == "yes")


def _names(pair: Sequence[Statement], chosen: Callable[[Statement], bool]) -> str:
    return ", ".join(each.about for each in pair if chosen(each)) or "none"


def _causes(pairs: Iterable[Sequence[Statement]]) -> str:
    lines = []
    for pair in pairs:
        truth = _names(pair, lambda each: each.true)
        wrong = any(each.right is False for each in pair)
        ours = _names(pair, lambda each: each.ours == "yes")
        opened = _names(pair, lambda each: each.right is None)
        ours += "" if opened == "none" else f" (open: {opened})"
        rivals = (_named_by(rival, pair) for rival in _OF_PARTS)
        lines.append((_place(pair[0]), truth, _marked(ours, not wrong), *(_marked(r, r == truth) for r in rivals)))
    return table(("variant", "parts that got better", "ours", *_OF_PARTS), lines)


# Which heads?


def _misled(heads: FoundHeads) -> bool:
    return any(precision is not None and precision < 1 for precision in heads.rivals.values())


def _found(heads: Iterable[FoundHeads]) -> str:
    lines = []
    for each in heads:
        found, planted, common = each.ours
        ours = f"{common} of {planted}" + (f", and {found - common} more" if found > common else "")
        rivals = ("–" if (p := each.rivals[name]) is None else _marked(f"{p:.2f}", p == 1) for name in _OF_HEADS)
        place = f"`{each.model}`" if each.planting == each.model else f"`{each.model}` ({each.planting})"
        lines.append((place, each.group, _marked(ours, each.exact), *rivals))
    head = ("model", "group", "planted heads found", *(f"{name}: recall, told k" for name in _OF_HEADS))
    return table(head, lines)


# How often?


def rates(said: Sequence[Statement]) -> str:
    """By claim, how many answers are right and how many open; of few plantings the intervals are wide."""
    if not said:
        return "None yet.\n"
    claims = list(dict.fromkeys(each.claim for each in said))
    lines = [_rate(claim, [each for each in said if each.claim == claim]) for claim in claims]
    return table(("claim", "asked", "yes: right", "no: right", "open"), [*lines, _rate("**all**", said)])


def _count(heads: Sequence[FoundHeads]) -> str:
    if not heads:
        return ""
    found, planted, common = (sum(each.ours[i] for each in heads) for i in range(3))
    there, none = [each for each in heads if each.ours.second], [each for each in heads if not each.ours.second]
    return (
        f"\nHeads: {common} of {found} that were found are planted there, and {common} of {planted} that are planted "
        f"were found; {sum(each.exact for each in there)} of {len(there)} groups are exact. Where a group has no head, "
        f"none was found in {sum(each.exact for each in none)} of {len(none)}.\n"
    )


def _rate(claim: str, said: Sequence[Statement]) -> tuple[str, ...]:
    rates = (_share([(each.planting, each.right is True) for each in said if each.ours == a]) for a in ("yes", "no"))
    return claim, str(len(said)), *rates, _share([(each.planting, each.right is None) for each in said])


def _share(hits: Sequence[tuple[str, bool]]) -> str:
    """With Wilson's 95 % interval for answers that go together where they are of one planting."""
    if not hits:
        return "–"
    _, plantings = np.unique([planting for planting, _ in hits], return_inverse=True)
    bounds = accuracy_interval(np.array([hit for _, hit in hits], dtype=float), plantings)
    share = f"{sum(hit for _, hit in hits)} of {len(hits)}"
    return share if np.isnan(bounds.low) else f"{share} [{float(bounds.low):.2f}, {float(bounds.high):.2f}]"


def _listed(said: Iterable[Statement]) -> str:
    lines = [
        (_place(each), f"{each.claim} {each.about}".strip(), "yes" if each.true else "no", each.ours, each.text)
        for each in said
    ]
    return table(("variant", "claim", "truth", "ours", "what was said"), lines) if lines else "None.\n"


def _place(said: Statement) -> str:
    return f"`{said.planting}`"


def _marked(text: str, right: bool) -> str:
    return text if right else f"**{text}** ✗"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return "None.\n"
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)
