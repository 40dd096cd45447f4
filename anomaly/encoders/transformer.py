"""The transformer encoder as an autoencoder: all rows see each other, one vector comes out, the window is drawn from it.

Input projection, sinusoidal positions, blocks of attention, a class token or the mean (METHODS S22, S23); attention over
a chosen few queries as an option for long windows (S24).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import keras

from anomaly.encoders.backbones import build_embedder
from anomaly.encoders.base import Option, WindowShape, refuse_indivisible
from anomaly.encoders.layers import gelu
from anomaly.encoders.neural import Networks, NeuralEncoder
from anomaly.encoders.training import Task


class TransformerEncoder(NeuralEncoder):
    """Four blocks of four heads at 64 dimensions by default; the decoder is two dense layers, so that what the window
    held must be in the embedding."""

    name: ClassVar[str] = "transformer"
    summary: ClassVar[str] = "transformer encoder, class token or mean, with a light decoder (S22, S23, S24)"
    can_reconstruct: ClassVar[bool] = True
    option_list: ClassVar[Mapping[str, Option]] = {
        "embedding": Option(64, "length of the embedding", least=1),
        "width": Option(64, "length of a row's vector inside", least=1),
        "depth": Option(4, "blocks of attention", least=1),
        "heads": Option(4, "heads of each attention; divides the width", least=1),
        "pooling": Option("cls", "what stands for the window", choices=("cls", "mean", "max")),
        "norm": Option("pre", "layer norm before or after attention", choices=("pre", "post")),
        "attention": Option(
            "full", "all queries, or the few that matter (long windows)", choices=("full", "probsparse")
        ),
        "dropout": Option(0.0, "share of values left out while training", least=0, most=0.9),
    }

    def networks(self, shape: WindowShape, seed: int) -> Networks:
        """Window → attention → embedding → dense → window."""
        refuse_indivisible(self, "width", "heads")
        embedder = build_embedder("transformer", shape, **self.options)
        x = keras.layers.Dense(2 * self.options["embedding"], activation=gelu)(embedder.output)
        x = keras.layers.Dense(shape.rows * shape.tags)(x)
        drawn = keras.layers.Reshape((shape.rows, shape.tags))(x)
        model = keras.Model(embedder.input, drawn, name=self.name)
        return Networks(embedder, Task.autoencoder(model, shape.tags), model)
