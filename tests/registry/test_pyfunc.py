"""The served model gives our scores, takes what JSON can say, and refuses the rest with a reason."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from anomaly.errors import InputRefused
from registry import pyfunc
from registry.pyfunc import ServedModel, plain, read_rows
from registry.state import State, connection


@pytest.fixture
def served(register: Any, model: Any, model_class: Any, state: State, monkeypatch: Any) -> Iterator[Any]:
    """The registered champion, loaded by MLflow itself with pickle off."""
    load = pyfunc.load_bundle
    monkeypatch.setattr(pyfunc, "load_bundle", lambda path: load(path, model_class=model_class))
    register(model)
    with connection(state):
        import mlflow.pyfunc

        yield mlflow.pyfunc.load_model("models:/press@champion")


def faults(frame: pd.DataFrame, model: Any) -> list[tuple[str, str | None, int | None]]:
    with pytest.raises(InputRefused) as caught:
        read_rows(frame, model.contract)
    return [(f.code, f.column, f.row) for f in caught.value.faults]


def assert_same_scores(given: pd.DataFrame, scored: pd.DataFrame, rtol: float = 0.0) -> None:
    """Row by row, whatever the columns went through."""
    np.testing.assert_allclose(given["anomaly_score"].astype(np.float32), scored["anomaly_score"], rtol=rtol)
    assert pd.to_datetime(given["time"], utc=True).tolist() == scored["time"].tolist()
    for name in ("asset", "outcome", "reason"):
        assert given[name].tolist() == scored[name].tolist()
    for text, pairs in zip(given["top_tags"], scored["top_tags"], strict=True):
        assert [tag for tag, _ in json.loads(text)] == [tag for tag, _ in pairs]
        np.testing.assert_allclose([s for _, s in json.loads(text)], [s for _, s in pairs], rtol=max(rtol, 1e-9) * 100)


def iso(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(time=[t.isoformat() for t in frame["time"]])


@pytest.mark.parametrize("form", ["zoned", "naive", "text", "more columns", "one column less"])
def test_mlflow_loads_it_and_gives_our_scores(served: Any, model: Any, form: str) -> None:
    frame = model.canary.astype({"Pressure": np.float64, "Flow rate": np.float64})
    given = {
        "zoned": frame,
        "naive": frame.assign(time=frame["time"].dt.tz_localize(None)),
        "text": iso(frame),
        "more columns": frame.assign(label=0, note="x"),
        "one column less": frame.drop(columns="pump"),
    }[form]
    expected = model.score_frame(frame if "pump" in given else frame.assign(pump="plant"))
    assert_same_scores(served.predict(given), expected)


def test_a_row_with_a_missing_value_is_unscorable_also_alone(served: Any, model: Any) -> None:
    row = iso(model.canary.iloc[4:5]).astype({"Pressure": np.float64, "Flow rate": np.float64})
    out = served.predict(row)
    assert out["outcome"].tolist() == ["unscorable"] and out["anomaly_score"].tolist() == [None]
    assert json.dumps(out.to_dict(orient="records"), allow_nan=False)


def test_through_mlflow_a_bad_log_is_a_bad_request_that_names_the_place(served: Any, model: Any) -> None:
    from mlflow.exceptions import MlflowException

    frame = iso(model.canary).astype({"Pressure": np.float64, "Flow rate": np.float64})
    frame.loc[3, "time"] = "yesterday"
    with pytest.raises(MlflowException, match="E3204 column=time row=4") as caught:
        served.predict(frame)
    assert caught.value.error_code == "BAD_REQUEST"


def test_predict_gives_plain_columns(model: Any) -> None:
    out = ServedModel(model).predict(model.canary)
    assert list(out.columns) == ["time", "asset", "anomaly_score", "threshold", "outcome", "reason", "top_tags"]
    assert out["time"].iloc[0] == "2026-01-01T00:00:00+00:00"
    assert out["anomaly_score"].iloc[4] is None and out["top_tags"].iloc[4] == "[]"
    assert {type(v) for name in out for v in out[name].tolist()} <= {str, float, type(None)}
    assert_same_scores(plain(model.score_frame(model.canary)), model.score_frame(model.canary))


def test_times_without_an_offset_are_utc_and_others_are_converted(model: Any) -> None:
    frame = model.canary.iloc[:3].assign(time=["2026-01-01T00:00:00", "2026-01-01T01:01:00+01:00", "2026-01-01 00:02Z"])
    assert read_rows(frame, model.contract)["time"].tolist() == list(
        pd.to_datetime(["2026-01-01T00:00", "2026-01-01T00:01", "2026-01-01T00:02"])
    )


def test_every_fault_of_a_request_is_named(model: Any) -> None:
    frame = model.canary.astype({"Pressure": object, "Flow rate": object, "time": object})
    frame.loc[1, "time"] = None
    frame.loc[2, "time"] = 1767225600
    frame.loc[3, "Pressure"] = "Bad"
    frame.loc[5, "Flow rate"] = float("inf")
    frame.loc[6, "Flow rate"] = 1e39
    assert faults(frame, model) == [
        ("E3204", "time", 2),
        ("E3204", "time", 3),
        ("E3107", "Pressure", 4),
        ("E3110", "Flow rate", 6),
        ("E3110", "Flow rate", 7),
    ]


def test_missing_columns_are_all_named(model: Any) -> None:
    assert faults(model.canary[["pump"]], model) == [
        ("E3101", "time", None),
        ("E3101", "Pressure", None),
        ("E3101", "Flow rate", None),
    ]


def test_times_must_not_go_backwards_within_an_asset(model: Any) -> None:
    assert faults(model.canary.iloc[[0, 2, 1]], model) == [("E3205", "time", 3)]
    two = pd.concat([model.canary, model.canary.assign(pump="P-2")])
    assert len(read_rows(two, model.contract)) == 24
    assert faults(two.drop(columns="pump"), model) == [("E3205", "time", 13)]


def test_an_empty_request_gives_no_rows(model: Any) -> None:
    assert len(read_rows(model.canary.iloc[:0], model.contract)) == 0


# Served over HTTP ---------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(uri: str, folder: Path) -> Iterator[Callable[[dict[str, Any]], tuple[int, Any]]]:
    """`mlflow models serve` in a process group of its own; gives a function that posts to it."""
    port = free_port()
    mlflow = str(Path(sys.executable).parent / "mlflow")
    command = [mlflow, "models", "serve", "--env-manager", "local", "-m", uri, "-h", "127.0.0.1", "-p", str(port)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # MLflow calls uvicorn by name
    env = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with (folder / "serve.log").open("w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server, folder / "serve.log")
        yield lambda body: post(f"http://127.0.0.1:{port}/invocations", body)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=2):  # noqa: S310 - our own address
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"the server did not start:\n{log.read_text()[-3000:]}")


def post(address: str, body: dict[str, Any]) -> tuple[int, Any]:
    data = json.dumps(body, allow_nan=False).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return answer.status, json.loads(answer.read(), parse_constant=lambda c: pytest.fail(f"bare {c}"))
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def as_split(frame: pd.DataFrame) -> dict[str, Any]:
    rows = iso(frame).astype(object).where(frame.notna().to_numpy(), None)
    return {"dataframe_split": {"columns": list(rows.columns), "data": rows.to_numpy().tolist()}}


@pytest.mark.slow
def test_mlflow_models_serve_answers_with_our_scores(
    register: Any, real_model: Any, state: State, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", state.tracking_uri)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    register(real_model)
    expected = real_model.score_frame(real_model.canary)
    with serving("models:/press@champion", tmp_path) as ask:
        status, answer = ask(as_split(real_model.canary))
        assert status == 200
        assert_same_scores(pd.DataFrame(answer["predictions"]), expected, rtol=1e-5)
        status, answer = ask(as_split(real_model.canary.iloc[4:5]))
        assert (status, answer["predictions"][0]["outcome"]) == (200, "unscorable")
        status, answer = ask(as_split(real_model.canary.iloc[[1, 0]]))
        assert status == 400 and "E3205 column=time row=2" in answer["message"]
        assert "Traceback" not in json.dumps(answer)
