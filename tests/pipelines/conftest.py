"""The command line inside this process, logs of the small plant on disk, and one trained model for all tests."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pytest
from small_plant import small_frame

from pipelines.cli import main

PROJECT = Path(__file__).resolve().parents[2]

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


@pytest.fixture(scope="session")
def mlflow_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables made, to be copied: making them takes seconds."""
    from registry.state import connection, find_state

    folder = tmp_path_factory.mktemp("tables")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with connection(find_state(folder)) as client:
            client.search_registered_models()
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def press(tmp_path_factory: pytest.TempPathFactory, mlflow_tables: Path) -> Iterator[Press]:
    """The small plant's model, trained through the command line."""
    folder = tmp_path_factory.mktemp("press")
    home, frame = folder / "home", small_frame()
    home.mkdir()
    shutil.copyfile(mlflow_tables, home / "mlflow.db")
    log = write_log(frame, folder / "log.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOMALY_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        done = anomaly("train", log, *FLAGS, "--epochs", 3, "--name", "press", "--out", folder / "model", "--json")
    yield Press(home, folder / "model", log, frame, done.json)


@pytest.fixture
def registry_home(home: Path, mlflow_tables: Path) -> Path:
    """A state folder of the test's own, with an empty registry."""
    home.mkdir()
    shutil.copyfile(mlflow_tables, home / "mlflow.db")
    return home


@pytest.fixture
def press_registry(press: Press, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Press:
    """The trained model's registry as state, with an alert database of the test's own."""
    monkeypatch.setenv("ANOMALY_HOME", str(press.home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("ANOMALY_DB_URL", str(tmp_path / "alerts.db"))
    return press
