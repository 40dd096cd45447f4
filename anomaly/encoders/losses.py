"""Contrastive losses in keras.ops: each a mean over its pairs, stable at any temperature, with a loop reference in its test.

A *pair* is two views of one window. Its other views in the batch are what it must be told apart from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from keras import ops

#: Largest 1/temperature at which exp(similarity/temperature), and the sum of millions of them, stay inside float32.
_STEEPEST = 40.0


def unit(z: Any) -> Any:
    """Rows of ``(…, d)`` at length one, in float32 whatever came in; a zero row stays zero."""
    z = ops.cast(z, "float32")
    return z / ops.sqrt(ops.maximum(ops.sum(ops.square(z), axis=-1, keepdims=True), 1e-12))


def nt_xent(temperature: float) -> Callable[[Any, Any], Any]:
    """The normalised temperature-scaled cross-entropy (Chen et al. 2020; METHODS S27).

    The loss takes (ignored) targets and stacked projections ``(2B, p)``: first views, then second views in the same
    order. For each of the 2B it is −log of the softmax, over the other 2B − 1, of its partner's cosine similarity over
    ``temperature``. A pair alone has nothing to be told from: ``2B`` is at least 4, else ValueError where it is known.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: expected above 0, got {temperature}")

    def loss(targets: Any, projections: Any) -> Any:
        rows = projections.shape[0]
        if rows is not None and (rows < 4 or rows % 2):
            raise ValueError(f"projections: expected two views of at least 2 windows, (4, p) or more, got {rows} rows")
        return _contrast(1.0 / temperature)(unit(projections))

    return loss


def _contrast(scale: float) -> Callable[[Any], Any]:
    """NT-Xent of unit rows ``(2B, p)``, ``scale`` one over the temperature, with a gradient of its own.

    All that is big is the exponentials of the similarities. They are made once and used again by the gradient, where
    automatic differentiation would walk over eight matrices of that size; and as they are symmetric, the block of first
    with second views serves second with first too: three blocks (B, B) in place of four.
    """
    if scale > _STEEPEST:
        return lambda z: pair_contrast((math.sqrt(scale) * z)[None])

    @ops.custom_gradient
    def contrast(z: Any) -> Any:
        half = ops.shape(z)[0] // 2
        first, second = z[:half], z[half:]
        at = ops.arange(half)
        itself = at[:, None] == at[None, :]
        among_first, among_second = (ops.where(itself, 0.0, _exponentials(v, v, scale)) for v in (first, second))
        across = _exponentials(first, second, scale)
        of_first = ops.sum(among_first, axis=1) + ops.sum(across, axis=1)
        of_second = ops.sum(among_second, axis=1) + ops.sum(across, axis=0)
        apart = ops.mean(ops.log(of_first) + ops.log(of_second)) / 2
        value = apart - scale * ops.mean(ops.sum(first * second, axis=1))

        def gradient(*arguments: Any, upstream: Any = None) -> Any:
            above = arguments[0] if upstream is None else upstream
            by_first, by_second = 1 / of_first, 1 / of_second
            pair = across * (by_first[:, None] + by_second)
            to_first = ops.matmul(among_first * (by_first[:, None] + by_first), first) + ops.matmul(pair, second)
            to_second = ops.matmul(among_second * (by_second[:, None] + by_second), second)
            to_second = to_second + ops.matmul(ops.transpose(pair), first)
            pull = ops.concatenate([to_first - 2 * second, to_second - 2 * first], axis=0)
            return above * (scale / (2 * ops.cast(half, "float32"))) * pull

        return value, gradient

    return contrast


def _exponentials(rows: Any, others: Any, scale: float) -> Any:
    """exp of ``scale`` times the dot products ``(B, B)`` of unit rows."""
    side = math.sqrt(scale)
    return ops.exp(ops.matmul(side * rows, ops.transpose(side * others)))


def info_nce(targets: Any, logits: Any) -> Any:
    """−log softmax of the first of ``(B, 1 + Q)`` logits, the positive; mean over the batch (He et al. 2020; S28)."""
    logits = ops.cast(logits, "float32")
    return ops.mean(ops.logsumexp(logits, axis=1) - logits[:, 0])


def pair_contrast(z: Any) -> Any:
    """−log softmax of each item's partner among the others of its group; mean over all.

    ``(M, 2n, d)``: M groups of n first items and their n partners, compared by dot product. A group of one pair gives 0:
    there is nothing to tell its partner from.
    """
    z = ops.cast(z, "float32")
    items = ops.shape(z)[1]
    at = ops.arange(items)
    similar = ops.where(at[:, None] == at[None, :], -1e9, ops.matmul(z, ops.transpose(z, (0, 2, 1))))
    partner = ops.concatenate([z[:, items // 2 :], z[:, : items // 2]], axis=1)
    return ops.mean(ops.logsumexp(similar, axis=2) - ops.sum(z * partner, axis=2))


def scale_count(rows: int) -> int:
    """Scales of the hierarchical contrast: ⌊log₂ T⌋ + 1, each half as long as the one before.

    >>> [scale_count(t) for t in (1, 4, 7, 16)]
    [1, 3, 3, 5]
    """
    return math.floor(math.log2(rows)) + 1


def hierarchical_contrast(first: Any, second: Any, temporal: float = 0.5) -> Any:
    """Temporal and instance contrast over scales (Yue et al. 2022; METHODS S38).

    ``first``, ``second``: context vectors ``(B, T, d)`` of two crops, aligned row by row. At each scale a row should be
    nearer to the same row of the other crop than to the window's other rows (*temporal*, its weight), and to the same
    row of other windows (*instance*); then rows are max-pooled in twos, to length one, which has the instance part only.
    A batch of one has no instance part. The mean over scales.
    """
    rows = int(first.shape[1])
    total = 0.0
    scales = scale_count(rows)
    for number in range(scales):
        instance = pair_contrast(ops.transpose(ops.concatenate([first, second], axis=0), (1, 0, 2)))
        if rows > 1:
            within = pair_contrast(ops.concatenate([first, second], axis=1))
            total = total + temporal * within + (1 - temporal) * instance
        else:
            total = total + (1 - temporal) * instance
        if number < scales - 1:
            rows //= 2
            first, second = (_halved(z, rows) for z in (first, second))
    return total / scales


def _halved(z: Any, rows: int) -> Any:
    """Max over neighbouring pairs of rows; an odd last row is left out."""
    return ops.max(ops.reshape(z[:, : 2 * rows], (-1, rows, 2, z.shape[2])), axis=2)
