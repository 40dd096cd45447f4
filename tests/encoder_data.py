"""Windows as training data, for every test that fits an encoder."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from anomaly.config import TrainingSettings
from anomaly.encoders.base import TrainingBatch, TrainingData, WindowBatches, WindowShape


def passes(*batches: np.ndarray) -> WindowBatches:
    """The same batches in every epoch."""

    def one_pass(epoch: int) -> Iterator[TrainingBatch]:
        for batch in batches:
            yield TrainingBatch(batch)

    return one_pass


def data_of(
    windows: np.ndarray,
    validation: np.ndarray | None = None,
    batch_size: int = 32,
    categories: tuple[int, ...] = (),
    fingerprint: str = "",
) -> TrainingData:
    """Training data of windows ``(n, T, channels)``: mixed anew each epoch; validated on themselves unless given."""

    def mixed(epoch: int) -> Iterator[TrainingBatch]:
        order = np.random.default_rng(epoch).permutation(len(windows))
        starts, asset = np.arange(len(windows)), np.full(len(windows), "P-1", dtype=object)
        for at in range(0, len(order), batch_size):
            some = order[at : at + batch_size]
            yield TrainingBatch(windows[some], asset[some], starts[some])

    shape = WindowShape(windows.shape[1], windows.shape[2] - len(categories), categories)
    held_back = windows if validation is None else validation
    return TrainingData(shape, mixed, passes(held_back), len(windows), fingerprint)


def brief(**changed: object) -> TrainingSettings:
    """A training of a few epochs."""
    return TrainingSettings(**({"epochs": 4, "batch_size": 32, "patience": 4} | changed))  # type: ignore[arg-type]
