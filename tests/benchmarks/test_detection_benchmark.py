"""The detection benchmark's trials, peers, damages and runs, on small planted logs; no TensorFlow but in the bench test."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks is no installed package

from anomaly.errors import InputRefused
from anomaly.metrics import roc_auc
from benchmarks import detection_ours, detection_peers
from benchmarks.detection import main
from benchmarks.detection_cases import PLAIN, Trial, read_trial, segment_starts
from benchmarks.detection_learning import SHORTER, changed, variant_version
from benchmarks.detection_ours import CENTRED, OURS, centred, product_scores
from benchmarks.detection_peers import PEERS, REFERENCES, absent, peer_scores, prepared, windows
from benchmarks.detection_robustness import DAMAGES, damaged
from benchmarks.detection_run import Cache, Job, code_version, run_jobs
from benchmarks.encoder_cases import read_cases

MINUTE_US = 60_000_000
EVENT = (120, 150)
#: What runs without TensorFlow and torch, and sees an event of this plant.
QUICK = [name for name in PEERS if not name.startswith("seed_") and name != "pyod_autoencoder"]


def planted_log(rows: int, seed: int, *events: tuple[int, int]) -> pd.DataFrame:
    """Three tags at one minute that follow one slow wave; in an event one of them leaves the others."""
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(rows) / 7)[:, None] * np.array([1.0, -2.0, 0.5])
    values = wave + 0.1 * rng.normal(size=(rows, 3))
    label = np.zeros(rows, np.int8)
    for first, stop in events:
        label[first:stop] = 1
        values[first:stop, 1] += 8
    frame = pd.DataFrame(values.astype(np.float32), columns=["a", "b", "c"])
    frame.insert(0, "time", pd.date_range("2026-03-01", periods=rows, freq="1min"))
    return frame.assign(label=label)


def write_case(panel: Path, name: str, dataset: str, seed: int, rows: int = 600) -> Path:
    folder = panel / name
    folder.mkdir(parents=True)
    test = planted_log(300, seed + 1, EVENT)
    test["time"] += pd.Timedelta("2D")
    test.loc[60:, "time"] += pd.Timedelta("1h")  # a seam
    planted_log(rows, seed, (50, 60)).to_parquet(folder / "train.parquet", index=False)
    test.to_parquet(folder / "test.parquet", index=False)
    meta = {"dataset": dataset, "vus_window": 10, "train_rows": rows}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("panel")
    for number, (name, dataset) in enumerate([("pump_1", "pump"), ("mill_1", "mill"), ("well_1", "well")]):
        write_case(folder, name, dataset, seed=10 * number)
    return folder


@pytest.fixture(scope="module")
def trial(panel: Path) -> Trial:
    return read_trial(read_cases(panel, ["pump_1"])[0])


# -- trials --------------------------------------------------------------------------------------------------------


def test_s61_the_held_back_rows_are_the_last_fifth_of_the_normal_training_rows_and_are_not_learned_from(
    trial: Trial,
) -> None:
    (train, test), (early, held) = (trial.passes()[name] for name in ("full", "held"))
    assert len(train) == 600 and len(test) == 300 and trial.period_us == MINUTE_US
    assert int(trial.held_normal().sum()) == round(0.2 * 590) and trial.held_normal().all()
    assert len(early) + len(held) == 600 and early["time"].max() < held["time"].min()


def test_rows_that_the_case_does_not_judge_are_no_events(tmp_path: Path) -> None:
    folder = write_case(tmp_path, "pump_1", "pump", 0)
    judged = np.ones(300, bool)
    judged[140:] = False
    pd.DataFrame({"judged": judged}).to_parquet(folder / "eval.parquet")
    own = read_trial(read_cases(tmp_path)[0])
    assert int(own.positive.sum()) == 20 and int(own.judged.sum()) == 140


def test_a_training_log_without_normal_rows_is_refused(tmp_path: Path) -> None:
    folder = write_case(tmp_path, "pump_1", "pump", 0)
    planted_log(50, 0, (0, 50)).to_parquet(folder / "train.parquet", index=False)
    with pytest.raises(InputRefused, match="E3302"):
        read_trial(read_cases(tmp_path)[0])


# -- peers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
def test_every_peer_finds_a_planted_event(name: str, trial: Trial) -> None:
    score = peer_scores(name, *trial.passes()["full"], trial.period_us)
    assert score.shape == (300,) and np.isfinite(score).all()
    # ECOD sees each tag by itself, and the event is within the usual range of its tag for part of the wave.
    assert roc_auc(score, trial.positive) > (0.8 if name == "pyod_ecod" else 0.9)


@pytest.mark.parametrize("name", [*REFERENCES, *QUICK])
def test_s56_no_peer_learns_from_event_rows_of_the_training_log(name: str, trial: Trial) -> None:
    train, test = trial.passes()["full"]
    other = train.copy()
    other.loc[other["label"] == 1, ["a", "b", "c"]] = 1e6
    before, after = (peer_scores(name, log, test, trial.period_us) for log in (train, other))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("name", [n for n in QUICK if n != "pyod_ecod"])
def test_peers_see_no_later_row(name: str, trial: Trial) -> None:
    train, test = trial.passes()["full"]
    whole = peer_scores(name, train, test, trial.period_us)
    np.testing.assert_allclose(
        peer_scores(name, train, test.iloc[:130], trial.period_us), whole[:130], rtol=1e-6, atol=1e-9
    )


def test_references_rank_nothing(trial: Trial) -> None:
    found = {n: peer_scores(n, *trial.passes()["full"], trial.period_us) for n in REFERENCES}
    assert set(found["always"]) == {1.0} and set(found["never"]) == {0.0}
    assert 0.3 < roc_auc(found["random"], trial.positive) < 0.7


def test_windows_of_peers_stay_inside_segments(trial: Trial) -> None:
    train, test = trial.passes()["full"]
    known, rows = prepared(train, test, trial.period_us)
    assert np.flatnonzero(rows.starts).tolist() == [0, 60]
    assert np.flatnonzero(known.starts).tolist() == [0, 50], "where event rows were left out"
    own = windows(rows).reshape(300, 16, 3)
    assert (own[60] == rows.values[60]).all() and (own[75] == rows.values[60:76]).all()


def test_peers_bear_missing_and_absurd_values_and_tags_that_never_moved(trial: Trial) -> None:
    train, test = (log.copy() for log in trial.passes()["full"])
    train["c"] = test["c"] = np.float32(5)
    train.loc[:30, "a"] = np.nan
    test.loc[10:200, "a"], test.loc[20, "b"] = np.nan, np.float32(3e38)
    for name in ("energy", "pca", "window_knn", "pyod_iforest"):
        assert np.isfinite(peer_scores(name, train, test, trial.period_us)).all()
    _, rows = prepared(train, test, trial.period_us)
    assert (rows.values[:, 2] == 0).all() and np.abs(rows.values[20]).max() < 10
    train.loc[:, "a"] = np.nan
    assert np.isfinite(peer_scores("knn", train, test, trial.period_us)).all()


def test_segments_begin_after_gaps_and_backward_steps() -> None:
    times = pd.to_datetime(np.array([0, 60, 120, 330, 390, 380, 640]) * 10**6, unit="us")
    assert segment_starts(pd.DataFrame({"time": times}), MINUTE_US).tolist() == [
        True,
        *[False] * 2,
        False,
        False,
        True,
        True,
    ]


def test_what_is_not_installed_is_left_out_and_said(
    panel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = detection_peers.importlib.util.find_spec
    monkeypatch.setattr(
        detection_peers.importlib.util, "find_spec", lambda name: None if name == "torch" else found(name)
    )
    assert absent("pyod_autoencoder") == "torch" and absent("pyod_lof") == absent("knn") == ""
    arguments = [str(panel), "--cases", "pump_1", "--methods", "pyod_autoencoder", "--cache", str(tmp_path)]
    assert main([*arguments, "--out", str(tmp_path / "out.md")]) == 0
    assert "- pyod_autoencoder: left out, the package torch is not installed" in capsys.readouterr().out


# -- damage --------------------------------------------------------------------------------------------------------


def values(log: pd.DataFrame) -> NDArray[np.float64]:
    return log[["a", "b", "c"]].to_numpy(np.float64)


@pytest.mark.parametrize("variant", DAMAGES)
def test_a_damage_is_the_same_every_time_and_leaves_times_and_labels_alone(variant: str, trial: Trial) -> None:
    one, two = damaged(trial, variant), damaged(trial, variant)
    for part in ("train", "test"):
        before, after, again = getattr(trial, part), getattr(one, part), getattr(two, part)
        pd.testing.assert_frame_equal(after, again)
        pd.testing.assert_frame_equal(before[["time", "label"]], after[["time", "label"]])
        assert list(before.columns) == list(after.columns)
    assert one.variant == variant and damaged(trial, PLAIN) is trial


@pytest.mark.parametrize(("variant", "share"), [("1 % contamination", 0.01), ("5 % contamination", 0.05)])
def test_contamination_puts_event_rows_among_normal_training_rows(variant: str, share: float, trial: Trial) -> None:
    own = damaged(trial, variant)
    changed = (values(own.train) != values(trial.train)).any(axis=1)
    assert changed.sum() == round(share * 590) and not changed[(trial.train["label"] == 1).to_numpy()].any()
    events = {tuple(row) for row in values(trial.test)[trial.positive]}
    assert all(tuple(row) in events for row in values(own.train)[changed])
    np.testing.assert_array_equal(values(own.test), values(trial.test))


def test_missing_values_stuck_sensors_units_and_drift(trial: Trial) -> None:
    before = values(trial.test)
    assert np.isnan(values(damaged(trial, "10 % missing").test)).mean() == pytest.approx(0.1, abs=0.03)
    held = values(damaged(trial, "stuck sensor").test)
    tag = int(np.flatnonzero((held != before).any(axis=0))[0])
    assert (held[75:, tag] == before[75, tag]).all() and (held[:75] == before[:75]).all()
    larger = values(damaged(trial, "unit change").test)
    assert (larger != before).any(axis=0).sum() == 1
    np.testing.assert_allclose(larger[:, tag], 1000 * before[:, tag], rtol=1e-6)
    climbed = values(damaged(trial, "slow drift").test) - before
    spread = values(trial.train).std(axis=0)[tag]
    assert (climbed != 0).any(axis=0).sum() == 1 and climbed[-1, tag] == pytest.approx(2 * spread, rel=1e-4)


@pytest.mark.parametrize(("variant", "share"), [("newest half", 0.5), ("newest eighth", 0.125)])
def test_s45_a_shorter_training_log_is_the_newest_part_and_the_test_log_stays(
    variant: str, share: float, trial: Trial
) -> None:
    own = changed(trial, variant)
    normal = int((trial.train["label"] == 0).sum())
    assert int((own.train["label"] == 0).sum()) == round(share * normal) and own.variant == variant
    newest = trial.train.tail(len(own.train)).reset_index(drop=True)
    pd.testing.assert_frame_equal(own.train, newest)
    pd.testing.assert_frame_equal(own.test, trial.test)
    assert own.held_normal().sum() == round(0.2 * round(share * normal))
    assert changed(trial, PLAIN) is trial and changed(trial, "stuck sensor").variant == "stuck sensor"
    assert len({variant_version(name) for name in (PLAIN, "stuck sensor", variant)}) == 3


def test_a_learning_curve_says_what_less_data_costs(panel: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.md"
    common = ["--methods", "knn,pca", "--in-process", "--cache", str(tmp_path / "cache"), "--out", str(out)]
    assert main([str(panel), "--cases", "pump_1,mill_1", "--learning-curve", *common]) == 0
    text = out.read_text(encoding="utf-8")
    assert "## Shorter training logs" in text and all(name in text for name in SHORTER) and "Not measured" not in text
    with pytest.raises(SystemExit):
        main([str(panel), "--learning-curve", "--robustness", *common])


# -- ours ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "flags"), [(OURS, []), ("encoder:conv_ae", ["--encoder", "conv_ae"])])
def test_ours_is_the_command_that_a_user_types(
    method: str, flags: list[str], trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = list[tuple[str, ...]]()

    def command(folder: Path, *words: str) -> None:
        typed.append(words)
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model" / "manifest.json").write_text('{"settings": {"window": {"lookback": 24}}}', encoding="utf-8")
        rows = pd.read_parquet(folder / "rows.parquet")
        pd.DataFrame({"anomaly_score": rows["b"]}).to_parquet(folder / "scores.parquet")

    monkeypatch.setattr(detection_ours, "_command", command)
    score, lookback = product_scores(method, *trial.passes()["full"])
    assert lookback == 24
    np.testing.assert_allclose(score, trial.test["b"])
    named = ["--time", "time", "--label", "label"]
    assert typed[0] == ("train", "train.parquet", *named, "--out", "model", *flags)
    assert typed[1] == ("score", "rows.parquet", "--model", "model", "--out", "scores.parquet", "--no-alerts")


@pytest.mark.slow
def test_a_refusal_of_the_product_is_told_in_its_words(trial: Trial) -> None:
    with pytest.raises(RuntimeError, match=r"anomaly train: status \d+: .*E\d{4}"):
        product_scores(OURS, trial.train.iloc[:5], trial.test)


def test_the_centred_score_is_the_mean_of_the_windows_that_cover_a_row() -> None:
    score = np.array([np.nan, 2.0, 4.0, 9.0, 1.0])
    starts = np.array([True, False, False, True, False])
    assert centred(score, starts, 3).tolist() == [3.0, 3.0, 4.0, 5.0, 1.0]
    assert np.isnan(centred(np.array([np.nan, np.nan]), np.array([True, False]), 2)).all()


# -- runs ----------------------------------------------------------------------------------------------------------

METHODS = "always,never,random,energy,knn"


def test_a_run_writes_the_table_keeps_scores_and_goes_on_where_it_stopped(
    panel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, out = tmp_path / "cache", tmp_path / "docs" / "benchmark.md"
    arguments = [str(panel), "--methods", METHODS, "--cache", str(cache), "--out", str(out), "--in-process"]
    assert main(arguments) == 0
    first = capsys.readouterr()
    assert first.err.count("\n") == 15 and "[15/15]" in first.err
    text = out.read_text(encoding="utf-8")
    assert (
        text == first.out
        and "--methods always,never,random,energy,knn" in text
        and str(tmp_path) not in text.split("\n", 4)[2]
    )
    assert "no goal is judged" in text and "| energy | 3 |" in text and "Not measured" not in text
    lines = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in text.split("## Data sets")[0].splitlines()}
    assert lines["always"][5] == "1.000" and lines["never"][5] == "0.000"
    assert float(lines["knn"][2]) > 0.8 > float(lines["random"][2])
    assert main(arguments) == 0
    assert not capsys.readouterr().err, "everything was kept"
    kept = sorted(cache.glob("knn-pump_1-*"))
    assert len(kept) == 2
    for path in kept:
        path.unlink()
    assert main(arguments) == 0
    assert [line.split()[1:4] for line in capsys.readouterr().err.splitlines()] == [["knn", "×", "pump_1:"]]


def test_other_data_and_other_code_are_other_results(
    panel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(read_cases(panel, ["pump_1"])[0], "energy")
    write_case(tmp_path, "pump_1", "pump", seed=77)
    other = Job(read_cases(tmp_path)[0], "energy")
    keys = {job.key(), other.key(), Job(job.case, "energy", "slow drift").key(), Job(job.case, "knn").key()}
    assert len(keys) == 4
    assert Job(job.case, CENTRED).key() == Job(job.case, OURS).key(), "one training serves both"
    before = code_version("energy")
    code_version.cache_clear()
    monkeypatch.setitem(detection_peers.REFERENCES, "energy", detection_peers.PEERS["pca"])
    monkeypatch.delitem(detection_peers.PEERS, "energy")
    assert code_version("energy") != before
    code_version.cache_clear()


def test_what_fails_is_said_tried_again_and_does_not_stop_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good", "bad"):
        folder = write_case(tmp_path / "panel", name, name, seed=3)
    frame = pd.read_parquet(folder / "test.parquet")
    frame.drop(columns="b").to_parquet(folder / "test.parquet", index=False)
    arguments = [str(tmp_path / "panel"), "--methods", "energy", "--cache", str(tmp_path / "cache"), "--in-process"]
    for _ in range(2):
        assert main([*arguments, "--out", str(tmp_path / "out.md")]) == 0
        shown = capsys.readouterr()
        assert "- energy × bad: KeyError" in shown.out and "bad" in shown.err and "| energy | 1 |" in shown.out


def test_the_centred_score_is_judged_from_the_kept_causal_one(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[str]()

    def scores(name: str, train: pd.DataFrame, rows: pd.DataFrame) -> tuple[NDArray[np.float64], int]:
        calls.append(name)
        return np.abs(rows["b"].to_numpy(np.float64)), 5

    monkeypatch.setattr(detection_ours, "product_scores", scores)
    causal, looking_ahead = run_jobs([Job(trial.case, OURS), Job(trial.case, CENTRED)], Cache(tmp_path), 0)
    assert calls == [OURS, OURS], "the full and the held pass, once each"
    assert causal["method"] == OURS and looking_ahead["method"] == CENTRED
    assert causal["vus_pr"] != looking_ahead["vus_pr"]


@pytest.mark.slow
def test_processes_work_side_by_side_and_one_that_dies_takes_no_result_with_it(panel: Path, tmp_path: Path) -> None:
    cases, kept = read_cases(panel, ["pump_1", "mill_1"]), Cache(tmp_path)
    assert [r["case"] for r in run_jobs([Job(c, "energy") for c in cases], kept, 2)] == ["pump_1", "mill_1"]
    dead, alive = run_jobs([Dying(cases[0], "knn"), Job(cases[1], "energy")], kept, 1)
    assert dead["error"] == "BrokenProcessPool: the process ended" and alive["vus_pr"] > 0.3


class Dying(Job):
    """A job that takes its process down with it, as one does that runs out of memory."""

    @property
    def base(self) -> str:
        """Told in the process that does the work only."""
        return self.method if multiprocessing.parent_process() is None else os._exit(3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "knm"], "methods of ours"),
        (["--cases", "pump_9"], "cases of"),
        (["--jobs", "0"], "--jobs of at least 1"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    arguments: list[str], said: str, panel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(panel), "--cache", str(tmp_path), "--out", str(tmp_path / "o.md"), *arguments]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "o.md").exists()


@pytest.mark.bench
def test_our_default_end_to_end_on_damaged_data_too(panel: Path, tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out.md"
    common = [str(panel), "--cases", "pump_1,mill_1,well_1", "--cache", str(cache), "--out", str(out)]
    assert main([*common, "--methods", "ours,knn,seed_ae,seed_ae_linear"]) == 0
    text = out.read_text(encoding="utf-8")
    assert "Not measured" not in text and "## Margin of ours" in text and f"| {CENTRED} | 3 |" in text
    assert main([str(panel), "--cases", "pump_1", "--cache", str(cache), "--out", str(out), "--robustness"]) == 0
    text = out.read_text(encoding="utf-8")
    assert all(variant in text for variant in DAMAGES) and "Not measured" not in text
