"""The LSTM autoencoder: reads a window row by row into its state, and writes it again from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import keras

from anomaly.encoders.base import Option, WindowShape
from anomaly.encoders.categories import window_input
from anomaly.encoders.neural import Networks, NeuralEncoder
from anomaly.encoders.training import Task


class LstmAutoencoder(NeuralEncoder):
    """An LSTM over the lookback, its last state as embedding, and an LSTM that draws the rows again from it."""

    name: ClassVar[str] = "lstm_ae"
    summary: ClassVar[str] = "LSTM autoencoder over the lookback sequence (S21, S55)"
    can_reconstruct: ClassVar[bool] = True
    option_list: ClassVar[Mapping[str, Option]] = {
        "embedding": Option(24, "length of the embedding", least=1),
        "units": Option(48, "units of the LSTM on either side", least=1),
    }

    def networks(self, shape: WindowShape, seed: int) -> Networks:
        """Window → LSTM → embedding → the same at every row → LSTM → window."""
        inputs, joined = window_input(shape)
        state = keras.layers.LSTM(self.options["units"])(joined)
        embedded = keras.layers.Dense(self.options["embedding"], name="embedding")(state)
        repeated = keras.layers.RepeatVector(shape.rows)(embedded)
        rows = keras.layers.LSTM(self.options["units"], return_sequences=True)(repeated)
        model = keras.Model(inputs, keras.layers.Dense(shape.tags)(rows), name=self.name)
        return Networks(keras.Model(inputs, embedded), Task.autoencoder(model, shape.tags), model)
