"""The command line inside this process, and logs of the small plant on disk."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd

from pipelines.cli import main

PROJECT = Path(__file__).resolve().parents[1]

#: Flags under which the small plant trains in a few seconds.
FLAGS = ("--label", "label", "--lookback", "6", "--lead", "4min")
SHORT = (*FLAGS, "--epochs", "1")


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it said."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        assert self.status == 0, self.err
        return dict(json.loads(self.out))


def anomaly(*args: object) -> Outcome:
    """Run ``anomaly ARGS`` in this process."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with mock.patch.object(sys, "argv", ["anomaly", *map(str, args)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
    return Outcome(status, out.getvalue(), err.getvalue())


def write_log(frame: pd.DataFrame, path: Path) -> Path:
    """``frame`` as CSV or Parquet, by the name."""
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)
    return path


def files_under(*folders: Path) -> dict[str, bytes]:
    """Every file and its content, to compare a before with an after."""
    return {str(p): p.read_bytes() for folder in folders for p in sorted(folder.rglob("*")) if p.is_file()}


@dataclass(frozen=True)
class Press:
    """A trained and registered model of the small plant; tests read it, none changes it."""

    home: Path
    bundle: Path
    log: Path
    frame: pd.DataFrame
    trained: dict[str, Any]
