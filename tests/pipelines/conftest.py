"""One trained model for all tests of the jobs, and state folders whose registry is made already."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import FLAGS, Press, anomaly, write_log
from family import FAMILY_FLAGS, Trained, plant_log
from processes import run_apart
from small_plant import small_frame

from pipelines import train_assets


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


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, mlflow_tables: Path) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("family")
    home, frame = folder / "home", plant_log()
    home.mkdir()
    shutil.copyfile(mlflow_tables, home / "mlflow.db")
    log = write_log(frame, folder / "log.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOMALY_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("ANOMALY_DB_URL", raising=False)
        args = ("train", log, *FAMILY_FLAGS, "--per", "asset", "--json")
        killed, _ = run_apart(folder, *args, killpoint="train_assets.after_model")
        patch.setattr(train_assets, "PER_PROCESS", 2)  # three are left: they are trained in processes of their own
        done = anomaly(*args)
    yield Trained(home, log, frame, killed, done)


@pytest.fixture
def family(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """The family's registry as state, with an alert database of the test's own."""
    monkeypatch.setenv("ANOMALY_HOME", str(trained.home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("ANOMALY_DB_URL", str(tmp_path / "alerts.db"))
    return trained
