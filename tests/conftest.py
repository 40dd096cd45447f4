"""Shared fixtures: real data beside the project, a private home for state."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state folder; the registry and the alert database live under it."""
    folder = tmp_path / "home"
    monkeypatch.setenv("ANOMALY_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("ANOMALY_DB_URL", raising=False)
    return folder
