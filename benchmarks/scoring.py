"""How near `anomaly score` comes to the bare model call on the same windows, and whether its memory grows with the log.

    python benchmarks/scoring.py [--rows 1000000 10000000] [--rounds 3] [--work FOLDER] [--write docs/benchmarks-scoring.md]

A Parquet log of made-up values (24 tags at 10 seconds, one fault in 5000 rows) is written in blocks, and a model of the default
recipe is trained by the command. Each run is a process of its own, turn by turn: ``bare`` has the log's prepared rows in memory
and passes their windows, views of 2048 at a time, through encoder, detectors, fusion and calibration, on as many threads as
scoring takes; ``score`` is `anomaly score --no-alerts`, ``alerts`` the same command with an empty alert database. Rates count
from where the model is loaded and its engine made; what lies before is told apart as the start. Rates are taken at the first
of ``--rows``, peak memory (the kernel's VmHWM) of ``alerts`` at each of them. Linux only. A folder given as ``--work`` keeps
log and model for the next run; a million rows take 100 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a file run by its path sees only its own folder

TAGS, TRAIN_ROWS = 24, 30_000
VARIANTS = ("bare", "score", "alerts")
GOAL_RATIO, GOAL_GROWTH = 0.7, 1.05
HEAD = ("| what | goal | figure | verdict |", "|---|---|---|---|")
_BLOCK = 50_000
_PERIOD_US, _FIRST_US = 10_000_000, 1_767_225_600_000_000
#: Rows from one fault to the next in the log that is scored, and in the one to learn from, which needs a dozen; of a fault.
_EVERY, _EVERY_TRAINED, _LEAD, _FAULT = 5000, 1000, 4, 3


@dataclass(frozen=True)
class Taken:
    """What one process took: seconds until the model was ready (``start``), after it (``work``), CPU seconds of all threads
    after it, peak MB, facts."""

    rows: int
    start: float
    work: float
    cpu: float
    peak: float
    facts: dict[str, Any]

    @property
    def rate(self) -> float:
        """Rows a second after the start."""
        return self.rows / self.work


def generated(first: int, rows: int, every: int = _EVERY, tags: int = TAGS) -> pa.Table:
    """Rows ``first`` to ``first + rows``: slow waves with noise, and ``every`` so many a fault of three with a precursor."""
    rng = np.random.default_rng(first)
    at = np.arange(first, first + rows)
    values = np.sin(at[:, None] / (300 + 40 * np.arange(tags))) + rng.normal(0, 0.05, (rows, tags))
    phase = at % every
    near = phase >= every - _FAULT - _LEAD
    values[near, :2] += 1.5
    columns = {"time": pa.array(_FIRST_US + _PERIOD_US * at).cast(pa.timestamp("us", "UTC"))}
    columns |= {f"tag{i}": pa.array(np.round(values[:, i], 4).astype(np.float32)) for i in range(tags)}
    columns["label"] = pa.array((phase >= every - _FAULT).astype(np.int8))
    return pa.table(columns)


def write_log(path: Path, rows: int, every: int = _EVERY) -> Path:
    """The log at ``path``, written block by block; a file that is there is left as it is."""
    if path.exists():
        return path
    unfinished = path.with_suffix(".part")
    with pq.ParquetWriter(unfinished, generated(0, 1).schema) as writer:
        for low in range(0, rows, _BLOCK):
            writer.write_table(generated(low, min(_BLOCK, rows - low), every))
    return unfinished.rename(path)


def train(folder: Path, rows: int = TRAIN_ROWS, more: Iterable[str] = ()) -> Path:
    """The bundle of a model of the default recipe, trained by the command in ``folder``; one that is there is kept."""
    bundle = folder / f"model-{rows}"
    if not bundle.exists():
        log = write_log(folder / f"train-{rows}.parquet", rows, _EVERY_TRAINED)
        command = [sys.executable, "-m", "pipelines.cli", "train", str(log), "--time", "time", "--label", "label"]
        own = {**os.environ, "ANOMALY_HOME": str(folder / "home"), "TF_CPP_MIN_LOG_LEVEL": "2"}
        _ran([*command, "--lead", f"{_LEAD * 10}s", "--out", str(bundle), "--json", *more], own)
    return bundle


def measured(variant: str, log: Path, model: Path) -> Taken:
    """One run of ``variant`` in a process of its own, with a state folder of its own."""
    with tempfile.TemporaryDirectory(dir=log.parent) as home:
        own = {**os.environ, "ANOMALY_HOME": home, "TF_CPP_MIN_LOG_LEVEL": "2"}
        own.pop("ANOMALY_DB_URL", None)
        out, began = Path(home) / "scores.parquet", repr(time.time())
        said = _ran([sys.executable, __file__, "--one", variant, str(log), str(model), str(out), began], own)
    return Taken(**json.loads(said.strip().splitlines()[-1]))


def _ran(command: list[str], environment: dict[str, str]) -> str:
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[1:4]} ended with {done.returncode}: {done.stderr.strip()[-1500:]}")
    return done.stdout


def one(variant: str, log: Path, model: Path, out: Path, began: float) -> Taken:
    """Run ``variant`` in this process, which was started at ``began`` (seconds since 1970)."""
    return bare(log, model, began) if variant == "bare" else command(variant, log, model, out, began)


def bare(log: Path, bundle: Path, began: float) -> Taken:
    """The model alone: prepared rows in memory, their windows as views, nothing read and nothing written."""
    from anomaly.data.windows import ending_windows
    from anomaly.encoders.inference import kind_for
    from anomaly.parallel import in_order
    from anomaly.stream import _BATCH
    from registry.bundle import load_bundle

    model = load_bundle(bundle)
    rows, since = prepared(log, model)
    model.engine_kind = kind_for(len(rows))
    engine = model.engine()
    blocks = range(0, len(rows), _BATCH)

    def scored(low: int) -> np.ndarray:
        own = slice(low, low + _BATCH)
        earlier = rows[max(low - model.lookback + 1, 0) : low]
        fused = model.window_scores(ending_windows(rows[own], since[own], model.lookback, earlier))[0]
        return fused if model.calibrator is None else model.calibrator.transform(fused)

    list(in_order(scored, blocks[:4]))
    start, clock, cpu = time.time() - began, time.perf_counter(), time.process_time()
    for _ in in_order(scored, blocks):
        pass
    facts = {"engine": engine.name, "detectors": ", ".join(model.ensemble.names)}
    work, spent = time.perf_counter() - clock, time.process_time() - cpu
    return Taken(len(rows), start, work, spent, peak_megabytes(), facts)


def prepared(log: Path, model: Any) -> tuple[np.ndarray, np.ndarray]:
    """The prepared rows ``(n, C + K + C)`` of a log without a gap, and rows since its start ``(n,)``."""
    from anomaly.data.readers import open_log
    from anomaly.data.scaling import hold_last

    parts, state, tail, seen = [], None, None, 0
    for chunk in open_log([log], model.settings.log, contract=model.contract).chunks():
        since = np.arange(seen, seen + len(chunk))
        held, _, state = hold_last(chunk.values, since == 0, state)
        codes = model.vocabulary.codes(chunk.categories)
        parts.append(model.prepare(held, codes, since.copy, tail))
        seen, tail = seen + len(chunk), parts[-1][-model.history :]
    return np.concatenate(parts), np.arange(seen)


def command(variant: str, log: Path, bundle: Path, out: Path, began: float) -> Taken:
    """`anomaly score` as the command line runs it, its clock started where the model is loaded and its engine made."""
    from pipelines import cli
    from pipelines import score as scoring

    run, taken = scoring.score, list[Taken]()

    def timed(paths: Any, model: Any, *others: Any, **more: Any) -> Any:
        model.engine_kind = scoring.kind_for(pq.ParquetFile(paths[0]).metadata.num_rows)
        engine = model.engine()
        start, clock, cpu = time.time() - began, time.perf_counter(), time.process_time()
        done = run(paths, model, *others, **more)
        facts = {"engine": engine.name, "alerts": len(done.episodes), "outcomes": dict(done.outcomes)}
        work, spent = time.perf_counter() - clock, time.process_time() - cpu
        taken.append(Taken(done.rows, start, work, spent, peak_megabytes(), facts))
        return done

    scoring.score = timed
    flags = ["--no-alerts"] if variant == "score" else []
    cli.app(["score", str(log), "--model", str(bundle), "--out", str(out), "--json", *flags], standalone_mode=False)
    return taken[0]


def peak_megabytes() -> float:
    """The highest resident memory of this process (Linux); getrusage would hand down the parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


Runs = dict[tuple[str, int], list[Taken]]


def all_runs(folder: Path, rows: list[int], rounds: int, model: Path) -> Runs:
    """Every variant at the first of ``rows``, turn by turn and round by round, then ``alerts`` once at the others."""
    runs: Runs = {}
    todo = [(variant, rows[0]) for _ in range(rounds) for variant in VARIANTS] + [("alerts", n) for n in rows[1:]]
    for variant, n in todo:
        log = write_log(folder / f"log-{n}.parquet", n)
        taken = measured(variant, log, model)
        print(f"{time.strftime('%H:%M:%S')}  {variant} {n:,}: {taken.rate:,.0f} rows/s", file=sys.stderr, flush=True)
        runs.setdefault((variant, n), []).append(taken)
    return runs


def verdict(holds: bool) -> str:
    """The word in the last column."""
    return "holds" if holds else "MISSED"


def goal_lines(runs: Runs) -> Iterator[str]:
    """The table: one line per goal, with the medians of the rounds."""
    first = next(iter(runs))[1]
    peaks = {n: median(t.peak for t in runs["alerts", n]) for variant, n in runs if variant == "alerts"}
    yield from HEAD
    for variant, what in (("score", "`anomaly score --no-alerts`"), ("alerts", "`anomaly score` with alerts")):
        pairs = list(zip(runs["bare", first], runs[variant, first], strict=True))
        ratio = median(b.work / o.work for b, o in pairs)
        ours, least = median(o.rate for _, o in pairs), median(b.rate for b, _ in pairs)
        figure = f"{ours:,.0f} against {least:,.0f} rows/s: {ratio:.2f}"
        told = verdict(ratio >= GOAL_RATIO)
        yield f"| {what}, of the bare model call at {first:,} rows | at least {GOAL_RATIO} | {figure} | {told} |"
    small, large = min(peaks), max(peaks)
    if small != large:
        growth = peaks[large] / peaks[small]
        figure = f"{peaks[small]:.0f} and {peaks[large]:.0f} MB: {growth:.3f}"
        told = verdict(growth <= GOAL_GROWTH)
        yield f"| peak memory at {small:,} and {large:,} rows | at most {GOAL_GROWTH} | {figure} | {told} |"


def run_lines(runs: Runs) -> Iterator[str]:
    """Every run as it was."""
    yield "| run | rows | start s | after it s, each round | µs a row | CPU µs a row | peak MB | alerts |"
    yield "|---|---|---|---|---|---|---|---|"
    for (variant, n), taken in runs.items():
        each, cost = ", ".join(f"{t.work:.1f}" for t in taken), median(t.work / t.rows for t in taken) * 1e6
        spent = median(t.cpu / t.rows for t in taken) * 1e6
        start, peak = median(t.start for t in taken), median(t.peak for t in taken)
        alerts = taken[0].facts.get("alerts", "–")
        yield f"| {variant} | {n:,} | {start:.1f} | {each} | {cost:.1f} | {spent:.1f} | {peak:.0f} | {alerts} |"


def page(runs: Runs, told: str, load: tuple[float, float]) -> str:
    """The page that ``--write`` writes."""
    facts = next(iter(runs.values()))[0].facts
    when = f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}; {os.cpu_count()} cores, "
    return "\n".join([
        "# Speed and memory of scoring", "",
        "Written by `benchmarks/scoring.py`, which says what each run does.", "",
        f"- `{told}`",
        f"- {when}load average before {load[0]:.2f}, after {load[1]:.2f}",
        f"- {TAGS} tags; detectors {facts['detectors']}; engine {facts['engine']}", "",
        *goal_lines(runs), "", *run_lines(runs), "",
    ])  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Read the arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train-rows", type=int, default=TRAIN_ROWS)
    parser.add_argument("--epochs", type=int, help="most epochs of the training; the recipe's by default")
    parser.add_argument("--work", type=Path, help="folder that keeps log and model; a temporary one by default")
    parser.add_argument("--write", type=Path, help="page to write")
    parser.add_argument("--one", nargs=5, metavar=("VARIANT", "LOG", "MODEL", "OUT", "BEGAN"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        variant, log, model, out, began = given.one
        print(json.dumps(vars(one(variant, Path(log), Path(model), Path(out), float(began)))))
        return
    work = given.work or Path(tempfile.mkdtemp(prefix="scoring-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        more = [] if given.epochs is None else ["--epochs", str(given.epochs)]
        before, model = os.getloadavg()[0], train(work.resolve(), given.train_rows, more)
        runs = all_runs(work.resolve(), given.rows, given.rounds, model)
    finally:
        if given.work is None:
            shutil.rmtree(work, ignore_errors=True)
    flags = [f"--rows {' '.join(map(str, given.rows))}", f"--rounds {given.rounds}"]
    flags += [] if given.epochs is None else [f"--epochs {given.epochs}"]
    text = page(runs, f"python benchmarks/scoring.py {' '.join(flags)}", (before, os.getloadavg()[0]))
    print(text)
    if given.write:
        given.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
