"""The convolutional autoencoder: neighbouring rows are read together, halved, and drawn again (METHODS S21)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import keras

from anomaly.encoders.base import Option, WindowShape, refuse_short_window
from anomaly.encoders.categories import window_input
from anomaly.encoders.layers import gelu
from anomaly.encoders.neural import Networks, NeuralEncoder
from anomaly.encoders.training import Task


class ConvAutoencoder(NeuralEncoder):
    """Strided convolutions halve the rows, a dense layer gives the embedding, and the way back mirrors them."""

    name: ClassVar[str] = "conv_ae"
    summary: ClassVar[str] = "convolutional autoencoder: 1-D convolutions over rows → embedding → window (S21)"
    can_reconstruct: ClassVar[bool] = True
    option_list: ClassVar[Mapping[str, Option]] = {
        "embedding": Option(24, "length of the embedding", least=1),
        "width": Option(32, "filters of each convolution", least=1),
        "depth": Option(2, "convolutions that halve the rows, at most as many as the window allows", least=1, most=8),
        "kernel": Option(3, "rows that a convolution sees", least=1),
        "decoder": Option(
            "mirror",
            "the way back: mirror undoes each convolution; dense draws the window at once, at a fifth of the cost",
            choices=("mirror", "dense"),
        ),
    }

    def networks(self, shape: WindowShape, seed: int) -> Networks:
        """Window → convolutions → embedding → convolutions → window, of any length from the kernel's on."""
        width, kernel = self.options["width"], self.options["kernel"]
        refuse_short_window(self, shape, "kernel", kernel)
        inputs, x = window_input(shape)
        lengths = [shape.rows]
        for _ in range(self.options["depth"]):
            if lengths[-1] < 2:
                break
            x = _convolved(x, width, kernel, stride=2)
            lengths.append(x.shape[1])
        embedded = keras.layers.Dense(self.options["embedding"], name="embedding")(keras.layers.Flatten()(x))
        at_once = self.options["decoder"] == "dense"
        drawn = self._drawn_at_once(embedded, shape) if at_once else self._mirrored(embedded, lengths, shape)
        model = keras.Model(inputs, drawn, name=self.name)
        return Networks(keras.Model(inputs, embedded), Task.autoencoder(model, shape.tags), model)

    def _mirrored(self, embedded: Any, lengths: list[int], shape: WindowShape) -> Any:
        width, kernel = self.options["width"], self.options["kernel"]
        x = keras.layers.Dense(lengths[-1] * width, activation=gelu)(embedded)
        x = keras.layers.Reshape((lengths[-1], width))(x)
        for length in reversed(lengths[:-1]):
            x = keras.layers.UpSampling1D(2)(x)
            # Halving rounds up, so doubling gives one row too many where the length was odd.
            x = keras.layers.Cropping1D((0, x.shape[1] - length))(x)
            x = _convolved(x, width, kernel, stride=1)
        return keras.layers.Conv1D(shape.tags, kernel, padding="same")(x)

    def _drawn_at_once(self, embedded: Any, shape: WindowShape) -> Any:
        x = keras.layers.Dense(4 * self.options["width"], activation=gelu)(embedded)
        x = keras.layers.Dense(shape.rows * shape.tags)(x)
        return keras.layers.Reshape((shape.rows, shape.tags))(x)


def _convolved(x: Any, width: int, kernel: int, stride: int) -> Any:
    x = keras.layers.Conv1D(width, kernel, strides=stride, padding="same")(x)
    return keras.layers.Activation(gelu)(x)
