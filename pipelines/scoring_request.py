"""The body of a scoring request as checked rows, and the scored rows as JSON can carry them."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from anomaly.errors import Fault, InputRefused, UsageError

if TYPE_CHECKING:
    from anomaly.data.contract import LogContract
    from anomaly.model import AnomalyModel
    from pipelines.scoring_record import Seen

_MOST_FAULTS = 20
_MOST_COLUMNS = 10_000
#: Bytes that a Parquet body may say it unpacks to, for each byte that a CSV body may have.
_MOST_UNPACKED = 1 << 30
_LARGEST = 1e30
_NAME = re.compile(r"[\w-][\w. -]{0,99}")
_YEARS = pd.Timestamp("1970-01-01"), pd.Timestamp("2100-01-01")


def scored_rows(
    model: AnomalyModel, kind: str, body: bytes, name: str, most_rows: int, seen: Seen | None = None
) -> list[dict[str, Any]]:
    """Score a body of content type ``kind``: one table per row, in the order of the rows; ``seen`` is shown them too.

    JSON goes through the checks of the served model, CSV and Parquet through those of a log file; ``name`` is the file name
    where the model reads the asset from it. Raises InputRefused with our codes, UsageError E2001 for more than
    ``most_rows`` rows.
    """
    if kind == "application/json":
        frame = json_frame(body, model.contract, most_rows)
        return _scored_frame(model, frame, seen) if len(frame) else []
    return _scored_file(model, ".csv" if kind == "text/csv" else ".parquet", body, name, most_rows, seen)


def _scored_frame(model: AnomalyModel, frame: pd.DataFrame, seen: Seen | None) -> list[dict[str, Any]]:
    from anomaly.model import chunk_from_frame, scored_frame

    chunk = chunk_from_frame(frame, model.contract)
    rows = model.stream().score(chunk)
    if seen is not None:
        seen.add(chunk, rows)
    return list(plain_rows(scored_frame(rows, model)))


def plain_rows(scored: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """A scored frame as tables of plain values: NaN becomes None, top tags a list of tag and share."""
    times = pd.to_datetime(scored["time"], utc=True)
    scores = scored["anomaly_score"].to_numpy(np.float64).tolist()
    columns = (scored[c].tolist() for c in ("asset", "threshold", "outcome", "reason", "top_tags"))
    for time, score, asset, threshold, outcome, reason, top in zip(times, scores, *columns, strict=True):
        yield {
            "time": time.isoformat(),
            "asset": str(asset),
            "anomaly_score": score if math.isfinite(score) else None,
            "threshold": float(threshold),
            "outcome": str(outcome),
            "reason": str(reason),
            "top_tags": [{"tag": tag, "share": float(share)} for tag, share in top],
        }


# JSON ---------------------------------------------------------------------------------------------------------------


def json_frame(body: bytes, contract: LogContract, most_rows: int) -> pd.DataFrame:
    """Rows as the model takes them, from a JSON list of tables or a table with that list under ``rows``.

    Raises InputRefused E3007 (no such JSON) and as ``registry.pyfunc.read_rows``; E3107 for truth values and text in a
    number column, E3111 a number of impossible size, E3113 an asset that is missing, E3206 a time twice with other
    values, E3207 a time outside 1970 to 2100. UsageError E2001 for more than ``most_rows`` rows.
    """
    from registry.pyfunc import read_rows

    rows = _parsed(body)
    if len(rows) > most_rows:
        raise UsageError(Fault("E2001", f"at most {most_rows} rows", len(rows), "send fewer rows at once"))
    if not rows:
        return pd.DataFrame()
    # By column, and only those that are read: a table of all keys of all rows could be made huge.
    read = [contract.time, *([contract.asset] if contract.asset else []), *contract.tags, *contract.categories]
    given = {c: [row.get(c) for row in rows] for c in dict.fromkeys(read) if any(c in row for row in rows)}
    faults = [f for c in contract.tags for f in _number_faults(c, given.get(c, []))]
    faults += [
        f for c in (contract.asset, *contract.categories) if c in given for f in _text_faults(c, given[c], contract)
    ]
    if faults:
        raise InputRefused(faults[:_MOST_FAULTS])
    frame = pd.DataFrame({c: pd.Series(v, dtype=object) for c, v in given.items()})
    frame = read_rows(frame, contract)
    _check_times(frame, contract)
    return frame


def _parsed(body: bytes) -> list[dict[str, Any]]:
    def no_constant(name: str) -> None:
        raise ValueError(f"bare {name}")

    def whole(text: str) -> float:
        return int(text) if len(text) < 19 else float(text)

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError("a key appears twice")
        return made

    try:
        parsed = json.loads(
            body.decode("utf-8"), parse_constant=no_constant, parse_int=whole, object_pairs_hook=table
        )  # fmt: skip
    except (ValueError, RecursionError) as error:
        found = "nesting without end" if isinstance(error, RecursionError) else error
        raise InputRefused(Fault("E3007", "JSON in UTF-8", found, "null says that there is no value")) from None
    rows = parsed.get("rows") if isinstance(parsed, dict) else parsed
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        hint = '[{"time": "2026-01-31T12:00:00Z", "Pressure": 1.5}]'
        raise InputRefused(Fault("E3007", "a list of rows, each a table of columns", "another form", hint))
    return rows


def _number_faults(column: str, values: list[Any]) -> Iterator[Fault]:
    for row, value in enumerate(values, 1):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield Fault("E3107", "a number or null", value, column=column, row=row)
        elif _LARGEST < abs(value) < math.inf:
            yield Fault("E3111", "a number of size below 1e30", value, column=column, row=row)


def _text_faults(column: str, values: list[Any], contract: LogContract) -> Iterator[Fault]:
    """An asset is text or a whole number; a category may be missing too."""
    for row, value in enumerate(values, 1):
        if value is None or value == "":
            if column == contract.asset:
                yield Fault("E3113", "an asset", "none", column=column, row=row)
        elif isinstance(value, bool) or not isinstance(value, str | int):
            code = "E3113" if column == contract.asset else "E3107"
            yield Fault(code, "text or a whole number", value, column=column, row=row)


def _check_times(frame: pd.DataFrame, contract: LogContract) -> None:
    """Times from 1970 to 2100, and one set of values for each time of an asset."""
    time = frame[contract.time]
    keys = [c for c in (contract.asset, contract.time) if c in frame.columns]
    other = frame.duplicated(keys) & ~frame.duplicated()
    outside = ~time.between(*_YEARS)
    expected, twice = "a time from 1970 to 2100", "the values of the earlier row of this time"
    faults = [
        Fault("E3207", expected, time.iloc[i].isoformat(), column=contract.time, row=int(i) + 1)
        for i in np.flatnonzero(outside)[:_MOST_FAULTS]
    ] + [
        Fault("E3206", twice, "other values", "keep one", column=contract.time, row=int(i) + 1)
        for i in np.flatnonzero(other)[:_MOST_FAULTS]
    ]
    if faults:
        raise InputRefused(faults[:_MOST_FAULTS])


# CSV and Parquet ----------------------------------------------------------------------------------------------------


def _scored_file(
    model: AnomalyModel, suffix: str, body: bytes, name: str, most_rows: int, seen: Seen | None
) -> list[dict[str, Any]]:
    """What ``anomaly score`` does with a file of these bytes."""
    from anomaly.data.readers import open_log
    from anomaly.model import scored_frame
    from pipelines.score import scored_chunks

    name = name or f"body{suffix}"
    if not _NAME.fullmatch(name):
        raise UsageError(Fault("E2001", "a file name of letters, digits and . _ - as `name`", name))
    with tempfile.TemporaryDirectory(prefix="anomaly-request-") as folder:
        path = Path(folder) / f"{name.removesuffix(suffix)}{suffix}"
        path.write_bytes(body)
        if suffix == ".parquet":
            _check_parquet(path, most_rows)
        log = open_log([path], model.settings.log, contract=model.contract)
        if log.rows > most_rows:
            raise UsageError(Fault("E2001", f"at most {most_rows} rows", log.rows, "send fewer rows at once"))
        found: list[dict[str, Any]] = []
        for chunk, rows in scored_chunks(log, model):
            found += plain_rows(scored_frame(rows, model))
            if seen is not None:
                seen.add(chunk, rows)
        return found


def _check_parquet(path: Path, most_rows: int) -> None:
    """What the footer announces, before any page is unpacked."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            found = file.metadata
            unpacked = sum(found.row_group(i).total_byte_size for i in range(found.num_row_groups))
            rows, columns = found.num_rows, found.num_columns
    except (pa.ArrowException, OSError, ValueError) as error:
        first = str(error).partition("\n")[0].replace(str(path), path.name)
        raise InputRefused(Fault("E3006", "a readable Parquet file", first)) from None
    for most, number, what in (
        (most_rows, rows, "rows"), (_MOST_COLUMNS, columns, "columns"), (_MOST_UNPACKED, unpacked, "bytes unpacked")
    ):  # fmt: skip
        if number > most:
            raise UsageError(Fault("E2001", f"at most {most} {what}", number, "send fewer rows at once"))
