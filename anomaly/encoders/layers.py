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

    >>> sinusoids(2, 3).round(4).tolist()
    [[0.0, 1.0, 0.0], [0.8415, 0.5403, 0.0022]]
    """
    even = np.arange(0, width, 2)
    angle = np.arange(rows)[:, None] * np.exp(-math.log(10_000.0) * even / width)[None]
    table = np.zeros((rows, width))
    table[:, 0::2] = np.sin(angle)
    table[:, 1::2] = np.cos(angle[:, : width // 2])
    return table.astype(np.float32)


@keras.saving.register_keras_serializable("anomaly")
class SinusoidalPositions(keras.layers.Layer):
    """Adds ``sinusoids`` to ``(B, T, d)``."""

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
    """``(B, T, d)`` → ``(B, d)``: ``mean``, ``max`` or the ``first`` row; steps whose mask ``(B, T)`` is 0 are ignored.

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
            return ops.sum(x * counts, axis=1) / ops.maximum(some, 1.0)
        largest = ops.max(ops.where(counts > 0, x, ops.cast(-1e30, x.dtype)), axis=1)
        return ops.where(some > 0, largest, ops.zeros_like(largest))


def sparse_count(rows: int, factor: int = SPARSE_FACTOR) -> int:
    """How many queries sparse attention computes: ``factor · ⌈ln T⌉``, at most T.

    >>> [sparse_count(t) for t in (4, 64, 4096)]
    [4, 25, 45]
    """
    return min(rows, factor * max(1, math.ceil(math.log(max(rows, 2)))))


def full_attention(query: Any, key: Any, value: Any) -> Any:
    """Softmax attention of ``(B, H, T, d)``."""
    scores = ops.matmul(query, ops.swapaxes(key, -1, -2)) / math.sqrt(query.shape[-1])
    return ops.matmul(ops.softmax(scores, axis=-1), value)


def sparse_attention(query: Any, key: Any, value: Any, count: int, sample: NDArray[np.int64]) -> Any:
    """ProbSparse attention (Zhou et al. 2021; METHODS S24): the ``count`` queries that single out some of the sampled
    keys most get full attention, every other the mean of the values. Equal to full attention where ``count`` is T."""
    scale = 1 / math.sqrt(query.shape[-1])
    judged = ops.matmul(query, ops.swapaxes(ops.take(key, sample, axis=2), -1, -2)) * scale
    sharpness = ops.max(judged, axis=-1) - ops.mean(judged, axis=-1)
    chosen = ops.top_k(sharpness, count)[1]
    pick = ops.one_hot(chosen, query.shape[2], dtype=query.dtype)  # (B, H, count, T)
    attended = full_attention(ops.matmul(pick, query), key, value)
    mean = ops.mean(value, axis=2, keepdims=True)
    rest = 1 - ops.sum(pick, axis=2)[..., None]
    return rest * mean + ops.matmul(ops.swapaxes(pick, -1, -2), attended)


@keras.saving.register_keras_serializable("anomaly")
class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention ``(B, T, d)`` → ``(B, T, d)``; ``kind`` full or probsparse."""

    def __init__(self, heads: int, kind: str = "full", factor: int = SPARSE_FACTOR, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads, self.kind, self.factor = heads, kind, factor

    def build(self, input_shape: tuple[int | None, ...]) -> None:
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

    def call(self, x: Any) -> Any:
        """Attend."""
        rows, width = x.shape[1], x.shape[2]
        split = ops.reshape(self.mixed(x), (-1, rows, 3, self.heads, width // self.heads))
        query, key, value = (ops.transpose(split[:, :, i], (0, 2, 1, 3)) for i in range(3))
        if self.kind == "full":
            out = full_attention(query, key, value)
        else:
            out = sparse_attention(query, key, value, self.count, self.sample)
        return self.projected(ops.reshape(ops.transpose(out, (0, 2, 1, 3)), (-1, rows, width)))


def gelu(x: Any) -> Any:
    """The tanh form of GELU: the exact one becomes an operation that inference engines do not know."""
    return ops.gelu(x, approximate=True)


def transformer_block(x: Any, *, heads: int, norm: str = "pre", attention: str = "full", dropout: float = 0.0) -> Any:
    """Attention and a feed-forward layer of four times the width, each with a shortcut; layer norm before them
    (``pre``) or after (``post``). ``(B, T, d)`` → ``(B, T, d)``."""
    width = x.shape[2]

    def attend(inner: Any) -> Any:
        return SelfAttention(heads, attention)(inner)

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
