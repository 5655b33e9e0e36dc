"""What is true of a planted pair by its wiring, and what a study's verdict answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from circuitdiff.ground_truth.plantings import OTHER_ROUTES, Planting
from circuitdiff.planted import Planted
from circuitdiff.study.claims_on_parts import UNCHANGED, visible_parts
from circuitdiff.study.evidence import JUDGED, PartsEvidence
from circuitdiff.study.results import CommonResults
from circuitdiff.study.sections.verdict import Verdict
from circuitdiff.study.verdict import Sentence

Answer = Literal["yes", "no", "open"]
Claim = Literal["does better", "same circuit", "same functions", "improved", "gain visible at", "encodes"]

_CHAIN = ("structure_reader", "position_detector", "position_transmitter", "value_fetcher")  # each feeds the next
_PARTS = {"mlp": "mlps", "negative": "other heads"}  # as grafts call them
_ANSWERS: Mapping[str, Answer] = {"yes": "yes", "better": "yes", **dict.fromkeys(("no", "kept", "worse", "lost"), "no")}
_SAID = ("yes", "no")  # of a sentence; else its parts, too, are open
_MOVED = "planted-permuted-heads"  # computes the same with other heads: is its circuit the same?
_LOUDER = "planted-louder-fetchers"  # other logits, and perhaps other answers
_EITHER = ("planted-two-causes", "planted-both-among-changes")  # transmitters alone bring half, more or less


@dataclass(frozen=True)
class Statement:
    """Something that is true or false by the wiring; what the verdict answers, and what rivals do, where they can.

    `text`: the verdict's sentence, or a number.
    """

    planting: str
    held_out: bool
    claim: Claim
    about: str
    true: bool
    ours: Answer
    text: str
    rivals: Mapping[str, Answer]

    @property
    def right(self) -> bool | None:
        """None: it was left open."""
        return None if self.ours == "open" else (self.ours == "yes") == self.true


def statements(
    planting: Planting, truth: Planted, results: CommonResults, rivals: Mapping[str, Sequence[str]]
) -> list[Statement]:
    """About a pair, from its study. `rivals`: the parts that each of them names as improved."""
    base, variant = planting.models
    verdict: Verdict = results.verdict[variant]  # pyright: ignore[reportAttributeAccessIssue]
    said = {sentence.claim: sentence for sentence in verdict.sentences}

    def stated(claim: Claim, about: str, true: bool, ours: Answer, text: str, **of_rivals: Answer) -> Statement:
        return Statement(planting.title, planting.held_out, claim, about, true, ours, text, of_rivals)

    def of_sentence(claim: Claim, sentence: Sentence, true: bool) -> Statement:
        return stated(claim, "", true, _answer(sentence.answer), sentence.text)

    found = []
    better = bool(truth.improved_parts) or planting.name == "planted-new-route"
    if planting.name not in (_LOUDER, "planted-lexical"):
        found.append(of_sentence("does better", said["behaviour"], better))
    if planting.name != _MOVED:
        found.append(of_sentence("same circuit", said["same_circuit"], truth.same_circuit))
        if said["same_function"].answer != "not asked":
            found.append(of_sentence("same functions", said["same_function"], truth.same_circuit))
    if planting.name not in OTHER_ROUTES:
        found += [
            stated("improved", part, true, ours, said["improved_part"].text, **_named(part, rivals))
            for part, true, ours in _improved(truth, verdict, said["improved_part"])
        ]
        found += [
            stated("gain visible at", group, true, ours, said["visible_part"].text)
            for group, true, ours in _visible(truth, results, variant, said["visible_part"], verdict)
        ]
    cells = (results.functions or {}).get(base, {}).get(base, {})  # pyright: ignore[reportAttributeAccessIssue]
    for group, of_group in cells.items():
        for name, cell in of_group.items():
            high, above = cell.above_floor.high, cell.above_floor.value
            ours: Answer = "yes" if cell.carries else "no" if high is not None and high < 0.05 else "open"
            true = name == ("object" if group == "value_fetcher" else "position")
            found.append(stated("encodes", f"{name} in {group}", true, ours, f"accuracy above the floor {above:.2f}"))
    return found


def _answer(said: str) -> Answer:
    return _ANSWERS.get(said, "open")


def _named(part: str, rivals: Mapping[str, Sequence[str]]) -> dict[str, Answer]:
    return {rival: "yes" if part in named else "no" for rival, named in rivals.items()}


def _improved(truth: Planted, verdict: Verdict, sentence: Sentence) -> Iterator[tuple[str, bool, Answer]]:
    """Every part of the graft that could have improved; none where only one part's weights differ: what a graft says
    then follows from that.
    """
    changed = [each for each in verdict.parts.get("graft", ()) if each.numbers != UNCHANGED]
    improved = {_PARTS.get(part, part) for part in truth.improved_parts}
    if len(changed) == 1:
        return
    if sentence.answer == "not asked":  # there is no gain
        yield "any part", bool(improved), "no"
        return
    for each in changed:
        yield each.part, each.part in improved, _answer(each.improved) if sentence.answer in _SAID else "open"


def _visible(
    truth: Planted, results: CommonResults, variant: str, sentence: Sentence, verdict: Verdict
) -> Iterator[tuple[str, bool, Answer]]:
    """A group shows, patched alone, what it or a group before it does better."""
    patched = (results.cross_model or {}).get(variant)  # pyright: ignore[reportAttributeAccessIssue]
    if patched is None or sentence.answer == "not asked" or not truth.improved_parts:
        return
    scores = patched.to_base["contribution"].scores
    found = PartsEvidence({score: scores[score].parts for score in JUDGED})
    answers = visible_parts(found, verdict.thresholds)
    first = min(_CHAIN.index(part) if part in _CHAIN else len(_CHAIN) for part in truth.improved_parts)
    for group, answer in answers.items():
        if not (truth.name in _EITHER and group == "position_transmitter"):
            shows = first <= _CHAIN.index(group)
            if truth.wiring.recoded:  # fetchers read another code than transmitters of the base write
                shows = group == "value_fetcher"
            yield group, shows, _answer(answer) if sentence.answer in _SAID else "open"
