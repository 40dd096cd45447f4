"""Numbers as people read them, on the page and in a terminal."""

from __future__ import annotations

import math

_LEAST_DIGITS, _MOST_DIGITS = 4, 12


def told_apart(value: float | None, low: float | None, high: float | None) -> str:
    """``value`` with so many digits that a range from ``low`` to ``high`` shows its width; "–" for what is missing.

    A pressure of 117.9634 with a range four hundredths wide says nothing as 118.

    >>> told_apart(117.9634, 117.94, 117.98), told_apart(3.0, 0.0, 100.0), told_apart(None, 0.0, 1.0)
    ('117.963', '3', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    width = abs(high - low) if low is not None and high is not None else 0.0
    digits = _LEAST_DIGITS
    if 0 < width < abs(value) < math.inf:
        digits = min(max(math.ceil(math.log10(abs(value) / width)) + 2, digits), _MOST_DIGITS)
    return f"{value:.{digits}g}"
