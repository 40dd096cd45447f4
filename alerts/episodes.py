"""Scores become episodes: hysteresis, a minimum length, one episode out of blips that lie close together.

The rules, for the rows of one asset in time order:

- A row with ``score >= threshold`` is **anomalous** and switches the episode on; it stays on while
  ``score >= off * threshold`` and ends at the last such row.
- An **unscorable** row (outcome ``unscorable``, or a NaN score) neither starts nor ends an episode. It holds the state for
  at most ``merge_gap_us`` after the last row of the episode; after that the episode has ended. It is never "normal".
- A **warm-up** row is treated the same: its window was padded, so a log that begins earlier may score it otherwise, and
  an alert must not depend on where a file was cut.
- An episode that starts within ``merge_gap_us`` of the end of the one before it is the same episode.
- After merging, an episode with fewer than ``min_rows`` anomalous rows is dropped.

``EpisodeTracker`` follows the rows as they come; how they are cut into chunks makes no difference, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

UNSCORABLE_CODE = 2
UNSCORABLE, WARM_UP = "unscorable", "warm_up"

#: Rows followed at once: bounds the memory of a long update.
_BLOCK = 1 << 16
#: An infinite share counts this much.
_HEAVIEST = 1e6

TopTags = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class EpisodeRules:
    """How scores become episodes.

    ``off``: share of the threshold below which an episode ends, in (0, 1]. ``min_rows``: fewest anomalous rows.
    ``merge_gap_us``: episodes at most this far apart are one. ``max_gap_us``: a longer step between two rows ends the
    episode before it, for logs whose gaps are not marked by an unscorable row as the model's are.
    """

    off: float = 0.8
    min_rows: int = 1
    merge_gap_us: int = 0
    max_gap_us: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.off <= 1:
            raise ValueError(f"off: expected above 0 and at most 1, got {self.off}")
        if self.min_rows < 1:
            raise ValueError(f"min_rows: expected at least 1, got {self.min_rows}")
        if self.merge_gap_us < 0 or (self.max_gap_us or 0) < 0:
            raise ValueError(
                f"merge_gap_us, max_gap_us: expected at least 0, got {self.merge_gap_us}, {self.max_gap_us}"
            )


@dataclass(frozen=True)
class Episode:
    """A stretch of anomalous scores of one asset.

    ``start_us`` is the first anomalous row, ``peak_us`` the highest, ``end_us`` the last row at or above the off level.
    ``rows`` counts anomalous rows. ``top_tags`` are (tag, share) of the peak row's score, largest first: of one row, so
    that they do not depend on where a log was cut. ``open``: the log ended while the episode was on. ``reasons``: what else is
    known of the peak row, as JSON text that is kept and shown, not read here.
    """

    asset: str
    start_us: int
    peak_us: int
    end_us: int
    peak_score: float
    threshold: float
    rows: int
    top_tags: TopTags = ()
    open: bool = False
    reasons: str = ""


def episode_from(values: dict[str, Any]) -> Episode:
    """The episode from what ``asdict`` made of it, JSON in between or not."""
    return Episode(**{**values, "top_tags": tuple((str(tag), float(share)) for tag, share in values["top_tags"])})


def join(one: Episode, other: Episode) -> Episode:
    """One episode out of two views of it; which comes first makes no difference.

    The times are the union; the higher peak brings its time and tags (the view with more rows, when equal). ``rows`` is that of
    the wider view where it holds the other; where the two overlap in part, the rows in the shared time are counted once,
    taking rows as evenly spaced.

    >>> a = Episode("A", 0, 3, 9, 4.0, 3.0, 10, (("P", 1.0),))
    >>> join(a, Episode("A", 5, 6, 14, 3.5, 3.0, 10, (("Q", 1.0),))).rows
    15
    """
    first, second = sorted((one, other), key=lambda e: (e.start_us, -e.end_us))
    peak = min((one, other), key=lambda e: (-e.peak_score, -e.rows, e.peak_us, e.top_tags, e.reasons))
    last = max((one, other), key=lambda e: (e.end_us, not e.open))
    return replace(
        peak,
        start_us=first.start_us,
        end_us=last.end_us,
        rows=_rows_of_union(first, second),
        open=last.open,
    )


def _rows_of_union(first: Episode, second: Episode) -> int:
    """Rows of two episodes, ``first`` not starting later."""
    if second.end_us <= first.end_us or second.start_us == first.start_us:
        return max(first.rows, second.rows)
    shared_us = first.end_us - second.start_us
    if shared_us < 0:
        return first.rows + second.rows
    density = [(e.rows - 1) / max(e.end_us - e.start_us, 1) for e in (first, second)]
    shared = min(round(1 + shared_us * sum(density) / 2), first.rows, second.rows)
    return first.rows + second.rows - shared


def find_episodes(
    time: ArrayLike,
    score: ArrayLike,
    outcome: ArrayLike,
    reason: ArrayLike,
    threshold: float,
    rules: EpisodeRules,
    *,
    asset: str = "",
    shares: ArrayLike | None = None,
    tags: Sequence[str] = (),
) -> list[Episode]:
    """Episodes of one asset's rows, in time order; arguments as for ``EpisodeTracker.update``.

    >>> rules = EpisodeRules(off=0.8, min_rows=2)
    >>> found = find_episodes([0, 1, 2, 3], [1.0, 5.0, 4.0, 3.0], [0, 1, 1, 0], [""] * 4, 4.0, rules)
    >>> [(e.start_us, e.peak_us, e.end_us, e.rows) for e in found]
    [(1, 1, 2, 2)]
    """
    tracker = EpisodeTracker(asset, threshold, rules, tags)
    tracker.update(time, score, outcome, reason, shares)
    return tracker.finish()


@dataclass(frozen=True)
class _Groups:
    """Episodes under way, one per entry, before minimum length is judged.

    ``start, end, peak_time, rows (K,)`` int64, ``peak (K,)`` float64, ``shares (K, C)`` tag shares and ``reasons
    (K,)`` of the peak's row.
    """

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    peak_time: NDArray[np.int64]
    rows: NDArray[np.int64]
    peak: NDArray[np.float64]
    shares: NDArray[np.float64]
    reasons: NDArray[np.object_]

    def at(self, index: slice) -> _Groups:
        """Some of the entries."""
        return _Groups(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


_GROUP_ARRAYS = ("start", "end", "peak_time", "rows", "peak", "shares")


def _no_groups(tags: int) -> _Groups:
    none = np.empty(0, np.int64)
    return _Groups(none, none, none, none, np.empty(0), np.empty((0, tags)), np.empty(0, dtype=object))


@dataclass(frozen=True)
class _Rows:
    """A block of rows ``(n,)`` with what the rules need to know of each; ``shares (n, C)``."""

    time: NDArray[np.int64]
    score: NDArray[np.float64]
    anomalous: NDArray[np.bool_]
    above_off: NDArray[np.bool_]
    scorable: NDArray[np.bool_]
    shares: NDArray[Any]
    reasons: NDArray[np.object_]


class EpisodeTracker:
    """Follows the scored rows of one asset, chunk by chunk, in bounded memory."""

    def __init__(
        self, asset: str, threshold: float, rules: EpisodeRules, tags: Sequence[str] = (), top: int = 3
    ) -> None:
        if np.isnan(threshold):
            raise ValueError(f"threshold: expected a number, got {threshold}")
        self.asset, self.threshold, self.rules, self.tags, self.top = asset, float(threshold), rules, tuple(tags), top
        self._done: list[Episode] = []
        self._current = _no_groups(len(self.tags))  # none or one
        self._on = False
        self._last_time: int | None = None
        self._last_scorable: int | None = None

    def update(
        self,
        time: ArrayLike,
        score: ArrayLike,
        outcome: ArrayLike,
        reason: ArrayLike,
        shares: ArrayLike | None = None,
        reasons: ArrayLike | None = None,
    ) -> None:
        """Follow the next rows.

        ``time (n,)`` UTC microseconds, never backwards; ``score (n,)``; ``outcome (n,)`` names or codes (2 = unscorable);
        ``reason (n,)`` text; ``shares (n, C)`` of the raw score, one column per tag (negative shares count as zero);
        ``reasons (n,)`` JSON text for the rows that may be a peak.
        The threshold is compared in the precision of ``score``, so that a float32 score file gives the same answer.
        """
        t, s, unanswered = _checked(time, score, outcome, reason)
        part = np.zeros((len(t), len(self.tags)), np.float32) if shares is None else np.asarray(shares)
        told = np.full(len(t), "", dtype=object) if reasons is None else np.asarray(reasons, dtype=object)
        if part.shape != (len(t), len(self.tags)):
            raise ValueError(f"shares: expected shape {(len(t), len(self.tags))}, got {part.shape}")
        if len(t) and (np.any(t[1:] < t[:-1]) or (self._last_time is not None and t[0] < self._last_time)):
            raise ValueError("time: expected rows of one asset in time order, got a time before the one above it")
        on_level, off_level = s.dtype.type(self.threshold), s.dtype.type(self.rules.off * self.threshold)
        for at in _blocks(len(t)):
            scorable = ~unanswered[at] & ~np.isnan(s[at])
            anomalous, above = scorable & (s[at] >= on_level), scorable & (s[at] >= off_level)
            self._follow(
                _Rows(t[at], s[at].astype(np.float64), anomalous, above | anomalous, scorable, part[at], told[at])
            )

    def finish(self) -> list[Episode]:
        """All episodes so far, in time order; the last is ``open`` if it is still on. Following may go on afterwards."""
        return self._done + self._episodes(self._current, still_on=self._on)

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What the tracker knows, as JSON-ready values and arrays; asset, threshold, rules and tags are not part of it."""
        plain = {"done": [asdict(e) for e in self._done], "on": self._on, "last_time": self._last_time,
                 "last_scorable": self._last_scorable, "reasons": [str(r) for r in self._current.reasons]}  # fmt: skip
        return plain, {name: getattr(self._current, name) for name in _GROUP_ARRAYS}

    @classmethod
    def from_state(
        cls,
        asset: str,
        threshold: float,
        rules: EpisodeRules,
        tags: Sequence[str],
        settings: dict[str, Any],
        arrays: dict[str, NDArray[Any]],
        top: int = 3,
    ) -> EpisodeTracker:
        """A tracker that goes on where ``to_state`` was called, made with the same arguments as that one.

        Raises ValueError where the state is not of as many tags.
        """
        if arrays["shares"].shape[1] != len(tags):
            raise ValueError(f"arrays: expected shares of {len(tags)} tags, got {arrays['shares'].shape[1]}")
        made = cls(asset, threshold, rules, tags, top)
        made._done = [episode_from(e) for e in settings["done"]]
        own = {name: arrays[name] for name in _GROUP_ARRAYS}
        made._current = _Groups(**own, reasons=np.array(settings["reasons"], dtype=object))
        made._on, made._last_time = bool(settings["on"]), settings["last_time"]
        made._last_scorable = settings["last_scorable"]
        return made

    def _follow(self, rows: _Rows) -> None:
        step = np.diff(rows.time, prepend=rows.time[0] if self._last_time is None else self._last_time)
        jumped = step > self.rules.max_gap_us if self.rules.max_gap_us is not None else np.zeros(len(step), bool)
        on = self._states(rows, jumped)
        member = on & rows.above_off
        was_on = np.concatenate(([self._on], on[:-1]))
        starts = on & (~was_on | jumped)
        self._gather(rows, member, starts)
        self._on = bool(on[-1])
        self._last_time = int(rows.time[-1])
        if rows.scorable.any():
            self._last_scorable = int(rows.time[rows.scorable][-1])

    def _states(self, rows: _Rows, jumped: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether an episode is on at each row ``(n,)``."""
        position = np.arange(len(rows.time))
        scorable = np.maximum.accumulate(np.where(rows.scorable, position, -1))
        carried = rows.time[0] if self._last_scorable is None else self._last_scorable
        held_since = np.where(scorable >= 0, rows.time[np.maximum(scorable, 0)], carried)
        held_out = ~rows.scorable & (rows.time - held_since > self.rules.merge_gap_us)
        ends = (rows.scorable & ~rows.above_off) | held_out | (jumped & ~rows.anomalous)
        decided = np.maximum.accumulate(np.where(rows.anomalous | ends, position, -1))
        return np.where(decided >= 0, rows.anomalous[np.maximum(decided, 0)], self._on)

    def _gather(self, rows: _Rows, member: NDArray[np.bool_], starts: NDArray[np.bool_]) -> None:
        """Add the rows of episodes to theirs; those that can grow no more are done."""
        if not member.any():
            return
        held = len(self._current.start)
        times = rows.time[member]
        before = np.concatenate((self._current.end if held else [times[0]], times[:-1]))
        fresh = starts[member] & (times - before > self.rules.merge_gap_us)
        fresh[0] = fresh[0] if held else True
        group = np.cumsum(fresh) - (0 if held else 1)
        grown = _grow(self._current, rows, member, group)
        self._done += self._episodes(grown.at(slice(None, -1)))
        self._current = grown.at(slice(-1, None))

    def _episodes(self, groups: _Groups, *, still_on: bool = False) -> list[Episode]:
        kept = np.flatnonzero(groups.rows >= self.rules.min_rows)
        return [
            Episode(
                asset=self.asset,
                start_us=int(groups.start[k]),
                peak_us=int(groups.peak_time[k]),
                end_us=int(groups.end[k]),
                peak_score=float(groups.peak[k]),
                threshold=self.threshold,
                rows=int(groups.rows[k]),
                top_tags=top_shares(groups.shares[k], self.tags, self.top),
                open=still_on,
                reasons=str(groups.reasons[k]),
            )
            for k in kept
        ]


def top_shares(shares: NDArray[np.float64], tags: Sequence[str], top: int) -> TopTags:
    """The largest of ``shares (C,)`` as parts of their total, largest first; a tag without a share is left out.

    >>> top_shares(np.array([1.0, 0.0, 3.0]), ("P", "Q", "R"), 2)
    (('R', 0.75), ('P', 0.25))
    """
    total = float(shares.sum())
    order = np.argsort(-shares, kind="stable")[:top]
    return tuple((tags[i], float(shares[i]) / total) for i in order if shares[i] > 0)


def _checked(
    time: ArrayLike, score: ArrayLike, outcome: ArrayLike, reason: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.floating[Any]], NDArray[np.bool_]]:
    """Times, scores, and which rows have no full answer (unscorable or warm-up); all ``(n,)``."""
    t, s, why = np.asarray(time, dtype=np.int64), np.asarray(score), np.asarray(reason, dtype=object)
    s = s if s.dtype.kind == "f" else s.astype(np.float64)
    answer = np.asarray(outcome)
    unscorable = answer == UNSCORABLE_CODE if answer.dtype.kind in "iu" else answer.astype(object) == UNSCORABLE
    for name, array in (("score", s), ("outcome", answer), ("reason", why)):
        if array.shape != t.shape or t.ndim != 1:
            raise ValueError(f"{name}: expected shape {t.shape} as time, one-dimensional, got {array.shape}")
    return t, s, np.asarray(unscorable, dtype=bool) | np.asarray(why == WARM_UP, dtype=bool)


def _blocks(rows: int) -> Iterator[slice]:
    for start in range(0, rows, _BLOCK):
        yield slice(start, min(start + _BLOCK, rows))


def _grow(current: _Groups, rows: _Rows, member: NDArray[np.bool_], group: NDArray[np.int64]) -> _Groups:
    """``current`` (none or one) and the episodes that the rows ``member`` add, ``group`` being each one's episode."""
    count, held = int(group[-1]) + 1, len(current.start)
    times, anomalous = rows.time[member], rows.anomalous[member]
    first = np.searchsorted(group, np.arange(count))
    last = np.searchsorted(group, np.arange(count), side="right") - 1
    end = np.where(last >= first, times[last], -1)
    start = times[np.minimum(first, len(times) - 1)].copy()
    if held:
        start[0] = current.start[0]
        end[0] = times[last[0]] if last[0] >= first[0] else current.end[0]
    at = np.flatnonzero(member)[anomalous]
    of = group[anomalous]
    peak, peak_time, reached = _peaks(current, rows.score[at], rows.time[at], of, count)
    shares = np.concatenate((current.shares, np.nan_to_num(np.maximum(rows.shares[at], 0), posinf=_HEAVIEST)))
    return _Groups(
        start=start,
        end=end,
        peak_time=peak_time,
        rows=_counts(current.rows, of, count),
        peak=peak,
        shares=shares[reached],
        reasons=np.concatenate((current.reasons, rows.reasons[at]))[reached],
    )


def _counts(carried: NDArray[np.int64], of: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    counts = np.bincount(of, minlength=count).astype(np.int64)
    counts[: len(carried)] += carried
    return counts


def _peaks(
    current: _Groups, score: NDArray[np.float64], time: NDArray[np.int64], of: NDArray[np.int64], count: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.intp]]:
    """Highest score of each episode, the first time it was reached, and the position of that row (carried ones first)."""
    held = len(current.start)
    score, time = np.concatenate((current.peak, score)), np.concatenate((current.peak_time, time))
    of = np.concatenate((np.zeros(held, np.int64), of))
    peak = np.full(count, -np.inf)
    np.maximum.at(peak, of, score)
    reached = np.flatnonzero(score == peak[of])
    _, first = np.unique(of[reached], return_index=True)
    return peak, time[reached[first]], reached[first]
