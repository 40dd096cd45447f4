"""The learning rate of every step, in closed form, so that a resumed run goes on exactly where it was (METHODS S31)."""

from __future__ import annotations

import math


def learning_rate(step: int, total: int, *, peak: float, schedule: str = "constant", warmup: float = 0.0) -> float:
    """The rate of step ``step`` (from 0) of ``total``: a linear rise over the share ``warmup``, then the schedule.

    ``constant`` stays at ``peak``; ``cosine`` falls to zero along half a cosine (Loshchilov and Hutter 2017).

    >>> [round(learning_rate(s, 100, peak=1.0, schedule="cosine"), 3) for s in (0, 50, 100)]
    [1.0, 0.5, 0.0]
    >>> learning_rate(4, 100, peak=1.0, warmup=0.1)
    0.5
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return peak * (step + 1) / rising
    if schedule == "constant":
        return peak
    done = min((step - rising) / max(total - rising, 1), 1.0)
    return peak * 0.5 * (1 + math.cos(math.pi * done))
