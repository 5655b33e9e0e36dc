"""The page of the documentation: what was planted, what was claimed, and what came."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from circuitdiff.planted import build_planted
from validation.check import GroundTruth
from validation.discovery_rows import MINIMALITY_RULE, N_DECOYS, Comparison
from validation.plantings import Planting
from validation.subjects import MINIMUM, PLAN, RULE, Row, Sizes

_BACKUP_TEXT = """\
The backup looks nowhere while any name is written, and takes over when none is, whether the fetchers are
held at their mean or write nothing. When their inputs are patched they write another name: they are not silent, and
the backup stays idle. Effects are logits lost when the backup is ablated, too.
"""

_MINIMALITY_TEXT = f"""## Minimality tells decoys from planted heads

The planted circuit with {N_DECOYS} random decoys spread over its groups, all else at its mean by *kind*: a mean
by slot is what structure readers write anyway, so minimality cannot see them there, as the table above says. A
head is needed if it surely costs more than {MINIMALITY_RULE.threshold:g} of the answer's probability, once the
heads that stand in for it are gone, and not needed if it surely costs less than
{MINIMALITY_RULE.threshold + MINIMALITY_RULE.margin:g}; else it is open. Expected: every planted head is needed, and
no decoy. Only models without redundancy: elsewhere a head may be dispensable.
"""

_MASKS_TEXT = """## What groups encode

Component masks against each desideratum: accuracy above the floor (that of no heads patched) for object /
position / label. Expected by the wiring: value fetchers carry the object, those that write or move an address
the position, label transmitters the label, name binders the object, and nothing else: a value of at least 0.05
with an interval above 0 there, and not so elsewhere. In models with one route, as many as the time allows.
"""

_PAIRS_TEXT = """## A planted variant and its base

Pairs in which the improved part's weights are all that differ are left out: there grafts say 1.00 and 0.00 by
identity. In all others weights of every kind are moved, and those that did not improve change nothing that is computed.

Expected: grafting the improved part's weights brings at least 0.9 of the gain, alone and left out last, and no
other part has a share whose interval does not cover 0; patching contributions in causal order credits the same
part, or, where it is no head group, leaves the gain unexplained; with z patched, the paper's way, the symmetric
share is split between the group that got better and the one that shows it, where causal order credits the first.
The verdict names the improved part, and none where none was planted.
A study's verdict answers yes to the same circuit, and no for `planted-new-route`: from circuits that it discovered
itself, alone in base and variant under both kinds of means, and from their effect maps.
z in another basis is refused.
"""

_CHANGED_TEXT = """## What was changed after a first page

The first page, of 7 plantings, had 329 of 357 claims hold. What did not was looked into, and one of these was
at fault each time:

- *The sample.* 70 prompts missed the weaker negative head in five models. Now 140, by the power calculation above.
- *Claims.* "At least 1.00" of a faithfulness that is 1 by the wiring fails by chance half of the time. Now its 95 %
  interval has to reach 1.00. Readers are ablated in the route of addresses alone where a second route suffices.
- *The wiring.* Some decoys wrote so much into addresses that they moved the answer by 0.26 logits (`planted-pair`) or
  0.1 (others); all decoys write a sixth of that now. `planted-pair` scored row and column each as a whole match,
  twice what its sharpness says; each is half a match now, and its transmitters do not leak. The backup was not idle
  and repaired what path patching changed; it now waits until nothing is written. `planted-mixture`,
  `planted-redundant` and `planted-spread` had too few decoys: they are deeper now (16, 16 and 22 layers), and are
  compared with no other model head by head.
- *The wiring, again.* The negative heads attended as softly as the base's fetchers, drawn by salience like them. Where
  a salient wrong object nearly won, they took *its* name away: in `planted-sharper-fetchers` they helped on 17 of the
  22 prompts with a margin below 2 logits, and the circuit without them was worse (faithfulness 0.979 [0.965, 0.991] on
  600 other prompts; 0.993 with them kept). Heads that help are not what was to be planted. They now look for the
  object at the address, as the backup does, undrawn by salience: they take a little of the answer's name away on every
  prompt, and no other name.
- *The verdict.* Its first rows said that the two variants with the base's circuit had another one. Effect maps whose
  correlation was 0.9995 were refuted by a retest of 0.9999: now they may be 0.05 below it. A stage that chose no head
  in either model was compared: now it is left out. By kind the base's circuit was *too* faithful, 1.105, because heads
  kept at the queried segment alone mark it: now they are kept at every segment. And circuits that are not faithful
  say nothing against the claim any more.
- *The wiring, for z.* Transmitters leaked on writing, behind z, so that patching z could not bring what
  `planted-clearer-addresses` does better, and the split of its symmetric share was shown with contributions. They leak
  on reading now, which makes the same function; z carries it, and the rows of z are new.
- *The truth of coverage* is the mean of 210 prompts instead of 1,000, to save time; intervals are widened for its
  error.
"""

_MISSING_TEXT = """## Not covered

- Masks of all models: a minute each.
- A Llama-type host (rotary positions, RMSNorm, grouped-query heads) is not wired.
"""


_FAILED = "✗"
_GROUPS = (*(stage.name for stage in PLAN.stages), "name_binder", "negative")
_FUNCTIONS = ("object", "position", "label")
# Column -> the claims whose values it shows.
_DISCOVERY: Mapping[str, tuple[str, ...]] = {
    group: tuple(f"{group}: {what}" for what in ("precision", "recall", "heads found")) for group in _GROUPS
}
_CIRCUIT: Mapping[str, tuple[str, ...]] = {
    "slot means": ("faithfulness, slot means", "normalised, slot means"),
    "kind means": ("faithfulness, kind means", "normalised, kind means"),
    "random": ("random circuits: answer preferred",),
    "wrong segment": ("wrong segment: accuracy lost, kind means",),
    "readers, slot": ("readers ablated, slot means: largest change",),
    "readers, kind": ("readers ablated, kind means: accuracy lost",),
}

_MINIMALITY: Mapping[str, tuple[str, ...]] = {
    what: (f"minimality: {what}",)
    for what in (
        "decoys that are needed",
        "decoys that are open",
        "planted heads that are not needed",
        "planted heads that are open",
    )
}
_MASKS: Mapping[str, tuple[str, ...]] = {
    stage: tuple(f"{stage} encodes {what}: accuracy above the floor" for what in _FUNCTIONS)
    for stage in _GROUPS
    if stage != "negative"
}
_PAIRS = ("graft", "patched", "verdict")  # how the claims about a model and its base begin


def render_page(truth: GroundTruth) -> str:
    """The whole page, in Markdown."""
    tables = (_DISCOVERY, _CIRCUIT, _MINIMALITY, _MASKS)
    shown = {claim for columns in tables for claims in columns.values() for claim in claims}
    models = [row for row in truth.rows if "plantings" not in row.model]
    parts = [
        _introduction(truth),
        _planted(models),
        _discovery_text(truth.sizes),
        _pivot(models, _DISCOVERY),
        _circuit_text(truth.sizes),
        _pivot(models, _CIRCUIT),
        "## Backup heads and variants that compute the same\n",
        _BACKUP_TEXT,
        _listed(row for row in models if row.claim not in shown and not row.claim.startswith(_PAIRS)),
        _MINIMALITY_TEXT,
        _pivot(models, _MINIMALITY),
        _MASKS_TEXT,
        _pivot(models, _MASKS),
        _PAIRS_TEXT,
        _listed(row for row in models if row.claim.startswith(_PAIRS)),
        _plantings(truth.plantings, truth.rows, truth.sizes),
        _attribution(truth.attribution),
        "## What does not hold\n",
        _listed(row for row in truth.rows if not row.passed),
        _CHANGED_TEXT,
        _MISSING_TEXT,
    ]
    return "\n".join(parts)


def _introduction(truth: GroundTruth) -> str:
    passed = sum(row.passed for row in truth.rows)
    return (
        "# Ground truth\n\n"
        "Made by `python -m validation ground-truth`; do not edit. The models' circuits are known, because they were "
        "written into the weights ([planted.md](planted.md)). So every number here can be right or wrong.\n\n"
        f"**{passed} of {len(truth.rows)} claims hold.** Expectations follow from the wiring, never from what came; "
        "thresholds, seeds and numbers of prompts are the same for all models. What was changed after a first page, "
        f"and why, is [said below](#what-was-changed-after-a-first-page). {_FAILED} marks a claim that does not hold; "
        "all of them are [listed with their numbers](#what-does-not-hold).\n"
    )


def _planted(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(row.model for row in rows))
    lines = []
    for planted in map(build_planted, names):
        groups = ", ".join(f"{len(group.heads)} {name}" for name, group in planted.circuit.groups.items())
        others = [f"{len(heads)} {part}" for part in ("negative", "backup") if (heads := planted.parts.get(part))]
        shape = planted.model.config
        decoys = shape.n_layer * shape.n_head - len({head for heads in planted.parts.values() for head in heads})
        lines.append((f"`{planted.name}`", planted.note, groups, ", ".join(others), str(decoys)))
    return "## What was planted\n\n" + _table(("model", "what it is", "circuit", "outside it", "decoys"), lines)


def _discovery_text(sizes: Sizes) -> str:
    return (
        "## Discovery\n\n"
        "The paper's plan: value fetchers straight into the logits; position transmitters via their q; position "
        "detectors via the transmitters' v; structure readers via the detectors' v, read at the query label. "
        "Discovery is not told how many heads there are: it takes those with an adjusted p of at most "
        f"{RULE.error_rate:g} over all heads, an effect of at least {MINIMUM:g} logits, and a replication "
        f"({sizes.discovery} + {sizes.discovery} prompts: an effect of 0.33 logits with a standard deviation of 0.83 "
        "over prompts, as a negative head had at first, is found with a power of 0.95; with half as many, of 0.58).\n\n"
        "Precision / recall, 1.00 / 1.00 expected; where no head of a group is planted, the number found, 0 expected. "
        "Label fetchers and label transmitters go by their place in the plan. Name binders are not in the paper's "
        "plan: one more stage, via the fetchers' v at the last token, looks for them. Negative heads belong in the "
        "list of heads that hurt, straight into the logits.\n"
    )


def _circuit_text(sizes: Sizes) -> str:
    return (
        "## The planted circuit on its own\n\n"
        f"On {sizes.evaluation} evaluation prompts; all else at its mean over as many others.\n\n"
        "- *slot means*, *kind means*: accuracy of the circuit over the model's, then normalised by the ablated "
        "model's accuracy. The circuit is expected to be as good as the model: a 95 % interval within 0.8 and 1.1. "
        "By kind, addresses survive in the segment asked for alone, so that the answer stands out: the value by slot "
        "is the paper's.\n"
        f"- *random*: share of prompts on which {sizes.random_circuits} random circuits of the same shape prefer the "
        f"answer to the other six; 1/7 expected, within the spread of {sizes.random_prompts} prompts.\n"
        "- *wrong segment*: accuracy lost (kind means) when heads in segments are kept at one not asked for; above 0 "
        "expected.\n"
        "- *readers, slot*: largest change of any prompt's logit difference when the structure readers are ablated. "
        "They depend on position alone, so a mean by slot is what they write anyway: 0 expected, but for LayerNorm's "
        "0.1 %. *readers, kind*: accuracy lost; a mean by kind shows them, above 0 expected. Both in the circuit "
        "without the lexical route, where there is one.\n"
    )


def _pivot(rows: Sequence[Row], columns: Mapping[str, tuple[str, ...]]) -> str:
    """A line per model of which some column claims something; a cell holds the values of its column's claims."""
    wanted = {claim for claims in columns.values() for claim in claims}
    cells = {(row.model, row.claim): row for row in rows if row.claim in wanted}
    names = dict.fromkeys(name for name, _ in cells)
    lines = [
        (f"`{name}`", *(_cell([cells[name, c] for c in claims if (name, c) in cells]) for claims in columns.values()))
        for name in names
    ]
    return _table(("model", *columns), lines)


def _cell(rows: Sequence[Row]) -> str:
    if not rows:
        return "–"
    values = " / ".join(_number(row) for row in rows)
    return values if all(row.passed for row in rows) else f"**{values}** {_FAILED}"


def _number(row: Row) -> str:
    if not np.isfinite(row.value):
        return "undefined"
    if float(row.value).is_integer() and "found" in row.claim:
        return f"{row.value:.0f}"
    return f"{row.value:.3f}" if abs(row.value) < 0.1 and row.value else f"{row.value:.2f}"


def _listed(rows: Iterable[Row]) -> str:
    lines = [(f"`{r.model}`", r.claim, _cell([r]), r.expectation, r.detail) for r in rows]
    return _table(("model", "claim", "value", "expected", "detail"), lines) if lines else "None.\n"


def _plantings(plantings: Sequence[Planting], rows: Sequence[Row], sizes: Sizes) -> str:
    title = f"## {len(plantings)} other plantings of `planted-base`\n\n"
    if not plantings:
        return title + "None were asked for.\n"
    text = (
        "Other places, strengths, codes and decoys, and other prompts. Expected: precision and recall of at least "
        f"{1 - RULE.error_rate:g}, false alarms at most {RULE.error_rate:g}, as the rule promises; 95 % intervals of "
        f"{sizes.discovery} prompts, widened by the root of 1 + {sizes.discovery} / {sizes.truth} for the error of the "
        f"mean of {sizes.truth} other prompts, hold that mean 95 % of the time. A decoy that was chosen may have an "
        "effect of its own: decoys write a little everywhere.\n\n"
    )
    claims = _listed(row for row in rows if "plantings" in row.model)
    alarms = [
        (str(planting.seed), alarm.stage, alarm.head, f"{alarm.effect:+.3f}", f"{alarm.true_effect:+.3f}")
        for planting in plantings
        for alarm in planting.alarms
    ]
    chosen = _table(("planting", "stage", "decoy chosen", "effect", "true effect"), alarms) if alarms else ""
    return f"{title}{text}{claims}\n{_accuracies(plantings, sizes)}\n{chosen}"


def _accuracies(plantings: Sequence[Planting], sizes: Sizes) -> str:
    """Each planting's accuracy, since the numbers of the table of models are those of one seed."""
    low, high = (end(planting.accuracy for planting in plantings) for end in (min, max))
    lines = [(str(p.seed), f"{p.accuracy:.3f}") for p in plantings]
    return (
        "The wiring's numbers were set so that the shipped seed, 0, errs on about a third of the prompts: 0.6 to 0.7 "
        f"is a band for that seed. These plantings' accuracies, on {sizes.evaluation} prompts each, run from {low:.3f} "
        f"to {high:.3f}.\n\n" + _table(("planting", "accuracy"), lines)
    )


def _attribution(comparisons: Sequence[Comparison]) -> str:
    text = (
        "## A plain top-k on attribution scores\n\n"
        "Attribution patching (gradient times change of z, Nanda 2023; Syed et al. 2023, arXiv:2310.10348): the k "
        "lowest scores at a role, on the prompts of discovery's first split. It *is told k*, the number of heads "
        "planted there by the plan's groups; discovery is not. Scores count all ways to the logits, so one number "
        "stands for all groups at a role and does not say which head feeds which. It has no test: asked for k heads "
        "it returns k, planted or not.\n\n"
    )
    lines = [
        (f"`{c.model}`", c.role, str(c.planted), _share(c.attribution), _share(c.discovery), _share(c.discovery_recall))
        for c in comparisons
    ]
    head = ("model", "role", "k", "top-k precision", "discovery: precision", "discovery: recall")
    return text + _table(head, lines)


def _share(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "–"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)
