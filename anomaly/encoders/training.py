"""Streamed training: batches come from disk, the best epoch stays, a non-finite number stops the run (METHODS S60).

One NaN in a batch turns every weight into NaN without an exception, and every later score with it; so each epoch's loss
is checked and names its batch, and weights are checked before they are kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from anomaly.config import TrainingSettings
from anomaly.encoders.base import EpochReport, TrainingHistory, WindowBatches
from anomaly.errors import Fault, InputRefused
from anomaly.faults import killpoint
from anomaly.files import atomic_path

log = logging.getLogger(__name__)


def train(
    model: keras.Model,
    batches: WindowBatches,
    validation: WindowBatches,
    settings: TrainingSettings,
    workdir: Path,
    progress: EpochReport | None = None,
) -> TrainingHistory:
    """Train a compiled autoencoder whose target is its input, and leave it with the weights of its best epoch.

    The best epoch is the one of lowest validation loss; its weights are written to ``workdir/best.npz`` as they are
    found. Stops after ``patience`` epochs without a better one. TensorBoard logs go to ``workdir/logs``.
    """
    started = time.monotonic()
    with closing(_Board(workdir / "logs")) as board:
        history = _epochs(model, batches, validation, settings, workdir / "best.npz", board, progress)
    load_weights(model, workdir / "best.npz")
    return replace(history, seconds=time.monotonic() - started)


def _epochs(
    model: keras.Model,
    batches: WindowBatches,
    validation: WindowBatches,
    settings: TrainingSettings,
    best_weights: Path,
    board: _Board,
    progress: EpochReport | None,
) -> TrainingHistory:
    """Epoch after epoch until patience ends; every finite epoch that is the best so far leaves ``best_weights``."""
    losses: dict[str, list[float]] = {"loss": [], "val_loss": []}
    best, windows = 0, 0
    for epoch in range(settings.epochs):
        loss, windows = _one_epoch(model, batches(epoch), epoch)
        now = {"loss": loss, "val_loss": _evaluate(model, validation(epoch), epoch)}
        for name, value in now.items():
            losses[name].append(value)
        board.write(epoch, now)
        if progress:
            progress(epoch, now)
        if epoch == 0 or now["val_loss"] < losses["val_loss"][best]:
            best = epoch
            save_weights(model, best_weights)
            killpoint("training.after_best")
        elif epoch - best >= settings.patience:
            log.info("no better epoch since %d: stopped at %d", best, epoch)
            break
    return TrainingHistory(losses["loss"], losses["val_loss"], best, windows=windows)


def _one_epoch(model: keras.Model, batches: Iterator[NDArray[np.float32]], epoch: int) -> tuple[float, int]:
    """Mean loss over the epoch and the windows seen; every batch is checked before it can harm the weights."""
    total, windows = 0.0, 0
    for number, batch in enumerate(batches):
        if not np.isfinite(batch).all():
            raise _non_finite(epoch, number, "a window")
        loss = float(_loss(model.train_on_batch(batch, batch)))
        if not np.isfinite(loss):
            raise _non_finite(epoch, number, "the loss")
        total += loss * len(batch)
        windows += len(batch)
    if not windows:
        raise InputRefused(Fault("E3302", "normal windows to learn from", "none", "give a longer log"))
    if not all(np.isfinite(w).all() for w in model.get_weights()):
        raise _non_finite(epoch, number, "a weight")
    return total / windows, windows


def _loss(result: Any) -> Any:
    """Keras returns a number, or a list when there are metrics; ours has none, but a subclass may."""
    return result[0] if isinstance(result, list | tuple) else result


def _evaluate(model: keras.Model, batches: Iterator[NDArray[np.float32]], epoch: int) -> float:
    """Mean squared reconstruction error over the validation windows, without the regularisers; always finite."""
    total, windows = 0.0, 0
    for number, batch in enumerate(batches):
        residual = (batch - reconstruct(model, batch)).astype(np.float64)
        error = float(np.mean(residual**2))
        if not np.isfinite(error):
            raise _non_finite(epoch, number, "the validation error")
        total += error * len(batch)
        windows += len(batch)
    if not windows:
        raise InputRefused(Fault("E3302", "normal windows in the validation part", "none", "give a longer log"))
    return total / windows


def reconstruct(model: keras.Model, block: NDArray[np.float32], *, size: int = 1024) -> NDArray[np.float32]:
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


def _non_finite(epoch: int, batch: int, what: str) -> InputRefused:
    hint = "look for values of impossible size in the log, or lower training.learning_rate"
    return InputRefused(Fault("E3304", "finite numbers", f"{what} in epoch {epoch + 1}, batch {batch + 1}", hint))


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


class _Board:
    """TensorBoard event files, written by the tensorboard package itself so that any backend can."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary import Writer  # type: ignore[import-untyped]

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = Writer(str(folder))

    def write(self, epoch: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)

    def close(self) -> None:
        self._writer.flush()
        self._writer.close()
