"""Registered models are found by name, copied, and only used with the bytes that were registered."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anomaly.errors import ModelRefused, Unavailable
from registry import catalogue
from registry.bundle import load_bundle, save_bundle, verify_bundle
from registry.catalogue import list_models, resolve, resolve_model, show_model
from registry.state import State, connection
from registry.tracking import RegisteredModel

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


def test_files_beside_the_bundle_are_not_copied(two: Any, state: State) -> None:
    (stored(state, str(show_model("press").digest)) / "evil.py").write_text("raise SystemExit")
    assert {p.name for p in resolve("press").iterdir()} == {"manifest.json", "arrays.npz", "canary.json"}


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


@pytest.mark.slow
def test_two_processes_may_resolve_at_once(two: Any) -> None:
    code = "from registry.catalogue import resolve; [resolve('press') for _ in range(5)]"
    jobs = [subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ)) for _ in range(2)]
    assert [job.wait(60) for job in jobs] == [0, 0]
