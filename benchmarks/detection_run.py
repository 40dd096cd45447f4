"""Jobs of the detection benchmark: a method on a trial, kept in a folder, a few processes at a time.

Scores are kept, not figures alone: the same metric code runs over all of them, and a changed metric costs no training.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import math
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from anomaly.errors import AnomalyError
from anomaly.files import atomic_path
from benchmarks import detection_cases, detection_metrics, detection_ours, detection_peers, encoder_cases, vus
from benchmarks.detection_cases import data_digest, read_trial, segment_starts
from benchmarks.detection_learning import changed, variant_version
from benchmarks.detection_ours import CENTRED, ENCODER, OURS

Record = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
_FIXED = {"always": 0.5, "never": 0.5}
_PRODUCT = ("anomaly", "registry", "pipelines")
_MESSAGE = 500


@dataclass(frozen=True)
class Job:
    """A method on a case under a variant."""

    case: encoder_cases.Case
    method: str
    variant: str = detection_cases.PLAIN

    @property
    def base(self) -> str:
        """The method whose scores are computed: the centred score is a mean of the causal ones."""
        return OURS if self.method == CENTRED else self.method

    def key(self) -> str:
        """What kept scores must have been made of."""
        parts = (_data(self.case), self.variant, variant_version(self.variant), self.base, code_version(self.base))
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]

    def record(self) -> Record:
        """The empty record of this job."""
        names = {"case": self.case.name, "dataset": self.case.dataset}
        return {**names, "method": self.method, "variant": self.variant}


@cache
def _data(case: encoder_cases.Case) -> str:
    return data_digest(case)


@cache
def code_version(method: str) -> str:
    """A digest that changes when ``method`` might score otherwise: its own source, what prepares its rows, its packages;
    for ours the source of the whole product."""
    source = hashlib.sha256(inspect.getsource(detection_cases).encode())
    if method == OURS or method.startswith(ENCODER):
        for folder in _PRODUCT:
            for path in sorted((ROOT / folder).rglob("*.py")):
                source.update(path.read_bytes())
        source.update(inspect.getsource(detection_ours).encode())
        return source.hexdigest()[:20]
    function = (detection_peers.REFERENCES | detection_peers.PEERS)[method]
    helpers: list[Any] = [detection_peers.prepared, detection_peers.Scaler, detection_peers.windows, detection_peers.drawn,
               detection_peers._numbers, detection_peers._filled]  # fmt: skip
    helpers += [detection_peers._pyod] if method.startswith("pyod_") else []
    helpers += [detection_peers._dense_autoencoder] if method.startswith("seed_") else []
    for part in (function, *helpers):
        source.update(inspect.getsource(part).encode())
    source.update((ROOT / "anomaly" / "baselines.py").read_bytes())
    packages = ["numpy", "scikit-learn", *(["pyod"] if method.startswith("pyod_") else [])]
    packages += ["keras"] if method.startswith("seed_") else []
    source.update(json.dumps([importlib.metadata.version(name) for name in packages]).encode())
    return source.hexdigest()[:20]


class Cache:
    """Scores in a folder, one file per job; a file is there whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, job: Job) -> Path:
        """Where the scores of ``job`` are kept."""
        name = f"{job.base}-{job.case.name}".replace(":", "_").replace("/", "_")
        return self.folder / f"{name}-{job.key()}.npz"

    def figures(self, job: Job) -> Record | None:
        """The figures kept for ``job`` by the metric code of today, or None."""
        path = self.figures_path(job)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def figures_path(self, job: Job) -> Path:
        """Where the figures of ``job`` are kept."""
        return self.path(job).with_suffix(f".{metric_version()}{'c' if job.method == CENTRED else ''}.json")


@cache
def metric_version() -> str:
    """A digest of the metric code."""
    source = "".join(inspect.getsource(module) for module in (detection_metrics, vus, detection_cases))
    return hashlib.sha256(source.encode()).hexdigest()[:10]


def compute(job: Job, target: Path) -> None:
    """Score both passes of ``job`` and keep the scores at ``target``, with the seconds of the full pass."""
    trial = changed(read_trial(job.case), job.variant)
    found, seconds, lookback = {}, dict[str, float](), 0
    for name, (train, rows) in trial.passes().items():
        started = time.perf_counter()
        if job.base == OURS or job.base.startswith(ENCODER):
            found[name], lookback = detection_ours.product_scores(job.base, train, rows)
        else:
            found[name] = detection_peers.peer_scores(job.base, train, rows, trial.period_us)
        seconds[name] = time.perf_counter() - started
    with atomic_path(target) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream, full=found["full"], held=found["held"], seconds=seconds["full"], lookback=np.int64(lookback)
        )


def judge(job: Job, scores: Path) -> Record:
    """Figures of kept scores, JSON-ready: NaN becomes None."""
    trial = changed(read_trial(job.case), job.variant)
    with np.load(scores, allow_pickle=False) as kept:
        score, held, seconds, lookback = kept["full"], kept["held"], float(kept["seconds"]), int(kept["lookback"])
    if job.method == CENTRED:
        frames = [rows for _, rows in trial.passes().values()]
        score, held = (
            detection_ours.centred(own, segment_starts(frame, trial.period_us), lookback)
            for own, frame in zip((score, held), frames, strict=True)
        )
    own = detection_metrics.figures(trial, score, held, _FIXED.get(job.method))
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in own.items()}
    return {**job.record(), **plain, "seconds": seconds}


def work(job: Job, scores: Path, figures: Path) -> Record:
    """What a process does for ``job``: scores where they are not kept, then figures.

    The paths hold the digest of the code; they are named once per run, so that an edit meanwhile does not part them.
    """
    if not scores.is_file():
        compute(job, scores)
    record = judge(job, scores)
    with atomic_path(figures) as temporary:
        temporary.write_text(json.dumps(record), encoding="utf-8")
    return record


def run_jobs(jobs: Sequence[Job], kept: Cache, processes: int) -> list[Record]:
    """Every job's record in the order of ``jobs``, kept or new; what fails is told in its record and tried again next time.

    ``processes`` run at a time; with 0 the work is done in this process. Jobs that need the scores of another run after it.
    """
    found = {job: record for job in jobs if (record := kept.figures(job)) is not None}
    waiting = [job for job in jobs if job not in found]
    with _shown(len(jobs), len(found)) as tell:
        for stage in ([j for j in waiting if j.base == j.method], [j for j in waiting if j.base != j.method]):
            for job, record in _finished(stage, kept, processes):
                found[job] = record
                tell(job, record)
    return [found[job] for job in jobs]


def _finished(jobs: Sequence[Job], kept: Cache, processes: int) -> Iterator[tuple[Job, Record]]:
    if not jobs:
        return
    with _pool(processes) as pool:
        futures: dict[Future[Record], Job] = {}
        for job in jobs:
            futures[pool.submit(work, job, kept.path(job), kept.figures_path(job))] = job
        try:
            for future in as_completed(futures):
                job, error = futures[future], future.exception()
                yield job, future.result() if error is None else _failed(job, error)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _pool(processes: int) -> Executor:
    if not processes:
        return ThreadPoolExecutor(1)
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // processes, 1)))
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_the_run)


def _end_with_the_run() -> None:
    """A killed run must not leave a process behind that goes on fitting."""

    def watch(run: BaseProcess | None) -> None:
        if run is not None:
            run.join()
            os._exit(1)

    threading.Thread(target=watch, args=(multiprocessing.parent_process(),), daemon=True).start()


def _failed(job: Job, error: BaseException) -> Record:
    if isinstance(error, AnomalyError):
        said = "; ".join(fault.line() for fault in error.faults)
    else:
        words = "the process ended" if isinstance(error, BrokenProcessPool) else str(error)
        said = f"{type(error).__name__}: {words}"
    return {**job.record(), "error": " ".join(said.split())[:_MESSAGE]}


@contextmanager
def _shown(total: int, done: int) -> Iterator[Any]:
    """A function to tell a finished job to: a bar on a terminal, a line each elsewhere."""
    if not sys.stderr.isatty():
        numbers = iter(range(done + 1, total + 1))
        yield lambda job, record: print(f"[{next(numbers)}/{total}] {_line(job, record)}", file=sys.stderr)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield partial(_advance, bar, task)


def _advance(bar: Any, task: Any, job: Job, record: Record) -> None:
    bar.update(task, advance=1, description=_line(job, record))


def _line(job: Job, record: Record) -> str:
    variant = "" if job.variant == detection_cases.PLAIN else f" ({job.variant})"
    vus_pr, seconds = record.get("vus_pr"), record.get("seconds", 0.0)
    result = record.get("error") or f"VUS-PR {math.nan if vus_pr is None else vus_pr:.3f} ({seconds:.1f} s)"
    return f"{job.method} × {job.case.name}{variant}: {result}"
