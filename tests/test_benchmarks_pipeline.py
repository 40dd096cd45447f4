"""The pipeline benchmark: what it runs on, what it multiplies, what it concludes; and every variant once on few windows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks is no installed package

from anomaly.data.store import SignalsStore
from anomaly.data.store_features import Features
from benchmarks import pipeline, pipeline_races, pipeline_seed, pipeline_table
from benchmarks.pipeline_data import BLOCK, REGIMES, regime_signals, signal_blocks, write_signals
from benchmarks.pipeline_measure import ONE_THREAD, Failed, Taken, private_memory, run_process
from benchmarks.pipeline_table import Line
from registry.bundle import load_bundle

WINDOWS = 2000


def made(variant: str, windows: int, cpu: float, **other: float) -> Taken:
    own: dict[str, Any] = {"wall": cpu / 2, "setup_cpu": 1.0, "base": 300.0, "peak": 400.0, "mapped": 700.0} | other
    return Taken(variant, windows, cpu, **own)


# -- what it runs on -------------------------------------------------------------------------------------------------


def test_signals_are_the_same_each_time_and_a_longer_file_begins_as_a_shorter_one() -> None:
    short, long = list(signal_blocks(BLOCK + 50)), list(signal_blocks(2 * BLOCK))
    assert [len(s) for s, _ in short] == [BLOCK, 50]
    for (a, label), (b, other) in zip(short, long, strict=True):
        np.testing.assert_array_equal(a, b[: len(a)])
        np.testing.assert_array_equal(label, other[: len(label)])
    assert not np.array_equal(short[0][0], next(signal_blocks(BLOCK, seed=1))[0])
    assert not np.array_equal(long[0][0], long[1][0]), "blocks differ"


def test_signals_hold_twenty_regimes_autoregressive_noise_and_the_share_of_anomalies() -> None:
    blocks = list(signal_blocks(8 * BLOCK))
    signals, label = (np.concatenate(column) for column in zip(*blocks, strict=True))
    assert signals.shape == (8 * BLOCK, 32, 3) and signals.dtype == np.float32 and np.isfinite(signals).all()
    assert 0.004 < label.mean() < 0.008
    normal = regime_signals(np.random.default_rng(0), np.full(4000, 3), 32)
    noise = normal - normal.mean(axis=0)  # what is left holds the wave too, whose phase is random
    assert np.corrcoef(noise[:, 10, 0], noise[:, 11, 0])[0, 1] > 0.5, "neighbouring rows go together"
    levels = {
        tuple(regime_signals(np.random.default_rng(0), np.full(500, r), 32).mean(axis=(0, 1)).round(1))
        for r in range(REGIMES)
    }
    assert len(levels) == REGIMES


def test_s1_the_file_and_the_bare_numbers_are_the_same(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    write_signals(tmp_path / "s.h5", 9000, tmp_path / "s.f32", lambda *at: told.append(at))
    bare = np.fromfile(tmp_path / "s.f32", np.float32).reshape(-1, 32, 3)
    with SignalsStore.open(tmp_path / "s.h5") as store:
        np.testing.assert_array_equal(store.signals[:], bare)
        assert store.labels is not None and len(store.labels) == 9000
    assert told == [(8192, 9000), (9000, 9000)]


# -- what it multiplies ----------------------------------------------------------------------------------------------

#: Declared shape, chunk, chunks that a batch of 256 touches, amplification; as in PERFORMANCE §1.
GUESSED = [
    ((100_000, 32, 3), (6250, 2, 1), 48, 24),
    ((1_000_000, 32, 3), (31_250, 1, 1), 96, 122),
    ((20_000_000, 32, 3), (78_125, 1, 1), 96, 305),
    ((100_000, 64), (3125, 4), 16, None),
    ((1_000_000, 64), (15_625, 2), 32, 61),
    ((20_000_000, 64), (78_125, 1), 64, 305),
]


@pytest.mark.parametrize(("shape", "chunk", "touched", "amplification"), GUESSED)
def test_s1_chunks_of_the_literal_loops(
    shape: tuple[int, ...], chunk: tuple[int, ...], touched: int, amplification: int | None
) -> None:
    assert pipeline_seed.guessed_chunk(shape) == chunk
    cost = pipeline_seed.batch_cost(shape)
    assert cost.touched == touched
    if amplification is None:
        assert cost.cached, "0.8 MB fit the cache: each chunk is read once"
    else:
        assert round(cost.amplification) == amplification and not cost.cached


@pytest.mark.parametrize("shape", [(2000, 64), (123_457, 24), (1_000_000, 7, 5), (999, 3), (20_000_000, 64)])
def test_the_guess_is_that_of_h5py(shape: tuple[int, ...], tmp_path: Path) -> None:
    # A file in memory: nothing is written.
    with h5py.File(tmp_path / "none.h5", "w", driver="core", backing_store=False) as file:
        assert file.create_dataset("x", shape, "float32", chunks=True).chunks == pipeline_seed.guessed_chunk(shape)


@pytest.mark.parametrize("windows", [200, 2000, 1_000_000, 20_000_000])
def test_batches_are_sampled_in_the_middle_of_the_first_row_of_chunks(windows: int) -> None:
    batches = pipeline_seed.sampled_batches(windows, 64)
    rows = min(pipeline_seed.guessed_chunk((windows, 64))[0], windows)
    assert 1 <= len(batches) <= pipeline_seed.SAMPLED and batches[0].start % pipeline_seed.BATCH == 0
    assert batches[-1].stop <= max(rows, pipeline_seed.BATCH)
    if windows >= 1_000_000:
        assert len(batches) >= 45
        assert abs((batches[0].start + batches[-1].stop) / 2 - rows / 2) <= pipeline_seed.BATCH


# -- what it concludes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "at", "limit", "verdict"),
    [
        (0.25, "most", 0.25, "met"),
        (0.2501, "most", 0.25, "MISSED"),
        (50.0, "least", 50.0, "met"),
        (49.9, "least", 50.0, "MISSED"),
        (float("nan"), "most", 1.0, "MISSED"),
        (float("nan"), "least", 1.0, "MISSED"),
    ],
)
def test_verdicts(value: float, at: Any, limit: float, verdict: str) -> None:
    assert Line(1, "x", "", value, at, limit).verdict == verdict


def test_end_to_end_counts_the_set_up_and_pass_a_does_not() -> None:
    taken = {
        "ours": [made("ours", 10**6, cpu) for cpu in (8.0, 10.0, 9.0)],
        "batched": [made("batched", 10**6, cpu) for cpu in (40.0, 40.0, 30.0)],
        "ours-features": [made("ours-features", 10**6, 4.0)],
        "bare": [made("bare", 10**6, 3.0)],
    }
    seed = {"microseconds": {"cpu": 900.0, "wall": 1000.0}}
    batched, literal = pipeline_table.end_to_end(taken, seed)
    assert batched.value == pytest.approx(1 / 4) and batched.met  # 5, 4 and 3.3 times: the median round
    assert literal.value == pytest.approx(9 / 900) and literal.met
    (features,) = pipeline_table.features_only(taken)
    assert features.value == pytest.approx(3 / 2) and features.met  # (4 − 1) ÷ (3 − 1)
    assert not pipeline_table.features_only(taken | {"ours-features": [made("ours-features", 10**6, 4.3)]})[0].met


def test_memory_growth_and_linearity() -> None:
    small, large = [made("ours", 250_000, 3.0, peak=400)], [made("ours", 4_000_000, 33.0, peak=430)]
    above, growth = pipeline_table.memory(small, large)
    assert (above.value, above.verdict) == (130, "MISSED") and growth.value == pytest.approx(7.5) and not growth.met
    reads = {"taken": {"ours": [0.05, 0.06], "memmap": [0.03, 0.02]}}
    cpu, read = pipeline_table.linear([made("ours", 1_000_000, 9.0)], large, reads)
    assert cpu.value == pytest.approx(1.0) and cpu.met  # 32 ÷ 4 against 8 µs
    assert read.value == pytest.approx(1 / np.median([0.6, 1 / 3])) and read.met
    slow = pipeline_table.whole_job(made("ours", 20_000_000, 200.0, wall=361.0))
    assert [line.verdict for line in slow] == ["MISSED", "met"]


def test_the_table_and_the_page(tmp_path: Path) -> None:
    lines = [Line(1, "end to end", "8 against 32", 0.25, "most", 0.25), Line(3, "encoding", "", 1.0, "least", 1.5)]
    text = pipeline_table.table(lines)
    assert "| 1 | end to end | 8 against 32 | 1/4 | at most 1/4 | met |" in text and "1 of 2 met." in text
    page = tmp_path / "performance.md"
    pipeline_table.write_page(page, pipeline_table.LARGE_SECTION, "large one")
    pipeline_table.write_page(page, pipeline_table.GOALS_SECTION, text)
    pipeline_table.write_page(page, pipeline_table.LARGE_SECTION, "large two")
    written = page.read_text(encoding="utf-8")
    assert written.startswith(pipeline_table.HEAD) and "large one" not in written
    assert written.index("## Goals") < written.index("1 of 2 met.") < written.index("large two")
    pipeline_table.write_page(page, pipeline_table.GOALS_SECTION, text)
    assert page.read_text(encoding="utf-8") == written, "writing the same again changes nothing"


def test_the_page_names_no_folder_of_the_machine() -> None:
    text = pipeline_table.machine_words("python benchmarks/pipeline.py --windows 10 --rounds 1", (0.5, 1.25))
    assert "load average before 0.50, after 1.25" in text and str(Path.home()) not in text and "cores" in text


def test_the_command_line_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipeline.goals_of("8,1,1") == (1, 8)
    with pytest.raises(SystemExit):
        pipeline.arguments(["--goals", "9"])
    assert "numbers from 1 to 8" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"expected .* GB of room"):
        pipeline.check_room(tmp_path, 10**12, (1,))
    monkeypatch.setattr(pipeline_races.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="PyOD: install the dependency group `bench`"):
        pipeline_races.peer_class("pyod.models.knn", "KNN")


# -- measuring -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the kernel tells no private memory here")
def test_a_process_is_measured_by_its_own_memory_and_its_errors_are_told(tmp_path: Path) -> None:
    script = tmp_path / "grow.py"
    script.write_text(
        "import time\nheld = bytearray(b'x') * (60 << 20)\ntime.sleep(0.4)\nprint('{\"a\": 1}')\n", encoding="utf-8"
    )
    told = run_process(script, [])
    assert told["a"] == 1 and 60 < told["peak"] < 120 and told["peak"] <= told["mapped"]
    assert private_memory()[0] > 1
    script.write_text("raise SystemExit('no such thing')", encoding="utf-8")
    with pytest.raises(Failed, match="no such thing"):
        run_process(script, [])


# -- everything once -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[pipeline.Bench, dict[str, Any]]:
    """Ours, pass A, the bare loop and batched on 2000 windows, and the literal loops."""
    pytest.importorskip("ai_edge_litert")
    bench = pipeline.Bench(tmp_path_factory.mktemp("work"), rounds=1)
    bench.prepare(WINDOWS, raw=True)
    bench.variants(("ours", "ours-features", "bare", "batched"), WINDOWS)
    return bench, bench.seed(WINDOWS, WINDOWS)


@pytest.mark.slow
@pytest.mark.bench
def test_variants_give_the_same_and_are_measured(tiny: tuple[pipeline.Bench, dict[str, Any]]) -> None:
    bench, _ = tiny
    apart = bench.compared()
    assert apart["features"] < 1e-5 and apart["kNN"] < 1e-4 and apart["forest"] < 1e-4
    for runs in bench.by_name(WINDOWS).values():
        assert runs[0].cpu > runs[0].setup_cpu > 0 and runs[0].peak >= runs[0].base > 50
    with Features.open(bench.out("ours")) as features, h5py.File(bench.out("ours-features"), "r") as pass_a:
        embeddings = features.column("features")[:]
        bare = np.fromfile(bench.out("bare"), np.float32).reshape(embeddings.shape)
        raw = np.fromfile(bench.paths(WINDOWS)[1], np.float32).reshape(-1, 32, 3)
        np.testing.assert_allclose(bare, load_bundle(bench.model).encoder.embed(raw), atol=1e-4)  # bare: not scaled
        np.testing.assert_array_equal(pass_a["features"][:], embeddings)
        assert features.column("reduced").shape == (WINDOWS, 32)
        assert {"cluster_id", "stability", "novelty", "energy", "anomaly_score"} <= set(features.names())


@pytest.mark.slow
@pytest.mark.bench
def test_the_literal_loops_run_and_add_up(tiny: tuple[pipeline.Bench, dict[str, Any]]) -> None:
    _, seed = tiny
    assert len(seed["loops"]) == 5 and all(loop["cpu"] > 0 for loop in seed["loops"].values())
    assert seed["microseconds"]["cpu"] == pytest.approx(sum(loop["cpu"] for loop in seed["loops"].values()))
    assert "CPU hours" in pipeline_table.seed_words(seed)


@pytest.mark.slow
@pytest.mark.bench
def test_peers_that_differ_are_refused(tiny: tuple[pipeline.Bench, dict[str, Any]]) -> None:
    bench, _ = tiny
    own = bench.out("ours-wrong")
    own.write_bytes(bench.out("batched").read_bytes())
    with h5py.File(own, "r+") as file:
        file["raw_scores"][:, 0] += 1
    arguments = ["compare", "--model", str(bench.model), "--out", str(bench.out("ours")), "--peer", str(own)]
    with pytest.raises(Failed, match=r"ours and batched differ: .*kNN"):
        run_process(pipeline.HERE / "pipeline_peers.py", arguments)


@pytest.mark.slow
@pytest.mark.bench
@pytest.mark.parametrize("name", ["pca", "forest", "knn"])
def test_races_compare_before_they_run(name: str) -> None:
    if name != "pca":
        pytest.importorskip("pyod")
    own = [name, "--rows", "2560", "--rounds", "1"]
    told = run_process(pipeline.HERE / "pipeline_races.py", own, ONE_THREAD)
    assert all(len(rounds) == 1 and rounds[0] > 0 for rounds in told["taken"].values()) and "ours" in told["taken"]
    limit = {"pca": 1e-3, "forest": 1e-6, "knn": 1e-5}[name]
    assert told["compared"]["angle" if name == "pca" else "difference"] <= limit
