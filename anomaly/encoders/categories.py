"""Categorical tags as trained vectors beside the sensors of a window (METHODS S5).

A category's code is looked up in a table with one row per word and row 0 for whatever was never seen. While training,
codes are now and then replaced by 0, so that the unknown row is the middle of what is known and not a random vector.
"""

from __future__ import annotations

import keras
from keras import ops

from anomaly.encoders.base import WindowShape

#: Share of training rows whose category is hidden, so that the unknown slot learns too.
HIDDEN = 0.05


def vector_size(words: int) -> int:
    """Length of a category's vector: the square root of its vocabulary, at least 2 and at most 16.

    >>> [vector_size(n) for n in (2, 10, 1000)]
    [2, 3, 16]
    """
    return int(min(max(2, round((words) ** 0.5)), 16))


@keras.saving.register_keras_serializable("anomaly")
class CategoryVectors(keras.layers.Layer):
    """``(B, T, tags + K)`` with codes in the last K channels → ``(B, T, tags + vectors)``; no change where K is 0."""

    def __init__(self, shape: WindowShape, hidden: float = HIDDEN, seed: int = 0, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.window_shape, self.hidden = shape, hidden
        self.tables = [
            keras.layers.Embedding(words, vector_size(words), name=f"category_{k}")
            for k, words in enumerate(shape.categories)
        ]
        self.generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        for table in self.tables:
            table.build(input_shape[:-1])
        self.built = True

    def call(self, windows: keras.KerasTensor, training: bool = False) -> keras.KerasTensor:
        """Tags, then each category's vector."""
        tags = self.window_shape.tags
        parts = [windows[..., :tags]]
        for k, (table, words) in enumerate(zip(self.tables, self.window_shape.categories, strict=True)):
            codes = ops.cast(windows[..., tags + k], "int32")
            # A code beyond the vocabulary is a word of another log: unknown, like a word never seen.
            codes = ops.where((codes > 0) & (codes < words), codes, 0)
            if training and self.hidden:
                shown = keras.random.uniform(ops.shape(codes), seed=self.generator) >= self.hidden
                codes = codes * ops.cast(shown, "int32")
            parts.append(table(codes))
        return ops.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]


def window_input(shape: WindowShape) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """The input of a network ``(B, T, channels)`` and the same with categories as vectors, ``(B, T, width)``."""
    inputs = keras.Input((shape.rows, shape.channels), name="windows")
    if not shape.categories:
        return inputs, inputs
    return inputs, CategoryVectors(shape, name="categories")(inputs)
