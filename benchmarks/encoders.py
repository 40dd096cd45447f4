"""Every encoder on every case of a panel of logs: how well its embeddings rank test rows, and what that costs.

    python benchmarks/encoders.py PANEL                      one table of all encoders, raw windows and hand-made features beside
    python benchmarks/encoders.py PANEL --curve 0.05,0.2,1   the same with less training data: a saturation curve
    python benchmarks/encoders.py PANEL --probes             linear, kNN and SVM probes of embeddings against raw windows

PANEL holds one folder per case with train.parquet, test.parquet and meta.json. All encoders get the same windows, the same
epochs and the same detector (distance to a bank of normal embeddings). Results are kept in --cache, case by case: a run
that was killed goes on where it stopped. Each encoder runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a file run by its path sees only its own folder

from anomaly.encoders import ENCODERS
from anomaly.errors import AnomalyError, Fault, UsageError
from anomaly.files import atomic_path
from benchmarks.encoder_cases import RANDOM, RAW, REFERENCES, Budget, Case, measure, probe_case, read_cases
from benchmarks.encoder_tables import Curve, Record, Results, dataset_table, failures, main_table

DEFAULT_CACHE = Path(".anomaly") / "benchmarks" / "encoders.jsonl"


@dataclass(frozen=True)
class Job:
    """One thing to measure: ``encoder`` is a name, for probes several with commas between."""

    kind: str  # "measure" or "probes"
    case: Case
    encoder: str
    budget: Budget

    @property
    def key(self) -> str:
        """What a kept result must have been made of."""
        return _key(self.kind, self.case.name, self.encoder, asdict(self.budget))

    @property
    def call(self) -> tuple[Callable[..., Record], tuple[Any, ...]]:
        """The function that does it, and its arguments."""
        if self.kind == "probes":
            return probe_case, (self.case, self.encoder.split(","), self.budget)
        return measure, (self.case, self.encoder, self.budget)


def _key(kind: str, case: str, encoder: str, budget: dict[str, Any]) -> str:
    return json.dumps([kind, case, encoder, budget], sort_keys=True)


class Cache:
    """Results in a JSON-lines file, one appended as soon as it is there; a line that a kill cut off is not one."""

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self.path, self._known = path, dict[str, Record]()
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            path.unlink(missing_ok=True)
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                record = json.loads(line)
                self._known[_key(record["kind"], record["case"], record["encoder"], record["budget"])] = record
            except (ValueError, KeyError, TypeError):
                continue

    def get(self, job: Job) -> Record | None:
        """The kept result of ``job``; failures are not kept for good, they are tried again."""
        found = self._known.get(job.key)
        return None if found is None or "error" in found else found

    def put(self, job: Job, record: Record) -> None:
        """Keep a result; it is on the disk when this returns."""
        self._known[job.key] = record
        torn = self.path.is_file() and self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(("\n" if torn else "") + json.dumps(record) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


class Workplace:
    """Where jobs run: a fresh process per encoder, or this process. What a job raises becomes its record's error."""

    def __init__(self, isolated: bool) -> None:
        self.isolated = isolated
        self._pool: Executor | None = None
        self._encoder = ""

    def run(self, job: Job) -> Record:
        """The job's record, failed or not."""
        if self._pool is None or job.encoder != self._encoder:
            self.close()
            self._pool, self._encoder = self._new(), job.encoder
        function, arguments = job.call
        future = self._pool.submit(function, *arguments)
        error = future.exception()
        if isinstance(error, BrokenExecutor):
            self.close()
        if error is None:
            return future.result() | {"kind": job.kind}
        said = "; ".join(f.line() for f in error.faults) if isinstance(error, AnomalyError) else _named(error)
        return {"kind": job.kind, "case": job.case.name, "dataset": job.case.dataset, "encoder": job.encoder,
                "budget": asdict(job.budget), "error": said}  # fmt: skip

    def _new(self) -> Executor:
        if self.isolated:
            return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        return ThreadPoolExecutor(1)

    def close(self) -> None:
        """End the process."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def run_jobs(jobs: Sequence[Job], cache: Cache, *, isolated: bool, seconds: float | None = None) -> list[Record]:
    """Do what is not kept yet, and say how it goes; stops after ``seconds``. Gives every record that there is."""
    place, began, found = Workplace(isolated), time.monotonic(), list[Record]()
    try:
        for number, job in enumerate(jobs, start=1):
            record = cache.get(job)
            if record is None:
                if seconds is not None and time.monotonic() - began > seconds:
                    print(f"time is up: {number - 1} of {len(jobs)} looked at; run it again to go on", file=sys.stderr)
                    break
                started = time.monotonic()
                record = place.run(job)
                cache.put(job, record)
                _say(number, len(jobs), job, record, time.monotonic() - started)
            found.append(record)
    finally:
        place.close()
    return found


def _say(number: int, total: int, job: Job, record: Record, took: float) -> None:
    result = record.get("error") or ("probed" if job.kind == "probes" else f"VUS-PR {record['knn']['vus_pr']:.3f}")
    share = "" if job.budget.share == 1 else f" at {job.budget.share:.0%}"
    print(f"[{number}/{total}] {job.encoder} × {job.case.name}{share}: {result} ({took:.1f} s)", file=sys.stderr)


def comparison(records: Sequence[Record], budget: Budget, asked: int) -> list[str]:
    """The main table, the table by data set, and what failed."""
    results = Results.of(records)
    lines = [*_protocol(budget, asked - len(records)), "", *main_table(results), "", *dataset_table(results)]
    failed = failures(records)
    return [*lines, "", "Not measured:", "", *failed] if failed else lines


def _protocol(budget: Budget, missing: int) -> list[str]:
    """What all had in common, in words."""
    said = (
        f"Windows of {budget.lookback} rows, front `{budget.front}`, the stride such that a case has at most "
        f"{budget.windows} training windows; {budget.epochs} epochs of batches of {budget.batch_size}, up to five times "
        f"as many where a case has fewer windows; seed {budget.seed}; the epoch of lowest validation loss. Learned from "
        "the first 80 % of each training log, the rest is the validation part; one seed, no figure of a test part chose "
        "anything. Score of a row: distance of the window that ends at it to 2500 normal embeddings (k 3). Means over "
        "data sets with a 95 % interval from drawing data sets again; costs are medians over cases, peak memory is the "
        "largest."
    )
    return [said] + ([f"Not finished: {missing} results are missing."] if missing else [])


def curve_report(records: Sequence[Record], budget: Budget, picture: Path | None) -> list[str]:
    """The saturation curve as a table; drawn to ``picture`` (METHODS S35, S45)."""
    curve = Curve.of(records)
    lines = [f"Saturation over {len(curve.cases)} cases where every point could be measured: the newest part of the "
             f"training rows, {budget.epochs} epochs or up to five times as many.", "", *curve.table()]  # fmt: skip
    if picture is not None and curve.points:
        with atomic_path(picture) as temporary:
            curve.draw(temporary)
        lines += ["", f"![saturation]({picture.name})"]
    failed = failures(records)
    return [*lines, "", "Not measured:", "", *failed] if failed else lines


def probe_report(records: Sequence[Record]) -> list[str]:
    """The probe tables, case by case."""
    lines = [part for r in records if "text" in r for part in (f"{r['case']}:", "", "```", r["text"], "```", "")]
    return [*lines, *failures(records)]


def jobs_for(
    cases: Sequence[Case], encoders: Sequence[str], budget: Budget, shares: Sequence[float], probes: bool
) -> list[Job]:
    """What was asked for, encoder by encoder, so that an encoder's process serves all its cases."""
    if probes:
        names = ",".join(n for n in encoders if n != RAW and n not in REFERENCES)
        if not names:
            raise UsageError(Fault("E2001", "an encoder to probe", ", ".join(encoders)))
        return [Job("probes", case, names, budget) for case in cases]
    budgets = [replace(budget, share=share) for share in shares] or [budget]
    return [Job("measure", c, e, b) for e, b, c in itertools.product(encoders, budgets, cases)]


def usual_encoders() -> list[str]:
    """All registered ones, raw windows, one network that was never trained, and scores without windows."""
    return [*REFERENCES, RAW, *ENCODERS, f"{RANDOM}dense_ae"]


def _chosen_encoders(text: str | None) -> list[str]:
    names = usual_encoders() if text is None else [n.strip() for n in text.split(",") if n.strip()]
    for name in names:
        if name not in (*REFERENCES, RAW) and name.removeprefix(RANDOM) not in ENCODERS:
            raise UsageError(Fault("E2002", f"encoders of {', '.join(usual_encoders())}", name))
    return names


def _shares(text: str | None) -> list[float]:
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError as error:
        raise UsageError(Fault("E2001", "shares such as 0.05,0.2,1", text)) from error


def parser() -> argparse.ArgumentParser:
    """The command line."""
    usual, made = (
        Budget(),
        argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter),
    )
    made.add_argument("panel", type=Path, help="folder of cases")
    made.add_argument(
        "--encoders", help=f"names with commas between; also {RAW}, {RANDOM}NAME, {', '.join(REFERENCES)}"
    )
    made.add_argument("--cases", help="names with commas between; all by default")
    made.add_argument("--epochs", type=int, default=usual.epochs)
    made.add_argument("--windows", type=int, default=usual.windows, help="most training windows of a case")
    made.add_argument("--lookback", type=int, default=usual.lookback)
    made.add_argument("--batch-size", type=int, default=usual.batch_size)
    made.add_argument("--seed", type=int, default=usual.seed)
    made.add_argument("--front", default=usual.front, help="local normalisation that windows pass first")
    made.add_argument("--curve", help="shares of the training rows, such as 0.05,0.2,1")
    made.add_argument("--probes", action="store_true", help="probe the embeddings with labels instead")
    made.add_argument("--seconds", type=float, help="begin nothing new after so long; run again to go on")
    made.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="kept results, JSON lines")
    made.add_argument("--fresh", action="store_true", help="forget kept results: needed when an encoder has changed")
    made.add_argument("--in-process", action="store_true", help="no process per encoder; peak memory is then of all")
    made.add_argument("--out", type=Path, help="write the tables here too; a curve is drawn beside it as .png")
    return made


def report(chosen: argparse.Namespace) -> Iterator[str]:
    """Measure what was asked for; the lines to print. Raises UsageError, InputRefused."""
    cases = read_cases(chosen.panel, chosen.cases.split(",") if chosen.cases else ())
    settings = ("epochs", "windows", "lookback", "batch_size", "seed", "front")
    budget = Budget(**{name: getattr(chosen, name) for name in settings})
    encoders, shares = _chosen_encoders(chosen.encoders), _shares(chosen.curve)
    jobs = jobs_for(cases, encoders, budget, shares, chosen.probes)
    records = run_jobs(jobs, Cache(chosen.cache, chosen.fresh), isolated=not chosen.in_process, seconds=chosen.seconds)
    if chosen.probes:
        yield from probe_report(records)
    elif shares:
        yield from curve_report(records, budget, chosen.out and chosen.out.with_suffix(".png"))
    else:
        yield from comparison(records, budget, len(jobs))


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; 0, or the exit status of the refusal."""
    chosen = parser().parse_args(arguments)
    try:
        text = "\n".join(report(chosen)) + "\n"
        print(text, end="")
        if chosen.out is not None:
            with atomic_path(chosen.out) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except AnomalyError as error:
        print("\n".join(fault.line() for fault in error.faults), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
