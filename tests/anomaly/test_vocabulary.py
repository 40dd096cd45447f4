"""Categorical tags as codes (METHODS S5)."""

from __future__ import annotations

import numpy as np

from anomaly.data.vocabulary import Vocabulary

KNOWN = Vocabulary.of([["A4", "A5", ""], ["on", "off"]])


def words(*rows: tuple[str, str]) -> np.ndarray:
    return np.array(rows, dtype=object)


def test_s5_a_word_never_seen_and_a_missing_one_are_the_unknown_slot():
    assert KNOWN.sizes == (3, 3)
    assert KNOWN.codes(words(("A5", "off"), ("B7", "on"), ("", ""))).tolist() == [[2, 2], [0, 1], [0, 0]]


def test_codes_of_another_vocabulary_are_translated_by_word():
    other = (("", "B7", "A5", "A4"), ("", "off", "broken"))
    text = words(("B7", "off"), ("A5", "broken"), ("A4", ""))
    theirs = np.array([[1, 1], [2, 2], [3, 0]], np.int32)
    assert KNOWN.recoded(theirs, other).tolist() == KNOWN.codes(text).tolist()


def test_no_category_gives_no_column():
    assert Vocabulary().codes(np.empty((5, 0), dtype=object)).shape == (5, 0)
    assert Vocabulary().recoded(np.empty((5, 0), np.int32), ()).shape == (5, 0)
