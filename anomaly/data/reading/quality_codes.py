"""Quality codes of historians: OPC classic bytes, OPC UA status codes, words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly.data.reading.sources import Source

GOOD, UNCERTAIN, BAD, UNREAD = 0, 1, 2, 3

_WORDS = {"good": GOOD, "uncertain": UNCERTAIN, "questionable": UNCERTAIN, "bad": BAD, "": GOOD}
_EXPECTED = {
    "classic": "good, uncertain, bad or an OPC quality: 0-63 bad, 64-127 uncertain, 192-255 good",
    "ua": "good, uncertain, bad or an OPC UA status code",
}


@dataclass(frozen=True)
class Reader:
    """Reads a quality column whose numbers are all OPC ``classic`` or all OPC ``ua``.

    A 0 is *bad* in one and *good* in the other, so the kind is settled for the whole log.
    """

    kind: str = "classic"

    @property
    def expected(self) -> str:
        """What a quality cell may hold, for refusals."""
        return _EXPECTED[self.kind]

    @classmethod
    def told(cls, sources: Sequence[Source], column: str | None) -> Reader:
        """The reader for ``column`` of ``sources``: classic if any number lies in 1 to 255, else OPC UA.

        A column of zeros alone is OPC UA's "good": a log in which no value was ever good would be no use.
        """
        for source in sources if column else ():
            if column in source.columns:
                for batch in source.batches({column}):
                    codes, _ = _codes(batch.columns[column])
                    if ((codes >= 1) & (codes <= 255)).any():
                        return cls("classic")
        return cls("ua")

    def read(self, array: pa.Array) -> NDArray[np.int8]:
        """A quality column ``(n,)`` as GOOD, UNCERTAIN, BAD or UNREAD; an empty cell counts as good.

        >>> Reader("classic").read(pa.array([192, 64, 0, 150])).tolist()
        [0, 1, 2, 3]
        >>> Reader("ua").read(pa.array(["0", "0x80000000", "Uncertain"])).tolist()
        [0, 2, 1]
        """
        codes, words = _codes(array)
        numeric = codes >= 0
        found = np.where(numeric, UNREAD, words).astype(np.int8)
        if self.kind == "classic":
            major = codes >> 6
            known = numeric & (codes <= 255) & (major != 2)
            found[known] = np.choose(major[known], [BAD, UNCERTAIN, UNREAD, GOOD])
        else:
            known = numeric & (codes < 2**32) & ((codes == 0) | (codes >= 2**16))
            found[known] = np.minimum(codes[known] >> 30, BAD)
        return found


def _codes(array: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Numbers of a quality column, -1 where it holds words, and the words' meaning; each distinct cell is read once."""
    encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    numbers, words = [-1], [_WORDS[""]]
    for cell in encoded.dictionary.to_pylist():
        number = _number(cell)
        numbers.append(number)
        words.append(_WORDS.get(str(cell).strip().casefold(), UNREAD))
    at = np.asarray(encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)) + 1
    return np.array(numbers, np.int64)[at], np.array(words, np.int8)[at]


def _number(cell: object) -> int:
    """A quality number; a 32-bit status code stored as signed is taken as unsigned."""
    text = str(cell).strip()
    try:
        value = float(text) if not text.casefold().startswith("0x") else float(int(text, 16))
    except ValueError:
        return -1
    if not value.is_integer() or not -(2.0**31) <= value < 2.0**32:
        return 2**40
    return int(value) + (2**32 if value < 0 else 0)
