"""The files inside a bundle as bytes: arrays, canary rows and JSON, packed plainly and unpacked with distrust."""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from anomaly.errors import Fault, ModelRefused

#: Array types a bundle may hold: numbers, truth values and short text; never objects.
DTYPES = frozenset({"<f2", "<f4", "<f8", "|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8"})
_TEXT_DTYPE = re.compile(r"<U[1-9]\d{0,3}")
_ARRAY_NAME = re.compile(r"[A-Za-z0-9_]+(?:[./-][A-Za-z0-9_]+)*")

#: Rows of a canary; a few prove a model, many would only slow its loading.
MOST_CANARY_ROWS = 1000

#: An .npy header is padded text; ours are 128 bytes, format 1.0 allows 65,545.
_LONGEST_HEADER = 65_545

_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def _refused(expected: str, found: object, where: str, code: str = "E4003") -> ModelRefused:
    return ModelRefused(Fault(code, expected, found, file=where))


# JSON ------------------------------------------------------------------------------------------------------------


def dump_json(value: Any) -> bytes:
    """``value`` as strict JSON; NaN and infinities become tagged text, numpy scalars numbers, tuples lists.

    >>> dump_json({"a": (1, float("nan"))})
    b'{"a": [1, {"$float": "nan"}]}'
    """
    return json.dumps(_plain(value), ensure_ascii=True, allow_nan=False).encode()


def parse_json(blob: bytes, path: Path | str) -> Any:
    """What ``dump_json`` wrote; refuses (E4003) bare NaN, a key given twice, nesting without end.

    >>> parse_json(b'{"a": [1, {"$float": "inf"}]}', "m")
    {'a': [1, inf]}
    """
    try:
        return json.loads(blob.decode("ascii"), object_pairs_hook=_table, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _refused("strict JSON", error, str(path)) from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    return value


def _table(pairs: list[tuple[str, Any]]) -> Any:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key appears twice")
    if set(table) == {"$float"}:
        if table["$float"] not in _NONFINITE:
            raise ValueError("$float is one of nan, inf, -inf")
        return _NONFINITE[table["$float"]]
    return table


def _no_constant(name: str) -> None:
    raise ValueError(f"bare {name}")


# Arrays ----------------------------------------------------------------------------------------------------------


def pack_arrays(arrays: dict[str, NDArray[Any]]) -> bytes:
    """The arrays as the bytes of an .npz; refuses (E4003) objects, non-finite numbers and unfit names."""
    for name, array in arrays.items():
        _check_array(name, array)
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **{k: np.asarray(v, order="C") for k, v in arrays.items()})
    return stream.getvalue()


def describe(arrays: dict[str, NDArray[Any]]) -> dict[str, dict[str, Any]]:
    """Type and shape of every array, as the manifest keeps them."""
    return {name: {"dtype": a.dtype.str, "shape": list(a.shape)} for name, a in arrays.items()}


def unpack_arrays(blob: bytes, described: object) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz that holds exactly what the manifest describes; refuses (E4003) all else.

    Names, types, shapes and sizes are compared before memory is taken; nothing is unpickled or written to disk.
    """
    where = "arrays.npz"
    if not isinstance(described, dict):
        raise _refused("a table of arrays in the manifest", type(described).__name__, where)
    sizes = {name: _declared_bytes(name, entry, len(blob)) for name, entry in described.items()}
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            _check_listing(archive, sizes, where)
            arrays = {name: _array(archive.read(f"{name}.npy"), name, described[name]) for name in described}
    except (zipfile.BadZipFile, ValueError, RuntimeError, NotImplementedError, EOFError, LookupError, OSError) as error:
        raise _refused("a readable .npz", error, where) from error
    for name, array in arrays.items():
        _check_array(name, array)
    return arrays


def _check_array(name: str, array: NDArray[Any]) -> None:
    if not _ARRAY_NAME.fullmatch(name) or len(name) > 200:
        raise _refused("an array name of letters, digits and . _ - /", name, "arrays.npz")
    if not _allowed(array.dtype.str):
        raise _refused("an array of numbers or short text", f"{name}: {array.dtype}", "arrays.npz")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise _refused("finite numbers", f"{name}: {bad} of {array.size} not finite", "arrays.npz")


def _allowed(dtype: object) -> bool:
    return isinstance(dtype, str) and (dtype in DTYPES or _TEXT_DTYPE.fullmatch(dtype) is not None)


def _declared_bytes(name: str, entry: object, most: int) -> int:
    """Bytes of the array that the manifest declares; must fit into the file, since ours are not compressed."""
    if not _ARRAY_NAME.fullmatch(name) or len(name) > 200:
        raise _refused("an array name of letters, digits and . _ - /", name, "manifest.json")
    dtype, shape = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
    if not _allowed(dtype):
        raise _refused(f"a plain type of array {name}", dtype, "manifest.json")
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(n) is int and n >= 0 for n in shape):
        raise _refused(f"a shape of array {name}", shape, "manifest.json")
    size = math.prod(shape) * np.dtype(str(dtype)).itemsize
    if size > most:
        raise _refused(f"array {name} within the {most} bytes of the file", f"{size} bytes", "manifest.json")
    return size


def _check_listing(archive: zipfile.ZipFile, sizes: dict[str, int], where: str) -> None:
    """Exactly the declared members, each once, stored as they are, of about the declared size."""
    infos = archive.infolist()
    if sorted(i.filename for i in infos) != sorted(f"{name}.npy" for name in sizes):
        raise _refused("exactly the arrays of the manifest", f"{len(infos)} others", where)
    for info in infos:
        declared = sizes[info.filename.removesuffix(".npy")]
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise _refused("members that are not compressed", info.filename, where)
        if not declared < info.file_size <= declared + _LONGEST_HEADER:
            raise _refused(f"{info.filename} of about {declared} bytes", info.file_size, where)


def _array(blob: bytes, name: str, entry: dict[str, Any]) -> NDArray[Any]:
    """One array; its header is compared with the manifest before numpy may allocate by it."""
    stream = io.BytesIO(blob)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise _refused("format 1.0", name, "arrays.npz")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if (list(shape), dtype.str) != (entry["shape"], entry["dtype"]):
        raise _refused(f"{name} as {entry['dtype']} {entry['shape']}", f"{dtype.str} {list(shape)}", "arrays.npz")
    if len(blob) - stream.tell() != math.prod(shape) * dtype.itemsize:
        raise _refused(f"the bytes of {name} and no more", f"{len(blob) - stream.tell()} bytes", "arrays.npz")
    stream.seek(0)
    return np.load(stream, allow_pickle=False)


# Canary ----------------------------------------------------------------------------------------------------------


def pack_canary(frame: pd.DataFrame) -> bytes:
    """A few log rows as JSON, column by column; refuses (E4004) none or too many."""
    if not 1 <= len(frame) <= MOST_CANARY_ROWS:
        raise _refused(f"1 to {MOST_CANARY_ROWS} canary rows", len(frame), "canary.json", "E4004")
    return dump_json({"columns": [_packed(str(name), frame[name]) for name in frame.columns]})


def unpack_canary(blob: bytes) -> pd.DataFrame:
    """The rows that ``pack_canary`` wrote; refuses (E4003) all else."""
    table = parse_json(blob, "canary.json")
    try:
        columns = {str(c["name"]): _unpacked(c) for c in table["columns"]}
        lengths = {len(values) for values in columns.values()}
        if len(columns) != len(table["columns"]) or len(lengths) != 1 or not 1 <= max(lengths) <= MOST_CANARY_ROWS:
            raise ValueError(f"{len(columns)} columns of {sorted(lengths)} rows")
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        raise _refused("canary rows, column by column", error, "canary.json") from error
    return pd.DataFrame(columns)


def _packed(name: str, column: pd.Series) -> dict[str, Any]:
    if isinstance(column.dtype, pd.DatetimeTZDtype) or column.dtype.kind == "M":
        zoned = isinstance(column.dtype, pd.DatetimeTZDtype)
        times = pd.to_datetime(column, utc=True)
        kind = "zoned" if zoned else "naive"
        return {"name": name, "kind": kind, "values": [None if pd.isna(t) else t.isoformat() for t in times]}
    if isinstance(column.dtype, np.dtype) and column.dtype.str in DTYPES:
        values = column.tolist()
        values = [None if isinstance(v, float) and math.isnan(v) else v for v in values]
        return {"name": name, "kind": column.dtype.str, "values": values}
    return {"name": name, "kind": "text", "values": [None if pd.isna(v) else str(v) for v in column]}


def _unpacked(packed: dict[str, Any]) -> pd.Series:
    kind, values = packed["kind"], packed["values"]
    if not isinstance(values, list) or not all(v is None or isinstance(v, str | int | float) for v in values):
        raise TypeError("values are a list of text, numbers and null")
    if kind in ("zoned", "naive"):
        times = pd.Series(pd.to_datetime(values, utc=True, format="ISO8601")).astype("datetime64[us, UTC]")
        return times if kind == "zoned" else times.dt.tz_localize(None)
    if kind == "text":
        return pd.Series(values, dtype=object)
    if kind not in DTYPES:
        raise ValueError(f"kind {kind!r}")
    return pd.Series(np.array(values, dtype=np.dtype(kind)))
