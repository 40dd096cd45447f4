"""Backbones: graphs that turn a window into one vector, or into one context vector per row; shared by all objectives.

``dense`` looks at the flattened window, ``cnn`` at neighbouring rows, ``dilated`` at rows ever further apart, and
``transformer`` at all rows at once (METHODS S21, S22, S39).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

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
    padded: bool = False,
    **options: Any,
) -> keras.Model:
    """``(B, T, channels)`` → ``(B, embedding)``.

    ``pooling``: mean, max, or cls (transformer only); by default the transformer's class token, the mean and maximum of
    a cnn, the maximum of dilated convolutions. ``options``: ``kernel`` (cnn, dilated), ``causal`` (dilated); ``heads``,
    ``norm`` pre or post, ``attention`` full or probsparse, ``dropout`` (transformer). ``padded`` (transformer): the
    model takes a second input ``steps (B, T)``, 0 for rows that are padding and must not count (METHODS S23).

    Raises ValueError for an unknown backbone, or a pooling or padding that it does not have.
    """
    _check(name, BACKBONES)
    if name != "transformer" and (pooling == "cls" or padded):
        raise ValueError(
            f"{name}: expected no class token and no padding, which only transformer has; choose mean or max"
        )
    inputs, joined = window_input(shape)
    steps = keras.Input((shape.rows,), name="steps") if padded else None
    cls = name == "transformer" and pooling in (None, "cls")
    if name == "transformer":
        options |= {"cls": cls, "steps": steps}
    x = _GRAPHS[name](joined, width, depth or DEPTHS[name], **options)
    if name != "dense":
        x = _pooled(x, "first" if cls else pooling or {"cnn": "both", "dilated": "max"}[name], steps)
    outputs = keras.layers.Dense(embedding, name="embedding")(x)
    return keras.Model(inputs if steps is None else [inputs, steps], outputs, name=f"{name}_embedder")


def _check(name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"name: expected one of {', '.join(known)}, got {name!r}")


def build_tokens(
    name: str, shape: WindowShape, *, width: int = 32, depth: int | None = None, **options: Any
) -> keras.Model:
    """``(B, T, channels)`` → ``(B, T, width)``: one context vector per row; not for ``dense``."""
    _check(name, BACKBONES[1:])
    inputs, joined = window_input(shape)
    rows = _GRAPHS[name](joined, width, depth or DEPTHS[name], **options)
    return keras.Model(inputs, rows, name=f"{name}_tokens")


def _dense(x: Any, width: int, depth: int) -> Any:
    x = keras.layers.Flatten()(x)
    for _ in range(depth):
        x = keras.layers.Dense(2 * width, activation=gelu)(x)
    return x


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
    *,
    cls: bool = False,
    steps: Any = None,
    heads: int = 4,
    norm: str = "pre",
    attention: str = "full",
    dropout: float = 0.0,
) -> Any:
    x = SinusoidalPositions()(keras.layers.Dense(width)(x))
    if cls:
        x = ClassToken()(x)
        steps = None if steps is None else ops.pad(steps, ((0, 0), (1, 0)), constant_values=1)
    for _ in range(depth):
        x = transformer_block(x, heads=heads, norm=norm, attention=attention, dropout=dropout, steps=steps)
    return keras.layers.LayerNormalization(epsilon=1e-5)(x) if norm == "pre" else x


#: Joined window (B, T, width of the tags), width, depth → (B, T, width), or (B, units) for dense.
_GRAPHS: dict[str, Callable[..., Any]] = {
    "dense": _dense,
    "cnn": _cnn,
    "dilated": _dilated,
    "transformer": _transformer,
}


def _pooled(x: Any, kind: str, steps: Any) -> Any:
    if kind == "both":
        return keras.layers.Concatenate()([_pooled(x, "mean", steps), _pooled(x, "max", steps)])
    return PoolOverTime(kind)(x) if steps is None else PoolOverTime(kind)(x, steps=steps)
