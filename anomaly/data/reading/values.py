"""Cells of a log as numbers, by written rules: what is a number, what is missing, what is bad quality, what is text.

pyarrow converts whole columns; only a column that holds something else than plain numbers takes the slower path, in
which every cell is classified. Nothing is guessed: a cell that is neither a number nor a listed token is text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

#: Cells that say "no value".
MISSING = ("", "NaN", "nan", "NULL", "null", "NA", "N/A", "n/a", "None")

#: What plant historians write in place of a value they do not trust: missing, and marked as bad quality.
BAD_QUALITY = (
    "Bad", "Bad Input", "No Data", "I/O Timeout", "Pt Created", "Comm Fail", "Shutdown", "No Good Data",
    "Over Range", "Under Range", "Scan Off",
)  # fmt: skip

#: Beyond this a value is an error of the source: no plant quantity has it, and its square leaves float32.
LARGEST = 1e30

NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_INFINITE = r"^[+-]?[iI][nN][fF]([iI][nN][iI][tT][yY])?$"
_BOOLEAN = r"^([tT][rR][uU][eE]|[fF][aA][lL][sS][eE])$"
_TRUE = r"^[tT][rR][uU][eE]$"


@dataclass(frozen=True)
class Numbers:
    """A column as numbers: all ``(n,)``; ``values`` is NaN where missing, bad or text, and 0/1 where boolean.

    ``bad`` marks bad quality, ``text`` cells that are none of number, token or boolean, ``boolean`` true/false cells.
    """

    values: NDArray[np.float64]
    bad: NDArray[np.bool_]
    text: NDArray[np.bool_]
    boolean: NDArray[np.bool_]


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds strings."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_number(kind: pa.DataType) -> bool:
    """Whether an Arrow type is read as numbers: integers, floats, decimals, booleans, and columns without values."""
    t = pa.types
    return bool(
        t.is_integer(kind) or t.is_floating(kind) or t.is_decimal(kind) or t.is_boolean(kind) or t.is_null(kind)
    )


def plain(array: pa.Array) -> pa.Array:
    """``array`` without its dictionary encoding."""
    return array.cast(array.type.value_type) if pa.types.is_dictionary(array.type) else array


def cell(array: pa.Array, row: int) -> object:
    """One cell as a Python value, for refusals; a time stamp beyond year 9999 as its bare number."""
    try:
        return array[row].as_py()
    except (OverflowError, ValueError):
        return array[row].cast(pa.int64()).as_py()


def numbers(array: pa.Array, *, decimal: str = ".", nan_is_bad: bool = False) -> Numbers:
    """A column ``(n,)`` as Numbers. With ``nan_is_bad`` a float NaN (not a null) stands for bad quality.

    >>> found = numbers(pa.array(["1.5", "", "Bad", "1_000"]))
    >>> found.values.tolist(), found.bad.tolist(), found.text.tolist()
    ([1.5, nan, nan, nan], [False, False, True, False], [False, False, False, True])
    """
    array = plain(array)
    if is_text(array.type):
        return _from_text(array, decimal)
    if not is_number(array.type):
        return _masks(np.full(len(array), np.nan), text=_mask(pc.is_valid(array)))
    boolean = _mask(pc.is_valid(array)) if pa.types.is_boolean(array.type) else None
    values = _floats(array)
    bad = np.isnan(values) & _mask(pc.is_valid(array)) if nan_is_bad else None
    return _masks(values, bad=bad, boolean=boolean)


def texts(array: pa.Array) -> NDArray[np.object_]:
    """A column ``(n,)`` as trimmed strings, "" where missing; whole numbers lose their ".0".

    A grade written 3, 3.0 or "3" is thus one category, whichever file it comes from.

    >>> texts(pa.array([3.0, None, 2.5])).tolist()
    ['3', '', '2.5']
    """
    array = plain(array)
    if not is_text(array.type):
        array = pc.cast(array, pa.string())
    trimmed = pc.utf8_trim_whitespace(array)
    short = pc.replace_substring_regex(trimmed, r"^([+-]?[0-9]+)\.0*$", r"\1")
    filled = pc.fill_null(short, "")
    nan = pc.is_in(filled, value_set=pa.array(["nan", "NaN"], filled.type))
    return np.asarray(pc.if_else(nan, "", filled).to_numpy(zero_copy_only=False), dtype=object)


def _from_text(array: pa.Array, decimal: str) -> Numbers:
    if decimal == ".":
        quick = _cast(array)
        # float parsing takes "nan(…)" for NaN: only a column without NaN is known to be plain numbers
        if quick is not None and not np.isnan(quick[_mask(pc.is_valid(array))]).any():
            return _masks(quick)
    cells = pc.fill_null(pc.utf8_trim_whitespace(array), "")
    missing = _mask(pc.is_in(cells, value_set=pa.array(MISSING, cells.type)))
    bad = _mask(pc.is_in(cells, value_set=pa.array(BAD_QUALITY, cells.type)))
    boolean = _mask(pc.match_substring_regex(cells, _BOOLEAN))
    points = _points(cells, decimal)
    number = _mask(pc.match_substring_regex(points, NUMBER)) | _mask(pc.match_substring_regex(cells, _INFINITE))
    values = np.full(len(cells), np.nan)
    values[number] = _parsed(points.filter(pa.array(number)))
    values[boolean] = _mask(pc.match_substring_regex(cells.filter(pa.array(boolean)), _TRUE))
    return Numbers(values, bad, ~(missing | bad | boolean | number), boolean)


def _points(cells: pa.Array, decimal: str) -> pa.Array:
    """``cells`` with a decimal point; a point beside another decimal mark is a thousands mark, so left as text."""
    if decimal == ".":
        return cells
    moved = pc.replace_substring(cells, decimal, ".")
    return pc.if_else(pc.match_substring(cells, "."), pc.binary_join_element_wise(cells, "?", ""), moved)


def _parsed(cells: pa.Array) -> NDArray[np.float64]:
    quick = _cast(cells)
    return quick if quick is not None else np.array([float(c) for c in cells.to_pylist()], dtype=np.float64)


def _cast(array: pa.Array) -> NDArray[np.float64] | None:
    try:
        return _floats(array)
    except pa.ArrowInvalid:
        return None


def _floats(array: pa.Array) -> NDArray[np.float64]:
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan)
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    cast = pc.cast(array, pa.float64(), safe=False)
    return np.asarray(cast.to_numpy(zero_copy_only=False), dtype=np.float64)


def _mask(array: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=bool)


def _masks(
    values: NDArray[np.float64],
    bad: NDArray[np.bool_] | None = None,
    text: NDArray[np.bool_] | None = None,
    boolean: NDArray[np.bool_] | None = None,
) -> Numbers:
    none = np.zeros(len(values), dtype=bool)
    return Numbers(values, *(none if m is None else m for m in (bad, text, boolean)))
