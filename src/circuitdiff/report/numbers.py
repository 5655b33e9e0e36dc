"""Numbers and heads as the report prints them: rounding happens here and nowhere before."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from circuitdiff.circuit import Head
from circuitdiff.study.estimates import Estimate, HeadPlace, Number, Share

MISSING = "–"
_INTERVAL = re.compile(r"(\d) to (?=[\d−])")


def number(value: Number, form: str = ".3f") -> str:
    """Three decimals, with a true minus sign; a dash where nothing was measured."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:{form}}".replace("-", "−")


def significant(value: Number) -> str:
    """Three significant digits, for tolerances and noise floors, which three decimals would hide."""
    return number(value, ".3g")


def interval(estimate: Estimate | None) -> str:
    """The bounds, like `0.812 to 0.903`."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return MISSING
    return f"{number(estimate.low)} to {number(estimate.high)}"


def printed(estimate: Estimate | None) -> str:
    """Value and interval, like `0.857 (0.812 to 0.903)`."""
    if estimate is None or estimate.value is None:
        return MISSING
    return f"{number(estimate.value)} ({interval(estimate)})"


def all_printed(source: object, names: Iterable[str]) -> dict[str, str]:
    """Some of its estimates as columns of a row."""
    return {name: printed(getattr(source, name)) for name in names}


def hits(share: Share | None) -> str:
    """Hits of n prompts, like `181 / 200`."""
    return MISSING if share is None else f"{share.hits} / {share.n}"


def beside_draws(value: float, drawn: Sequence[float], p: Number, kind: str) -> str:
    """An accuracy and those of random draws: how many are at least as good, with the p of the rank where there is one.

    Of too few draws for a rank the largest alone.
    """
    if p is None:
        return f"{number(value)}; largest of {len(drawn)} {kind}: {number(max(drawn, default=None))}"
    as_good = sum(each >= value for each in drawn)
    return f"{number(value)}; {as_good} of {len(drawn)} {kind} do as well, p = {significant(p)}"


def heads(places: Iterable[HeadPlace]) -> str:
    """Like `9.6, 10.0`."""
    return ", ".join(str(Head(*place)) for place in places) or "none"


def unbroken(text: object) -> str:
    """The text with each interval on one line: a narrow column breaks before it, not in it."""
    return _INTERVAL.sub("\\1\u00a0to\u00a0", str(text))
