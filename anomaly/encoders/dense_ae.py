"""The dense autoencoder of the rare-event source (METHODS S55): a window flattened, squeezed and drawn again.

Dense tanh with an L1 activity penalty → dense relu code → dense tanh → linear output. The source ends in a relu, which
cannot give the negative half of standardised values; ours is linear.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np
from numpy.typing import NDArray

from anomaly.config import TrainingSettings
from anomaly.encoders.base import Encoder, EpochReport, TrainingHistory, WindowBatches, check_number, check_options
from anomaly.encoders.training import reconstruct, set_weight_arrays, train, weight_arrays

_OPTIONS = ("hidden", "code", "activity_l1")


def build(window_shape: tuple[int, int], hidden: int, code: int, activity_l1: float) -> keras.Model:
    """``(B, T, C)`` → ``(B, T, C)`` through a code of ``code`` units."""
    inputs = keras.Input(window_shape)
    flat = keras.layers.Flatten()(inputs)
    x = keras.layers.Dense(hidden, activation="tanh", activity_regularizer=keras.regularizers.L1(activity_l1))(flat)
    embedded = keras.layers.Dense(code, activation="relu", name="embedding")(x)
    x = keras.layers.Dense(code, activation="tanh")(embedded)
    x = keras.layers.Dense(window_shape[0] * window_shape[1])(x)
    return keras.Model(inputs, keras.layers.Reshape(window_shape)(x))


class DenseAutoencoder(Encoder):
    """The dense autoencoder.

    Parameters
    ----------
    hidden, code : units of the first layer and of the code. Not given: the source's 32 and 16 for up to 128 inputs
        (a row of a plant), 128 and 24 for wider windows, where 16 units would average the window away.
    activity_l1 : weight of the L1 penalty on the first layer's activity; the source's 1e-3.
    """

    name: ClassVar[str] = "dense_ae"
    can_reconstruct: ClassVar[bool] = True

    def __init__(self, **options: Any) -> None:
        check_options(self.name, options, _OPTIONS)
        for option in ("hidden", "code"):
            check_number(self.name, options, option, int, 1)
        check_number(self.name, options, "activity_l1", float, 0)
        self.options = options
        self.window_shape: tuple[int, int] | None = None
        self._model: keras.Model | None = None
        self._embedder: keras.Model | None = None

    def _build(self, window_shape: tuple[int, int]) -> keras.Model:
        wide = window_shape[0] * window_shape[1] > 128
        hidden = int(self.options.get("hidden", 128 if wide else 32))
        code = int(self.options.get("code", 24 if wide else 16))
        self.window_shape = window_shape
        self._model = build(window_shape, hidden, code, float(self.options.get("activity_l1", 1e-3)))
        self._embedder = keras.Model(self._model.input, self._model.get_layer("embedding").output)
        return self._model

    def fit(
        self,
        batches: WindowBatches,
        validation: WindowBatches,
        *,
        window_shape: tuple[int, int],
        training: TrainingSettings,
        workdir: Path,
        progress: EpochReport | None = None,
    ) -> TrainingHistory:
        """As ``Encoder.fit``: Adam on the mean squared error, everything random drawn from ``training.seed``."""
        keras.utils.set_random_seed(training.seed)
        model = self._build(window_shape)
        model.compile(optimizer=keras.optimizers.Adam(training.learning_rate), loss="mean_squared_error")
        return train(model, batches, validation, training, workdir, progress)

    def embed(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        return reconstruct(_fitted(self._embedder), block)

    def reconstruct(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        return reconstruct(_fitted(self._model), block)

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        model = _fitted(self._model)
        return {"window_shape": list(self.window_shape or ()), "options": self.options}, weight_arrays(model)

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> DenseAutoencoder:
        encoder = cls(**settings["options"])
        rows, tags = settings["window_shape"]
        set_weight_arrays(encoder._build((int(rows), int(tags))), arrays)
        return encoder


def _fitted(model: keras.Model | None) -> keras.Model:
    if model is None:
        raise ValueError("encoder: expected one that was fitted or loaded, got a new one; call fit first")
    return model
