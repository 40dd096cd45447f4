"""A model's weights as plain arrays, and its outputs in calls of one size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from anomaly.files import atomic_path


def outputs(model: keras.Model, block: NDArray[np.float32], *, size: int = 1024) -> NDArray[np.float32]:
    """The model's output for ``block (B, …)``, in padded calls of one fixed size.

    One size means one compiled graph, and a row's result does not depend on its neighbours; ``predict`` would cost tens
    of milliseconds a call in set-up.
    """
    parts = []
    for start in range(0, len(block), size):
        part = block[start : start + size]
        padded = np.zeros((size, *part.shape[1:]), np.float32) if len(part) < size else part
        if len(part) < size:
            padded[: len(part)] = part
        parts.append(np.asarray(model.predict_on_batch(padded))[: len(part)])
    return np.concatenate(parts) if parts else np.empty((0, *model.output_shape[1:]), np.float32)


def save_weights(model: keras.Model, path: Path) -> None:
    """All weights in order, as plain arrays, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **weight_arrays(model))


def load_weights(model: keras.Model, path: Path) -> None:
    """Give ``model`` the weights of ``save_weights``."""
    with np.load(path, allow_pickle=False) as arrays:
        set_weight_arrays(model, dict(arrays))


def weight_arrays(model: keras.Model) -> dict[str, NDArray[Any]]:
    """The model's weights by position: ``w000``, ``w001``, …"""
    return {f"w{i:03d}": np.asarray(w) for i, w in enumerate(model.get_weights())}


def set_weight_arrays(model: keras.Model, arrays: dict[str, NDArray[Any]]) -> None:
    """Undo ``weight_arrays``; raises ValueError when count or shapes are those of another architecture."""
    given, own = [arrays[k] for k in sorted(arrays)], model.get_weights()
    if [a.shape for a in given] != [w.shape for w in own]:
        raise ValueError(
            f"arrays: expected weights of shapes {[w.shape for w in own]}, got {[a.shape for a in given]}: "
            "these weights belong to another architecture"
        )
    if not all(np.isfinite(a).all() for a in given):
        raise ValueError("arrays: expected finite weights, got NaN or infinity")
    model.set_weights(given)
