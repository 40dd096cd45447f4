"""The figures that an operation watches: load against budget, bad actors, time to acknowledge, precision, stale alerts.

Pure functions of alerts; times are int UTC microseconds, spans too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alerts.states import CLOSED, KNOWN_WORK, NUISANCE, OPEN, TRUE_FAULT, VERDICTS

if TYPE_CHECKING:
    from alerts.alert import Alert

DAY_US = 86_400_000_000
#: Alerts per day that one asset may have where a plant says nothing else.
BUDGET = 1.0


@dataclass(frozen=True)
class Load:
    """Alerts of one asset per day of a span, its worst day, and what it may have."""

    asset: str
    count: int
    per_day: float
    worst_day: int
    budget: float

    @property
    def over(self) -> bool:
        """Whether it had more than it may."""
        return self.per_day > self.budget


def load(
    alerts: Iterable[Alert], start_us: int, end_us: int, budgets: Mapping[str, float] | None = None,
    default: float = BUDGET,
) -> list[Load]:  # fmt: skip
    """Load of each asset that alarmed in ``[start_us, end_us)``, the heaviest against its budget first.

    Days are counted from ``start_us``. The members of a flood count through their parent alone.
    """
    if end_us <= start_us:
        raise ValueError(f"end_us: expected after start_us {start_us}, got {end_us}")
    own = [a for a in alerts if start_us <= a.start_us < end_us and a.parent_id is None]
    counts = Counter(a.asset for a in own)
    days = Counter((a.asset, (a.start_us - start_us) // DAY_US) for a in own)
    worst: dict[str, int] = {}
    for (asset, _), n in days.items():
        worst[asset] = max(worst.get(asset, 0), n)
    span, known = (end_us - start_us) / DAY_US, budgets or {}
    found = [Load(a, n, n / span, worst[a], known.get(a, default)) for a, n in counts.items()]
    return sorted(found, key=lambda x: (-x.per_day / x.budget if x.budget > 0 else -math.inf, x.asset))


@dataclass(frozen=True)
class Actor:
    """An asset and tag that alarm often: how many alerts, and which share of all."""

    asset: str
    tag: str
    count: int
    share: float


def bad_actors(alerts: Sequence[Alert], top: int = 10) -> list[Actor]:
    """The pairs of asset and first top tag (or cause) behind most alerts; ties by name."""
    counts = Counter((a.asset, a.cause or (a.top_tags[0][0] if a.top_tags else "")) for a in alerts)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:top]
    return [Actor(asset, tag, n, n / len(alerts)) for (asset, tag), n in ordered]


def acknowledge_times(alerts: Iterable[Alert], shares: Sequence[float] = (0.5, 0.9)) -> list[int] | None:
    """Quantiles of the time from raising to acknowledging (the smallest time that this share does not exceed), in
    microseconds; None where nothing was acknowledged yet."""
    times = sorted(a.acknowledged_at - a.created_at for a in alerts if a.acknowledged_at is not None)
    return [times[max(math.ceil(q * len(times)) - 1, 0)] for q in shares] if times else None


@dataclass(frozen=True)
class Precision:
    """Share of the alerts that were a true fault, with its 95 % Wilson interval; None without a verdict that counts.

    ``judged`` = true faults + nuisances + known work. Sensor faults and unsure ones are in ``counts`` only.
    """

    value: float | None
    low: float
    high: float
    judged: int
    counts: Mapping[str, int]


def precision(alerts: Iterable[Alert]) -> Precision:
    """Precision from the verdicts of closed alerts; members of a flood count through their parent alone."""
    own = Counter(a.verdict for a in alerts if a.state == CLOSED and a.verdict and a.parent_id is None)
    counts = {verdict: own[verdict] for verdict in VERDICTS}
    judged = sum(counts[v] for v in (TRUE_FAULT, NUISANCE, KNOWN_WORK))
    low, high = wilson(counts[TRUE_FAULT], judged)
    return Precision(counts[TRUE_FAULT] / judged if judged else None, low, high, judged, counts)


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson interval of a share of ``hits`` among ``n``; (0, 1) without any.

    >>> [round(x, 4) for x in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    if n == 0:
        return 0.0, 1.0
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (centre - half if hits else 0.0), (centre + half if hits < n else 1.0)


def stale(alerts: Iterable[Alert], now_us: int, after_us: int = DAY_US) -> list[Alert]:
    """Open alerts that began more than ``after_us`` ago, oldest first: what nobody finished."""
    own = [a for a in alerts if a.state in OPEN and now_us - a.start_us > after_us]
    return sorted(own, key=lambda a: (a.start_us, a.id))


def silent(last_seen: Mapping[str, int], now_us: int, expected_us: int) -> list[str]:
    """Assets whose last answered row is at least twice the expected interval ago: no data is an alert (RELIABILITY H3).

    >>> silent({"press": 0, "pump": 90}, 100, 50)
    ['press']
    """
    return sorted(asset for asset, last in last_seen.items() if now_us - last >= 2 * expected_us)
