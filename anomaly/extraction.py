"""Windows of a store through a model in one streamed pass: embeddings, scores, and what a space is learned from.

Blocks are cut into pieces at fixed places and every piece is computed alone, on one thread; pieces are merged in their
order. So results depend neither on how many threads work nor on how large the blocks are (METHODS S2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.data.store_blocks import RawBlock
from anomaly.data.store_features import Column
from anomaly.embeddings.clusters import StreamedKMeans
from anomaly.embeddings.reduction import Moments, StreamedPCA
from anomaly.embeddings.space import Space, chosen_clusters, tried_clusters
from anomaly.model import ANOMALOUS, UNSCORABLE, AnomalyModel
from anomaly.parallel import one_blas_thread
from anomaly.scores.sampling import row_noise
from anomaly.scores.smoothing import CausalSmoother
from anomaly.scores.window_scores import ModeStability, filled_radius, novelty, row_energy

#: Windows of a piece, fewer where they are large: each worker holds what an encoder makes of one.
_PIECE, _LEAST_PIECE, _PIECE_BYTES = 2048, 64, 8 << 20
#: Rows of the sample that modes are learned from, and its bytes at most.
_SAMPLE_ROWS, _SAMPLE_BYTES = 20_000, 16 << 20
#: Rows of the sample on which the number of modes is chosen.
_TRIED_ROWS = 2048
#: Windows that stability looks back over, this one included.
RECENT = 20

Columns = dict[str, NDArray[Any]]


def piece_size(lookback: int, channels: int) -> int:
    """Windows of one piece, a power of two that depends on the shape of a window alone.

    >>> piece_size(32, 3), piece_size(600, 100)
    (2048, 64)
    """
    fitting = _PIECE_BYTES // (4 * lookback * max(channels, 1))
    return int(np.clip(1 << max(fitting.bit_length() - 1, 0), _LEAST_PIECE, _PIECE))


@dataclass(frozen=True)
class Wanted:
    """What a pass makes of every window. ``enriched`` adds scores to the embeddings; ``learn`` gathers what a space is
    learned from; ``raw_energy`` are the channel weights ``(C,)`` of the energy."""

    enriched: bool
    learn: bool
    raw_energy: NDArray[np.float64]
    seed: int = 7


@dataclass
class Gathered:
    """What a space is learned from: moments of all rows, and the rows with the smallest keys as a uniform sample.

    A row's key depends on its number alone, so a run that was interrupted goes on with the same sample.
    """

    size: int = 0
    moments: Moments | None = None
    keys: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    rows: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    _limit: float = np.inf
    _waiting: list[tuple[NDArray[np.float64], NDArray[np.float32]]] = field(default_factory=list)
    _waits: int = 0

    @classmethod
    def of(cls, numbers: NDArray[np.int64], rows: NDArray[np.float32], seed: int) -> Gathered:
        """Of one piece: rows ``(n, d)`` with their numbers ``(n,)``."""
        size = max(min(_SAMPLE_ROWS, _SAMPLE_BYTES // (4 * max(rows.shape[1], 1))), 1)
        moments = None
        if len(rows):
            moments = Moments(rows.shape[1])
            moments.add(rows)
        return cls(size, moments, -row_noise(numbers, seed), rows)

    def merge(self, other: Gathered) -> None:
        """Take in a later piece."""
        if other.moments is None:
            return
        if self.moments is None:
            self.size, self.moments, self.rows = other.size, Moments(other.rows.shape[1]), other.rows[:0]
        self.moments.merge(other.moments)
        near = other.keys < self._limit
        self._waiting.append((other.keys[near], other.rows[near]))
        self._waits += len(self._waiting[-1][0])
        if self._waits > self.size // 4:
            self._settle()

    def _settle(self) -> None:
        """Keep the smallest keys of all that were taken in; done seldom, because it copies the sample."""
        keys = np.concatenate((self.keys, *(keys for keys, _ in self._waiting)))
        parts = [self.rows, *(rows for _, rows in self._waiting)]
        self._waiting, self._waits = [], 0
        stay = np.arange(len(keys))
        if len(keys) >= self.size:
            stay = np.sort(np.argpartition(keys, self.size - 1)[: self.size])
            self._limit = float(keys[stay].max())
        self.keys, self.rows = keys[stay], _picked(parts, stay)

    def to_arrays(self) -> Columns:
        """As arrays, for a journal."""
        if self.moments is None:
            return {}
        self._settle()
        own = {f"moments.{name}": array for name, array in self.moments.to_arrays().items()}
        return own | {"sample.keys": self.keys, "sample.rows": self.rows, "sample.size": np.array(self.size)}

    @classmethod
    def from_arrays(cls, arrays: Columns) -> Gathered:
        """From ``to_arrays``."""
        if "sample.keys" not in arrays:
            return cls()
        own = {k.removeprefix("moments."): v for k, v in arrays.items() if k.startswith("moments.")}
        size = int(arrays["sample.size"])
        return cls(size, Moments.from_arrays(own), arrays["sample.keys"], arrays["sample.rows"])

    def space(self, reduce: int, clusters: int | None, seed: int) -> Space:
        """Reduction and modes; raises ValueError for fewer rows than components or clusters."""
        if self.moments is None:
            raise ValueError("rows: expected windows to learn a space from, got none")
        self._settle()
        pca = None
        if reduce:
            pca = StreamedPCA(reduce)
            pca.wide_enough(self.rows.shape[1])
            pca.solve(self.moments)
        return self.space_with(pca, clusters, seed)

    def space_with(self, pca: StreamedPCA | None, clusters: int | None, seed: int) -> Space:
        """Modes in the space of a reduction; errors as ``space``."""
        with one_blas_thread():  # products with a handful of centres are many times slower on several
            return self._modes(pca, clusters, seed)

    def _modes(self, pca: StreamedPCA | None, clusters: int | None, seed: int) -> Space:
        sample = self.rows if pca is None else pca.transform(self.rows)
        few = sample[:: max(len(sample) // max(_TRIED_ROWS, 20 * (clusters or 1)), 1)]
        tried = [] if clusters is not None else tried_clusters(few, seed)
        count = chosen_clusters(tried) if clusters is None else clusters
        return Space(
            pca, StreamedKMeans(count, seed, passes=2).fit([sample], few if len(few) >= count else sample), tried
        )


@dataclass(frozen=True)
class Piece:
    """Consecutive windows and what became of them: ``columns (B, …)`` by name; ``fused (B,)`` scores before smoothing."""

    block: RawBlock
    columns: Columns
    fused: NDArray[np.float64] | None
    unscorable: NDArray[np.bool_]
    gathered: Gathered | None


class WindowPass:
    """One block of raw windows → its pieces; may be called from several threads at once."""

    def __init__(
        self, model: AnomalyModel, wanted: Wanted, words: tuple[tuple[str, ...], ...], space: Space | None
    ) -> None:
        self.model, self.wanted, self.space, self._words = model, wanted, space, words
        self.size = piece_size(model.lookback, len(model.contract.tags) + len(model.contract.categories))
        model.engine(embedding=True)  # made once, before threads ask for it

    def layout(self) -> dict[str, Column]:
        """The columns that a piece has, found by passing one window of zeros."""
        shape = self.model.encoder.fitted_shape()
        rows = np.zeros((shape.rows, shape.tags), np.float32)
        age, codes = np.zeros(rows.shape, np.uint8), np.zeros((shape.rows, len(self._words)), np.int32)
        one, yes = np.zeros(1, np.int64), np.ones(1, bool)
        block = RawBlock(0, 0, "", one, one.astype(np.int8), yes, rows, age, codes, one, shape.rows)
        made = self._piece(block).columns
        if self.wanted.enriched:
            made |= {"anomaly_score": np.zeros(1, np.float32), "outcome": np.zeros(1, np.int8)}
        return {name: Column(array.dtype, array.shape[1:]) for name, array in made.items()}

    def __call__(self, block: RawBlock) -> list[Piece]:
        return [self._piece(piece) for piece in block.pieces(self.size)]

    def _piece(self, block: RawBlock) -> Piece:
        model, wanted = self.model, self.wanted
        codes = model.vocabulary.recoded(block.codes, self._words)
        windows = block.windows(model.prepare(block.values, codes, block.since_start))
        encoded = model.encode(windows, embedding=True)
        bad, embedding = self._unscorable(block), encoded.needed("embedding")
        columns: Columns = {"features": _masked(embedding, bad)}
        if encoded.residual is not None:
            columns["reconstruction_error"] = _masked(_mean_square(encoded.residual), bad)
        fused = None
        if wanted.enriched:
            columns["energy"] = _masked(_energy(block, wanted.raw_energy), bad)
            alone = model.ensemble.alone(encoded)
            fused = model.ensemble.fused(alone)
            columns["detector_scores"] = _masked(alone.astype(np.float32), bad)
        if self.space is not None:
            columns |= placed(self.space, columns["features"])
        gathered = None
        if wanted.learn:
            use = block.learn & ~bad
            gathered = Gathered.of(block.first + np.flatnonzero(use), embedding[use], wanted.seed)
        return Piece(block, columns, fused, bad, gathered)

    def _unscorable(self, block: RawBlock) -> NDArray[np.bool_]:
        """Windows that get no score: as in the stream, where the last row lacks a value or most rows do; in a file of
        signals, where nothing was held, those with any value missing."""
        if block.age is None:
            if not np.isnan(block.values.max(initial=0)):  # nearly always, and many times cheaper than to ask each row
                return np.zeros(len(block), bool)
            missing = np.asarray(np.isnan(block.values).any(axis=1))
        else:
            missing = np.asarray(self.model.preparer.absent(block.age).any(axis=1))
        total = np.concatenate(([0], np.cumsum(missing)))
        end = block.at + block.lookback
        count = total[end] - total[block.at]
        if block.age is None:
            return np.asarray(count > 0)
        return np.asarray(missing[end - 1] | (2 * count > block.lookback))


class InOrder:
    """What only makes sense in order: smoothing over time, calibration, outcomes, and the stability of modes."""

    def __init__(self, model: AnomalyModel, stride: int | None) -> None:
        """``stride`` of the windows; None where they do not follow each other, as in a file of signals."""
        self.model = model
        half_life = model.settings.detection.half_life
        self._smoother = CausalSmoother(half_life) if half_life and stride == 1 else None
        self._asset, self._next = "", -1

    def finish(self, piece: Piece) -> Columns:
        """All columns of a piece, which must come in the order of the store."""
        if piece.fused is None:
            return piece.columns
        fused = piece.fused
        if self._smoother is not None:
            starts = np.diff(piece.block.starts, prepend=self._before(piece.block)) != 1
            fused = self._smoother.update(fused, starts)
            self._asset, self._next = piece.block.asset, int(piece.block.starts[-1]) + 1
        calibrator = self.model.calibrator
        score = (fused if calibrator is None else calibrator.transform(fused)).astype(np.float32)
        outcome = np.where(score >= np.float32(self.model.threshold.value), ANOMALOUS, 0).astype(np.int8)
        outcome[piece.unscorable] = UNSCORABLE
        return piece.columns | {"anomaly_score": _masked(score, piece.unscorable), "outcome": outcome}

    def _before(self, block: RawBlock) -> int:
        """The start of the window before the first one, -2 where another asset was before."""
        return self._next - 1 if block.asset == self._asset else -2

    def to_arrays(self) -> Columns:
        """As arrays, for a journal."""
        last = np.nan if self._smoother is None or self._smoother.last is None else self._smoother.last
        return {"order.last": np.array(last), "order.next": np.array(self._next), "order.asset": np.array(self._asset)}

    def restore(self, arrays: Columns) -> None:
        """Go on from ``to_arrays``."""
        self._asset, self._next = str(arrays["order.asset"]), int(arrays["order.next"])
        last = float(arrays["order.last"])
        if self._smoother is not None and not np.isnan(last):
            self._smoother.last = last


def placed(space: Space, features: NDArray[np.float32]) -> Columns:
    """``reduced``, ``cluster_id``, ``cosine`` and ``novelty`` of embeddings ``(B, d)``; NaN and -1 where they are NaN."""
    bad = np.asarray(np.isnan(features[:, 0]))
    where = space.place(np.where(bad[:, None], np.float32(0), features) if bad.any() else features)
    radius = filled_radius(space.kmeans.radius_)
    columns: Columns = {
        "cluster_id": where.ids.astype(np.int32),
        "cosine": _masked(where.cosine, bad),
        "novelty": _masked(novelty(where.distance, radius[where.ids]).astype(np.float32), bad),
    }
    columns["cluster_id"][bad] = -1
    return columns | ({"reduced": _masked(where.reduced, bad)} if space.pca is not None else {})


class Stability:
    """The share of an asset's recent windows in the same mode, as the windows come; 0 where a window has no mode."""

    def __init__(self) -> None:
        self._own = ModeStability(RECENT)

    def add(self, asset: str, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """Of the next windows of ``asset``."""
        return np.where(ids >= 0, self._own.add(asset, ids), 0).astype(np.float32)

    def state(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The asset, and the modes of its last windows."""
        return np.array(self._own.asset or ""), self._own.before

    def restore(self, asset: str, ids: NDArray[np.int64]) -> None:
        """Go on from ``state``."""
        self._own.asset, self._own.before = asset, ids


def placed_columns(components: int) -> dict[str, Column]:
    """The columns of ``placed`` and ``Stability`` in a space of so many components, 0 for the full one."""
    floats = dict.fromkeys(("stability", "cosine", "novelty"), Column(np.float32))
    reduced = {"reduced": Column(np.float32, (components,))} if components else {}
    return {"cluster_id": Column(np.int32), **floats, **reduced}


def _picked(parts: list[NDArray[np.float32]], stay: NDArray[np.int64]) -> NDArray[np.float32]:
    """Rows ``stay``, ascending, of all ``parts`` one after the other, without putting those together first."""
    ends = np.cumsum([len(part) for part in parts])
    edges = np.searchsorted(stay, np.concatenate(([0], ends)))
    found = np.empty((len(stay), parts[0].shape[1]), np.float32)
    for part, end, low, high in zip(parts, ends, edges, edges[1:], strict=False):
        found[low:high] = part[stay[low:high] - (end - len(part))]
    return found


def _energy(block: RawBlock, weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """``scores.window_scores.energy`` of a block's windows: each row squared once, not once for every window it lies in."""
    squares, measured = row_energy(block.values, weights)
    # One after the other: sums over an axis that lies close in memory are several times faster.
    total, counted = (block.windows(one[:, None])[..., 0].sum(axis=1) for one in (squares, measured))
    return np.sqrt(total / np.where(counted > 0, counted, 1.0)).astype(np.float32)


def _mean_square(residual: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = residual.reshape(len(residual), -1)
    return np.asarray(np.einsum("nf,nf->n", flat, flat) / np.float32(max(flat.shape[1], 1)), dtype=np.float32)


def _masked(values: NDArray[np.float32], bad: NDArray[np.bool_]) -> NDArray[np.float32]:
    if bad.any():
        values = values.copy()
        values[bad] = np.nan
    return values
