"""What a comparison of a variant with its base allows to be said: numbers in, sentences out.

Every claim is answered yes, no, or "not established", and says why. A claim is a list of conditions on intervals: all
of them met is yes, one of them refuted is no, anything else is not established. A number that is missing establishes
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, nan
from typing import Any, Literal

Answer = Literal["yes", "no", "not established"]
Numbers = Mapping[str, Any]

# Parts of a graft that are no head group.
NO_HEAD_GROUP = ("other heads", "mlps", "norms", "embeddings", "unembedding", "the rest")
_SHOWN = 2  # reasons in the text; all of them stand beside it
_OTHER = "a different circuit is at work"
_MOVED = "other heads are at work, in groups that look and act alike"  # a mechanism that moved has not changed
SHARED = "other heads that read the same keys and values"  # a control that says whether the group's own heads matter


@dataclass(frozen=True)
class Thresholds:
    """What counts; stated with every verdict."""

    scenarios: int = 50  # with fewer nothing is said
    faithful: float = 0.8  # least lower bound of a circuit's normalised faithfulness
    too_faithful: float = 1.1  # greatest upper bound of it
    margin: float = 0.05  # a difference surely within it is none
    share: float = 0.5  # of the gain: what a part must surely bring, and no other part may


@dataclass(frozen=True)
class Sentence:
    """A claim with its answer and why; `table` is the section of the results that it rests on."""

    claim: str
    answer: Answer
    text: str
    reasons: tuple[str, ...]  # against it, or why it is open; none if the answer is yes
    table: str
    scope: str


@dataclass(frozen=True)
class _Condition:
    answer: Answer
    reason: str


def verdict(evidence: Numbers, thresholds: Thresholds | None = None) -> dict[str, Any]:
    """The sentences on one variant, as results.json holds them, with the thresholds.

    `evidence`: "base", "variant" and "scope" (texts), "failed_checks" (names; None: not run), "gain" (an interval with
    "n_scenarios"), and what was measured of
    "circuits": by ablation "base_own", "variant_own", "transfer" and "transfer_where_only_variant_right", the last with
    "n" scenarios;
    "similarity": by measure "value", "retest" and "different"; "same_work": whether other heads have the groups' own
    profiles ("moved"), on how many scenarios ("n_scenarios");
    "functions": by group "difference", of the base's mask in the variant less the variant's own, "above_floor", the
    same above the higher floor, and whether one of the floors was "trained"; "unknown": the groups that carry nothing
    known;
    "measured": by section, the "scope" and "n_scenarios" of its own prompts, where these are not the gain's;
    "donor": which of the two models is asked for what it has more; the variant, unless it is surely worse.
    "cmap" and "graft": "parts", by part the credits of `shares.attribute`; of a graft also "controls", by part and
    name, "also_touched", by part the query heads beyond its own that its keys and values serve, and "layers", by range
    of layers the credits. An interval is {"value", "low", "high"}, a credit as in `shares.Credit`.
    """
    limits = thresholds or Thresholds()
    base, variant, gained = evidence["base"], evidence["variant"], evidence.get("gain")
    lacks = evidence.get("donor") == base  # the variant is the worse one: what does the base have more?
    gain = _above("the gain in accuracy", gained)
    more = _above(f"the gain of {base} over {variant}", _negated(gained or {})) if lacks else gain
    parts, patched, layers = _parts(evidence, "graft"), _parts(evidence, "cmap"), _parts(evidence, "graft", "layers")
    best, shown = _largest(parts), [part for part in patched if _visible([part], patched, limits)[0].answer == "yes"]
    ranges = {name: credits for name, credits in layers.items() if name not in NO_HEAD_GROUP}
    deepest, cause = _largest(ranges), "" if parts else "; its cause was not located"
    shown = shown or [_largest(patched)]
    subject = f"the part that {variant} lacks" if lacks else "the improved part"
    named = subject if lacks else "improved part"
    improved = f"{subject} is {best}, which is no head group" if best in NO_HEAD_GROUP else f"{named}: {best}"
    gained_or_lacked = f"what {variant} lacks" if lacks else "the gain"
    visible = f"{gained_or_lacked} is visible at {' and '.join(shown)}{cause}"
    caused = f"{gained_or_lacked} is caused in {deepest}"
    function = f"{_listed(list(evidence.get('functions') or {}))} the same function{_unknown(evidence)}"
    other = _otherwise(evidence.get("same_work") or {}, limits)
    claims = [
        ("better", "models", f"{variant} does the task better than {base}", [], [gain]),
        ("same_circuit", "ablations", "the same circuit is at work", [more], _same_circuit(evidence, limits), other),
        ("same_function", "masks", function, [more], _same_function(evidence, limits)),
        ("improved_part", "graft", improved, [more], _caused_by(best, evidence, limits)),
        ("cause_layers", "layers", caused, [more], _caused_in(deepest, layers, limits)),
        ("visible_part", "cmap", visible, [more], _visible(shown, patched, limits)),
    ]
    return {
        "sentences": [asdict(_sentence(evidence, limits, *claim)) for claim in claims],
        "thresholds": asdict(limits),
    }


def _otherwise(work: Numbers, limits: Thresholds) -> str:
    """What there is where the base's circuit is not; groups that look and act alike on few scenarios leave it open."""
    n = work.get("n_scenarios", 0)
    if not work.get("moved"):
        return _OTHER
    return _MOVED if n >= limits.scenarios else f"{_OTHER}, or {_MOVED} (so far on {n} of {limits.scenarios} scenarios)"


def _sentence(
    evidence: Numbers,
    limits: Thresholds,
    claim: str,
    table: str,
    statement: str,
    gate: Sequence[_Condition],
    conditions: Sequence[_Condition],
    contrary: str | None = None,
) -> Sentence:
    """Nothing is said, for or against, unless the checks pass, scenarios suffice and the gate is open.

    `contrary`: what a "no" says.
    """
    measured = (evidence.get("measured") or {}).get(table) or {}
    n = measured.get("n_scenarios", (evidence.get("gain") or {}).get("n_scenarios", 0))
    closed = [each.reason for each in [*_trust(evidence, n, limits), *gate] if each.answer != "yes"]
    refuted = [each.reason for each in conditions if each.answer == "no"]
    unsure = [each.reason for each in conditions if each.answer == "not established"]
    answer: Answer = "not established" if closed else "no" if refuted else "not established" if unsure else "yes"
    reasons = closed or refuted or unsure
    more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    why = f", because {'; '.join(reasons[:_SHOWN])}{more}" if reasons else ""
    said = contrary if contrary and answer == "no" else statement
    text = f"{answer[0].upper()}{answer[1:]}: {said}{why}."
    scope = "; ".join(filter(None, [evidence["scope"], measured.get("scope")]))
    return Sentence(claim, answer, text, tuple(reasons), table, scope)


def _trust(evidence: Numbers, n_scenarios: int, limits: Thresholds) -> list[_Condition]:
    failed = evidence.get("failed_checks")
    if failed is None:
        checks = _open("the self-checks were not run")
    else:
        checks = _open(f"self-checks failed: {', '.join(failed)}") if failed else _met("all self-checks pass")
    enough = f"{n_scenarios} held-out scenarios, of at least {limits.scenarios}"
    return [checks, _met(enough) if n_scenarios >= limits.scenarios else _open(f"there are only {enough}")]


def _same_circuit(evidence: Numbers, limits: Thresholds) -> list[_Condition]:
    """Equivalence, not the absence of a difference.

    Circuits that are not faithful establish nothing; a different circuit is one where the base's is surely worse
    in the variant than the variant's own, or whose effects are surely not the base's.
    """
    circuits, base, variant = evidence.get("circuits") or {}, evidence["base"], evidence["variant"]
    measures = evidence.get("similarity") or {}
    conditions = []
    if len(circuits) < 2:
        conditions.append(_open(f"circuits were compared under {len(circuits)} of at least 2 ablations"))
    for ablation, found in circuits.items():
        faithful = [
            _within(
                f"{model}'s own circuit has a normalised faithfulness ({ablation} ablation)",
                found.get(own),
                limits.faithful,
                limits.too_faithful,
            )
            for own, model in (("base_own", base), ("variant_own", variant))
        ]
        carried = [
            _carries_over(f"{base}'s circuit in {variant}{where} ({ablation} ablation)", found.get(rows), limits)
            for rows, where in (("transfer", ""), ("transfer_where_only_variant_right", ", where only it is right"))
        ]
        sure = all(each.answer == "yes" for each in faithful)
        conditions += [*map(_undecided, faithful), *(each if sure else _undecided(each) for each in carried)]
    if not measures:
        conditions.append(_open("effect maps and overlaps were not compared"))
    for measure, found in measures.items():
        conditions += _alike(measure, found.get("value"), found.get("retest"), found.get("different"), limits.margin)
    return conditions


def _carries_over(what: str, found: Numbers | None, limits: Thresholds) -> _Condition:
    """The base's circuit does what the variant's own does; that it does better says nothing against it."""
    n = (found or {}).get("n", limits.scenarios)
    if n < limits.scenarios:
        return _open(f"{what}: there are only {n} such scenarios, of at least {limits.scenarios}")
    return _as_good(f"{what} differs from the variant's own", found, limits.margin)


def _same_function(evidence: Numbers, limits: Thresholds) -> list[_Condition]:
    """A group of the base has lost its function where its mask, which works in the base, does next to nothing."""
    base, variant, conditions = evidence["base"], evidence["variant"], []
    for group, found in (evidence.get("functions") or {}).items():
        mask = f"{base}'s mask of {group} in {variant}"
        conditions.append(_as_good(f"{mask} differs from {variant}'s own", found.get("difference"), limits.margin))
        works = _judged(
            f"{mask}, above the floor, is",
            found.get("above_floor"),
            "to be surely above 0",
            met=lambda low, _: low > 0,
            refuted=lambda _, high: high < limits.margin,
        )
        conditions.append(works)
        if works.answer == "yes" and not found.get("trained"):
            conditions.append(_open(f"{mask} was not held against a trained floor"))
    return conditions or [_open("no component masks were carried over")]


def _listed(groups: Sequence[str]) -> str:
    """The groups that were tested, and that they have what follows."""
    if not groups:
        return "each group has"
    *others, last = groups
    return f"{', '.join(others)} and {last} have" if others else f"{last} has"


def _unknown(evidence: Numbers) -> str:
    groups = evidence.get("unknown") or []
    return f" (of {', '.join(groups)} no function is known)" if groups else ""


def _caused_by(best: str, evidence: Numbers, limits: Thresholds) -> list[_Condition]:
    """The part's weights alone bring the gain, without them it is gone, and nothing else brings it."""
    parts = _parts(evidence, "graft")
    if not parts:
        return [_open("no weights were grafted")]
    conditions = _alone_and_needed(best, parts, limits)
    controls = (evidence["graft"].get("controls") or {}).get(best) or {}
    if not controls and best not in NO_HEAD_GROUP:
        conditions.append(_open(f"no controls of {best} were grafted"))
    for name, each in controls.items():
        below = _stays_below(f"the control {name} brings", each, limits.share)
        conditions.append(_undecided(below) if name == SHARED else below)
    touched = (evidence["graft"].get("also_touched") or {}).get(best)
    if touched and SHARED not in controls:
        conditions.append(_open(f"{len(touched)} {SHARED} were not grafted without {best}"))
    return conditions


def _caused_in(best: str, layers: Mapping[str, Mapping[str, Numbers]], limits: Thresholds) -> list[_Condition]:
    """The same of a range of layers; the others, and what lies outside all layers, are its controls."""
    return _alone_and_needed(best, layers, limits) if best in layers else [_open("no ranges of layers were grafted")]


def _alone_and_needed(best: str, parts: Mapping[str, Mapping[str, Numbers]], limits: Thresholds) -> list[_Condition]:
    others = [(part, credits["alone"]) for part, credits in parts.items() if part != best]
    return [
        _reaches(f"{best} grafted alone brings", parts[best]["alone"], limits.share),
        _reaches(f"{best} taken out of the donor costs", parts[best]["left_out"], limits.share),
        *(_stays_below(f"{part} grafted alone brings", credit, limits.share) for part, credit in others),
    ]


def _visible(shown: Sequence[str], parts: Mapping[str, Mapping[str, Numbers]], limits: Thresholds) -> list[_Condition]:
    """Each of these, patched alone, brings the gain: it is there whatever brought it there."""
    if not parts:
        return [_open("no activations were patched")]
    return [_reaches(f"{part} patched alone brings", parts[part]["alone"], limits.share) for part in shown]


def _parts(evidence: Numbers, method: str, which: str = "parts") -> Mapping[str, Mapping[str, Numbers]]:
    return (evidence.get(method) or {}).get(which) or {}


def _largest(parts: Mapping[str, Mapping[str, Numbers]]) -> str:
    """The part with the largest share alone; its contribution stands in for a share that is undefined."""

    def size(part: str) -> tuple[float, float]:
        share, value = (_number(parts[part]["alone"].get(key)) for key in ("share", "value"))
        return (share if isfinite(share) else -1.0, value if isfinite(value) else -1.0)

    return max(parts, key=size) if parts else "one part"


def _met(reason: str) -> _Condition:
    return _Condition("yes", reason)


def _open(reason: str) -> _Condition:
    return _Condition("not established", reason)


def _judged(what: str, found: Numbers | None, expected: str, *, met: Any, refuted: Any) -> _Condition:
    """`met` and `refuted` take the interval's bounds."""
    low, high = (_number((found or {}).get(end)) for end in ("low", "high"))
    if found is None or not (isfinite(low) and isfinite(high)):
        note = (found or {}).get("note") or (found or {}).get("undefined") or "it was not measured"
        return _open(f"{what}: {note}")
    said = f"{what} {_printed(found)}, {expected}"
    return _met(said) if met(low, high) else _Condition("no", said) if refuted(low, high) else _open(said)


def _above(what: str, found: Numbers | None) -> _Condition:
    return _judged(
        f"{what} is", found, "to be surely above 0", met=lambda low, _: low > 0, refuted=lambda _, high: high <= 0
    )


def _within(what: str, found: Numbers | None, least: float, most: float) -> _Condition:
    return _judged(
        f"{what} by" if "differs" in what else f"{what} of",
        found,
        f"to be surely within {least:g} and {most:g}",
        met=lambda low, high: least <= low and high <= most,
        refuted=lambda low, high: high < least or low > most,
    )


def _as_good(what: str, found: Numbers | None, margin: float) -> _Condition:
    """Surely no other by more than the margin. To be surely better is not that, but says nothing against it."""
    differs = _within(what, found, -margin, margin)
    return _undecided(differs) if found is not None and _number(found.get("low")) > 0 else differs


def _reaches(what: str, credit: Numbers, share: float) -> _Condition:
    return _judged(
        what,
        _as_interval(credit),
        f"to be surely at least {share:g} of the gain",
        met=lambda low, _: low >= share,
        refuted=lambda _, high: high < share,
    )


def _stays_below(what: str, credit: Numbers, share: float) -> _Condition:
    return _judged(
        what,
        _as_interval(credit),
        f"to be surely below {share:g} of the gain",
        met=lambda _, high: high < share,
        refuted=lambda low, _: low >= share,
    )


def _alike(
    what: str, found: Numbers | None, retest: Numbers | None, different: Numbers | None, margin: float
) -> list[_Condition]:
    """No more than the margin below the retest, surely and on average, and above another circuit.

    Surely neither is a "no".
    """
    low, mean = (_number((retest or {}).get(key)) for key in ("low", "value"))
    value = _number((found or {}).get("value"))
    above = _clearly_lower(f"{what} with another circuit or by chance", different, found)
    if not isfinite(low):
        return [_open(f"{what}: no retest of one model on other prompts to compare with"), _undecided(above)]
    reaches = _judged(
        f"{what} is",
        found,
        f"to be surely within {margin:g} of the retest's {_printed(retest or {})}",
        met=lambda own, _: own >= low - margin and value >= mean - margin,
        refuted=lambda _, high: high < low - margin,
    )
    both = reaches.answer == "no" and above.answer != "yes" and different is not None
    return [reaches if both else _undecided(reaches), _undecided(above)]


def _undecided(condition: _Condition) -> _Condition:
    """The same, but that it says nothing against the claim."""
    return _open(condition.reason) if condition.answer == "no" else condition


def _clearly_lower(what: str, lower: Numbers | None, higher: Numbers | None) -> _Condition:
    bounds = [_number((higher or {}).get(end)) for end in ("low", "high")]
    if not all(map(isfinite, bounds)):
        return _open(f"{what}: nothing to compare it with was measured")
    return _judged(
        f"{what} is",
        lower,
        f"to be surely below {_printed(higher or {})}",
        met=lambda _, high: high < bounds[0],
        refuted=lambda low, _: low > bounds[1],
    )


def _negated(gain: Numbers) -> Numbers:
    """The same gain seen from the other model."""
    bounds = {"value": gain.get("value"), "low": gain.get("high"), "high": gain.get("low")}
    return {**gain, **{key: None if value is None else -value for key, value in bounds.items()}}


def _as_interval(credit: Numbers) -> Numbers:
    """A credit's share as an interval."""
    names = {"value": "share", "low": "share_low", "high": "share_high"}
    return {name: credit.get(key) for name, key in names.items()} | {"undefined": credit.get("undefined")}


def _printed(found: Numbers) -> str:
    value, low, high = (_number(found.get(key)) for key in ("value", "low", "high"))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else nan
