"""Numbers as the report prints them: rounding happens here and nowhere before."""

from __future__ import annotations

import math
import re

MISSING = "–"
_INTERVAL = re.compile(r"(\d) to (?=[\d−])")


def finite(value: object) -> float | None:
    """`value` as a float, or None if it is absent, not a number, NaN or infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def number(value: object) -> str:
    """Three decimals, with a true minus sign; a dash where nothing was measured."""
    known = finite(value)
    return MISSING if known is None else f"{known:.3f}".replace("-", "−")


def significant(value: object) -> str:
    """Three significant digits, for tolerances and noise floors, which three decimals would hide."""
    known = finite(value)
    return MISSING if known is None else f"{known:.3g}".replace("-", "−")


def interval(estimate: object) -> str:
    """The 95 % interval of `{"low", "high"}`, like `0.812 to 0.903`."""
    low, high = (_get(estimate, end) for end in ("low", "high"))
    return MISSING if finite(low) is None or finite(high) is None else f"{number(low)} to {number(high)}"


def unbroken(text: object) -> str:
    """The text with each interval on one line: a narrow column breaks before it, not in it."""
    return _INTERVAL.sub("\\1\u00a0to\u00a0", str(text))


def hits(estimate: object) -> str:
    """Hits of n prompts, like `181 / 200`."""
    counts = [_get(estimate, key) for key in ("hits", "n")]
    return " / ".join(MISSING if finite(count) is None else f"{count:g}" for count in counts)


def _get(estimate: object, key: str) -> object:
    return estimate.get(key) if isinstance(estimate, dict) else None
