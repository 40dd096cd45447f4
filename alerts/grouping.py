"""Rules on alerts: how urgent one is, and which belong together. Pure functions; nothing here knows a database.

The words and the limits are those of EEMUA 191 and ISA-18.2: a flood starts above ten alerts in ten minutes and ends below five.
Times are int UTC microseconds.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alerts.alert import Alert

HIGH, MEDIUM, LOWEST = 1, 2, 3

MINUTE_US = 60_000_000
#: Score over threshold from which an alert is no more severe.
_MOST_SEVERE = 4.0
#: Share of its worth that an alert keeps when its lead is used up.
_LATE = 0.25
#: Worth from which an alert is of high, of medium priority; ``cuts`` proposes a plant's own.
CUTS = (2.0, 1.3)
#: How EEMUA 191 wants priorities spread: high, medium, low.
GUIDE = {HIGH: 0.05, MEDIUM: 0.15, LOWEST: 0.80}


def worth(peak: float, threshold: float, lasted_us: int, lead_us: int | None, weight: float = 1.0) -> float:
    """How much looking at an alert is worth: severity × lead left × weight of the asset.

    Severity is ``peak / threshold`` between 1 and 4 (1 for a threshold of zero or less). Lead left is what is left of
    ``lead_us`` after the alert has ``lasted_us``, as a share from 1 down to 0.25; an unknown lead counts 1.

    >>> worth(6.0, 3.0, 0, 1000), worth(6.0, 3.0, 1000, 1000), worth(6.0, 3.0, 0, None, weight=0.5)
    (2.0, 0.5, 1.0)
    """
    if not weight > 0 or not math.isfinite(weight):
        raise ValueError(f"weight: expected a finite number above 0, got {weight}")
    severity = min(max(peak / threshold, 1.0), _MOST_SEVERE) if threshold > 0 and not math.isnan(peak) else 1.0
    left = 1.0 if not lead_us or lead_us < 0 else min(max(1.0 - lasted_us / lead_us, 0.0), 1.0)
    return severity * (_LATE + (1 - _LATE) * left) * weight


def priority(
    peak: float, threshold: float, lasted_us: int, lead_us: int | None, weight: float = 1.0,
    cuts: tuple[float, float] = CUTS,
) -> int:  # fmt: skip
    """1 (high), 2 (medium) or 3 (low): ``worth`` against ``cuts``.

    >>> [priority(peak, 3.0, 0, None) for peak in (6.0, 4.5, 3.1)]
    [1, 2, 3]
    """
    value = worth(peak, threshold, lasted_us, lead_us, weight)
    return HIGH if value >= cuts[0] else MEDIUM if value >= cuts[1] else LOWEST


def cuts(worths: Sequence[float], guide: Mapping[int, float] = GUIDE) -> tuple[float, float]:
    """The cuts of ``priority`` that would spread these worths as ``guide`` says; ``CUTS`` where there are fewer than 20.

    >>> high, medium = cuts([float(k) for k in range(100)])
    >>> high, medium
    (95.0, 80.0)
    """
    if len(worths) < 20:
        return CUTS
    ordered = sorted(worths)
    at = [round(len(ordered) * (1 - share)) for share in (guide[HIGH], guide[HIGH] + guide[MEDIUM])]
    high, medium = (ordered[min(max(k, 0), len(ordered) - 1)] for k in at)
    return high, medium


@dataclass(frozen=True)
class Spread:
    """How many alerts have a priority, as a share, and the share that EEMUA 191 advises."""

    priority: int
    count: int
    share: float
    guide: float


def spread(priorities: Iterable[int]) -> list[Spread]:
    """The distribution over priorities; shares are 0 where there are no alerts."""
    counts = Counter(priorities)
    total = counts.total()
    return [Spread(p, counts[p], counts[p] / total if total else 0.0, GUIDE[p]) for p in (HIGH, MEDIUM, LOWEST)]


@dataclass(frozen=True)
class FloodRules:
    """A flood starts at more than ``enter`` alerts within ``window_us`` and ends when fewer than ``leave`` are left in it."""

    enter: int = 10
    leave: int = 5
    window_us: int = 10 * MINUTE_US

    def __post_init__(self) -> None:
        if not 1 <= self.leave <= self.enter or self.window_us <= 0:
            raise ValueError(f"enter, leave, window_us: expected 1 <= leave <= enter and a window above 0, got {self}")


@dataclass(frozen=True)
class Flood:
    """Alerts ``first`` to ``last`` (positions in the times given), and when it was over."""

    first: int
    last: int
    over_us: int

    @property
    def count(self) -> int:
        """How many alerts it holds."""
        return self.last - self.first + 1


def floods(times: Sequence[int], rules: FloodRules | None = None) -> list[Flood]:
    """The floods in ``times``, which must not go backwards. The alerts of the window that began a flood belong to it.

    >>> floods([k * MINUTE_US // 2 for k in range(11)])
    [Flood(first=0, last=10, over_us=780000000)]
    >>> floods([k * MINUTE_US // 2 for k in range(10)])
    []
    """
    rules = rules or FloodRules()
    found: list[Flood] = []
    first = None
    free = 0  # alerts before this one belong to an earlier flood
    for k, now in enumerate(times):
        if k and now < times[k - 1]:
            raise ValueError(f"times: expected times in order, got {now} after {times[k - 1]}")
        start = bisect_right(times, now - rules.window_us, 0, k + 1)
        if first is not None and k - start < rules.leave:  # just before this alert, fewer were left
            found.append(_flood(times, first, k - 1, rules))
            first, free = None, k
        if first is None and k - max(start, free) + 1 > rules.enter:
            first = max(start, free)
    if first is not None:
        found.append(_flood(times, first, len(times) - 1, rules))
    return found


def _flood(times: Sequence[int], first: int, last: int, rules: FloodRules) -> Flood:
    return Flood(first, last, times[max(first, last - rules.leave + 1)] + rules.window_us)


@dataclass(frozen=True)
class Group:
    """Alerts of one asset that are one thing to look at; ``ids`` in time order."""

    asset: str
    ids: tuple[int, ...]
    start_us: int
    end_us: int

    @property
    def count(self) -> int:
        """How often it alarmed."""
        return len(self.ids)


def chatter(alerts: Iterable[Alert], within_us: int = MINUTE_US, least: int = 3) -> list[Group]:
    """Assets that alarm again and again: runs of at least ``least`` alerts, each starting within ``within_us`` of the end of
    the one before. An alert with a merge gap as wide as ``within_us`` cannot chatter: it is one episode already."""
    return [g for g in _runs(alerts, lambda a, b: b.start_us - a.end_us <= within_us) if g.count >= least]


def alike(one: Alert, other: Alert) -> float:
    """How much two alerts share their top tags: the sum of the smaller shares, each list taken as a whole; 0 to 1."""
    first, second = (dict(a.top_tags) for a in (one, other))
    totals = sum(first.values()), sum(second.values())
    if not all(totals):
        return 0.0
    return sum(min(first[t] / totals[0], second[t] / totals[1]) for t in first.keys() & second.keys())


def group_alike(alerts: Iterable[Alert], within_us: int, least: float = 0.5) -> list[Group]:
    """Alerts by asset and cause, oldest first: one joins the one before it on its asset if it starts within ``within_us`` of
    its end and their top tags are ``alike`` by ``least``. Every alert is in one group."""
    return _runs(alerts, lambda a, b: b.start_us - a.end_us <= within_us and alike(a, b) >= least)


def _runs(alerts: Iterable[Alert], joins: Callable[[Alert, Alert], bool]) -> list[Group]:
    by_asset: defaultdict[str, list[Alert]] = defaultdict(list)
    for alert in sorted(alerts, key=lambda a: (a.start_us, a.id)):
        by_asset[alert.asset].append(alert)
    found = []
    for asset, own in by_asset.items():
        runs: list[list[Alert]] = []
        for alert in own:
            if runs and joins(runs[-1][-1], alert):
                runs[-1].append(alert)
            else:
                runs.append([alert])
        found += [Group(asset, tuple(a.id for a in r), r[0].start_us, max(a.end_us for a in r)) for r in runs]
    return sorted(found, key=lambda g: (g.start_us, g.ids))


@dataclass(frozen=True)
class Planned:
    """Maintenance that was announced: ``[start_us, end_us)`` of ``asset``, or of every asset where that is empty."""

    id: int
    asset: str
    start_us: int
    end_us: int
    reason: str
    who: str


def planned_work(alerts: Iterable[Alert], calendar: Sequence[Planned]) -> dict[int, Planned]:
    """Alert numbers that overlap planned work, with the first such entry. They are marked, never hidden."""
    by_asset: defaultdict[str, list[Planned]] = defaultdict(list)
    for entry in sorted(calendar, key=lambda e: (e.start_us, e.id)):
        by_asset[entry.asset].append(entry)
    starts = {asset: [e.start_us for e in own] for asset, own in by_asset.items()}
    found = {}
    for alert in alerts:
        candidates = [
            entry
            for asset in {alert.asset, ""} & by_asset.keys()
            for entry in by_asset[asset][: bisect_left(starts[asset], alert.end_us + 1)]
            if entry.end_us > alert.start_us
        ]
        if candidates:
            found[alert.id] = min(candidates, key=lambda e: (e.start_us, e.id))
    return found
