"""Backbones: graphs that turn a window into one vector, or into one context vector per row; shared by all objectives.

``dense`` looks at the flattened window, ``cnn`` at neighbouring rows, ``dilated`` at rows ever further apart, and
``transformer`` at all rows at once (METHODS S21, S22, S39).
"""

from __future__ import annotations

from typing import Any

import keras

from anomaly.encoders.base import WindowShape
from anomaly.encoders.categories import window_input
from anomaly.encoders.layers import ClassToken, PoolOverTime, SinusoidalPositions, gelu, transformer_block

BACKBONES = ("dense", "cnn", "dilated", "transformer")
#: Blocks of each backbone where the caller names no depth.
DEPTHS = {"dense": 1, "cnn": 2, "dilated": 4, "transformer": 4}


def receptive_field(kernel: int, depth: int) -> int:
    """Rows that one output row of ``dilated`` depends on: dilations 1, 2, 4, … (METHODS S39).

    >>> receptive_field(3, 4)
    31
    """
    return 1 + (kernel - 1) * (2**depth - 1)


def build_embedder(
    name: str,
    shape: WindowShape,
    *,
    embedding: int = 64,
    width: int = 32,
    depth: int | None = None,
    pooling: str | None = None,
    **options: Any,
) -> keras.Model:
    """``(B, T, channels)`` → ``(B, embedding)``. ``pooling``: mean, max, or cls (transformer only); by default the
    transformer's class token, the mean and maximum of a cnn, the maximum of dilated convolutions."""
    inputs, joined = window_input(shape)
    if name == "dense":
        x = keras.layers.Flatten()(joined)
        for _ in range(depth or DEPTHS["dense"]):
            x = keras.layers.Dense(2 * width, activation=gelu)(x)
    else:
        cls = name == "transformer" and pooling in (None, "cls")
        x = _tokens(name, joined, width, depth, cls=cls, **options)
        x = _pooled(x, "first" if cls else pooling or {"cnn": "both", "dilated": "max"}.get(name, "mean"))
    outputs = keras.layers.Dense(embedding, name="embedding")(x)
    return keras.Model(inputs, outputs, name=f"{name}_embedder")


def build_tokens(
    name: str, shape: WindowShape, *, width: int = 32, depth: int | None = None, **options: Any
) -> keras.Model:
    """``(B, T, channels)`` → ``(B, T, width)``: one context vector per row; not for ``dense``."""
    inputs, joined = window_input(shape)
    return keras.Model(inputs, _tokens(name, joined, width, depth, cls=False, **options), name=f"{name}_tokens")


def _tokens(name: str, x: Any, width: int, depth: int | None, *, cls: bool, **options: Any) -> Any:
    if name not in BACKBONES or name == "dense":
        raise ValueError(f"name: expected one of {', '.join(BACKBONES[1:])}, got {name!r}")
    blocks = depth or DEPTHS[name]
    if name == "cnn":
        return _cnn(x, width, blocks, **options)
    if name == "dilated":
        return _dilated(x, width, blocks, **options)
    return _transformer(x, width, blocks, cls, **options)


def _cnn(x: Any, width: int, depth: int, *, kernel: int = 3) -> Any:
    """Convolutions over rows of equal length. Layer norm, not batch norm: a window's embedding must not depend on the
    windows beside it."""
    for _ in range(depth):
        x = keras.layers.Conv1D(width, kernel, padding="same")(x)
        x = keras.layers.Activation(gelu)(keras.layers.LayerNormalization(epsilon=1e-5)(x))
    return x


def _dilated(x: Any, width: int, depth: int, *, kernel: int = 3, causal: bool = False) -> Any:
    """A projection of each row, then convolutions whose rows are 1, 2, 4, … apart, each with a shortcut."""
    x = keras.layers.Dense(width)(x)
    for block in range(depth):
        inner = keras.layers.Activation(gelu)(x)
        padding = "causal" if causal else "same"
        inner = keras.layers.Conv1D(width, kernel, padding=padding, dilation_rate=2**block)(inner)
        x = keras.layers.Add()([x, inner])
    return x


def _transformer(
    x: Any,
    width: int,
    depth: int,
    cls: bool,
    *,
    heads: int = 4,
    norm: str = "pre",
    attention: str = "full",
    dropout: float = 0.0,
) -> Any:
    x = SinusoidalPositions()(keras.layers.Dense(width)(x))
    x = ClassToken()(x) if cls else x
    for _ in range(depth):
        x = transformer_block(x, heads=heads, norm=norm, attention=attention, dropout=dropout)
    return keras.layers.LayerNormalization(epsilon=1e-5)(x) if norm == "pre" else x


def _pooled(x: Any, kind: str) -> Any:
    if kind == "both":
        return keras.layers.Concatenate()([PoolOverTime("mean")(x), PoolOverTime("max")(x)])
    return PoolOverTime(kind)(x)
