"""What is true of a planted pair by its wiring, and what a study's verdict answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from circuitdiff.ground_truth.plantings import MASKED, Planting
from circuitdiff.planted import Planted
from circuitdiff.study.claims_on_parts import visible_parts
from circuitdiff.study.estimates import printed
from circuitdiff.study.evidence import JUDGED, PartsEvidence
from circuitdiff.study.results import CommonResults
from circuitdiff.study.sections.functions import MaskCell
from circuitdiff.study.sections.verdict import Verdict
from circuitdiff.study.verdict import Sentence

Answer = Literal["yes", "no", "open"]
Claim = Literal["does better", "same circuit", "same functions", "improved", "gain visible at", "encodes"]

_CHAIN = ("structure_reader", "position_detector", "position_transmitter", "value_fetcher")  # each feeds the next
_PARTS = {"mlp": "mlps", "negative": "other heads"}  # as grafts call them
_ANSWERS: Mapping[str, Answer] = {"yes": "yes", "better": "yes", **dict.fromkeys(("no", "kept", "worse", "lost"), "no")}
ANY = "any part"
_SAID = ("yes", "no")  # of a sentence; else its parts, too, are open
_MOVED = "planted-permuted-heads"  # computes the same with other heads: is its circuit the same?
_EITHER = "planted-both-in-noise"  # transmitters alone bring half, more or less
_MINIMUM = 0.05  # accuracy above the floor: what is surely less carries nothing


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
        return stated(claim, "", true, answer_of(sentence.answer), sentence.text)

    found = []
    better = bool(truth.improved_parts) or planting.name == "planted-new-route"
    if better or truth.wiring.noise:  # others compute what the base does, or nobody knows
        found.append(of_sentence("does better", said["behaviour"], better))
    if planting.name != _MOVED:
        found.append(of_sentence("same circuit", said["same_circuit"], truth.same_circuit))
        if said["same_function"].answer != "not asked":
            found.append(of_sentence("same functions", said["same_function"], truth.same_circuit))
    if truth.wiring.noise:  # else all other parts compute just what they did
        found += [
            stated("improved", part, true, ours, said["improved_part"].text, **_named(part, rivals))
            for part, true, ours in _improved(truth, verdict, said["improved_part"], said["behaviour"])
        ]
        found += [
            stated("gain visible at", group, true, ours, said["visible_part"].text)
            for group, true, ours in _visible(truth, results, variant, said["visible_part"], verdict)
        ]
    if planting.held_out or planting.name == MASKED:
        cells = (results.functions or {}).get(base, {}).get(base, {})  # pyright: ignore[reportAttributeAccessIssue]
        for group, name in product(_CHAIN, ("object", "position", "label")):
            cell = cells.get(group, {}).get(name)
            true = name == ("object" if group == "value_fetcher" else "position")
            found.append(stated("encodes", f"{name} in {group}", true, *_carries(cell)))
    return found


def _carries(cell: MaskCell | None) -> tuple[Answer, str]:
    if cell is None:
        return "open", "no such group was found"
    high, text = cell.above_floor.high, f"accuracy above the floor {printed(cell.above_floor)}"
    return ("yes" if cell.carries else "no" if high is not None and high < _MINIMUM else "open"), text


def answer_of(said: str) -> Answer:
    return _ANSWERS.get(said, "open")


def _named(part: str, rivals: Mapping[str, Sequence[str]]) -> dict[str, Answer]:
    return {rival: "yes" if part in named or (part == ANY and named) else "no" for rival, named in rivals.items()}


def _improved(
    truth: Planted, verdict: Verdict, sentence: Sentence, behaviour: Sentence
) -> Iterator[tuple[str, bool, Answer]]:
    """Every part of the graft; where there is no gain to share out, whether any improved."""
    improved = {_PARTS.get(part, part) for part in truth.improved_parts}
    parts = verdict.parts.get("graft")
    worse = behaviour.answer in ("worse", "lost")  # then the verdict says what the variant lacks
    if sentence.answer == "not asked" or worse or not parts:  # there is no gain; or the base has no circuit
        yield ANY, bool(improved), "no" if parts else "open"
        return
    for each in parts:
        yield each.part, each.part in improved, answer_of(each.improved) if sentence.answer in _SAID else "open"


def _visible(
    truth: Planted, results: CommonResults, variant: str, sentence: Sentence, verdict: Verdict
) -> Iterator[tuple[str, bool, Answer]]:
    """A group shows, patched alone, what it or a group before it does better."""
    if not truth.improved_parts:
        return
    patched = (results.cross_model or {}).get(variant)  # pyright: ignore[reportAttributeAccessIssue]
    scores = {} if patched is None or not patched.to_base else patched.to_base["contribution"].scores
    answers: Mapping[str, str] = {}
    if scores and sentence.answer in _SAID:
        answers = visible_parts(PartsEvidence({score: scores[score].parts for score in JUDGED}), verdict.thresholds)
    first = min(_CHAIN.index(part) if part in _CHAIN else len(_CHAIN) for part in truth.improved_parts)
    for group in _CHAIN:
        if truth.name == _EITHER and group == "position_transmitter":
            continue
        shows = first <= _CHAIN.index(group)
        if truth.wiring.recoded:  # fetchers of the base do not read the code that patched transmitters write
            shows = group == "value_fetcher"
        yield group, shows, answer_of(answers.get(group, "open"))
