"""Event figures: what was found, how early, and how often an alert came in vain.

Events, alerts and episodes are half-open intervals of UTC microseconds, ``{asset: (k, 2) int64}``; a single flagged row at
``t`` is ``[t, t + 1)``. The lead window of an event is ``[start - lead, start)``, cut where the event before it ends and
where its segment begins: an alert about the event before, or from before a stop, is no warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.intervals import Intervals, as_intervals, merge, overlaps
from anomaly.metrics.figures import (
    Figure,
    bootstrap_interval,
    figure,
    poisson_interval,
    proportion_interval,
    undefined,
)

PerAsset = Mapping[str, Intervals]
SegmentStarts = Mapping[str, NDArray[np.int64]]

DAY_US = 86_400_000_000
_NO_EVENT = "no event in this part"


@dataclass(frozen=True)
class EventOutcome:
    """One event and whether it was found; ``lead_s`` is event start minus first alert, negative when late."""

    asset: str
    start: int
    end: int
    detected: bool
    lead_s: float | None
    early: bool


def event_outcomes(
    alerts: PerAsset, events: PerAsset, lead_us: int, segment_starts: SegmentStarts | None = None
) -> list[EventOutcome]:
    """Each event with its first alert in ``[start - lead, end)``, if any.

    >>> event_outcomes({"p": np.array([[90, 95]])}, {"p": np.array([[100, 200]])}, lead_us=20)[0].early
    True
    """
    outcomes = []
    for asset in events:
        own, alarms = _windows(events[asset], lead_us, (segment_starts or {}).get(asset)), merge(alerts.get(asset, []))
        for opens, start, end in own:
            at = int(np.searchsorted(alarms[:, 1], opens, side="right"))
            detected = bool(at < len(alarms) and alarms[at, 0] < end)
            first = max(int(alarms[at, 0]), opens) if detected else None
            lead_s = None if first is None else (start - first) / 1e6
            outcomes.append(EventOutcome(asset, start, end, detected, lead_s, first is not None and first < start))
    return outcomes


def _windows(events: Intervals, lead_us: int, starts: NDArray[np.int64] | None) -> list[tuple[int, int, int]]:
    """(opening of the lead window, start, end) of each event, in time order."""
    found, previous_end = [], -(2**62)
    ordered = as_intervals(events)
    for start, end in ordered[np.argsort(ordered[:, 0], kind="stable")].tolist():
        opens = min(max(start - lead_us, previous_end), start)
        if starts is not None and len(before := starts[starts <= start]):
            opens = max(opens, int(before.max()))
        found.append((opens, start, end))
        previous_end = end
    return found


def event_recall(outcomes: Sequence[EventOutcome]) -> Figure:
    """Share of events with an alert in their lead window or before their end."""
    return _share("event_recall", [o.detected for o in outcomes], "found")


def early_recall(outcomes: Sequence[EventOutcome]) -> Figure:
    """Share of events with an alert before their start."""
    return _share("early_recall", [o.early for o in outcomes], "warned of")


def _share(name: str, hits: Sequence[bool], verb: str) -> Figure:
    if not hits:
        return undefined(name, _NO_EVENT, "0 events")
    found, total = sum(hits), len(hits)
    return figure(name, found / total, proportion_interval(found, total), f"{found} of {total} events {verb}", total)


def median_lead(outcomes: Sequence[EventOutcome], *, seed: int = 0) -> Figure:
    """Median seconds from first alert to event start over the detected events; negative is late."""
    leads = np.array([o.lead_s for o in outcomes if o.lead_s is not None], dtype=np.float64)
    if not len(leads):
        return undefined("median_lead_s", "no event was found" if outcomes else _NO_EVENT, "0 events found")

    def resampled(times_drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([np.median(np.repeat(leads, row.astype(np.int64))) for row in times_drawn])

    interval = bootstrap_interval(resampled, len(leads), seed=seed)
    count = f"{len(leads)} of {len(outcomes)} events found"
    return figure("median_lead_s", float(np.median(leads)), interval, count, len(leads))


def false_episodes(
    episodes: PerAsset,
    events: PerAsset,
    lead_us: int,
    grace_us: int = 0,
    segment_starts: SegmentStarts | None = None,
) -> dict[str, Intervals]:
    """Episodes that touch no event, neither its lead window nor ``grace_us`` after its end."""
    false = {}
    for asset, found in episodes.items():
        own = as_intervals(found)
        starts = (segment_starts or {}).get(asset)
        zones = [
            (opens, end + grace_us) for opens, _, end in _windows(events.get(asset, as_intervals([])), lead_us, starts)
        ]
        false[asset] = own[~overlaps(own, zones)]
    return false


def operating_days(time: NDArray[np.int64], period_us: int, max_gap_us: int) -> float:
    """Days that the rows at ``time (n,)``, sorted, of one asset stand for; gaps longer than ``max_gap_us`` do not count.

    >>> operating_days(np.array([0, 1, 2, 50, 51]) * DAY_US, DAY_US, 3 * DAY_US)
    5.0
    """
    if not len(time):
        return 0.0
    steps = np.diff(time)
    inside = steps[steps <= max_gap_us]
    return float(inside.sum() + (len(steps) - len(inside) + 1) * period_us) / DAY_US


def false_episodes_per_day(count: int, days: float) -> Figure:
    """False episodes per day of normal operation, with the exact Poisson interval."""
    name = "false_episodes_per_day"
    if not days > 0:
        return undefined(name, "no normal operation in this part", f"{count} false episodes")
    said = f"{count} false episodes in {days:.3g} days of normal operation"
    return figure(name, count / days, poisson_interval(count, days), said, count)


def flag_intervals(
    asset: NDArray[np.object_], time: NDArray[np.int64], flags: NDArray[np.bool_], merge_gap_us: int = 0
) -> dict[str, Intervals]:
    """Flagged rows ``(n,)`` as intervals per asset; rows at most ``merge_gap_us`` apart are one episode."""
    found = {}
    for name in dict.fromkeys(asset[flags].tolist()):
        own = np.sort(time[flags & (asset == name)])
        last = np.append(np.diff(own) > merge_gap_us + 1, True)
        first = np.append(True, last[:-1])
        found[str(name)] = np.stack((own[first], own[last] + 1), axis=1)
    return found
