"""What all trained encoders share: networks from a shape, streamed training, weights in and out.

A trained encoder is its options and one method, ``networks``: which graph embeds a window, and what it is trained on.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from anomaly.config import TrainingSettings
from anomaly.encoders.base import Encoder, EpochReport, TrainingData, TrainingHistory, WindowShape
from anomaly.encoders.training import Task, outputs, set_weight_arrays, train, weight_arrays


@dataclass(frozen=True)
class Networks:
    """What an encoder is made of for one window shape.

    ``embedder``: ``(B, T, channels)`` → ``(B, d)``, kept for scoring. ``task``: what it is trained on; its model shares
    layers with the embedder, and whatever else it holds (heads, decoders) is dropped after training. ``reconstructor``:
    ``(B, T, channels)`` → ``(B, T, tags)``, kept where the encoder can reconstruct.
    """

    embedder: keras.Model
    task: Task
    reconstructor: keras.Model | None = None

    @property
    def kept(self) -> keras.Model:
        """The model whose weights are the encoder's state; the embedder is part of the reconstructor where there is one."""
        return self.embedder if self.reconstructor is None else self.reconstructor


class NeuralEncoder(Encoder):
    """An encoder with weights. A leaf sets name, summary, option_list and writes ``networks``; two-stage ones ``refine``."""

    _networks: Networks | None = None

    @abstractmethod
    def networks(self, shape: WindowShape, seed: int) -> Networks:
        """Fresh networks for windows of ``shape``; whatever is drawn outside Keras comes from ``seed``."""

    def refine(
        self, networks: Networks, data: TrainingData, training: TrainingSettings, workdir: Path
    ) -> dict[str, list[float]]:
        """A second stage after the task was learned; gives further figures for the history. None by default."""
        return {}

    def _fit(
        self, data: TrainingData, training: TrainingSettings, workdir: Path, progress: EpochReport | None
    ) -> TrainingHistory:
        networks = self._made(data.shape, training.seed)
        # A checkpoint of other options would fit these layers and have been trained for something else.
        data = replace(
            data, fingerprint=repr((data.fingerprint, self.name, self.front.name, sorted(self.options.items())))
        )
        history = train(networks.task, networks.embedder, data, training, workdir, progress)
        further = self.refine(networks, data, training, workdir)
        return replace(history, parts=history.parts | further)

    def _made(self, shape: WindowShape, seed: int) -> Networks:
        keras.utils.set_random_seed(seed)
        self._networks = self.networks(shape, seed)
        return self._networks

    def _embed(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        return outputs(self._ready().embedder, block)

    def _reconstruct(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        reconstructor = self._ready().reconstructor
        if reconstructor is None:
            raise NotImplementedError(f"{self.name}: expected a reconstructor where can_reconstruct is set")
        return outputs(reconstructor, block)

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Front, options and window shape, and the weights of what scoring keeps."""
        networks, shape = self._ready(), self.fitted_shape()
        settings = {
            "front": self.front.name,
            "options": self.options,
            "shape": {"rows": shape.rows, "tags": shape.tags, "categories": list(shape.categories)},
        }
        return settings, weight_arrays(networks.kept)

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> NeuralEncoder:
        """As ``Encoder.from_state``."""
        encoder = cls(front=settings["front"], **settings["options"])
        plain = settings["shape"]
        categories = tuple(int(n) for n in plain["categories"])
        encoder.shape = WindowShape(int(plain["rows"]), int(plain["tags"]), categories)
        set_weight_arrays(encoder._made(encoder._inner_shape(), seed=0).kept, arrays)
        return encoder

    def facts(self) -> dict[str, int | str]:
        """As ``Encoder.facts``, with the number of weights that scoring keeps."""
        return super().facts() | {"weights": self._ready().kept.count_params()}

    def graph(self, embedding: bool, reconstruction: bool) -> keras.Model:
        """One graph from windows behind the front to what is asked for, in this order; shared layers run once."""
        networks = self._ready()
        if not reconstruction:
            return networks.embedder
        if networks.reconstructor is None:
            raise NotImplementedError(f"{self.name}: expected a reconstructor where can_reconstruct is set")
        if not embedding:
            return networks.reconstructor
        if networks.embedder.inputs[0] is not networks.reconstructor.inputs[0]:
            embedded = networks.embedder(networks.reconstructor.inputs[0])
        else:
            embedded = networks.embedder.outputs[0]
        return keras.Model(networks.reconstructor.inputs[0], [embedded, networks.reconstructor.outputs[0]])

    @property
    def embedder(self) -> keras.Model:
        """The graph behind ``embed``: windows that went through the front in, ``(B, d)`` out."""
        return self._ready().embedder

    def _ready(self) -> Networks:
        self.fitted_shape()
        if self._networks is None:
            raise ValueError(f"{self.name}: expected an encoder that was fitted or loaded, got one whose fit failed")
        return self._networks
