"""Verdicts that people gave on alerts, as a table: which asset, from when to when, and what it was."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from anomaly.errors import Fault, InputRefused, UsageError


def read_verdicts(path: Path) -> pd.DataFrame:
    """A table of verdicts, CSV or Parquet, with columns asset, start, end, verdict; times with a zone."""
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UsageError(Fault("E2001", "a readable CSV or Parquet of verdicts", error, file=str(path))) from error
    for column in {"start", "end"} & set(frame):
        if not pd.api.types.is_numeric_dtype(frame[column]) and frame[column].dtype.kind != "M":
            try:
                frame[column] = pd.to_datetime(frame[column], format="ISO8601", utc=True)
            except ValueError as error:
                raise InputRefused(Fault("E3204", "ISO 8601 times", error, column=column, file=str(path))) from error
    return frame
