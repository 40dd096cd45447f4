"""Layers of the encoders, in keras.ops alone: positions, a class token, pooling over time, full and sparse attention."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

#: Multiplies ln T: how many queries, and keys to judge them by, sparse attention looks at.
SPARSE_FACTOR = 5


def sinusoids(rows: int, width: int) -> NDArray[np.float32]:
    """Sinusoidal positions ``(rows, width)``: column 2i is sin(t / 10000^(2i/width)), 2i + 1 its cosine; an odd width
    ends with a sine (Vaswani et al. 2017; METHODS S22).

    >>> [f"{value:.4f}" for value in sinusoids(2, 3)[1]]
    ['0.8415', '0.5403', '0.0022']
    """
    even = np.arange(0, width, 2)
    angle = np.arange(rows)[:, None] * np.exp(-math.log(10_000.0) * even / width)[None]
    table = np.zeros((rows, width))
    table[:, 0::2] = np.sin(angle)
    table[:, 1::2] = np.cos(angle[:, : width // 2])
    return table.astype(np.float32)


@keras.saving.register_keras_serializable("anomaly")
class SinusoidalPositions(keras.layers.Layer):
    """Adds ``sinusoids`` to ``(B, T, d)``, for the T it was built for."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.table = sinusoids(int(input_shape[1] or 0), int(input_shape[2] or 0))

    def call(self, x: Any) -> Any:
        return x + ops.cast(ops.convert_to_tensor(self.table), x.dtype)


@keras.saving.register_keras_serializable("anomaly")
class ClassToken(keras.layers.Layer):
    """Puts one trained vector in front of ``(B, T, d)``: ``(B, T + 1, d)``."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.token = self.add_weight((1, 1, input_shape[2]), initializer="random_normal", name="token")

    def call(self, x: Any) -> Any:
        first = ops.broadcast_to(self.token, (ops.shape(x)[0], 1, x.shape[2]))
        return ops.concatenate([ops.cast(first, x.dtype), x], axis=1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (input_shape[0], None if input_shape[1] is None else input_shape[1] + 1, input_shape[2])


@keras.saving.register_keras_serializable("anomaly")
class PoolOverTime(keras.layers.Layer):
    """``(B, T, d)`` → ``(B, d)``: ``mean``, ``max`` or the ``first`` row; steps whose mask ``(B, T)`` is 0 are ignored
    (METHODS S23, S40).

    A window with no step left gives zeros.
    """

    def __init__(self, kind: str = "mean", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if kind not in ("mean", "max", "first"):
            raise ValueError(f"kind: expected mean, max or first, got {kind!r}")
        self.kind = kind

    def call(self, x: Any, steps: Any = None) -> Any:
        """Pool; ``steps (B, T)`` 1 where a step counts."""
        if self.kind == "first":
            return x[:, 0]
        if steps is None:
            return ops.mean(x, axis=1) if self.kind == "mean" else ops.max(x, axis=1)
        counts = ops.cast(steps, x.dtype)[..., None]
        some = ops.sum(counts, axis=1)
        if self.kind == "mean":
            return ops.sum(ops.where(counts > 0, x, ops.zeros_like(x)), axis=1) / ops.maximum(some, 1.0)
        largest = ops.max(ops.where(counts > 0, x, ops.cast(-np.inf, x.dtype)), axis=1)
        return ops.where(some > 0, largest, ops.zeros_like(largest))


def sparse_count(rows: int, factor: int = SPARSE_FACTOR) -> int:
    """How many queries sparse attention computes: ``factor · ⌈ln T⌉``, at most T.

    >>> [sparse_count(t) for t in (4, 64, 4096)]
    [4, 25, 45]
    """
    return min(rows, factor * max(1, math.ceil(math.log(max(rows, 2)))))


def full_attention(query: Any, key: Any, value: Any, steps: Any = None) -> Any:
    """Softmax attention of ``(B, H, T, d)``; keys whose ``steps (B, T)`` is 0 are not looked at."""
    scores = ops.matmul(query, ops.swapaxes(key, -1, -2)) / math.sqrt(query.shape[-1])
    if steps is not None:
        scores = ops.where(steps[:, None, None] > 0, scores, _floor(scores))
    return ops.matmul(ops.softmax(scores, axis=-1), value)


def sparse_attention(query: Any, key: Any, value: Any, count: int, sample: NDArray[np.int64], steps: Any = None) -> Any:
    """ProbSparse attention (Zhou et al. 2021; METHODS S24) of ``(B, H, T, d)``, steps as in ``full_attention``.

    The ``count`` queries that single out some of the sampled keys most get full attention, every other the mean of the
    values. Work and memory grow with ``T · count``. Equal to full attention where ``count`` is T.
    """
    rows = query.shape[2]
    chosen = ops.top_k(_sharpness(query, key, sample, steps), count)[1]
    pick = ops.one_hot(chosen, rows, dtype=query.dtype)  # (B, H, count, T)
    attended = full_attention(ops.matmul(pick, query), key, value, steps)
    rest = 1 - ops.sum(pick, axis=2)[..., None]
    return rest * _mean_value(value, steps) + ops.matmul(ops.swapaxes(pick, -1, -2), attended)


def _sharpness(query: Any, key: Any, sample: NDArray[np.int64], steps: Any) -> Any:
    """``(B, H, T)``: how far a query's best sampled key stands above the mean of the sampled ones."""
    keys = ops.take(key, sample, axis=2)
    judged = ops.matmul(query, ops.swapaxes(keys, -1, -2)) / math.sqrt(query.shape[-1])
    if steps is None:
        return ops.max(judged, axis=-1) - ops.mean(judged, axis=-1)
    counts = ops.cast(ops.take(steps, sample, axis=1), judged.dtype)[:, None, None]
    best = ops.max(ops.where(counts > 0, judged, _floor(judged)), axis=-1)
    mean = ops.sum(judged * counts, axis=-1) / ops.maximum(ops.sum(counts, axis=-1), 1.0)
    return ops.where(steps[:, None] > 0, best - mean, 2 * _floor(judged))


def _mean_value(value: Any, steps: Any) -> Any:
    """``(B, H, 1, d)``: mean over the steps that count."""
    if steps is None:
        return ops.mean(value, axis=2, keepdims=True)
    counts = ops.cast(steps, value.dtype)[:, None, :, None]
    return ops.sum(value * counts, axis=2, keepdims=True) / ops.maximum(ops.sum(counts, axis=2, keepdims=True), 1.0)


def _floor(like: Any) -> Any:
    """Below any score, and still finite in half precision when doubled."""
    return ops.cast(-3e4, like.dtype)


@keras.saving.register_keras_serializable("anomaly")
class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention ``(B, T, d)`` → ``(B, T, d)``; ``kind`` full or probsparse."""

    def __init__(self, heads: int, kind: str = "full", factor: int = SPARSE_FACTOR, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if kind not in ("full", "probsparse"):
            raise ValueError(f"kind: expected full or probsparse, got {kind!r}")
        self.heads, self.kind, self.factor = heads, kind, factor

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Weights of the projections, and which keys sparse attention looks at."""
        rows, width = int(input_shape[1] or 0), int(input_shape[2] or 0)
        if width % self.heads:
            raise ValueError(f"heads: expected a divisor of the width {width}, got {self.heads}")
        self.mixed = keras.layers.Dense(3 * width, name="mixed")
        self.projected = keras.layers.Dense(width, name="projected")
        self.mixed.build(input_shape)
        self.projected.build(input_shape)
        self.count = sparse_count(rows, self.factor)
        # Which keys a query is judged by is drawn once: the same window must always get the same answer.
        self.sample = np.sort(np.random.default_rng(rows).permutation(rows)[: self.count])

    def call(self, x: Any, steps: Any = None) -> Any:
        """Attend; ``steps (B, T)`` 1 where a step may be looked at."""
        rows, width = x.shape[1], x.shape[2]
        steps = None if steps is None else ops.cast(steps, x.dtype)
        split = ops.reshape(self.mixed(x), (-1, rows, 3, self.heads, width // self.heads))
        query, key, value = (ops.transpose(split[:, :, i], (0, 2, 1, 3)) for i in range(3))
        # Where every query would be chosen, choosing costs more than it saves.
        if self.kind == "full" or self.count == rows:
            out = full_attention(query, key, value, steps)
        else:
            out = sparse_attention(query, key, value, self.count, self.sample, steps)
        return self.projected(ops.reshape(ops.transpose(out, (0, 2, 1, 3)), (-1, rows, width)))


def gelu(x: Any) -> Any:
    """The tanh form of GELU: the exact one becomes an operation that inference engines do not know."""
    return ops.gelu(x, approximate=True)


def transformer_block(
    x: Any, *, heads: int, norm: str = "pre", attention: str = "full", dropout: float = 0.0, steps: Any = None
) -> Any:
    """Attention and a feed-forward layer of four times the width, each with a shortcut; layer norm before them
    (``pre``) or after (``post``). ``(B, T, d)`` → ``(B, T, d)``; ``steps (B, T)`` 1 where a row may be looked at.

    Raises ValueError for another norm or attention, or heads that do not divide d.
    """
    if norm not in ("pre", "post"):
        raise ValueError(f"norm: expected pre or post, got {norm!r}")
    width = x.shape[2]

    def attend(inner: Any) -> Any:
        layer = SelfAttention(heads, attention)
        return layer(inner) if steps is None else layer(inner, steps=steps)

    def feed(inner: Any) -> Any:
        wide = keras.layers.Dense(4 * width, activation=gelu)(inner)
        return keras.layers.Dense(width)(wide)

    for part in (attend, feed):
        inner = keras.layers.LayerNormalization(epsilon=1e-5)(x) if norm == "pre" else x
        out = part(inner)
        out = keras.layers.Dropout(dropout)(out) if dropout else out
        x = keras.layers.Add()([x, out])
        x = x if norm == "pre" else keras.layers.LayerNormalization(epsilon=1e-5)(x)
    return x
