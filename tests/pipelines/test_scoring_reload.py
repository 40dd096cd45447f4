"""The model of the scoring service: ready once proven, followed when the champion moves, kept when a new one is bad."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line import Press
from processes import run_apart
from scoring import HOST, as_rows, client_of, posted

from anomaly.errors import Fault, ModelRefused, Unavailable
from pipelines.scoring_service import Holder, Loaded, loader


@pytest.fixture(scope="module")
def loaded(press: Press) -> Loaded:
    """The trained model as the service loads it from its folder."""
    found = loader(str(press.bundle), press.home)(None)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def frame(press: Press) -> pd.DataFrame:
    """A few rows."""
    return press.frame.drop(columns="label")[:60]


def test_ready_only_with_a_model(loaded: Loaded, frame: pd.DataFrame) -> None:
    tries: list[Loaded | Exception] = [Unavailable(Fault("E5003", "MLflow", "down")), loaded]

    def load(now: Loaded | None) -> Loaded | None:
        found = tries.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    holder = Holder(load)
    with client_of(holder) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").json() == {"status": "not ready", "code": "loading"}
        assert not holder.refresh() and holder.refused is None
        assert client.get("/readyz").json() == {"status": "not ready", "code": "E5003"}
        assert client.get("/readyz").status_code == 503
        assert posted(client, "json", frame[:3]).status_code == client.get("/model").status_code == 503
        assert "anomaly_scoring_ready 0.0" in client.get("/metrics").text
        assert holder.refresh()
        assert client.get("/readyz").status_code == 200
        assert posted(client, "json", frame[:3]).status_code == 200


def test_a_first_model_that_is_refused_ends_the_service_and_a_later_one_does_not(loaded: Loaded) -> None:
    refused = ModelRefused(Fault("E4004", "the recorded canary scores", "others"))

    def load(now: Loaded | None) -> Loaded | None:
        raise refused

    holder = Holder(load)
    holder.follow(3600, threading.Event())  # returns at once
    assert holder.refused is refused
    later = Holder(load, now=loaded)
    assert not later.refresh()
    assert later.refused is None and later.now is loaded and later.trouble.startswith("E4004")
    assert "anomaly_scoring_reload_failures_total 1.0" in later.figures.text(None)


def test_the_bundle_of_a_folder_is_exchanged_when_it_changes(press: Press, loaded: Loaded, tmp_path: Path) -> None:
    from registry.bundle import load_bundle, save_bundle

    load = loader(str(tmp_path / "m"), press.home)
    model = load_bundle(press.bundle)
    save_bundle(model, tmp_path / "m")
    holder = Holder(load)
    assert holder.refresh() and holder.now is not None
    first = holder.now
    assert not holder.refresh() and holder.now is first
    model.threshold = replace(model.threshold, value=model.threshold.value + 1)
    save_bundle(model, tmp_path / "m")
    assert holder.refresh() and holder.now.digest != first.digest
    good = holder.now
    whole = (tmp_path / "m/arrays.npz").read_bytes()
    (tmp_path / "m/arrays.npz").write_bytes(whole[:-1] + b"x")
    assert not holder.refresh() and holder.now is good, "a damaged model never takes the place of a good one"
    assert holder.trouble.startswith("E4002")
    (tmp_path / "m/arrays.npz").write_bytes(whole)
    assert not holder.refresh() and holder.trouble == ""


def test_a_threshold_that_people_set_is_taken_as_anomaly_score_takes_it(press: Press, tmp_path: Path) -> None:
    from alerts.database import Database
    from alerts.overrides import Wanted, evidence_mark, write_change, write_undo

    path = str(tmp_path / "alerts.db")
    holder = Holder(loader(str(press.bundle), press.home, path))
    assert holder.refresh() and holder.now is not None and not Path(path).exists(), "no database is made by asking"
    first = holder.now
    database = Database(path)
    wanted = Wanted(first.digest, "press", first.model.threshold.value + 1, "ann", "too many alerts")
    write_change(database, wanted, evidence_mark(database))
    assert holder.refresh() and holder.now.model.threshold.value == first.model.threshold.value + 1
    assert holder.now.bundled is first.bundled, "the model is not read again"
    assert not holder.refresh(), "nothing changed since"
    write_undo(database, replace(wanted, value=None), evidence_mark(database))
    assert holder.refresh() and holder.now.model.threshold == first.model.threshold


def test_a_moved_champion_is_followed_and_mlflow_down_changes_nothing(
    press_registry: Press, monkeypatch: pytest.MonkeyPatch, frame: pd.DataFrame
) -> None:
    load = loader("press@champion", press_registry.home)
    holder = Holder(load)
    assert holder.refresh() and holder.now is not None and (holder.now.name, holder.now.version) == ("press", 1)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        assert not holder.refresh() and holder.trouble == "", "the verified copy stands for it"
        fresh = Holder(load)
        assert fresh.refresh() and fresh.now is not None and fresh.now.digest == holder.now.digest
        with client_of(fresh) as client:
            assert posted(client, "json", frame[:20]).json()["model"]["version"] == 1


def test_the_champion_that_was_promoted_takes_its_place(
    press: Press, loaded: Loaded, registry_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two versions of a small model; the alias is moved as a rollback moves it, through our own table."""
    from registry.bundle import load_bundle, save_bundle
    from registry.promotion_table import Champion, Entry, PromotionTable, now
    from registry.state import find_state
    from registry.tracking import record_run

    made = []
    for step in (0.0, 1.0):
        model = load_bundle(press.bundle)
        model.threshold = replace(model.threshold, value=model.threshold.value + step)
        digest = save_bundle(model, tmp_path / "m")
        nothing: dict[str, Any] = {"settings": {}, "fingerprint": "f" * 64, "split": {}, "metrics": {}, "history": {}}
        made.append((record_run(model, tmp_path / "m", name="press", **nothing), digest))
    holder = Holder(loader("press@champion", registry_home))
    assert holder.refresh() and holder.now is not None and holder.now.version == 1
    newer, digest = made[1]
    entry = Entry(now(), "a person", "promoted", "press", 1, newer.version, "better", digest)
    table = PromotionTable(find_state(registry_home))
    table.change(table.champion("press"), Champion("press", newer.version, digest), entry)
    assert holder.refresh() and (holder.now.version, holder.now.digest) == (2, digest)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        assert not holder.refresh() and holder.now.version == 2


# The process --------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_model_that_is_not_there_or_a_port_in_use_ends_the_command(tmp_path: Path, home: Path) -> None:
    # In processes of their own: a server's threads outlive the command and hold on to the streams of this one.
    status, said = run_apart(tmp_path, "serve-model", "--model", tmp_path / "no" / "model", "--port", free_port())
    assert status == 4 and "E4001" in said
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, said = run_apart(tmp_path, "serve-model", "--model", tmp_path / "no" / "model", "--port", port)
        assert status == 2 and "E2001" in said


@pytest.mark.slow
def test_the_command_serves_and_stops_on_sigterm(press: Press, tmp_path: Path, frame: pd.DataFrame) -> None:
    port = free_port()
    command = [sys.executable, "-m", "pipelines.cli", "serve-model", "--model", str(press.bundle), "--port", str(port)]
    env = {**os.environ, "ANOMALY_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([*command, "--host", "127.0.0.1"], env=env, stdout=log, stderr=log)
    try:
        deadline, ready = time.monotonic() + 90, False
        while not ready and time.monotonic() < deadline and server.poll() is None:
            try:
                with urllib.request.urlopen(f"{HOST}:{port}/readyz", timeout=2) as answer:  # noqa: S310
                    ready = answer.status == 200
            except OSError:
                time.sleep(0.2)
        assert ready, (tmp_path / "log").read_text()
        body = json.dumps(as_rows(frame[:20])).encode()
        asked = urllib.request.Request(f"{HOST}:{port}/score", body, {"Content-Type": "application/json"})  # noqa: S310
        with urllib.request.urlopen(asked, timeout=20) as answer:  # noqa: S310
            assert len(json.loads(answer.read())["rows"]) == 20
        server.send_signal(signal.SIGTERM)
        server.wait(15)
    finally:
        server.kill()
        server.wait()
    assert "Traceback" not in (tmp_path / "log").read_text()
