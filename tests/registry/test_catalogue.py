"""Registered models are found by name, copied, and only used with the bytes that were registered."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from anomaly.errors import ModelRefused, Unavailable
from registry import bundle, catalogue
from registry.bundle import load_bundle, save_bundle, verify_bundle
from registry.catalogue import ResolvedModel, list_models, resolve, resolve_model, show_model
from registry.state import State, connection
from registry.tracking import RegisteredModel, record_run

Register = Callable[..., RegisteredModel]


@pytest.fixture
def two(register: Register, model: Any) -> tuple[RegisteredModel, RegisteredModel]:
    """Version 1, the champion, and version 2, the challenger."""
    return register(model), register(replace(model, threshold=replace(model.threshold, value=2.0)))


def refusal(reference: str | Path) -> ModelRefused:
    with pytest.raises(ModelRefused) as caught:
        resolve(reference)
    return caught.value


def stored(state: State, digest: str) -> Path:
    """Where MLflow keeps the bundle of this digest."""
    found = [p.parent for p in state.artifacts.rglob("manifest.json") if verify_bundle(p.parent) == digest]
    assert len(found) == 1
    return found[0]


# list and show ------------------------------------------------------------------------------------------------------


def test_before_anything_is_registered_the_list_is_empty_and_makes_no_database(home: Path) -> None:
    assert list_models() == []
    assert not home.exists()
    assert "no model is registered yet" in str(refusal("press"))


def test_the_list_shows_every_version_with_its_aliases(two: Any, register: Register, model: Any) -> None:
    register(model, "a")
    rows = list_models()
    assert [(r.name, r.version, r.aliases) for r in rows] == [
        ("a", 1, ("challenger", "champion")),
        ("press", 2, ("challenger",)),
        ("press", 1, ("champion",)),
    ]
    assert rows[0].metrics == {"average_precision": 0.5, "loss": 1.0, "val_loss": 1.5}
    assert rows[0].created.tzinfo is not None
    assert rows[0].digest is not None and len(rows[0].digest) == 64


def test_show_gives_all_that_was_recorded(two: Any) -> None:
    card = show_model("press@challenger")
    assert (card.version, card.run_id, card.model_id) == (2, two[1].run_id, two[1].model_id)
    assert card.metrics["average_precision_low"] == 0.4
    assert card.settings["window.lookback"] == "16"
    assert card == show_model("models:/press/2")
    assert show_model("press").version == 1


def test_a_version_whose_run_was_deleted_for_good_is_still_shown(two: Any, state: State) -> None:
    with connection(state) as client:
        client.delete_run(two[0].run_id)
        client._tracking_client.store._hard_delete_run(two[0].run_id)
    assert show_model("models:/press/1").metrics == {}
    assert len(list_models()) == 2


# resolve ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "version"),
    [
        ("press", 1),
        ("press@champion", 1),
        ("press@challenger", 2),
        ("models:/press@challenger", 2),
        ("models:/press/1", 1),
        ("models:/press", 1),
    ],
)
def test_every_form_of_reference_finds_its_version(two: Any, reference: str, version: int) -> None:
    found = resolve_model(reference)
    assert (found.name, found.version) == ("press", version)
    assert verify_bundle(found.path) == found.digest


def test_a_registered_model_scores_from_the_copy(two: Any, model: Any, model_class: Any, state: State) -> None:
    found = resolve_model("press")
    loaded = load_bundle(found.path, expect_digest=found.digest, model_class=model_class)
    assert loaded.threshold.value == model.threshold.value
    assert found.path == state.cache / found.digest
    assert state.cache.stat().st_mode & 0o777 == 0o700 and found.path.stat().st_mode & 0o777 == 0o700


def test_a_folder_is_used_where_it_lies(model: Any, home: Path, tmp_path: Path, monkeypatch: Any) -> None:
    digest = save_bundle(model, tmp_path / "press")
    assert resolve_model(tmp_path / "press") == catalogue.ResolvedModel(tmp_path / "press", digest)
    monkeypatch.chdir(tmp_path)
    assert resolve("press") == resolve("./press") == Path("press")
    assert not home.exists()


def test_a_name_without_champion_means_its_challenger_and_says_so(two: Any, state: State, caplog: Any) -> None:
    with connection(state) as client:
        client.delete_registered_model_alias("press", "champion")
    assert resolve_model("press").version == 2
    assert "no champion" in caplog.text
    assert "aliases: challenger" in str(refusal("press@champion"))
    with connection(state) as client:
        client.delete_registered_model_alias("press", "challenger")
    assert "aliases: none" in str(refusal("press"))


def test_an_unknown_name_is_refused_with_the_known_ones(two: Any, register: Register, model: Any) -> None:
    register(model, "boiler")
    error = refusal("pres")
    assert error.faults[0].code == "E4001" and error.exit_code == 4
    assert "known names: boiler, press" in error.faults[0].hint


@pytest.mark.parametrize(
    "reference",
    [
        "press/1",
        "models:/press/9",
        "press@nobody",
        "models:/",
        "models:/a/b/c",
        "",
        ".",
        "no/such/folder",
        "a b",
        "press@",
        "é\n",
    ],
)
def test_what_names_nothing_is_refused(two: Any, reference: str) -> None:
    assert refusal(reference).faults[0].code == "E4001"


def test_a_deleted_champion_is_refused_clearly(two: Any, state: State) -> None:
    with connection(state) as client:
        client.delete_model_version("press", "1")
    assert resolve_model("press").version == 2
    assert refusal("models:/press/1").faults[0].code == "E4001"


# Bytes that were changed: F1 ---------------------------------------------------------------------------------------


def test_f1_an_artifact_changed_after_registration_is_refused(two: Any, state: State) -> None:
    digest = show_model("press").digest
    path = stored(state, str(digest)) / "arrays.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert refusal("press").faults[0].code == "E4002"
    assert not (state.cache / str(digest)).exists()
    assert not [p for p in state.cache.iterdir() if "tmp" in p.name and p.is_dir()]


def test_f1_a_whole_other_sound_bundle_is_refused(two: Any, state: State, model: Any) -> None:
    folder = stored(state, str(show_model("press").digest))
    save_bundle(replace(model, threshold=replace(model.threshold, value=100.0)), folder)
    assert refusal("press").faults[0].code == "E4002"


def test_f1_a_missing_artifact_is_refused(two: Any, state: State) -> None:
    shutil.rmtree(stored(state, str(show_model("press").digest)))
    assert refusal("press").faults[0].code == "E4002"


@pytest.mark.parametrize("folder", ["data/bundle", "data", "."])
def test_a_file_beside_the_bundle_is_refused_and_never_copied(two: Any, state: State, folder: str) -> None:
    """Other kinds, and what MLflow would run of them, are in test_hostile_artifacts.py."""
    logged = stored(state, str(show_model("press").digest)).parents[1]
    (logged / folder / "evil.py").write_text("raise SystemExit")
    assert refusal("press").faults[0].code == "E4005"
    assert not list(state.cache.rglob("evil.py"))


def test_a_damaged_copy_in_the_cache_is_fetched_anew(two: Any) -> None:
    found = resolve_model("press")
    (found.path / "arrays.npz").write_bytes(b"")
    assert verify_bundle(resolve("press")) == found.digest


def test_a_version_that_we_did_not_register_is_refused(two: Any, state: State) -> None:
    with connection(state) as client:
        client.create_registered_model("foreign")
        client.create_model_version("foreign", f"models:/{two[0].model_id}", run_id=two[0].run_id)
        client.create_model_version("foreign", f"models:/{two[0].model_id}", tags={"bundle_digest": "../../x"})
    assert refusal("models:/foreign/1").faults[0].code == "E4003"
    assert refusal("models:/foreign/2").faults[0].code == "E4003"
    assert {r.digest for r in list_models() if r.name == "foreign"} == {None, "../../x"}


# MLflow is down: F8 ------------------------------------------------------------------------------------------------


def test_f8_the_last_verified_copy_serves_while_mlflow_is_down(two: Any, monkeypatch: Any, caplog: Any) -> None:
    before = resolve_model("press")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    start = time.monotonic()
    assert resolve_model("press") == before
    assert time.monotonic() - start < 10
    assert "does not answer" in caplog.text


def test_f8_without_a_sound_copy_it_is_unavailable(two: Any, monkeypatch: Any) -> None:
    found = resolve_model("press")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="E5003"):
        resolve("press@challenger")
    (found.path / "canary.json").write_bytes(b"{}")
    with pytest.raises(Unavailable, match="E5003"):
        resolve("press")


Answer = Callable[[BaseHTTPRequestHandler], None]


def _status(code: int, body: bytes = b"", **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    return answer


def _slow(request: BaseHTTPRequestHandler) -> None:
    time.sleep(4)  # longer than the limit that the test sets


def _cut(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b'{"registered_models": [')


def _closed(request: BaseHTTPRequestHandler) -> None:
    request.connection.close()


NONSENSE: dict[str, Answer] = {
    "slow": _slow,
    "internal error": _status(500, b"oops"),
    "gateway": _status(502, b"<html>Bad Gateway</html>"),
    "not found": _status(404, b"<html>nothing here</html>"),
    "sign in": _status(401, b'{"error_code": "UNAUTHENTICATED", "message": "who?"}'),
    "a page": _status(200, b"<html>Welcome to the hotel</html>"),
    "a list": _status(200, b"[1, 2]"),
    "other keys": _status(200, b'{"registered_models": [{"name": {"x": 1}}]}'),
    "a wrong type": _status(200, b'{"registered_models": 7}'),
    "deep": _status(200, b"[" * 100_000),
    "a loop": _status(302, Location="/again"),
    "cut": _cut,
    "closed": _closed,
}


@contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """The address of a server on this machine that gives one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):
                answer(self)

        do_POST = do_GET  # noqa: N815 - the name that the server looks for

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def cached(migrated: Path, model_class: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ResolvedModel]:
    """A registered model whose champion was fetched once; its tests change nothing but the address of MLflow."""
    folder = tmp_path_factory.mktemp("cached")
    (folder / "home").mkdir()
    shutil.copyfile(migrated, folder / "home" / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOMALY_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        made = model_class()
        save_bundle(made, folder / "bundle")
        nothing: dict[str, Any] = {"settings": {}, "fingerprint": "f" * 64, "split": {}, "metrics": {}, "history": {}}
        record_run(made, folder / "bundle", name="press", **nothing)
        yield resolve_model("press")


@pytest.mark.parametrize("name", [*NONSENSE, "TLS to a plain server"])
def test_f8_a_server_that_is_slow_or_answers_nonsense_is_one_that_is_down(
    cached: ResolvedModel, monkeypatch: Any, name: str
) -> None:
    with answering(NONSENSE.get(name, _status(200))) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address if name in NONSENSE else address.replace("http:", "https:"))
        start = time.monotonic()
        assert resolve_model("press") == cached
        assert time.monotonic() - start < 10
        with pytest.raises(Unavailable, match="E5003"):
            resolve("press@challenger")


def test_an_alias_or_a_version_that_went_away_is_refused_though_a_copy_is_there(two: Any, state: State) -> None:
    """MLflow answers, so what it says holds: a copy is for when it does not answer."""
    assert resolve_model("press@challenger").version == 2
    with connection(state) as client:
        client.delete_registered_model_alias("press", "challenger")
        client.delete_model_version("press", "1")
    assert refusal("press@challenger").faults[0].code == "E4001"
    assert refusal("models:/press/1").faults[0].code == "E4001"


def test_f8_a_server_without_any_model_is_believed(cached: ResolvedModel, monkeypatch: Any) -> None:
    """It answers as an empty registry does; the watch and the scoring service keep the model at work even then."""
    with answering(_status(200, b"{}")) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert "no model is registered yet" in str(refusal("press"))


def test_f1_each_file_of_a_registered_model_is_its_own(two: Any, state: State) -> None:
    """No copy is kept of a version whose file was cut, flipped, or taken from another version; the other one still loads."""
    digests = [str(show_model(f"models:/press/{v}").digest) for v in (1, 2)]
    folder, other = (stored(state, d) for d in digests)
    tried = 0
    for member in sorted(bundle.MEMBERS):
        whole, foreign = (folder / member).read_bytes(), (other / member).read_bytes()
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        for damaged in {whole[:middle], flipped, foreign} - {whole}:
            (folder / member).write_bytes(damaged)
            assert refusal("models:/press/1").faults[0].code == "E4002", member
            assert not (state.cache / digests[0]).exists()
            tried += 1
        (folder / member).write_bytes(whole)
    assert tried >= 7, "the manifests differ at the least, by their threshold"
    assert [resolve_model(f"models:/press/{v}").digest for v in (1, 2)] == digests


@pytest.mark.slow
def test_two_processes_may_resolve_at_once(two: Any) -> None:
    code = "from registry.catalogue import resolve; [resolve('press') for _ in range(5)]"
    jobs = [subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ)) for _ in range(2)]
    assert [job.wait(60) for job in jobs] == [0, 0]
