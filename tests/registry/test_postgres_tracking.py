"""MLflow in a PostgreSQL server, by its URL: a trained model is registered, loaded, promoted and rolled back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from postgres import Server, server_of

from registry.bundle import load_bundle, save_bundle
from registry.catalogue import list_models, resolve, resolve_model
from registry.promotion import history, rollback
from registry.promotion_table import Champion, Entry, PromotionTable, mirror, now
from registry.state import connection, find_state
from registry.tracking import record_run

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


@pytest.fixture
def tracked(
    home: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Server, str]]:
    """The code under test tracks in an empty database of the server."""
    server = server_of(request.config)
    with server.lent() as name:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url(name, "postgresql+psycopg"))
        yield server, name


def test_a_trained_model_is_registered_loaded_promoted_and_rolled_back(
    tracked: tuple[Server, str], home: Path, real_model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, name = tracked
    text = "'; DROP TABLE runs; -- 漢字 🙂 %s"
    records = {
        "settings": real_model.settings.to_dict(), "fingerprint": "f" * 64, "split": {"train": ["2026-01-01", text]},
        "metrics": {"average_precision": 0.5, "roc_auc": float("nan")}, "history": {"loss": [2.0, 1.0]},
    }  # fmt: skip
    save_bundle(real_model, tmp_path / "bundle")
    with caplog.at_level(logging.WARNING):
        made = [record_run(real_model, tmp_path / "bundle", name="press", **records) for _ in range(2)]
    assert [m.version for m in made] == [1, 2]
    assert [(row.name, row.version) for row in list_models()] == [("press", 2), ("press", 1)]
    assert server.execute("SELECT count(*) FROM runs WHERE status = 'FINISHED'", name) == [(2,)]
    assert not list(home.glob("*.db")), "nothing lies beside the server"

    loaded = load_bundle(resolve("press@champion"))
    rows = real_model.canary
    expected, found = (m.score_frame(rows)["anomaly_score"].to_numpy() for m in (real_model, loaded))
    np.testing.assert_allclose(found, expected, rtol=1e-5)

    state = find_state()
    table = PromotionTable(state)
    digest = resolve_model("press").digest
    entry = Entry(now(), "ann", "promoted", "press", 1, 2, text, digest)
    table.change(table.champion("press"), Champion("press", 2, digest, 1, digest), entry)
    with connection(state) as client:
        mirror(client, table, "press", {"champion": "1"})
        assert client.get_model_version_by_alias("press", "champion").version in (2, "2")
    rollback("press", who="ann", why=text)
    with connection(state) as client:
        assert int(client.get_model_version_by_alias("press", "champion").version) == 1
    assert [(e.action, e.why) for e in history("press")][-2:] == [("promoted", text), ("rolled back", text)]
