"""Verdicts that people gave on alerts or drawn windows, as a table: which asset, from when to when, and what it was."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from anomaly.errors import Fault, InputRefused, UsageError

#: An apostrophe that our CSV puts before text that a spreadsheet would run as a formula.
_GUARD = r"^'(?=\s*[=+\-@\t\r])"


def read_verdicts(path: Path) -> pd.DataFrame:
    """A table of verdicts, CSV or Parquet, with columns asset, start, end, verdict; times with a zone.

    Rows whose verdict was left empty say nothing and are left out. Raises UsageError E2001 for a file that cannot be read,
    InputRefused E3204 for times that are not ISO 8601.
    """
    try:
        # An asset called 007 must not become the number 7.
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype={"asset": str})
    except (OSError, ValueError) as error:
        raise UsageError(Fault("E2001", "a readable CSV or Parquet of verdicts", error, file=str(path))) from error
    if "verdict" in frame:
        said = frame["verdict"].astype(object).where(frame["verdict"].notna(), "").astype(str).str.strip()
        frame = frame.assign(verdict=said)[said != ""].reset_index(drop=True)
    if "asset" in frame and path.suffix != ".parquet":
        frame["asset"] = frame["asset"].str.replace(_GUARD, "", regex=True)
    for column in {"start", "end"} & set(frame):
        if not pd.api.types.is_numeric_dtype(frame[column]) and frame[column].dtype.kind != "M":
            try:
                frame[column] = pd.to_datetime(frame[column], format="ISO8601", utc=True)
            except ValueError as error:
                raise InputRefused(Fault("E3204", "ISO 8601 times", error, column=column, file=str(path))) from error
    return frame
