"""Which sensors a score came from: the largest shares of every row, by name, and what those sensors did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def top_shares(shares: NDArray[np.float32], k: int = 3) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The ``k`` largest of each row's shares ``(n, C)``: their columns and fractions, both ``(n, min(k, C))``.

    Fractions are of the row's total, so they say "41 % of this score is this sensor"; a row of zeros gives zeros.
    """
    k = min(k, shares.shape[1])
    columns = np.argpartition(-shares, k - 1, axis=1)[:, :k]
    picked = np.take_along_axis(shares, columns, axis=1)
    order = np.argsort(-picked, axis=1, kind="stable")
    total = shares.sum(axis=1, keepdims=True)
    fractions = np.take_along_axis(picked, order, axis=1) / np.where(total > 0, total, 1)
    return np.take_along_axis(columns, order, axis=1), fractions.astype(np.float32)


def top_tags(shares: NDArray[np.float32], tags: Sequence[str], k: int = 3) -> list[list[tuple[str, float]]]:
    """``top_shares`` by name.

    >>> top_tags(np.array([[1.0, 3.0, 0.0]]), ["a", "b", "c"], k=2)
    [[('b', 0.75), ('a', 0.25)]]
    """
    columns, fractions = top_shares(shares, k)
    return [
        [(tags[c], f) for c, f in zip(row, parts, strict=True)]
        for row, parts in zip(columns.tolist(), fractions.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class TagReason:
    """What one sensor had to do with an alert.

    ``share`` of the score; ``value`` at the peak, held, in the sensor's own unit; ``low`` and ``high``: what it is
    between in 98 of 100 normal rows; ``direction``: "high" or "low" outside that range, "pattern" inside it, where not
    the value but how it moves, or moves with others, is unusual.
    """

    tag: str
    share: float
    value: float | None
    low: float | None
    high: float | None
    direction: str

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return asdict(self)


def tag_reasons(
    shares: NDArray[np.floating],
    values: NDArray[np.floating],
    low: NDArray[np.floating],
    high: NDArray[np.floating],
    tags: Sequence[str],
    k: int = 5,
) -> list[TagReason]:
    """The sensors with the largest ``shares (C,)`` of one row, largest first; ``values``, ``low``, ``high (C,)``.

    >>> reasons = tag_reasons(np.array([1.0, 3.0]), np.array([5.0, 9.0]), np.zeros(2), np.full(2, 6.0), ["a", "b"])
    >>> [(r.tag, r.share, r.direction) for r in reasons]
    [('b', 0.75, 'high'), ('a', 0.25, 'pattern')]
    """
    total = float(shares.sum())
    order = np.argsort(-shares, kind="stable")[:k]
    return [
        TagReason(
            tags[c],
            round(float(shares[c]) / total, 4),
            _shown(values[c]),
            _shown(low[c]),
            _shown(high[c]),
            _direction(float(values[c]), float(low[c]), float(high[c])),
        )
        for c in order
        if shares[c] > 0
    ]


def _direction(value: float, low: float, high: float) -> str:
    if value > high:
        return "high"
    return "low" if value < low else "pattern"


def _shown(value: float) -> float | None:
    """Six digits, None for what is missing."""
    return float(f"{value:.6g}") if np.isfinite(value) else None
