"""The scoring service answers as `anomaly score` does, refuses with our codes, and never stands without its last good model."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import Press, anomaly
from fastapi.testclient import TestClient
from scoring import HOST, as_rows, client_of, posted

from anomaly.errors import UsageError
from pipelines import cli_scoring
from pipelines.cli_scoring import check_start, read_token
from pipelines.scoring_figures import Figures
from pipelines.scoring_service import CSV, PARQUET, Holder, Loaded, Service, ServiceLimits, create_app, loader


@pytest.fixture(scope="module")
def loaded(press: Press) -> Loaded:
    """The trained model as the service loads it from its folder."""
    found = loader(str(press.bundle), press.home)(None)
    assert found is not None
    return found


@pytest.fixture
def holder(loaded: Loaded) -> Holder:
    return Holder(lambda now: loaded, now=loaded, trouble="")


@pytest.fixture
def client(holder: Holder) -> Iterator[TestClient]:
    with client_of(holder) as made:
        yield made


@pytest.fixture(scope="module")
def frame(press: Press) -> pd.DataFrame:
    """Rows around an event and a gap, with missing values."""
    rows = press.frame.drop(columns="label")[1400:1700].reset_index(drop=True).copy()
    rows.loc[40:44, "tag2"] = np.nan
    return rows


@pytest.fixture(scope="module")
def expected(press: Press, frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """What `anomaly score` says of the rows."""
    folder = tmp_path_factory.mktemp("expected")
    frame.to_csv(folder / "log.csv", index=False)
    out = folder / "s.parquet"
    done = anomaly("score", folder / "log.csv", "--model", press.bundle, "--out", out, "--no-alerts")
    assert done.status == 0, done.err
    return pq.read_table(out).to_pandas()


def faults(answer: Any, status: int = 422) -> list[tuple[Any, ...]]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert told["status"] == status
    return [tuple(f[k] for k in ("code", "column", "row") if k in f) for f in told["faults"]]


# The same answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "csv", "parquet"])
def test_every_form_gives_the_rows_of_anomaly_score(
    client: TestClient, loaded: Loaded, frame: pd.DataFrame, expected: pd.DataFrame, form: str
) -> None:
    answer = posted(client, form, frame)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["model"] == {"name": loaded.name, "version": None, "digest": loaded.digest}
    found = pd.DataFrame(told["rows"])
    assert set(found["outcome"]) == {"normal", "anomalous", "unscorable"}, "the rows show all there is"
    for name in ("asset", "outcome", "reason"):
        assert found[name].tolist() == expected[name].tolist()
    assert pd.to_datetime(found["time"], utc=True).tolist() == expected["time"].tolist()
    scores = found["anomaly_score"].astype(float)
    np.testing.assert_allclose(scores, expected["anomaly_score"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["threshold"], expected["threshold"])
    for got, wanted in zip(found["top_tags"], expected["top_tags"], strict=True):
        assert [t["tag"] for t in got] == [t["tag"] for t in wanted]
        np.testing.assert_allclose([t["share"] for t in got], [t["share"] for t in wanted], rtol=1e-3, atol=1e-5)


def test_a_request_remembers_nothing_of_the_one_before(client: TestClient, frame: pd.DataFrame) -> None:
    first = posted(client, "json", frame[:30]).json()["rows"]
    posted(client, "json", frame[30:60])
    assert posted(client, "json", frame[:30]).json()["rows"] == first
    assert {r["reason"] for r in first[:5]} == {"warm_up"}


def test_rows_may_stand_under_a_key_and_hold_more_than_is_read(client: TestClient, frame: pd.DataFrame) -> None:
    rows = as_rows(frame[:20])
    more = [{**row, "note": {"deep": [1]}} for row in rows]
    assert client.post("/score", json={"rows": more}).json() == client.post("/score", json=rows).json()
    assert client.post("/score", json=[]).json()["rows"] == []


def test_requests_at_once_get_their_own_answers(client: TestClient, frame: pd.DataFrame) -> None:
    pieces = [frame[i * 40 : i * 40 + 40] for i in range(6)]
    alone = [posted(client, "json", p).json() for p in pieces]
    found: dict[int, Any] = {}

    def ask(i: int) -> None:
        found[i] = posted(client, "json", pieces[i]).json()

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [found[i] for i in range(6)] == alone


# Refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tag1": "Bad"}, ("E3107", "tag1", 3)),
        ({"tag1": True}, ("E3107", "tag1", 3)),
        ({"tag1": [1]}, ("E3107", "tag1", 3)),
        ({"tag1": 1e31}, ("E3111", "tag1", 3)),
        ({"tag1": 1e308 * 10}, None),
        ({"time": "yesterday"}, ("E3204", "time", 3)),
        ({"time": 1767225600}, ("E3204", "time", 3)),
        ({"time": None}, ("E3204", "time", 3)),
        ({"time": "1955-01-01T00:00:00Z"}, ("E3205", "time", 3)),
        ({"time": "3026-01-01T00:00:00Z"}, ("E3205", "time", 4)),
    ],
)
def test_a_wrong_cell_is_refused_with_code_column_and_row(
    client: TestClient, frame: pd.DataFrame, change: dict[str, Any], told: tuple[Any, ...] | None
) -> None:
    rows = as_rows(frame[:4])
    rows[2] |= change
    body = json.dumps(rows).encode()  # writes Infinity, as a careless sender does
    answer = client.post("/score", content=body, headers={"Content-Type": "application/json"})
    assert faults(answer) == [told or ("E3007",)]


def test_a_missing_tag_times_outside_and_a_time_twice_are_refused(client: TestClient, frame: pd.DataFrame) -> None:
    assert faults(posted(client, "json", frame[:5].drop(columns=["tag0", "tag3"]))) == [
        ("E3101", "tag0"),
        ("E3101", "tag3"),
    ]
    twice = pd.concat([frame[:1], frame[:1], frame[:1].assign(tag0=99.0)])
    assert faults(posted(client, "json", twice)) == [("E3206", "time", 3)]
    assert posted(client, "json", twice[:2]).status_code == 200
    late = [{**row, "time": f"2150-01-01T00:0{i}:00Z"} for i, row in enumerate(as_rows(frame[:2]))]
    assert faults(client.post("/score", json=late)) == [("E3207", "time", 1), ("E3207", "time", 2)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"{",
        b"[1]",
        b'{"rows": 1}',
        b"3",
        b"null",
        b'[{"a": 1, "a": 2}]',
        b"[" * 200_000,
        b'[{"tag0": NaN}]',
    ],
)
def test_what_is_no_list_of_rows_is_refused(client: TestClient, body: bytes) -> None:
    assert faults(client.post("/score", content=body, headers={"Content-Type": "application/json"})) == [("E3007",)]


def test_numbers_without_end_are_refused_and_not_our_bug(client: TestClient, frame: pd.DataFrame) -> None:
    text = json.dumps(as_rows(frame[:1])).replace("[{", '[{"tag0": ' + "9" * 5000 + ", ", 1)
    text = text.replace('"tag0": ', '"x": ', 2).replace('"x": ', '"tag0": ', 1)
    assert faults(client.post("/score", content=text, headers={"Content-Type": "application/json"})) == [
        ("E3110", "tag0", 1)
    ]


@pytest.mark.parametrize(
    ("kind", "body", "code"),
    [
        (CSV, b"time,tag0\n2026-01-01T00:00:00Z,1\n", "E3101"),
        (CSV, b"", "E3002"),
        (CSV, b"\xff\xfe\x00", "E3005"),
        (PARQUET, b"PAR1", "E3006"),
        (PARQUET, b"not a file at all", "E3006"),
    ],
)
def test_a_file_that_is_refused_names_no_place_on_our_disk(
    client: TestClient, kind: str, body: bytes, code: str
) -> None:
    answer = client.post("/score", content=body, headers={"Content-Type": kind})
    assert faults(answer)[0][0] == code
    assert "anomaly-request" not in answer.text and "/tmp" not in answer.text  # noqa: S108


def test_limits_of_bytes_rows_and_unpacked_size(loaded: Loaded, holder: Holder, frame: pd.DataFrame) -> None:
    with client_of(holder, limits=ServiceLimits(body=200_000, rows=50)) as client:
        for form in ("json", "csv", "parquet"):
            assert posted(client, form, frame[:50]).status_code == 200
            answer = posted(client, form, frame[:51])
            assert faults(answer, 413) == [("E2001",)]
            assert "at most 50 rows" in answer.text
        big = b"x" * 200_001
        assert faults(client.post("/score", content=big, headers={"Content-Type": CSV}), 413) == [("E2001",)]
        unannounced = client.post("/score", content=iter([big]), headers={"Content-Type": CSV})
        assert faults(unannounced, 413) == [("E2001",)]
    with client_of(holder) as client:
        wide = pa.table({f"c{i}": [0] for i in range(10_001)})
        stream = io.BytesIO()
        pq.write_table(wide, stream)
        answer = client.post("/score", content=stream.getvalue(), headers={"Content-Type": PARQUET})
        assert faults(answer, 413) == [("E2001",)]


@pytest.mark.parametrize(
    "headers", [{"Content-Type": "text/plain"}, {}, {"Content-Type": CSV, "Content-Encoding": "gzip"}]
)
def test_another_content_type_is_refused(client: TestClient, headers: dict[str, str]) -> None:
    assert faults(client.post("/score", content=b"x", headers=headers), 415) == [("E2001",)]


@pytest.mark.parametrize("name", ["../a.csv", "/etc/x.csv", "a\x00b", "x" * 200])
def test_a_name_is_no_path(client: TestClient, frame: pd.DataFrame, name: str) -> None:
    body = frame[:20].to_csv(index=False)
    answer = client.post("/score", params={"name": name}, content=body, headers={"Content-Type": CSV})
    assert faults(answer, 400) == [("E2001",)]


def test_pages_that_are_not_there(client: TestClient) -> None:
    assert client.get("/nothing").json()["status"] == 404
    assert client.get("/score").json()["status"] == 405
    assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 404


def test_our_own_bug_is_an_answer_without_the_words_of_the_error(
    client: TestClient, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("pipelines.scoring_request.json_frame", broken)
    answer = client.post("/score", json=as_rows(frame[:2]))
    assert faults(answer, 500) == [("E7000",)]
    assert "secret" not in answer.text and "secret detail" in caplog.text


def test_too_many_that_wait_are_told_to_come_again(holder: Holder, frame: pd.DataFrame) -> None:
    service = Service(holder, limits=ServiceLimits(waiting=1))
    with TestClient(create_app(service), base_url=HOST) as client, service._turn:
        first = threading.Thread(target=lambda: posted(client, "json", frame[:10]))
        first.start()
        deadline = time.monotonic() + 10
        while service._places._value and time.monotonic() < deadline:
            time.sleep(0.01)
        answer = posted(client, "json", frame[:10])
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        service._turn.release()
        first.join()
        service._turn.acquire()


# Who may ask --------------------------------------------------------------------------------------------------------


def test_with_a_token_all_but_health_asks_for_it(holder: Holder) -> None:
    with client_of(holder, token="a" * 20) as client:
        for path in ("/metrics", "/model", "/nothing"):
            assert client.get(path).status_code == 401
        assert faults(client.post("/score", json=[]), 401) == [("E2001",)]
        wrong = ("", "Bearer", "Bearer b", "a" * 20, f"Basic {'a' * 20}", "Bearer " + "a" * 21)
        assert {client.get("/model", headers={"Authorization": w}).status_code for w in wrong} == {401}
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        assert client.get("/model", headers={"Authorization": "Bearer " + "a" * 20}).status_code == 200


def test_without_a_token_a_foreign_host_name_is_refused(holder: Holder) -> None:
    with client_of(holder) as client:
        assert client.get("/model", headers={"Host": "evil.example"}).status_code == 400
        assert client.get("/model", headers={"Host": "localhost:8100"}).status_code == 200
    with client_of(holder, insecure=True) as client:
        assert client.get("/model", headers={"Host": "plant"}).status_code == 200


def test_no_start_on_the_network_without_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for host in ("0.0.0.0", "plant", "192.168.1.7", "::"):  # noqa: S104
        with pytest.raises(UsageError, match="E2001"):
            check_start(host, "", insecure=False)
        check_start(host, "", insecure=True)
        check_start(host, "t" * 16, insecure=False)
    check_start("127.0.0.1", "", insecure=False)
    monkeypatch.delenv(cli_scoring.TOKEN, raising=False)
    done = anomaly("serve-model", "--host", "0.0.0.0", "--model", tmp_path)  # noqa: S104
    assert done.status == 2 and "E2001" in done.err


def test_the_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cli_scoring.TOKEN, "e" * 16)
    assert read_token(None) == "e" * 16
    (tmp_path / "t").write_text("f" * 32 + "\n")
    assert read_token(tmp_path / "t") == "f" * 32
    for text in ("", "short", "ä" * 20, "a" * 10 + "\n" + "b" * 10):
        (tmp_path / "t").write_text(text)
        with pytest.raises(UsageError) as caught:
            read_token(tmp_path / "t")
        assert not text or text not in str(caught.value)
    with pytest.raises(UsageError, match="E2001"):
        read_token(tmp_path / "none")
    monkeypatch.delenv(cli_scoring.TOKEN)
    assert read_token(None) == ""


# What is at work ----------------------------------------------------------------------------------------------------


def test_model_says_what_is_loaded(client: TestClient, loaded: Loaded) -> None:
    card = client.get("/model").json()
    assert (card["name"], card["digest"], card["lookback"], card["period_s"]) == ("press", loaded.digest, 6, 60.0)
    assert card["tags"] == [f"tag{i}" for i in range(6)]
    assert card["threshold"]["value"] == pytest.approx(loaded.model.threshold.value)


def test_metrics_count_requests_rows_and_time(client: TestClient, loaded: Loaded, frame: pd.DataFrame) -> None:
    before = time.time()
    posted(client, "json", frame[:30])
    client.post("/score", content=b"{", headers={"Content-Type": "application/json"})
    client.get("/hidden")
    text = client.get("/metrics").text
    found = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    assert found['anomaly_scoring_requests_total{path="/score",status="200"}'] == 1
    assert found['anomaly_scoring_requests_total{path="/score",status="422"}'] == 1
    assert found['anomaly_scoring_requests_total{path="other",status="404"}'] == 1
    rows = sum(n for name, n in found.items() if name.startswith("anomaly_scoring_rows_total"))
    assert rows == 30
    assert found['anomaly_scoring_seconds_bucket{le="+Inf"}'] == found["anomaly_scoring_seconds_count"] == 2
    assert before <= found["anomaly_scoring_last_score_timestamp_seconds"] <= time.time()
    assert f'digest="{loaded.digest}"' in text and found["anomaly_scoring_ready"] == 1


def test_figures_of_the_histogram_add_up_and_are_valid_text() -> None:
    figures = Figures()
    for seconds in (0.001, 0.02, 0.02, 99.0):
        figures.answered("/score", 200, seconds)
    figures.answered("/model", 200, 5.0)
    lines = [line for line in figures.text(None).splitlines() if line.startswith("anomaly_scoring_seconds")]
    values = [float(line.rpartition(" ")[2]) for line in lines]
    assert values[:13] == sorted(values[:13]) and values[0] == 1 and values[2] == 3 and values[12] == values[14] == 4
    assert values[13] == pytest.approx(99.041)
