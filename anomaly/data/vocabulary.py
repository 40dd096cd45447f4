"""Categorical tags as small numbers: which words a model knows, and slot 0 for every other (METHODS S5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

#: The word of slot 0: missing, or never seen while learning.
UNKNOWN_WORD = ""


@dataclass(frozen=True)
class Vocabulary:
    """Words per category, in the order of their codes; each list begins with the unknown slot.

    >>> known = Vocabulary.of([["A4", "A5"]])
    >>> known.codes(np.array([["A5"], ["A6"]], dtype=object)).ravel().tolist()
    [2, 0]
    """

    words: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, words: Sequence[Sequence[str]]) -> Vocabulary:
        """The vocabulary that knows ``words`` per category."""
        return cls(tuple((UNKNOWN_WORD, *(w for w in known if w != UNKNOWN_WORD)) for known in words))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Slots per category, the unknown one included."""
        return tuple(len(known) for known in self.words)

    def codes(self, text: NDArray[np.object_]) -> NDArray[np.int32]:
        """Words ``(n, K)`` as codes ``(n, K)``; what is not known is 0."""
        coded = np.zeros((len(text), len(self.words)), dtype=np.int32)
        for k in range(len(self.words)):
            coded[:, k] = self._column(k, text[:, k])
        return coded

    def recoded(self, codes: NDArray[np.int32], other: Sequence[Sequence[str]]) -> NDArray[np.int32]:
        """Codes ``(n, K)`` into the words of ``other`` as codes of this vocabulary."""
        coded = np.zeros((len(codes), len(self.words)), dtype=np.int32)
        for k, words in enumerate(other):
            coded[:, k] = self._column(k, np.array(words, dtype=object))[codes[:, k]]
        return coded

    def _column(self, k: int, text: NDArray[np.object_]) -> NDArray[np.int32]:
        found = pd.Index(self.words[k], dtype=object).get_indexer(pd.Index(text, dtype=object))
        return np.maximum(found, 0).astype(np.int32)
