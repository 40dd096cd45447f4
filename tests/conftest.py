"""Shared fixtures: real data beside the project, a private home for state."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
from small_plant import SMALL, chunk_of, contract_of, small_frame

if TYPE_CHECKING:
    from anomaly.fitting import Fitted

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The shared folder of real logs; absent in a user's clone (skip), required where CI is set."""
    folder = PROJECT.parent / "shared" / "data"
    if folder.is_dir():
        return folder
    if os.environ.get("CI"):
        pytest.fail("../shared/data must be there when CI is set")
    pytest.skip("../shared/data is not beside this clone: tests on real logs left out")


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A test that names no home writes to a folder of its own process, never to the project's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOMALY_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state folder; the registry and the alert database live under it."""
    folder = tmp_path / "home"
    monkeypatch.setenv("ANOMALY_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("ANOMALY_DB_URL", raising=False)
    return folder


@pytest.fixture(scope="session")
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One state folder for all tests on real logs: its MLflow tables, which take seconds to make, are made once."""
    return tmp_path_factory.mktemp("real")


@pytest.fixture
def real_home(state_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``state_folder`` as the home of the code under test."""
    monkeypatch.setenv("ANOMALY_HOME", str(state_folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("ANOMALY_DB_URL", raising=False)
    return state_folder


@pytest.fixture(scope="session")
def frame() -> pd.DataFrame:
    """A small labelled log."""
    return small_frame()


@pytest.fixture(scope="session")
def store_path(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The window store of the small log."""
    from anomaly.data.store import create_store

    path = tmp_path_factory.mktemp("store") / "store.h5"
    with create_store(path, contract_of(frame), SMALL.window, SMALL.split) as writer:
        writer.append(chunk_of(frame))
    return path


@pytest.fixture(scope="session")
def fitted(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A model fitted on the small log; tests must not change it."""
    from anomaly.data.store import WindowStore
    from anomaly.fitting import fit_model

    with WindowStore.open(store_path) as store:
        return fit_model(store, SMALL, tmp_path_factory.mktemp("work"))
