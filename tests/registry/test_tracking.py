"""A run in MLflow: everything recorded, the version aliased, nothing left half done."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from anomaly.errors import ModelRefused, Unavailable
from registry import state as state_module
from registry import tracking
from registry.bundle import verify_bundle
from registry.state import State, connection, find_state
from registry.tracking import EXPERIMENT, Membership, RegisteredModel, end_abandoned_runs, flat, record_run, signature

Register = Callable[..., RegisteredModel]


def runs(client: Any) -> list[Any]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def test_the_home_is_the_argument_then_the_environment_then_the_folder(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("ANOMALY_HOME", str(tmp_path / "a"))
    assert find_state(tmp_path / "b").home == tmp_path / "b"
    assert find_state().tracking_uri == f"sqlite:///{tmp_path}/a/mlflow.db"
    monkeypatch.delenv("ANOMALY_HOME")
    monkeypatch.chdir(tmp_path)
    assert find_state().home == tmp_path / ".anomaly"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    found = find_state()
    assert (found.tracking_uri, found.is_server, found.database) == ("http://127.0.0.1:5000", True, None)


def test_a_run_holds_everything_that_was_run(register: Register, model: Any, state: State, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text("<p>ok</p>")
    made = register(model, report=report, tags={"who": "test"})
    with connection(state) as client:
        run = client.get_run(made.run_id)
        curve = [m.value for m in client.get_metric_history(made.run_id, "val_loss")]
        files = {f.path for f in client.list_artifacts(made.run_id)}
        split = client.download_artifacts(made.run_id, "split.json", str(tmp_path))
    assert run.info.status == "FINISHED"
    assert run.data.params["window.lookback"] == "16"
    assert curve == [2.5, 1.5]
    assert files == {"split.json", "report"}
    assert json.loads(Path(split).read_text()) == {"train": ["2026-01-01", "2026-01-02"]}
    assert run.data.tags["who"] == "test" and run.data.tags["data_fingerprint"] == "f" * 64
    assert run.inputs.dataset_inputs[0].dataset.digest == "f" * 36


def test_metrics_are_finite_and_tied_to_the_model(register: Register, model: Any, state: State) -> None:
    made = register(model)
    with connection(state) as client:
        data = client.get_run(made.run_id).data
        logged = client.get_logged_model(made.model_id)
    assert {m.key: m.value for m in logged.metrics} == {"average_precision": 0.5, "average_precision_low": 0.4}
    assert data.metrics["average_precision"] == 0.5 and "roc_auc" not in data.metrics
    assert data.tags["undefined_metrics"] == "roc_auc"


def test_figures_name_the_model_and_the_data_they_are_of(register: Register, model: Any, state: State) -> None:
    made = register(model)
    with connection(state) as client:
        logged = client.get_logged_model(made.model_id)
    assert {(m.model_id, m.dataset_name, m.dataset_digest, m.run_id) for m in logged.metrics} == {
        (made.model_id, "log", "f" * 36, made.run_id)
    }


def test_the_lists_of_mlflow_can_be_read(register: Register, model: Any, state: State) -> None:
    """Name, words and tags are what a person sees first: which model, what it is made of, how good it is, by which code."""
    register(model)
    made = register(
        model, metrics={"average_precision": 0.5, "average_precision_low": 0.4, "average_precision_high": 0.6}
    )
    with connection(state) as client:
        run = client.get_run(made.run_id)
        version = client.get_model_version("press", "2")
        newest = runs(client)[0]
    assert newest.info.run_id == made.run_id
    assert run.info.run_name == "press v2" and run.data.tags["model_version"] == "press/2"
    assert (run.data.tags["encoder"], run.data.tags["detectors"]) == ("dense_ae", "auto")
    assert version.description == "On the test part: average precision 0.5 (0.4 to 0.6)."
    assert version.description in run.data.tags["mlflow.note.content"]
    assert re.fullmatch(r"[0-9a-f]{16}", run.data.tags["code_digest"])


def test_the_code_digest_is_of_every_source(monkeypatch: Any, tmp_path: Path) -> None:
    for package in ("anomaly", "registry", "alerts", "pipelines"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text("1")
    monkeypatch.setattr(tracking, "__file__", str(tmp_path / "registry" / "tracking.py"))
    digest = tracking._code_digest.__wrapped__
    first = digest()
    (tmp_path / "alerts" / "a.py").write_text("2")
    second = digest()
    (tmp_path / "alerts" / "a.py").rename(tmp_path / "alerts" / "b.py")
    assert len({first, second, digest()}) == 3


def test_a_member_of_a_family_carries_what_it_is_for(register: Register, model: Any, state: State) -> None:
    member = Membership("plant", "asset", "line 2/P:2", ("line 2/P:2",), "k" * 64, {"training_summary": "{}"})
    made = register(model, "plant--P-2", member=member)
    with connection(state) as client:
        tags = client.get_model_version("plant--P-2", "1").tags
        run = client.get_run(made.run_id).data.tags
        names = [m.name for m in client.search_registered_models("tags.family = 'plant'")]
    assert names == ["plant--P-2"] and run["family"] == "plant" and run["group"] == "line 2/P:2"
    assert (tags["group"], tags["family_kind"], tags["training_key"]) == ("line 2/P:2", "asset", "k" * 64)
    assert json.loads(tags["assets"]) == ["line 2/P:2"] and tags["training_summary"] == "{}"


def test_a_name_with_a_dot_is_registered(register: Register, model: Any) -> None:
    assert register(model, "press.2").name == "press.2"


def test_the_first_version_becomes_champion_and_the_next_only_challenger(register: Register, model: Any) -> None:
    first, second = register(model), register(replace(model, threshold=replace(model.threshold, value=2.0)))
    assert (first.version, first.aliases) == (1, ("challenger", "champion"))
    assert (second.version, second.aliases) == (2, ("challenger",))
    assert register(model, "other").aliases == ("challenger", "champion")


def test_the_digest_is_recorded_with_the_version(register: Register, model: Any, state: State, tmp_path: Path) -> None:
    made = register(model)
    with connection(state) as client:
        version = client.get_model_version(made.name, str(made.version))
    assert version.tags["bundle_digest"] == verify_bundle(tmp_path / "bundle")


def test_artifacts_hold_no_code_and_lie_under_the_home_only(
    register: Register, model: Any, state: State, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    register(model)
    names = {p.name for p in state.artifacts.rglob("*") if p.is_file()}
    assert {"manifest.json", "arrays.npz", "canary.json", "MLmodel"} <= names
    assert not [n for n in names if n.endswith((".py", ".pkl", ".pickle", ".joblib", ".pyc"))]
    assert list((tmp_path / "work").iterdir()) == []
    assert state.artifacts.stat().st_mode & 0o777 == 0o700


def test_the_signature_names_time_asset_and_tags(model: Any) -> None:
    inputs = signature(model).inputs.to_dict()
    assert [(c["name"], c["type"], c["required"]) for c in inputs] == [
        ("time", "any", True),
        ("pump", "string", False),
        ("Pressure", "double", True),
        ("Flow rate", "double", True),
    ]


def test_settings_are_flattened_and_cut() -> None:
    found = flat({"encoder": {"options": {"units": [8, 4]}, "none": {}}, "long": "x" * 900, "a=b": 1})
    assert found == {"encoder.options.units": "[8, 4]", "encoder.none": "{}", "long": "x" * 500, "a_b": "1"}


def test_a_run_that_raises_is_marked_failed(register: Register, model: Any, state: State, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        register(model, report=tmp_path / "not there.html")
    with connection(state) as client:
        assert [r.info.status for r in runs(client)] == ["FAILED"]
        assert client.search_registered_models() == []


def test_a_damaged_bundle_is_refused_before_anything_is_recorded(register: Register, model: Any, state: State) -> None:
    broken = state.home / "broken"
    broken.mkdir()
    with pytest.raises(ModelRefused, match="E4001"):
        record_run(model, broken, name="a", settings={}, fingerprint="0", split={}, metrics={}, history={})
    with connection(state) as client:
        assert runs(client) == []


_KILLED = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from conftest import FakeModel
from registry.tracking import record_run
record_run(FakeModel(), Path({bundle!r}), name="press", settings={{}}, fingerprint="0", split={{}}, metrics={{}}, history={{}})
"""


@pytest.mark.slow
@pytest.mark.parametrize("point", ["registry.before_log", "registry.after_log", "registry.before_alias"])
def test_a_killed_run_is_ended_by_the_next_which_finishes_the_job(
    register: Register, model: Any, state: State, tmp_path: Path, point: str
) -> None:
    register(model, "earlier")
    code = _KILLED.format(tests=str(Path(__file__).parent), bundle=str(tmp_path / "bundle"))
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ, "ANOMALY_KILLPOINT": point}, check=False)
    assert killed.returncode == -9
    again = register(model)
    assert again.aliases == ("challenger", "champion")
    with connection(state) as client:
        assert sorted(r.info.status for r in runs(client)) == ["FINISHED", "FINISHED", "KILLED"]
        assert int(client.get_model_version_by_alias("press", "champion").version) == again.version


def test_only_runs_of_dead_processes_here_are_ended(register: Register, model: Any, state: State) -> None:
    made = register(model)
    with connection(state) as client:
        experiment = client.get_run(made.run_id).info.experiment_id
        here = client.get_run(made.run_id).data.tags["process"].rpartition(":")[0]
        for process in (f"{here}:{os.getppid()}", "another-host:999999", "", f"{here}:999999999"):
            client.create_run(experiment, tags={"process": process})
        assert end_abandoned_runs(client, experiment) == 1
        assert sorted(r.info.status for r in runs(client)) == ["FINISHED", "KILLED", "RUNNING", "RUNNING", "RUNNING"]


def test_pickle_stays_off_and_the_callers_address_comes_back(state: State, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    with connection(state):
        assert os.environ["MLFLOW_TRACKING_URI"] == state.tracking_uri
        assert {k: os.environ[k] for k in state_module.SAFE} == state_module.SAFE
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_registering_says_nothing(register: Register, model: Any, capfd: Any, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        register(model)
    out, err = capfd.readouterr()
    assert out == "" and err == "" and caplog.text == ""


# MLflow does not answer: F8 -----------------------------------------------------------------------------------------


def unreachable(uri: str, monkeypatch: Any, tmp_path: Path) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    start = time.monotonic()
    with pytest.raises(Unavailable) as caught, connection(find_state(tmp_path / "h")) as client:
        client.search_registered_models()
    assert time.monotonic() - start < 10
    assert caught.value.exit_code == 5 and caught.value.faults[0].code == "E5003"
    return str(caught.value)


def test_f8_a_server_that_is_down_is_reported_at_once(monkeypatch: Any, tmp_path: Path) -> None:
    assert "127.0.0.1:9" in unreachable("http://127.0.0.1:9", monkeypatch, tmp_path)


@pytest.mark.parametrize(("status", "body"), [(500, b"broken"), (503, b"{}"), (200, b"<html>"), (401, b"who?")])
def test_f8_a_server_that_answers_wrongly_is_unavailable(
    monkeypatch: Any, tmp_path: Path, status: int, body: bytes
) -> None:
    class Broken(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert unreachable(f"http://user:secret@127.0.0.1:{server.server_port}", monkeypatch, tmp_path)
    finally:
        server.shutdown()
        server.server_close()


def test_f8_a_password_in_the_address_is_not_shown(monkeypatch: Any, tmp_path: Path) -> None:
    text = unreachable("http://user:secret@127.0.0.1:9", monkeypatch, tmp_path)
    assert "secret" not in text


def test_f8_a_database_that_is_none_is_reported_at_once(monkeypatch: Any, tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database" * 100)
    assert "x.db" in unreachable(f"sqlite:///{tmp_path}/x.db", monkeypatch, tmp_path)
    (tmp_path / "folder.db").mkdir()
    unreachable(f"sqlite:///{tmp_path}/folder.db", monkeypatch, tmp_path)


_FIRST = "from registry.state import *; s = find_state(); c = connection(s); k = c.__enter__(); k.search_experiments()"


@pytest.mark.slow
def test_two_processes_may_make_the_database_at_once(home: Path) -> None:
    jobs = [subprocess.Popen([sys.executable, "-c", _FIRST], env=dict(os.environ)) for _ in range(2)]
    assert [job.wait(60) for job in jobs] == [0, 0]


@pytest.mark.slow
def test_a_kill_while_the_database_is_made_leaves_none(home: Path) -> None:
    command = [sys.executable, "-c", _FIRST]
    killed = subprocess.run(command, env={**os.environ, "ANOMALY_KILLPOINT": "files.before_rename"}, check=False)
    assert killed.returncode == -9 and not (home / "mlflow.db").exists()
    assert subprocess.run(command, check=False).returncode == 0
    assert [p.name for p in home.iterdir() if "tmp" in p.name] == []
