"""The dense autoencoder of the rare-event source (METHODS S55): a window flattened, squeezed and drawn again.

Dense tanh with an L1 activity penalty → dense relu code → dense tanh → linear output. The source ends in a relu, which
cannot give the negative half of standardised values; ours is linear.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import keras

from anomaly.encoders.base import Option, WindowShape
from anomaly.encoders.categories import window_input
from anomaly.encoders.neural import Networks, NeuralEncoder
from anomaly.encoders.training import Task

#: Inputs of a window up to which the source's small layers are used.
_ROW_OF_A_PLANT = 128


class DenseAutoencoder(NeuralEncoder):
    """The dense autoencoder. Its own sizes: the source's 32 and 16 units for up to 128 inputs (a row of a plant), 128
    and 24 for wider windows, where 16 units would average the window away."""

    name: ClassVar[str] = "dense_ae"
    summary: ClassVar[str] = "dense autoencoder of the rare-event source: window → code → window (S55)"
    can_reconstruct: ClassVar[bool] = True
    option_list: ClassVar[Mapping[str, Option]] = {
        "hidden": Option(0, "units of the first layer; 0 chooses 32 or, for wide windows, 128", least=0),
        "code": Option(0, "units of the code, which is the embedding; 0 chooses 16 or 24", least=0),
        "activity_l1": Option(1e-3, "weight of the L1 penalty on the first layer's activity", least=0),
    }

    def networks(self, shape: WindowShape, seed: int) -> Networks:
        """Window → hidden → code → code → window; the code is the embedding."""
        wide = shape.rows * shape.tags > _ROW_OF_A_PLANT
        hidden = self.options["hidden"] or (128 if wide else 32)
        code = self.options["code"] or (24 if wide else 16)
        penalty = keras.regularizers.L1(self.options["activity_l1"])
        inputs, joined = window_input(shape)
        flat = keras.layers.Flatten()(joined)
        x = keras.layers.Dense(hidden, activation="tanh", activity_regularizer=penalty)(flat)
        embedded = keras.layers.Dense(code, activation="relu", name="embedding")(x)
        x = keras.layers.Dense(code, activation="tanh")(embedded)
        x = keras.layers.Dense(shape.rows * shape.tags)(x)
        model = keras.Model(inputs, keras.layers.Reshape((shape.rows, shape.tags))(x), name=self.name)
        return Networks(keras.Model(inputs, embedded), Task.autoencoder(model, shape.tags), model)
