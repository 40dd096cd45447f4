"""The driver's end of Spark scoring: shards become the score file or folder, and one entry in the alert database."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alerts.database import Database
from alerts.store import AlertStore, BatchRecord
from anomaly.data.quality import Finding
from anomaly.errors import Fault, Unavailable, UsageError
from anomaly.faults import killpoint
from anomaly.files import atomic_path
from anomaly.model import OUTCOMES, AnomalyModel, ScoredRows
from pipelines.asset_scoring import FOUND, evidence_of, unpacked
from pipelines.drift_report import DriftSample
from pipelines.notify import after_record
from pipelines.outages import outages_in, record_outages
from pipelines.score import SCORES_SCHEMA, Coverage, Scored, Trackers, batch_record, score_writer, slack_us
from pipelines.spark_job import Inspected, Job, fingerprint

#: A score file without rows that marks a folder of ours, which a later run may replace; readers pass over its name.
MARK = "_anomaly_scores"


@dataclass
class SparkScored(Scored):
    """What scoring on Spark did: ``set_aside`` maps files and assets to reasons, ``alone`` assets scored in one stretch to
    reasons, ``workers`` the processes that scored to their stretches."""

    set_aside: dict[str, str] = field(default_factory=dict)
    alone: dict[str, str] = field(default_factory=dict)
    stretches: int = 0
    workers: Counter[str] = field(default_factory=Counter)
    session_s: float = 0.0
    told: dict[tuple[str, int], int] = field(default_factory=dict)  # rows that the shard of (asset, piece) holds

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        more = {"set_aside": self.set_aside, "alone": self.alone, "stretches": self.stretches}
        return super().to_dict() | more | {"workers": dict(self.workers), "session_s": self.session_s}


def check_target(out: Path, paths: Sequence[Path]) -> None:
    """Raise UsageError E2003 where scores would fall on the log at ``paths`` or on a folder that is not ours."""
    check_apart(out, paths)
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).exists():
        hint = "name a new folder, or a .parquet file"
        raise UsageError(Fault("E2003", "a new folder, or one of scores", "a folder of other files", hint, str(out)))
    if out.is_dir() != is_folder(out) and out.exists():
        raise UsageError(Fault("E2003", "a .parquet file or a folder by its name", "the other kind", file=str(out)))


def check_apart(out: Path, paths: Sequence[Path]) -> None:
    """Raise UsageError E2003 where ``out`` is the log at ``paths``, around it or within it."""
    target = out.resolve()
    for path in (p.resolve() for p in paths):
        if target == path or target in path.parents or (path.is_dir() and path in target.parents):
            raise UsageError(Fault("E2003", "an output apart from the log", "a path within it", file=str(out)))


def is_folder(out: Path) -> bool:
    """Whether scores go to a folder, a file per asset, or to one Parquet file."""
    return out.suffix.lower() != ".parquet"


@dataclass(frozen=True)
class Bound:
    """A model with the threshold at work, and the name that its alerts are recorded under."""

    name: str
    model: AnomalyModel


class Own:
    """What is recorded of one model's rows: figures, coverage, drift's ``sample``, and the ledger entry once it is whole."""

    def __init__(self, bound: Bound, out: Path) -> None:
        self.bound, self.run = bound, Scored(out)
        self.covered, self.sample = Coverage(bound.model.max_gap_us), DriftSample(len(bound.model.contract.tags))
        self.slack_us = slack_us(bound.model)
        self.batch: BatchRecord | None = None

    def finish(self, files: Sequence[Inspected]) -> None:
        """All rows are there: make the ledger entry, and let the model go."""
        self.run.episodes.sort(key=lambda e: (e.start_us, e.asset))
        names = ", ".join(Path(f.file.path).name for f in files)
        known, name = self.bound.model, self.bound.name
        self.batch = batch_record(known, name, self.run, self.covered, sha256=fingerprint(files), file_name=names)
        del self.bound


#: The model of an asset, None where it has none; and what is done with a model's part once it is whole.
Models = Callable[[str], "Bound | None"]
Whole = Callable[[Bound, Own], None]


def commit(
    run: SparkScored,
    job: Job,
    models: Models,
    files: Sequence[Inspected],
    database: str | None,
    whole: Whole = lambda bound, own: None,
) -> dict[str, Own]:
    """Write scores by asset and time, then record each model's alerts and coverage; again changes nothing.

    A model is asked for where its asset comes, and none is kept beyond its last asset. Gives what was noted by model.
    """
    assets = sorted(set(job.cuts) - set(run.set_aside))
    owns, last = dict[str, Own](), {str(job.scorers[a]): a for a in assets}
    with _scores(run.out) as writer:
        for asset in assets:
            bound = models(asset)
            if bound is None:
                _unscored(asset, run, job, writer)
                continue
            own = owns.setdefault(bound.name, Own(bound, run.out))
            _asset(asset, run, job, writer, bound.model, own)
            if last[str(job.scorers[asset])] == asset:
                whole(bound, own)
                own.finish(files)
    killpoint("score.after_parquet")
    for own in owns.values():
        _add(run, own.run)
    run.episodes.sort(key=lambda e: (e.start_us, e.asset))
    run.findings.sort(key=lambda f: (f.asset, f.start_us, f.kind, f.tag, f.end_us))
    if database is not None:
        for own in owns.values():
            if own.batch is not None:
                run.recorded |= AlertStore(database).record_batch(own.batch, own.run.episodes)
        killpoint("score.before_findings")
        slack = max((own.slack_us for own in owns.values()), default=0)
        after_record(database, run.findings, run.episodes, slack)
        record_outages(Database(database), outages_in(run.out))
    killpoint("score.after_record")
    return owns


def _add(run: SparkScored, own: Scored) -> None:
    run.rows += own.rows
    run.outcomes.update(own.outcomes)
    run.reasons.update(own.reasons)
    run.episodes += own.episodes


class _Scores:
    """Where scored rows are written: one Parquet file, or a folder with a file per asset."""

    def __init__(self, place: Path, folder: bool) -> None:
        self._place, self._asset = place, "" if folder else None
        self._writer = score_writer(place / MARK if folder else place)

    def write(self, asset: str, table: pa.Table) -> None:
        """Add the next rows of ``asset``; the rows of an asset come together."""
        if self._asset is not None and asset != self._asset:
            self.close()
            own = self._place / f"asset={quote(asset, safe=' ')}"
            own.mkdir()
            self._writer, self._asset = score_writer(own / "scores.parquet"), asset
        self._writer.write_table(table)

    def close(self) -> None:
        """End the file that is open."""
        self._writer.close()


@contextmanager
def _scores(out: Path) -> Iterator[_Scores]:
    folder = is_folder(out)
    with atomic_path(out, folder=folder) as temporary:
        writer = _Scores(temporary, folder)
        try:
            yield writer
        finally:
            writer.close()


def _asset(asset: str, run: SparkScored, job: Job, writer: _Scores, model: AnomalyModel, own: Own) -> None:
    """One asset's shards, in time order: rows written, episodes followed over the edges of stretches.

    What the sensor rules found is taken from an asset's only stretch; of several they are not told from their parts.
    """
    tags, categories, trackers = len(model.contract.tags), len(model.contract.categories), Trackers(model)
    for held in _shards(asset, run, job):
        found = json.loads(held.schema.metadata[FOUND])
        writer.write(asset, held.select(SCORES_SCHEMA.names).cast(SCORES_SCHEMA))
        for batch in held.to_batches(max_chunksize=1 << 16):
            table = pa.Table.from_batches([batch])
            rows = scored_rows(table, tags, categories)
            own.run.rows += len(rows.time)
            own.run.outcomes.update(OUTCOMES[rows.outcome].tolist())
            own.run.reasons.update(r.partition(":")[0] for r in rows.reason.tolist() if r)
            own.covered.add(rows)
            trackers.update(rows)
            add_sampled(own.sample, rows, table)
        count_operating(own.sample, found)
        if job.cuts[asset].pieces == 1:
            run.findings += [Finding(**f) for f in found["findings"]]
    own.run.episodes += trackers.finish()


def _unscored(asset: str, run: SparkScored, job: Job, writer: _Scores) -> None:
    """An asset without a model: its rows are written and counted, nothing else."""
    for held in _shards(asset, run, job):
        writer.write(asset, held.select(SCORES_SCHEMA.names).cast(SCORES_SCHEMA))
        run.rows += held.num_rows
        run.outcomes.update(held["outcome"].to_pylist())
        run.reasons.update(r.partition(":")[0] for r in held["reason"].to_pylist())


def _shards(asset: str, run: SparkScored, job: Job) -> Iterator[pa.Table]:
    """The asset's scored stretches, in time order; a stretch of time without a row has none."""
    for piece in range(job.cuts[asset].pieces):
        if (asset, piece) in run.told:
            yield _read(job.shard(asset, piece), run.told[asset, piece])


def _read(shard: Path, rows: int) -> pa.Table:
    """A shard as the worker told of it; raises Unavailable E5005 where it is not there or holds other rows."""
    try:
        held = pq.read_table(shard)
    except (OSError, pa.ArrowInvalid) as error:
        raise _lost(shard, error) from error
    if held.num_rows != rows:
        raise _lost(shard, f"{held.num_rows} rows where the worker wrote {rows}")
    return held


def _lost(shard: Path, found: object) -> Unavailable:
    hint = "log, model and output must be on a file system that all workers share"
    return Unavailable(Fault("E5005", "the rows that a worker scored", found, hint, str(shard)))


def scored_rows(table: pa.Table, tags: int, categories: int) -> ScoredRows:
    """The rows of a shard ``(n,)``; shares ``(n, C)`` are those of anomalous rows, zero elsewhere; nothing is ``prepared``."""
    n = table.num_rows
    shares = np.zeros((n, tags), np.float32)
    told = table["shares"].is_valid().to_numpy()
    shares[told] = unpacked(table["shares"].drop_null(), tags)
    codes = {name: code for code, name in enumerate(OUTCOMES.tolist())}
    nothing = np.empty((n, 0), np.float32)
    return ScoredRows(
        time=table["time"].cast(pa.int64()).to_numpy(),
        asset=table["asset"].to_numpy(),
        score=table["anomaly_score"].to_numpy().astype(np.float32),
        outcome=np.array([codes[o] for o in table["outcome"].to_pylist()], np.int8),
        reason=table["reason"].to_numpy(),
        shares=shares,
        prepared=nothing,
        alone=nothing,
        evidence=evidence_of(table, tags, categories),
    )


def add_sampled(sample: DriftSample, rows: ScoredRows, table: pa.Table) -> None:
    kept = table["prepared"].is_valid().to_numpy()
    before, span = sample.operating, sample.span
    prepared = unpacked(table["prepared"].drop_null(), sample.tags)
    sample.add(replace(rows.take(kept), prepared=prepared))
    sample.operating, sample.span = before, span  # counted from what the shard says of all its rows


def count_operating(sample: DriftSample, found: dict[str, Any]) -> None:
    sample.operating += int(found["operating"])
    if found["span"]:
        first, last = found["span"]
        held = sample.span or (first, last)
        sample.span = min(held[0], first), max(held[1], last)


def discard(shards: Path) -> None:
    """Remove the shards of a job that is done."""
    shutil.rmtree(shards, ignore_errors=True)
