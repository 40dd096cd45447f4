"""A threshold from verdicts: what another one would have kept and removed, and when one person may not decide it alone.

Pure functions. An alert is raised at a threshold if its peak score reaches it, so that the stored peaks tell what a higher
threshold would have dropped; below the threshold that raised them nothing is known, and no proposal goes there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from alerts.figures import wilson
from alerts.states import KNOWN_WORK, NUISANCE, TRUE_FAULT

#: Verdicts that say that there was nothing to find.
NORMAL = (NUISANCE, KNOWN_WORK)
#: Verdicts on a model's alerts that a proposal needs.
LEAST_VERDICTS = 10
#: Share of a model's alerts that a change may drop without the word of a second person.
ALONE = 0.2


@dataclass(frozen=True)
class Evidence:
    """One alert as evidence: its peak score, its verdict (None: none yet) and who gave it."""

    alert: int
    asset: str
    peak: float
    verdict: str | None
    who: str = ""


@dataclass(frozen=True)
class WhatIf:
    """What another threshold would have done to the alerts there are, and the precision of those that were judged.

    ``alerts`` are those that ``before`` raises, ``dropped`` those of them that ``after`` does not, whatever their verdict, and
    ``regained`` those that only ``after`` raises. ``true_lost``: numbers of dropped alerts that were a true fault.
    """

    before: float
    after: float
    alerts: int
    kept: int
    dropped: int
    regained: int
    nuisance_removed: int
    true_kept: int
    true_lost: tuple[int, ...]
    unjudged_dropped: int
    precision_before: float | None
    precision_after: float | None
    interval_after: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return asdict(self) | {"true_lost": list(self.true_lost), "interval_after": list(self.interval_after)}


@dataclass(frozen=True)
class Proposal:
    """A threshold to set (None: leave it), why, and what it would have done."""

    value: float | None
    why: str
    verdicts: int
    what_if: WhatIf | None = None


def reaches(peak: float, threshold: float) -> bool:
    """Whether an alert is raised, in the precision that scores have.

    >>> reaches(3.0, 3.0), reaches(2.9, 3.0)
    (True, False)
    """
    return bool(np.float32(peak) >= np.float32(threshold))


def what_if(evidence: Sequence[Evidence], before: float, after: float) -> WhatIf:
    """What ``after`` would have done in place of ``before``.

    >>> alerts = [Evidence(1, "P", 3.0, "nuisance"), Evidence(2, "P", 5.0, "true_fault"), Evidence(3, "P", 6.0, None)]
    >>> done = what_if(alerts, 2.0, 4.0)
    >>> done.kept, done.nuisance_removed, done.true_lost, done.precision_before, done.precision_after
    (2, 1, (), 0.5, 1.0)
    """
    there = [e for e in evidence if reaches(e.peak, before)]
    kept, dropped = [e for e in there if reaches(e.peak, after)], [e for e in there if not reaches(e.peak, after)]
    raised = [e for e in evidence if reaches(e.peak, after)]
    was, now = _precision(there), _precision(raised)
    return WhatIf(
        before,
        after,
        len(there),
        len(kept),
        len(dropped),
        len(raised) - len(kept),
        sum(e.verdict in NORMAL for e in dropped),
        sum(e.verdict == TRUE_FAULT for e in raised),
        tuple(e.alert for e in dropped if e.verdict == TRUE_FAULT),
        sum(e.verdict is None for e in dropped),
        was[0],
        now[0],
        now[1],
    )


def _precision(evidence: Sequence[Evidence]) -> tuple[float | None, tuple[float, float]]:
    true = sum(e.verdict == TRUE_FAULT for e in evidence)
    judged = true + sum(e.verdict in NORMAL for e in evidence)
    return (true / judged if judged else None), wilson(true, judged)


def propose(evidence: Sequence[Evidence], now: float, own: float, least: int = LEAST_VERDICTS) -> Proposal:
    """The threshold that removes the most nuisance alerts and keeps every true fault, halfway between the two.

    ``now`` is the threshold that holds, ``own`` the model's: no proposal goes below it, where nothing was judged. With fewer
    than ``least`` verdicts, or without a true fault that says how high a threshold may be, there is none.
    """
    faults = [e.peak for e in evidence if e.verdict == TRUE_FAULT and reaches(e.peak, own)]
    quiet = [e.peak for e in evidence if e.verdict in NORMAL and reaches(e.peak, own)]
    judged = len(faults) + len(quiet)
    if judged < least:
        return Proposal(None, f"{judged} verdicts that say something, {least} are needed", judged)
    if not faults:
        why = "no alert was called a true fault, so nothing says how high a threshold may be"
        return Proposal(None, why, judged)
    ceiling = min(faults)
    below = [peak for peak in quiet if not reaches(peak, ceiling)]
    value = _between(max(below), ceiling) if below else own
    if reaches(value, now) and reaches(now, value):
        return Proposal(None, "the threshold that holds is the one that the verdicts ask for", judged)
    why = f"{len(below)} of {len(quiet)} nuisances peaked below the lowest of {len(faults)} true faults, {ceiling:.4g}"
    return Proposal(value, why, judged, what_if(evidence, now, value))


def _between(low: float, high: float) -> float:
    """A short number above ``low`` and not above ``high``, near their middle; ``high`` where none is between."""
    top = min(high, 2 * low + 1) if np.isinf(high) else high
    for digits in (3, 4, 5, 6, 9):
        value = float(f"{(low + top) / 2:.{digits}g}")
        if not reaches(low, value) and reaches(high, value):
            return value
    return high


def needs_second(evidence: Sequence[Evidence], before: float, after: float, share: float = ALONE) -> list[str]:
    """Why one person may not set ``after`` in place of ``before``, in words; nothing where one person may.

    A failure class is hidden by dropping an alert that was called a true fault, or by dropping many alerts of which no two
    people said that they were nothing: more than ``share`` of all of the model's alerts, not counting those that somebody
    else than the one who judged most of them called normal.

    >>> alerts = [Evidence(k, "P", 3.0 + k, "nuisance", "ann") for k in range(4)]
    >>> needs_second(alerts, 2.0, 4.0)
    ['1 of 4 alerts would be dropped on the word of ann alone, more than 20 %']
    >>> needs_second([Evidence(7, "P", 3.0, "true_fault", "ann"), *alerts], 2.0, 2.5)
    []
    """
    there = [e for e in evidence if reaches(e.peak, before)]
    dropped = [e for e in there if not reaches(e.peak, after)]
    reasons = []
    faults = [str(e.alert) for e in dropped if e.verdict == TRUE_FAULT]
    if faults:
        reasons.append(f"alert {', '.join(faults[:10])} was a true fault and would be dropped")
    judges = Counter(e.who for e in dropped if e.verdict in NORMAL)
    most, count = judges.most_common(1)[0] if judges else ("nobody", 0)
    alone = len(dropped) - (judges.total() - count)
    if there and alone > share * len(there):
        limit = f"more than {100 * share:g} %"
        reasons.append(f"{alone} of {len(there)} alerts would be dropped on the word of {most} alone, {limit}")
    return reasons
