"""Where a model's records live, and a connection to MLflow there: quiet, without pickle, quick to give up.

State is under ``$ANOMALY_HOME`` or ``./.anomaly``: ``mlflow.db``, ``artifacts``, ``cache``. ``$MLFLOW_TRACKING_URI``
names another MLflow. MLflow is imported when a connection is opened, not before.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly.errors import Fault, Unavailable
from anomaly.files import atomic_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: Set in any case: no pickle is loaded, no job runner starts, nothing is reported to others or taken from a lock file.
SAFE = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}

#: Set unless the user chose otherwise. With MLflow's own limits one call to a dead server takes four minutes
#: (RELIABILITY §2.8).
QUICK = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

_TRACKING_URI = "MLFLOW_TRACKING_URI"
_CREDENTIALS = re.compile(r"://[^/\s]*@")

#: MLflow's codes for a wrong question; everything else it raises means that it could not answer.
_ASKED_WRONGLY = frozenset(
    {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"}
)


@dataclass(frozen=True)
class State:
    """The folder of our state and the address of MLflow."""

    home: Path
    tracking_uri: str

    @property
    def database(self) -> Path | None:
        """The SQLite file behind the address, None for any other MLflow."""
        scheme, _, path = self.tracking_uri.partition(":///")
        return Path(path) if scheme == "sqlite" and path else None

    @property
    def is_server(self) -> bool:
        """Whether the address is a server, which then keeps the artifacts itself."""
        return self.tracking_uri.startswith(("http://", "https://", "databricks"))

    @property
    def is_new(self) -> bool:
        """Whether MLflow's own database is not there yet: nothing was ever registered."""
        return self.database is not None and not self.database.exists()

    @property
    def artifacts(self) -> Path:
        """The folder of artifacts of an MLflow without a server."""
        return self.home / "artifacts"

    @property
    def cache(self) -> Path:
        """The folder of verified copies of models."""
        return self.home / "cache"


def find_state(home: Path | None = None) -> State:
    """``home``, else ``$ANOMALY_HOME``, else ``./.anomaly``; MLflow at ``$MLFLOW_TRACKING_URI`` or in that folder."""
    folder = Path(home or os.environ.get("ANOMALY_HOME") or ".anomaly").absolute()
    return State(folder, os.environ.get(_TRACKING_URI) or f"sqlite:///{folder / 'mlflow.db'}")


def private_folder(folder: Path) -> Path:
    """``folder``, made if need be with its parents and open to its owner only; Unavailable E5002 if it cannot be."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        fault = Fault("E5002", "a folder we can write", error.strerror or error, "choose another", str(folder))
        raise Unavailable(fault) from error
    return folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` against other processes of ours; a dead holder's lock is gone with it."""
    with (folder / ".lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def connection(state: State) -> Iterator[MlflowClient]:
    """A client of the MLflow of ``state``, which is also the one of ``mlflow``'s own functions meanwhile.

    Raises Unavailable E5003 when MLflow, its database or its server does not answer. What MLflow says about a wrong
    question (an unknown name, for one) passes through as MlflowException.
    """
    os.environ.update(SAFE)
    for name, value in QUICK.items():
        os.environ.setdefault(name, value)
    mlflow = _quiet_mlflow()
    before = os.environ.get(_TRACKING_URI)
    try:
        if state.database is not None:
            private_folder(state.home)
            _make_database(mlflow, state.database)
            _check_database(state.database)
        mlflow.set_tracking_uri(state.tracking_uri)
        yield mlflow.MlflowClient(state.tracking_uri)
    except Exception as error:
        if _is_unreachable(error):
            raise _unavailable(state, error) from error
        raise
    finally:
        mlflow.set_tracking_uri(before)  # MLflow writes its address into the environment; undo that


def _quiet_mlflow() -> Any:
    """The mlflow module, saying only what went wrong and trying a dead database once."""
    import mlflow
    import mlflow.store.db.utils as databases

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    databases.MAX_RETRY_COUNT = 1  # of its own accord it tries ten times, for 100 s
    return mlflow


def _make_database(mlflow: Any, path: Path) -> None:
    """Make MLflow's tables under another name, then rename.

    Its migrations are many steps: two processes trip over each other in them, and a killed one leaves a database
    that no later start can repair.
    """
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent):
            if not path.exists():
                with atomic_path(path) as temporary:
                    mlflow.MlflowClient(f"sqlite:///{temporary}").search_experiments(max_results=1)
    except OSError as error:
        hint = "choose another folder by ANOMALY_HOME or MLFLOW_TRACKING_URI"
        raise Unavailable(Fault("E5003", "a folder for MLflow's database", error, hint, str(path))) from error


def _check_database(path: Path) -> None:
    """Fail at once, and clearly, where MLflow would only retry."""
    try:
        known = sqlite3.connect(path, timeout=5)
        try:
            known.execute("PRAGMA schema_version").fetchone()
        finally:
            known.close()
    except (sqlite3.Error, OSError) as error:
        hint = "check the path, its rights and that it is an MLflow database"
        raise Unavailable(Fault("E5003", "MLflow's database", error, hint, str(path))) from error


def _is_unreachable(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code not in _ASKED_WRONGLY
    package = type(error).__module__.partition(".")[0]
    return package in {"sqlalchemy", "requests", "urllib3", "sqlite3", "psycopg", "google"}  # google: not MLflow's JSON


def _unavailable(state: State, error: Exception) -> Unavailable:
    hint = "start MLflow or correct MLFLOW_TRACKING_URI; running again is safe"
    first_line = next(iter(str(error).splitlines()), type(error).__name__)
    found, address = (_CREDENTIALS.sub("://", text) for text in (first_line, state.tracking_uri))
    return Unavailable(Fault("E5003", "an answer from MLflow", found, hint, address))
