"""The command line itself: help, JSON, usage errors with the nearest name, exit statuses, and a quick start."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import PROJECT, SHORT, Outcome, Press, anomaly, files_under, write_log

from alerts.database import Database

#: Dear fixtures are made once, on one worker.
pytestmark = pytest.mark.xdist_group("cli")

COMMANDS = ["demo", "ingest", "train", "evaluate", "score", "models list", "models show", "alerts list", "alerts show",
            "alerts export"]  # fmt: skip


@pytest.fixture
def scored(press_registry: Press, tmp_path: Path) -> list[int]:
    """The small plant scored into a database of the test's own; gives the alert numbers, newest first."""
    done = anomaly("score", press_registry.log, "--model", "press", "--out", tmp_path / "s.parquet")
    assert done.status == 0, done.err
    return [a["id"] for a in anomaly("alerts", "list", "--json").json["alerts"]]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_shows_an_example(command: str) -> None:
    done = anomaly(*command.split(), "--help")
    assert done.status == 0
    text = " ".join(done.out.split())
    assert f"Example: anomaly {command}" in text


def test_json_of_every_reading_command(scored: list[int], press_registry: Press) -> None:
    """``--json`` prints one object and nothing else (train, ingest, score, evaluate, demo: in their own tests)."""
    versions = anomaly("models", "list", "--json").json["models"]
    assert [(m["name"], m["version"], sorted(m["aliases"])) for m in versions] == [
        ("press", 1, ["challenger", "champion"])
    ]
    card = anomaly("models", "show", "press@champion", "--json").json
    assert card["digest"] == press_registry.trained["digest"]
    assert card["settings"]["window.lookback"] == "6"
    listed = anomaly("alerts", "list", "--json").json["alerts"]
    assert len(listed) == len(scored) > 5
    assert listed == sorted(listed, key=lambda a: a["start_us"], reverse=True)
    assert anomaly("alerts", "show", scored[0], "--json").json == listed[0]


def test_the_tables_for_people(scored: list[int]) -> None:
    listed = anomaly("alerts", "list", "--limit", 2)
    assert listed.status == 0
    assert len(listed.out.splitlines()) == 3
    assert "4 min" in listed.out, "the lead it was trained for"
    shown = anomaly("alerts", "show", scored[-1])
    assert f"alert {scored[-1]}" in shown.out
    assert "tag" in shown.out
    models = anomaly("models", "list")
    assert "champion" in models.out
    assert "average_precision" in anomaly("models", "show", "press").out.replace(" ", "_")


def test_alerts_of_one_asset(scored: list[int]) -> None:
    assert len(anomaly("alerts", "list", "--asset", "plant", "--json").json["alerts"]) == len(scored)
    assert anomaly("alerts", "list", "--asset", "elsewhere", "--json").json["alerts"] == []
    assert "no alerts" in anomaly("alerts", "list", "--asset", "elsewhere").out


def test_alerts_export_as_csv_and_json(scored: list[int], tmp_path: Path) -> None:
    target = tmp_path / "out" / "alerts.csv"
    assert anomaly("alerts", "export", "--out", target).status == 0
    lines = target.read_text().splitlines()
    assert lines[0].startswith("id,asset,start,peak,end")
    assert [int(line.split(",")[0]) for line in lines[1:]] == scored
    printed = anomaly("alerts", "export", "--format", "json")
    assert [a["id"] for a in json.loads(printed.out)] == scored
    assert anomaly("alerts", "export").out == target.read_text()


def test_an_unknown_alert_names_the_known_ones(scored: list[int]) -> None:
    done = anomaly("alerts", "show", 999)
    assert done.status == 2
    assert f"{min(scored)} to {max(scored)}" in done.err


def test_without_any_state_the_lists_are_empty_and_nothing_is_made(home: Path) -> None:
    assert anomaly("alerts", "list", "--json").json == {"alerts": []}
    assert anomaly("models", "list", "--json").json == {"models": []}
    assert "anomaly train" in anomaly("models", "list").out
    assert anomaly("alerts", "export", "--format", "json").out == "[]\n"
    assert not home.exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("trian", "train"),
        ("train log.csv --lokback 3", "--lookback"),
        ("train log.csv --lookback x", "integer"),
        ("train log.csv --out", "--out"),
        ("train", "log.paths"),
        ("train missing.toml", "missing.toml"),
        ("train log.csv --encoder dense_a", "did you mean dense_ae"),
        ("train log.csv --rule fxed", "pr_curve, precision, recall, budget, quantile, tail, fixed"),
        ("train log.csv --rule fixed", "threshold.value"),
        ("train log.csv --epochs 0", "training.epochs"),
        ("train log.csv --lead 4parsec", "4parsec"),
        ("train log.csv --name a/b", "letters"),
        ("train log.csv --form wdie", "wide"),
        ("ingest log.csv", "--store"),
        ("ingest log.csv --store log.csv", "E2003"),
        ("score log.csv --thresold 3", "--thresold"),
        ("alerts", "Usage"),
        ("alerts lst", "list"),
        ("alerts show x", "integer"),
        ("alerts list --limit 0", "at least 1"),
        ("alerts export --format xml", "csv or json"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_says_what_was_meant(
    press: Press, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_log(press.frame[:50], tmp_path / "log.csv")
    before = files_under(tmp_path)
    done = anomaly(*line.split())
    assert done.status == 2, done.err
    assert says in done.out + done.err
    assert line == "alerts" or "E200" in done.err
    assert files_under(tmp_path) == before


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[window]\nlookbak = 3", "window.lookbak"),
        ("windw = 3", "did you mean window?"),
        ('[window]\nlookback = "six"', "window.lookback as int"),
        ("[encoder.options]\nhiden = 3", "hiden"),
        ("[training]\nepochs = true", "training.epochs as int"),
    ],
)
@pytest.mark.parametrize("way", ["train {}", "train log.csv --config {}"])
def test_a_wrong_setting_in_the_toml_is_e2002(
    press: Press, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toml: str, says: str, way: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_log(press.frame[:600], tmp_path / "log.csv")
    (tmp_path / "s.toml").write_text(f"{toml}\n[log]\npaths = ['log.csv']\n")
    before = files_under(tmp_path)
    done = anomaly(*way.format("s.toml").split())
    assert done.status == 2, done.err
    assert says in done.err
    assert "E2002" in done.err
    assert files_under(tmp_path) == before


def test_an_unknown_model_ends_with_4_and_names_the_known(press_registry: Press, tmp_path: Path) -> None:
    for reference in ("presse", "models:/press@best", "models:/press/9", str(tmp_path / "nowhere")):
        done = anomaly("score", press_registry.log, "--model", reference, "--out", tmp_path / "s.parquet")
        assert done.status == 4, (reference, done.err)
        assert "E4001" in done.err
    assert "press" in anomaly("models", "show", "presse").err
    assert not (tmp_path / "s.parquet").exists()


def test_a_locked_database_ends_with_5_and_a_retry_finishes(
    press: Press, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlite3

    log, out = write_log(press.frame[:600], tmp_path / "a.csv"), tmp_path / "s.parquet"
    home.mkdir()
    holder = sqlite3.connect(home / "alerts.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr("alerts.database.Database.__init__", _impatient(Database.__init__))
    done = anomaly("score", log, "--model", press.bundle, "--out", out)
    holder.close()
    assert done.status == 5, done.err
    assert "E5001" in done.err
    assert anomaly("score", log, "--model", press.bundle, "--out", out, "--json").json["recorded"] is True


def _impatient(init: object) -> object:
    return lambda self, url, **_: init(self, url, wait_s=0.1)  # type: ignore[operator]


def _breaking(error: BaseException) -> object:
    def broken(*_: object, **__: object) -> None:
        raise error

    return broken


def test_our_own_bug_ends_with_70_and_no_traceback(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alerts.store.AlertStore.alerts", _breaking(RuntimeError("no such luck")))
    done = anomaly("alerts", "list")
    assert done.status == 70
    assert "E7000" in done.err
    assert "no such luck" in done.err
    assert "Traceback" not in done.out + done.err
    monkeypatch.setenv("ANOMALY_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="no such luck"):
        anomaly("alerts", "list")


def test_ctrl_c_ends_with_130_and_leaves_only_what_the_next_run_goes_on_from(
    press: Press, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.train.evaluate_store", _breaking(KeyboardInterrupt()))
    log = write_log(press.frame[:1500], tmp_path / "a.csv")
    done = anomaly("train", log, *SHORT, "--out", tmp_path / "model")
    assert done.status == 130
    assert "again is safe" in done.err
    assert "Traceback" not in done.err
    left = [p for p in files_under(tmp_path) if "tensorboard" not in p and "/training/" not in p]
    assert left == [str(log)], "its curves and the checkpoint of its training may stay, no more"
    monkeypatch.undo()
    monkeypatch.setenv("ANOMALY_HOME", str(home))
    assert anomaly("train", log, *SHORT, "--out", tmp_path / "model").status == 0
    assert not [p for p in files_under(tmp_path) if "/training/" in p]


def _apart(code: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "ANOMALY_HOME": str(folder / "home")}
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("line", ["--help", "alerts list", "alerts --help"])
def test_a_quick_start_without_the_heavy_libraries(line: str, tmp_path: Path) -> None:
    """Under 1 s, counted in processor time: the clock on the wall also counts what else this machine is doing."""
    heavy = "tensorflow", "keras", "mlflow", "torch", "sklearn", "matplotlib", "pyarrow", "h5py"
    code = (
        f"import sys; sys.argv = ['anomaly', *{line.split()}]\n"
        "from pipelines.cli import main\n"
        f"main()\nprint('imported', sorted(set({heavy}) & set(sys.modules)))"
    )
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = _apart(code, tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "imported []"
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert statistics.median(spent) < 1.0, spent


def test_the_exit_status_reaches_the_shell(tmp_path: Path) -> None:
    """The status, the coded line on standard error, and nothing on standard output."""
    (tmp_path / "a.csv").write_text(
        "time,a\n2026-01-01,1\n2026-01-02,x\n" + "".join(f"2026-02-{i:02d},{i}\n" for i in range(1, 25))
    )
    code = f"from pipelines.cli import main; import sys; sys.argv = ['anomaly', 'ingest', {str(tmp_path / 'a.csv')!r}, "
    done = _apart(code + f"'--store', {str(tmp_path / 'a.h5')!r}]; main()", tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("E3107 file=")
    assert "column=a row=2" in done.stderr
    assert not (tmp_path / "a.h5").exists()


def test_an_outcome_is_json_only_when_the_command_succeeded() -> None:
    with pytest.raises(AssertionError, match="E2001"):
        _ = Outcome(2, "", "E2001").json
