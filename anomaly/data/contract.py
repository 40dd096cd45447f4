"""The plant log, as every later part sees it: what its columns mean, and one chunk of it as arrays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

#: Row kinds. A label is one of UNKNOWN, NORMAL, EVENT; LEAD is set from the events and the lead.
UNKNOWN, NORMAL, EVENT, LEAD = -1, 0, 1, 2

#: Asset of a log that names none.
ONE_ASSET = "plant"


@dataclass(frozen=True)
class LogContract:
    """What the columns of a log mean; part of every store, model and score file.

    ``left_out`` holds (column, reason) pairs: columns that were seen and are deliberately not tags; a log to score
    may have them or not. ``zoned`` says whether the times carried an offset; ``timezone`` is the zone that zoneless
    times were read in.
    """

    time: str
    tags: tuple[str, ...]
    period_us: int
    categories: tuple[str, ...] = ()
    asset: str | None = None
    label: str | None = None
    timezone: str = "UTC"
    zoned: bool = False
    form: str = "wide"
    left_out: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LogContract:
        """The contract from ``to_dict`` values."""
        known: dict[str, Any] = dict(values)
        known |= {k: tuple(values[k]) for k in ("tags", "categories") if k in values}
        known["left_out"] = tuple((c, r) for c, r in values.get("left_out", ()))
        return cls(**known)

    def fingerprint(self) -> str:
        """Hex digest of what a model depends on: tags in order, categories and period."""
        core = {"tags": self.tags, "categories": self.categories, "period_us": self.period_us}
        return hashlib.sha256(json.dumps(core, sort_keys=True).encode()).hexdigest()[:16]

    def difference(self, other: LogContract) -> list[str]:
        """What differs from ``other`` in the parts a model depends on, one readable line each."""
        lines = [f"tag {t}: only in the first" for t in self.tags if t not in other.tags]
        lines += [f"tag {t}: only in the second" for t in other.tags if t not in self.tags]
        if not lines and self.tags != other.tags:
            lines.append("tags: same names in another order")
        if self.categories != other.categories:
            lines.append(f"categories: {list(self.categories)} and {list(other.categories)}")
        if self.period_us != other.period_us:
            lines.append(f"period: {self.period_us / 1e6:g} s and {other.period_us / 1e6:g} s")
        return lines

    def without(self, tags: set[str], reason: str) -> LogContract:
        """The same contract with ``tags`` moved to ``left_out`` for ``reason``."""
        kept = tuple(t for t in self.tags if t not in tags)
        moved = tuple((t, reason) for t in self.tags if t in tags)
        return replace(self, tags=kept, left_out=self.left_out + moved)


@dataclass(frozen=True)
class Columns:
    """Arrays of one length, row by row: what rows of a log, of scores and of windows have in common."""

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Self:
        """The rows at ``index`` (slice, mask or positions)."""
        return type(self)(*(getattr(self, f.name)[index] for f in fields(self)))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """At least one part, one after another."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))


@dataclass(frozen=True)
class LogChunk(Columns):
    """Consecutive rows of a checked log, in input order.

    Shapes: ``row (n,)`` int64, 0-based position in the whole log (files in reading order); ``time (n,)`` int64 UTC
    microseconds; ``asset (n,)`` str objects; ``values (n, C)`` float32, NaN where missing or of bad quality;
    ``categories (n, K)`` str objects, "" where missing; ``label (n,)`` int8 of UNKNOWN, NORMAL, EVENT.
    ``bad (n, C)`` bool marks values that were there but of bad quality.
    """

    row: NDArray[np.int64]
    time: NDArray[np.int64]
    asset: NDArray[np.object_]
    values: NDArray[np.float32]
    categories: NDArray[np.object_]
    label: NDArray[np.int8]
    bad: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.row)
