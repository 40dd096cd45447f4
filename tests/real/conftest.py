"""One state folder for all tests on real logs: its MLflow tables, which take seconds to make, are made once."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models and alerts of these tests go."""
    return tmp_path_factory.mktemp("real")


@pytest.fixture
def real_home(state_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``state_folder`` as the home of the code under test."""
    monkeypatch.setenv("ANOMALY_HOME", str(state_folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("ANOMALY_DB_URL", raising=False)
    return state_folder
