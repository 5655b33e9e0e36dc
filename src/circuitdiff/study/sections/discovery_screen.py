"""What a screen kept and left out, and how large a head that it missed could be."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import spearmanr

from circuitdiff.methods.discovery import StageResult
from circuitdiff.study.estimates import Number, number

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Screening:
    """Heads that could have an effect: all, those measured, and those left out by their attribution.

    Over a random sample of all, which was measured whatever its attribution: Spearman's correlation of attribution and
    effect, and of those whose effect reaches the rule's minimum (`large_in_sample`) how many the screen keeps. Of the
    sampled heads that it leaves out, the largest |effect|; with 95 % confidence no more than `share_beyond` of all that
    were left out have a larger one. Effects are of the prompts that chose.
    """

    n_heads: int
    n_measured: int
    n_sampled: int
    rank_agreement: Number
    large_in_sample: int
    large_kept: int
    largest_left_out: Number
    share_beyond: Number


def screening_of(result: StageResult) -> Screening | None:
    """Of a stage with a screen."""
    if result.screened is None:
        return None
    screened = result.screened
    exact, minimum = result.found.effects, result.stage.minimum(result.found.metric)
    sampled, strongest = screened.sampled, screened.strongest
    large = sampled & (exact.abs() >= minimum)
    left_out = exact[sampled & ~strongest].abs()
    agreement, _ = spearmanr(screened.estimates[sampled].numpy(), exact[sampled].numpy())
    return Screening(
        n_heads=int(result.able.sum()),
        n_measured=int((sampled | strongest).sum()),
        n_sampled=int(sampled.sum()),
        rank_agreement=number(agreement),
        large_in_sample=int(large.sum()),
        large_kept=int((large & strongest).sum()),
        largest_left_out=number(float(left_out.max())) if len(left_out) else None,
        share_beyond=1 - (1 - _CONFIDENCE) ** (1 / len(left_out)) if len(left_out) else None,
    )
