"""Pretext tasks: something is done to a window, and the encoder must say what (METHODS S32; seed 003).

The answer needs an idea of how normal windows run; the answering head is dropped after training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from anomaly.encoders.backbones import BACKBONES
from anomaly.encoders.base import Option, WindowShape
from anomaly.encoders.contrastive import embedder_of
from anomaly.encoders.masked_ae import masked_task
from anomaly.encoders.neural import Networks, NeuralEncoder
from anomaly.encoders.training import Task

Windows = NDArray[np.float32]
Transform = Callable[[np.random.Generator, Windows, int], Windows]


def unchanged(rng: np.random.Generator, windows: Windows, tags: int) -> Windows:
    """As it was."""
    return windows


def reversed_in_time(rng: np.random.Generator, windows: Windows, tags: int) -> Windows:
    """Last row first, all channels alike."""
    return windows[:, ::-1]


def negated(rng: np.random.Generator, windows: Windows, tags: int) -> Windows:
    """Each tag mirrored at its mean over the window: what rose falls, at the same level."""
    values = windows[..., :tags]
    mirrored = 2 * values.mean(axis=1, keepdims=True) - values
    return np.concatenate((mirrored, windows[..., tags:]), axis=2)


def halves_swapped(rng: np.random.Generator, windows: Windows, tags: int) -> Windows:
    """The second half before the first."""
    return np.roll(windows, windows.shape[1] // 2, axis=1)


def tags_apart(rng: np.random.Generator, windows: Windows, tags: int) -> Windows:
    """Each tag from a window of its own: what went together no longer does."""
    values = windows[..., :tags]
    order = rng.permuted(np.tile(np.arange(len(windows))[:, None], (1, tags)), axis=0)
    mixed = np.take_along_axis(values, order[:, None], axis=0)
    return np.concatenate((mixed, windows[..., tags:]), axis=2)


#: What may be done to a window, by the number that the encoder must say.
TRANSFORMS: tuple[Transform, ...] = (unchanged, reversed_in_time, negated, halves_swapped, tags_apart)
ORDERS: tuple[Transform, ...] = (unchanged, reversed_in_time)


def transforms_of(task: str, shape: WindowShape) -> tuple[Transform, ...]:
    """What ``task`` does to windows of ``shape``: those transforms alone whose results differ.

    Two rows negated or with their halves swapped are two rows reversed, and one tag has nothing to be torn from.

    >>> [t.__name__ for t in transforms_of("transform", WindowShape(rows=2, tags=1))]
    ['unchanged', 'reversed_in_time']
    """
    if task == "order":
        return ORDERS
    alike = {negated, halves_swapped} if shape.rows < 3 else set()
    if shape.tags < 2:
        alike.add(tags_apart)
    return tuple(transform for transform in TRANSFORMS if transform not in alike)


def transformed(
    rng: np.random.Generator, windows: Windows, tags: int, transforms: tuple[Transform, ...]
) -> tuple[Windows, NDArray[np.int64]]:
    """Windows with one of ``transforms`` done to each, and which, ``(B,)``."""
    which = rng.integers(0, len(transforms), size=len(windows))
    out = windows.copy()
    for number, transform in enumerate(transforms):
        own = which == number
        if own.any():
            out[own] = transform(rng, windows[own], tags)
    return out, which


def said_wrong(targets: object, logits: object) -> object:
    """Cross-entropy of the transforms' logits ``(B, k)`` with their numbers."""
    return ops.mean(keras.losses.sparse_categorical_crossentropy(targets, logits, from_logits=True))


class PretextEncoder(NeuralEncoder):
    """An encoder trained to name what was done to a window, or to draw what was hidden from it."""

    name: ClassVar[str] = "pretext"
    summary: ClassVar[str] = "pretext tasks: which transform, which order, or hidden rows (S32)"
    shortest: ClassVar[int] = 2
    option_list: ClassVar[Mapping[str, Option]] = {
        "task": Option(
            "transform",
            "name one of up to five transforms, tell order from reversed order, or draw hidden rows",
            choices=("transform", "order", "masking"),
        ),
        "backbone": Option("cnn", "what reads the window", choices=BACKBONES),
        "embedding": Option(64, "length of the embedding", least=1),
        "width": Option(32, "length of a row's vector inside; four heads divide it", least=4),
        "depth": Option(2, "blocks of the backbone", least=1),
    }

    def networks(self, shape: WindowShape, seed: int) -> Networks:
        """Backbone and, while training, a head that answers."""
        task = self.options["task"]
        embedder = embedder_of(self.options, shape)
        if task == "masking":
            return Networks(embedder, masked_task(embedder, shape, share=0.5, fill="token"))
        transforms = transforms_of(task, shape)
        logits = keras.layers.Dense(len(transforms), name="answer")(embedder.output)

        def prepare(batch: Windows, rng: np.random.Generator) -> tuple[Windows, NDArray[np.int64]]:
            return transformed(rng, batch, shape.tags, transforms)

        return Networks(embedder, Task(keras.Model(embedder.input, logits, name=self.name), said_wrong, prepare))
