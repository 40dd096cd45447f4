"""Momentum contrast: a queue of earlier keys stands in for a large batch (He et al. 2020; METHODS S28).

A query is the projection of one view, its positive key that of the other view by a slow copy of the encoder; the keys of
the last batches are what it must be told from. Keys enter the graph as inputs, so no gradient reaches them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from anomaly.encoders.augmentations import view
from anomaly.encoders.base import Option, WindowShape
from anomaly.encoders.contrastive import VIEW_OPTIONS, embedder_of, projected, strengths_of
from anomaly.encoders.losses import info_nce, unit
from anomaly.encoders.neural import Networks, NeuralEncoder
from anomaly.encoders.training import Task, outputs

Windows = NDArray[np.float32]


class KeyQueue:
    """The last ``size`` keys ``(size, p)``, first in first out; random directions at first.

    >>> queue = KeyQueue(3, 1, seed=0)
    >>> for key in (1.0, 2.0, 3.0, 4.0): queue.push(np.array([[key]], np.float32))
    >>> queue.keys.ravel().tolist(), queue.at
    ([4.0, 2.0, 3.0], 1)
    """

    def __init__(self, size: int, width: int, seed: int) -> None:
        drawn = np.random.default_rng(seed).standard_normal((size, width))
        self.keys = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
        self.at = 0  # where the next key goes, over the oldest one

    def push(self, keys: NDArray[np.float32]) -> None:
        """Take in ``keys (B, p)``, the last ones where there are more than fit."""
        size = len(self.keys)
        skipped = max(len(keys) - size, 0)
        places = (self.at + np.arange(skipped, len(keys))) % size
        self.keys[places] = keys[skipped:]
        self.at = (self.at + len(keys)) % size


def moved_towards(slow: list[NDArray[Any]], fast: list[NDArray[Any]], momentum: float) -> list[NDArray[Any]]:
    """Weights of the key encoder after a step: ``momentum`` of their own, the rest of the query encoder's."""
    return [momentum * s + (1 - momentum) * f for s, f in zip(slow, fast, strict=True)]


@keras.saving.register_keras_serializable("anomaly")
class KeyLogits(keras.layers.Layer):
    """Queries ``(B, p)``, their keys ``(B, p)``, the queue ``(Q, p)`` → logits ``(B, 1 + Q)``, the positive first."""

    def __init__(self, temperature: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def call(self, queries: Any, keys: Any, queue: Any) -> Any:
        """Cosine similarities over the temperature."""
        queries = unit(queries)
        positive = ops.sum(queries * keys, axis=1, keepdims=True)
        return ops.concatenate([positive, ops.matmul(queries, ops.transpose(queue))], axis=1) / self.temperature


class MocoEncoder(NeuralEncoder):
    """The contrastive encoder for small batches."""

    name: ClassVar[str] = "moco"
    summary: ClassVar[str] = "momentum contrast: a queue of keys for small batches (S28)"
    option_list: ClassVar[Mapping[str, Option]] = VIEW_OPTIONS | {
        "momentum": Option(0.99, "how slowly the key encoder follows", least=0, most=1),
        "queue": Option(1024, "keys of earlier batches that a query is told from; well below the windows", least=1),
    }

    def networks(self, shape: WindowShape, seed: int) -> Networks:
        """Query encoder with its head, a copy for keys, and the queue between batches."""
        embedder = embedder_of(self.options, shape)
        query = keras.Model(embedder.input, projected(embedder.output, self.options), name="query")
        copied = embedder_of(self.options, shape)
        key = keras.Model(copied.input, projected(copied.output, self.options), name="key")
        key.set_weights(query.get_weights())
        return Networks(embedder, _Contrast(query, key, shape, self.options, seed).task())


class _Contrast:
    """The moving parts of momentum contrast while it trains."""

    def __init__(
        self, query: keras.Model, key: keras.Model, shape: WindowShape, options: Mapping[str, Any], seed: int
    ) -> None:
        self.query, self.key, self.tags = query, key, shape.tags
        self.strengths, self.momentum = strengths_of(options), float(options["momentum"])
        self.queue = KeyQueue(int(options["queue"]), int(options["head"]), seed)
        self._new = self.queue.keys[:0]
        self._begun, self._largest = False, 1
        keys = keras.Input((self.queue.keys.shape[1],), name="keys")
        queue = keras.Input(batch_shape=self.queue.keys.shape, name="queue")
        logits = KeyLogits(float(options["temperature"]))(query.output, keys, queue)
        inputs = {"windows": query.input, "keys": keys, "queue": queue}
        self.model = keras.Model(inputs, logits, name="moco")

    def task(self) -> Task:
        """Keys are made by the key encoder as it is now, so batches are not prepared ahead of their step."""
        return Task(
            self.model,
            info_nce,
            self.prepare,
            after_batch=self.step,
            state=self.state,
            restore=self.restore,
            ahead=False,
        )

    def prepare(self, batch: Windows, rng: np.random.Generator) -> tuple[dict[str, Windows], Windows]:
        """One view for the query, one for the key."""
        if not self._begun:
            self._begin(batch, rng)
        first, second = (view(rng, batch, self.tags, self.strengths) for _ in range(2))
        self._new = self._keys(second)
        inputs = {"windows": first, "keys": self._new, "queue": self.queue.keys.copy()}
        return inputs, np.zeros((len(batch), 1), np.float32)

    def _begin(self, batch: Windows, rng: np.random.Generator) -> None:
        """Fill the queue with views of the first batch: random directions are easily told apart, so that the loss would
        rise for as long as real keys replace them, and the first epoch would look like the best."""
        self._begun = True
        for _ in range(-(-len(self.queue.keys) // len(batch))):
            self.queue.push(self._keys(view(rng, batch, self.tags, self.strengths)))

    def _keys(self, views: Windows) -> NDArray[np.float32]:
        """The key encoder's projections at length one."""
        self._largest = max(self._largest, len(views))
        made = outputs(self.key, views, size=self._largest).astype(np.float64)
        length = np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-6)
        return (made / length).astype(np.float32)

    def step(self) -> None:
        """After a batch: its keys join the queue, and the key encoder follows a little."""
        self.queue.push(self._new)
        self.key.set_weights(moved_towards(self.key.get_weights(), self.query.get_weights(), self.momentum))

    def state(self) -> dict[str, NDArray[Any]]:
        """Queue, place and key weights, for a checkpoint."""
        weights = {f"key{i:03d}": np.asarray(w) for i, w in enumerate(self.key.get_weights())}
        return {"queue": self.queue.keys, "at": np.array(self.queue.at)} | weights

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Undo ``state``."""
        self.queue.keys, self.queue.at, self._begun = arrays["queue"].copy(), int(arrays["at"]), True
        self.key.set_weights([arrays[name] for name in sorted(arrays) if name.startswith("key")])
