"""Masks over the rows of a window, what is put in their place, and a loss that looks nowhere else (METHODS S25)."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

FILLS = ("token", "mean", "zero")


def masked_count(rows: int, share: float) -> int:
    """How many of ``rows`` are masked: the share, rounded, with at least one masked and one shown where there are two.

    >>> [masked_count(t, 0.75) for t in (1, 2, 4, 16)]
    [1, 1, 3, 12]
    """
    return 1 if rows == 1 else min(max(round(share * rows), 1), rows - 1)


def row_mask(rng: np.random.Generator, windows: int, rows: int, share: float) -> NDArray[np.bool_]:
    """Which rows of each window are hidden, ``(B, T)``: the same number in each, other ones in each."""
    order = np.argsort(rng.random((windows, rows)), axis=1)
    return order < masked_count(rows, share)


def filled(windows: NDArray[np.float32], mask: NDArray[np.bool_], tags: int, fill: str) -> NDArray[np.float32]:
    """Windows with the tags of masked rows replaced: by zero, or by each tag's mean over the rows that are shown.

    Categories stay: they are known of the row that is to be guessed. ``token`` leaves zeros for ``TokenFill``.
    """
    if fill not in FILLS:
        raise ValueError(f"fill: expected one of {', '.join(FILLS)}, got {fill!r}")
    out = windows.copy()
    values, hidden = out[..., :tags], mask[..., None]
    instead = np.float32(0)
    if fill == "mean":
        shown = np.maximum((~mask).sum(axis=1), 1)[:, None, None]
        instead = np.where(hidden, 0, values).sum(axis=1, keepdims=True) / shown
    out[..., :tags] = np.where(hidden, instead, values)
    return out


def masked_target(windows: NDArray[np.float32], mask: NDArray[np.bool_], tags: int) -> NDArray[np.float32]:
    """Targets ``(B, T, tags + 1)``: the tags, and 1 where the row was masked."""
    return np.concatenate((windows[..., :tags], mask[..., None].astype(np.float32)), axis=2)


def masked_mse(targets: Any, drawn: Any) -> Any:
    """Mean squared error over the masked rows alone; ``targets`` as ``masked_target`` makes them."""
    hidden = targets[..., -1:]
    squared = ops.square(targets[..., :-1] - drawn) * hidden
    return ops.sum(squared) / ops.maximum(ops.sum(hidden) * drawn.shape[-1], 1.0)


@keras.saving.register_keras_serializable("anomaly")
class TokenFill(keras.layers.Layer):
    """Puts one trained vector in the place of every masked row: ``(B, T, d)`` and mask ``(B, T)``."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.token = self.add_weight((input_shape[-1],), initializer="random_normal", name="token")

    def call(self, x: Any, mask: Any) -> Any:
        """The rows that are shown, and the token."""
        hidden = ops.cast(mask, x.dtype)[..., None]
        return x * (1 - hidden) + self.token * hidden
