"""What the page of ground truth says in words: what is expected of each table, and what was changed and why."""

from __future__ import annotations

from circuitdiff.ground_truth.minimality_rows import N_DECOYS
from circuitdiff.ground_truth.minimality_rows import RULE as MINIMALITY_RULE

BACKUP = """The backup looks nowhere while any name is written, and takes over when none is, whether the fetchers are
held at their mean or write nothing. When their inputs are patched they write another name: they are not silent, and
the backup stays idle. Effects are logits lost when the backup is ablated, too.
"""

MINIMALITY = f"""## Minimality drops decoys

The planted circuit with {N_DECOYS} random decoys spread over its groups, all else at its mean by *kind*: a mean
by slot is what structure readers write anyway, so minimality cannot see them there, as the table above says. A
head stays if it credibly costs more than {MINIMALITY_RULE.threshold:g} of the answer's probability, once the
heads that stand in for it are gone. Expected: no decoy stays, no planted head goes. Only models without
redundancy: elsewhere a head may be dispensable.
"""

MASKS = """## What groups encode

Component masks against each desideratum: accuracy above the floor (that of no heads patched) for object /
position / label. Expected by the wiring: value fetchers carry the object, those that write or move an address
the position, label transmitters the label, name binders the object, and nothing else: a value of at least 0.05
with an interval above 0 there, and not so elsewhere. In models with one route, as many as the time allows.
"""

PAIRS = """## A planted variant and its base

Expected: grafting the improved part's weights brings at least 0.9 of the gain, alone and left out last, and no
other part has a share whose interval does not cover 0; patching contributions in causal order credits the same
part, or, where it is no head group, leaves the gain unexplained; with z patched, the paper's way, the symmetric
share is split between the group that got better and the one that shows it, where causal order credits the first.
The verdict names the improved part, and none where none was planted.
A study's verdict answers yes to the same circuit, and no for `planted-new-route`: from circuits that it discovered
itself, alone in base and variant under both kinds of means, and from their effect maps.
z in another basis is refused.
"""

CHANGED = """## What was changed after a first page

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

MISSING = """## Not covered

- Masks of all models: a minute each.
- A Llama-type host (rotary positions, RMSNorm, grouped-query heads) is not wired.
"""
