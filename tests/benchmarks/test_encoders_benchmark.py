"""The encoder benchmark on a panel of three small planted logs, and the volume under the PR surface against a plain loop."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks is no installed package

from benchmarks.encoder_cases import RAW, Budget, measure, read_cases
from benchmarks.encoder_tables import over_datasets
from benchmarks.encoders import Cache, Job, jobs_for, main, run_jobs
from benchmarks.vus import soft_labels, vus_pr

ENCODERS = "dense_ae,features,raw_windows,energy,chance"
QUICK = ["--epochs", "2", "--windows", "150", "--lookback", "8", "--in-process"]


def planted_log(rows: int, seed: int, *events: tuple[int, int]) -> pd.DataFrame:
    """Three tags at one minute that follow one slow wave; in an event one of them leaves the others."""
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(rows) / 7)[:, None] * np.array([1.0, -2.0, 0.5])
    values = wave + 0.1 * rng.normal(size=(rows, 3))
    label = np.zeros(rows, int)
    for first, stop in events:
        label[first:stop] = 1
        values[first:stop, 1] += 6
    frame = pd.DataFrame(values.astype(np.float32), columns=["a", "b", "c"])
    frame.insert(0, "time", pd.date_range("2026-03-01", periods=rows, freq="1min", tz="UTC"))
    return frame.assign(label=label)


def write_case(
    panel: Path, name: str, dataset: str, seed: int, rows: int = 300, events: Sequence[tuple[int, int]] = ((120, 150),)
) -> Path:
    folder = panel / name
    folder.mkdir(parents=True)
    test = planted_log(max(240, events[-1][1] + 40), seed + 1, *events)
    test["time"] += pd.Timedelta("2D")
    test.loc[60:, "time"] += pd.Timedelta("1h")  # a seam
    planted_log(rows, seed).to_parquet(folder / "train.parquet", index=False)
    test.to_parquet(folder / "test.parquet", index=False)
    meta = {"dataset": dataset, "vus_window": 10, "train_rows": rows}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("panel")
    for number, (name, dataset) in enumerate([("pump_1", "pump"), ("pump_2", "pump"), ("mill_1", "mill")]):
        write_case(folder, name, dataset, seed=10 * number)
    return folder


@pytest.fixture(scope="module")
def measured(panel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str, Path]:
    """The records of one run over the whole panel, its Markdown, and its cache."""
    folder = tmp_path_factory.mktemp("run")
    cache, out = folder / "cache.jsonl", folder / "section.md"
    assert main([str(panel), "--encoders", ENCODERS, "--cache", str(cache), "--out", str(out), *QUICK]) == 0
    records = [json.loads(line) for line in cache.read_text(encoding="utf-8").splitlines()]
    return records, out.read_text(encoding="utf-8"), cache


def by_pair(records: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(r["encoder"], r["case"]): r for r in records}


@pytest.mark.slow
def test_s50_plan_a_and_plan_b_stand_in_one_table_on_the_same_windows(
    measured: tuple[list[dict[str, Any]], str, Path],
) -> None:
    records, text, _ = measured
    found = by_pair(records)
    assert len(found) == 15 and not any("error" in r for r in records)
    for case in ("pump_1", "pump_2", "mill_1"):
        a, b = found["dense_ae", case], found["features", case]
        assert (a["windows"], a["rows"], a["budget"]) == (b["windows"], b["rows"], b["budget"])
        assert a["epochs"] == 3 and b["epochs"] == 0, "plan B trains nothing; 116 windows are seen thrice, not twice"
        assert a["fit_seconds"] > 0 and a["parameters"] > 0 and a["embed_per_second"] > 0 and a["peak_mb"] > 0
        assert "reconstruction" in a and "reconstruction" not in b
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines].count("| dense_ae") == 2
    main_line = next(line for line in lines if line.startswith("| features"))
    assert len(main_line.split("|")) == len(lines[0].split("|")) == 14 and " none " in main_line


@pytest.mark.slow
def test_planted_events_rank_high_and_chance_does_not(measured: tuple[list[dict[str, Any]], str, Path]) -> None:
    found = by_pair(measured[0])
    for case in ("pump_1", "pump_2", "mill_1"):
        assert min(found[e, case]["knn"]["auc"] for e in ("raw_windows", "energy")) > 0.9
        assert found["chance", case]["knn"]["auc"] < 0.7
        assert found[RAW, case]["knn"]["unscorable"] == 1, "the first row after the seam"


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_where_it_stopped(
    panel: Path, measured: tuple[list[dict[str, Any]], str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, text, cache = measured
    copy, out = tmp_path / "cache.jsonl", tmp_path / "section.md"
    whole = cache.read_bytes()
    copy.write_bytes(whole[:-40])  # the last line is torn
    arguments = [str(panel), "--encoders", ENCODERS, "--cache", str(copy), "--out", str(out), *QUICK]
    assert main(arguments) == 0
    assert [line.split()[1:4] for line in capsys.readouterr().err.splitlines()] == [["chance", "×", "pump_2:"]]
    assert out.read_text(encoding="utf-8") == text
    assert main(arguments) == 0 and not capsys.readouterr().err, "all kept"
    assert main([*arguments, "--seed", "8", "--seconds", "0"]) == 0
    assert "time is up: 0 of 15" in capsys.readouterr().err, "another budget is another result"


def test_what_fails_is_said_and_does_not_stop_the_rest(
    panel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "panel"
    for name in ("good", "bad"):
        folder = write_case(broken, name, name, seed=3)
    frame = pd.read_parquet(folder / "test.parquet")
    frame.drop(columns="b").to_parquet(folder / "test.parquet", index=False)
    cache = tmp_path / "cache.jsonl"
    arguments = [str(broken), "--encoders", "raw_windows", "--cache", str(cache), *QUICK]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "Not measured:" in shown.out and "- bad × raw_windows:" in shown.out and "E3101" in shown.out
    assert "| raw_windows | 1 |" in shown.out
    assert main(arguments) == 0
    assert "bad" in capsys.readouterr().err, "a failure is tried again"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--encoders", "dense_a"], "encoders of"),
        (["--cases", "pump_9"], "cases of mill_1, pump_1, pump_2"),
        (["--curve", "half"], "shares such as"),
        (["--curve", "2"], "above 0, at most 1"),
        (["--epochs", "0"], "epochs of at least 1"),
        (["--probes", "--encoders", "energy"], "an encoder to probe"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    arguments: list[str], said: str, panel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(panel), "--cache", str(tmp_path / "c.jsonl"), "--in-process", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_an_empty_panel_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--cache", str(tmp_path / "c.jsonl")]) == 2
    assert "train.parquet" in capsys.readouterr().err


def test_s35_s45_the_saturation_curve_is_printed_and_drawn(
    panel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, out = tmp_path / "cache.jsonl", tmp_path / "curve.md"
    chosen = ["--encoders", "raw_windows,energy", "--curve", "0.2,1", "--out", str(out)]
    assert main([str(panel), "--cache", str(cache), *chosen, *QUICK]) == 0
    text = capsys.readouterr().out
    assert "over 3 cases" in text and "20% (41 windows)" in text
    assert [line.split(" | ")[0] for line in text.splitlines() if line[:3] in ("| r", "| e")] == [
        "| raw_windows",
        "| energy",
    ]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG") and "curve.png" in out.read_text()


def test_s44_probes_judge_embedding_raw_windows_and_spectra_on_the_same_folds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_case(tmp_path / "panel", "many", "many", 5, events=[(at, at + 12) for at in range(40, 900, 60)])
    cache, chosen = tmp_path / "cache.jsonl", ["--probes", "--encoders", "features"]
    assert main([str(tmp_path / "panel"), "--cache", str(cache), *chosen, *QUICK]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{name} " in text for name in ("features", "raw windows", "spectrum components"))
    assert "the same for all" in text and "events whole" in text
    scores = {(s["representation"], s["probe"]): s["value"] for s in json.loads(cache.read_text())["probes"]["scores"]}
    assert len(scores) == 9 and scores["raw windows", "svm"] > 0.8


@pytest.mark.slow
def test_random_weights_are_measured_as_never_trained(panel: Path) -> None:
    case, budget = read_cases(panel, ["mill_1"])[0], Budget(epochs=2, windows=150, lookback=8)
    record = measure(case, "random:dense_ae", budget)
    assert record["epochs"] == 0 and record["fit_seconds"] is None and record["parameters"] > 0
    assert record["knn"] == measure(case, "random:dense_ae", replace(budget, epochs=1))["knn"], (
        "no training, no difference"
    )


@pytest.mark.slow
def test_each_encoder_has_a_process_and_a_peak_memory_of_its_own(panel: Path, tmp_path: Path) -> None:
    jobs = jobs_for(read_cases(panel), [RAW], Budget(epochs=1, windows=100, lookback=8), [], False)
    records = run_jobs(jobs, Cache(tmp_path / "c.jsonl"), isolated=True)
    assert len(records) == 3 and all(50 < r["peak_mb"] < 500 for r in records), "no Keras is needed here"


class Dying(Job):
    """A job that takes its process down with it, as one does that runs out of memory."""

    @property
    def call(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os._exit, (3,)


@pytest.mark.slow
def test_a_process_that_dies_is_one_failure_and_the_next_job_gets_a_new_one(panel: Path, tmp_path: Path) -> None:
    case, budget = read_cases(panel, ["mill_1"])[0], Budget(epochs=1, windows=100, lookback=8)
    jobs = [Dying("measure", case, RAW, replace(budget, seed=1)), Job("measure", case, RAW, budget)]
    dead, alive = run_jobs(jobs, Cache(tmp_path / "c.jsonl"), isolated=True)
    assert dead["error"].startswith("BrokenProcessPool") and alive["knn"]["auc"] > 0.9


def test_a_data_set_counts_once_however_many_cases_it_has() -> None:
    of = {f"a{i}": "a" for i in range(6)} | {"b": "b", "c": "c"}
    mean = over_datasets({f"a{i}": 0.0 for i in range(6)} | {"b": 0.6, "c": 0.9}, of)
    assert mean.value == pytest.approx(0.5) and mean.low is not None and mean.low < 0.5
    assert over_datasets({"b": 0.6, "c": float("nan")}, of).low is None


@pytest.mark.parametrize(
    ("rows", "windows", "passes"), [(4000, 4000, 8), (3995, 3995, 8), (2000, 2000, 16), (9, 9, 40)]
)
def test_a_small_case_gets_more_passes_and_a_large_one_a_stride(rows: int, windows: int, passes: int) -> None:
    assert Budget().stride(rows) == 1 and Budget().passes(windows) == passes
    assert Budget().stride(12_000) == 3 and Budget().stride(12_001) == 4


# -- volume under the PR surface -------------------------------------------------------------------------------------


def plain_vus(score: np.ndarray, positive: np.ndarray, window: int) -> float:
    """The published definition, threshold by threshold and row by row."""
    n, areas = len(score), []
    runs = [i for i in range(n) if positive[i] and (i == 0 or not positive[i - 1])]
    events = [(a, next(b for b in range(a, n + 1) if b == n or not positive[b]) - 1) for a in runs]
    for w in range(window + 1):
        soft = positive.astype(float)
        for first, last in events:
            for i in range(n):
                distance = first - i if i < first else i - last
                if 1 <= distance <= w // 2:
                    soft[i] += np.sqrt(1 - distance / w)
        soft = np.minimum(soft, 1)
        zones: list[list[int]] = []
        before, area = 0.0, 0.0
        for i in range(n):
            if soft[i] > 0:
                zones = [*zones[:-1], [*zones[-1], i]] if zones and zones[-1][-1] == i - 1 else [*zones, [i]]
        for k in np.linspace(0, n - 1, 250).astype(int):
            said = score >= np.sort(score)[::-1][k]
            hits = float(soft[said].sum())
            total = (positive.sum() + np.where(positive, 1, soft * said).sum()) / 2
            recall = min(hits / total, 1) * np.mean([said[z].any() for z in zones])
            area, before = area + (recall - before) * hits / said.sum(), recall
        areas.append(area)
    return float(np.mean(areas))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 7))
def test_vus_pr_equals_a_plain_loop(seed: int, window: int) -> None:
    rng = np.random.default_rng(seed)
    score, positive = rng.integers(0, 8, 25).astype(float), rng.random(25) < 0.3
    positive[[3, 20]] = True, False
    assert vus_pr(score, positive, window) == pytest.approx(plain_vus(score, positive, window), abs=1e-12)


def test_vus_pr_of_a_perfect_a_flat_and_a_late_score() -> None:
    positive = np.zeros(300, bool)
    positive[100:120] = True
    assert vus_pr(positive * 1.0, positive, 0) == pytest.approx(1.0)
    assert vus_pr(np.ones(300), positive, 0) == pytest.approx(20 / 300)
    late = np.roll(positive, 5) * 1.0
    assert vus_pr(late, positive, 20) > vus_pr(late, positive, 0), "a little late is forgiven"
    assert np.isnan(vus_pr(np.ones(5), np.zeros(5, bool), 3))


@pytest.mark.parametrize(
    ("score", "window", "message"),
    [([1.0, np.nan], 1, "finite"), ([1.0], 1, "equally long"), ([1.0, 2.0], -1, "0 rows or more")],
)
def test_vus_pr_refuses_what_it_cannot_rank(score: list[float], window: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vus_pr(score, [True, False], window)


def test_soft_labels_of_events_that_are_near_add_up_to_one_at_most() -> None:
    soft = soft_labels(np.array([[2, 3], [5, 6]]), 8, 6)
    assert soft.max() == 1 and soft[3] == soft[4] == 1 and 0 < soft[0] < soft[1] < 1
