"""Score a log with a model: one row per log row in Parquet, episodes as alerts in the database.

The score file appears whole by rename; then ledger entry, coverage and alerts are one transaction. A run that dies in
between is finished by running the same command again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from alerts.database import Database
from alerts.episodes import Episode, EpisodeRules, EpisodeTracker
from alerts.store import AlertStore, BatchRecord
from anomaly.config import parse_duration
from anomaly.data.contract import LogChunk
from anomaly.data.quality import Finding, QualityProfile, QualityWatch
from anomaly.data.readers import PlantLog, open_log
from anomaly.drift import Drift
from anomaly.encoders.inference import kind_for
from anomaly.errors import Fault, InputRefused, UsageError
from anomaly.faults import killpoint
from anomaly.files import atomic_path
from anomaly.fitting import Progress, silent
from anomaly.model import OUTCOMES, SETTLING, UNSCORABLE, WARM_UP, AnomalyModel, ScoredRows, has_shares
from anomaly.parallel import cores
from anomaly.scores.explain import top_shares
from pipelines import drift_report
from pipelines.drift_report import DriftSample
from pipelines.excerpt import Told
from pipelines.feedback import with_threshold
from pipelines.ingest import log_files
from pipelines.notify import after_record
from pipelines.outages import outages_in, record_outages

SCORES_SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("us", tz="UTC")),
        ("asset", pa.string()),
        ("anomaly_score", pa.float32()),
        ("threshold", pa.float32()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("top_tags", pa.list_(pa.struct([("tag", pa.string()), ("share", pa.float32())]))),
    ]
)


@dataclass
class Scored:
    """What a scoring run did."""

    out: Path
    rows: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    episodes: list[Episode] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    recorded: bool = False
    notices: tuple[str, ...] = ()
    drifts: list[Drift] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return {
            "out": str(self.out),
            "rows": self.rows,
            "outcomes": dict(self.outcomes),
            "reasons": dict(self.reasons),
            "episodes": len(self.episodes),
            "findings": [asdict(f) for f in self.findings],
            "recorded": self.recorded,
            "notices": list(self.notices),
            "drifts": [d.to_dict() for d in self.drifts],
        }


def episode_rules(model: AnomalyModel) -> EpisodeRules:
    """The model's episode settings with the merge gap in microseconds."""
    own = model.settings.episodes
    return EpisodeRules(own.off, own.min_rows, round(own.merge_gap * model.contract.period_us), model.max_gap_us)


def slack_us(model: AnomalyModel) -> int:
    """How long around a sensor's fault windows hold rows of it: one window and the longest step without a break."""
    return model.lookback * model.contract.period_us + model.max_gap_us


def score(
    paths: Sequence[Path],
    model: AnomalyModel,
    model_name: str,
    out: Path,
    database: str | None,
    progress: Progress = silent,
) -> Scored:
    """Score the logs at ``paths``, write ``out``, and record alerts in ``database`` (None: score file only).

    Drift of the rows against what the model learned is written beside ``out`` and told in the notices.

    Raises InputRefused when the log is refused or does not fit the model; then nothing is written.
    """
    files = log_files(paths)
    if out.resolve() in {f.resolve() for f in files}:
        raise UsageError(Fault("E2003", "an output that is not the input", "the log itself", file=str(out)))
    model, threshold_told = with_threshold(model, database)
    log = open_for(model, files, progress)
    model.engine_kind = kind_for(log.rows)
    notices = (*log.notices, threshold_told) if threshold_told else log.notices
    run, covered = Scored(out, notices=notices), Coverage(model.max_gap_us)
    trackers, sample = Trackers(model), DriftSample(len(model.contract.tags))
    profile = QualityProfile.from_dict(model.quality)
    watch = QualityWatch(profile, model.contract, max_gap=model.settings.window.max_gap)
    with atomic_path(out) as temporary, score_writer(temporary) as writer, beside() as follow:

        def note(chunk: LogChunk, rows: ScoredRows) -> None:
            writer.write_table(score_table(rows, model))
            watch.update(chunk)
            covered.add(rows)
            sample.add(rows)
            _count(run, rows)

        done = 0
        with closing(scored_chunks(log, model)) as chunks:
            for chunk, rows in chunks:
                follow(note, chunk, rows)
                trackers.update(rows)  # here: an encoder must not be called by two threads
                progress("score", done := done + len(chunk), log.rows)
    killpoint("score.after_parquet")
    run.episodes, run.findings = trackers.finish(), watch.finish()
    if database is not None:
        sha256 = log.files[0].sha256 if len(log.files) == 1 else log.fingerprint
        names = ", ".join(f.path.name for f in log.files)
        batch = batch_record(model, model_name, run, covered, sha256=sha256, file_name=names)
        run.recorded = AlertStore(database).record_batch(batch, run.episodes)
        killpoint("score.before_findings")
        after_record(database, run.findings, run.episodes, slack_us(model))
        record_outages(Database(database), outages_in(out))
    killpoint("score.after_record")
    run.drifts = drift_report.report(model, sample, len(run.episodes), drift_report.drift_path(out))
    run.notices += drift_report.notices(run.drifts)
    return run


def open_for(model: AnomalyModel, files: Sequence[Path], progress: Progress) -> PlantLog:
    """The logs, checked against the model's contract; InputRefused E3301 when not one window of rows is there."""
    progress("check", 0, 1)
    log = open_log(files, model.settings.log, contract=model.contract)
    progress("check", 1, 1)
    if log.rows < model.lookback:
        hint = "join it with the rows before it"
        found = f"{log.rows} rows"
        raise InputRefused(Fault("E3301", f"at least one window of {model.lookback} rows", found, hint, str(files[0])))
    return log


def scored_chunks(log: PlantLog, model: AnomalyModel) -> Generator[tuple[LogChunk, ScoredRows], None, None]:
    """The log's chunks beside their scored rows, in input order."""
    stream = model.stream()
    with closing(read_ahead(log.chunks())) as chunks:
        for chunk in chunks:
            yield chunk, stream.score(chunk)


def read_ahead(items: Iterator[LogChunk]) -> Generator[LogChunk, None, None]:
    """The same chunks in their order, each read on another thread while the one before is used; at most one waits.

    An error of reading is raised where its chunk would have come. On one core everything is read where it is asked for.
    """
    if cores() < 2:
        yield from items
        return
    with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
        coming = reader.submit(next, items, None)
        while (chunk := coming.result()) is not None:
            coming = reader.submit(next, items, None)
            yield chunk


@contextmanager
def beside() -> Iterator[Callable[..., None]]:
    """Calls on one other thread, one after another in their order, at most one waiting; on one core they are made at once.

    An error of a call is raised at the next one, or at the end.

    >>> with beside() as follow:
    ...     follow(print, 1)
    ...     follow(print, 2)
    1
    2
    """
    if cores() < 2:
        yield lambda call, *given: call(*given)
        return
    last: Future[Any] | None = None

    def follow(call: Callable[..., Any], *given: Any) -> None:
        nonlocal last
        if last is not None:
            last.result()
        last = worker.submit(call, *given)

    with ThreadPoolExecutor(1, thread_name_prefix="write") as worker:
        yield follow
        if last is not None:
            last.result()


class Trackers:
    """One episode tracker per asset."""

    def __init__(self, model: AnomalyModel) -> None:
        self._model, self._own = model, dict[str, EpisodeTracker]()
        self._ranges = model.normal_ranges()

    def update(self, rows: ScoredRows) -> None:
        """Follow the next scored rows; an asset's repeated times count once."""
        assets = dict.fromkeys(rows.asset)
        for asset in assets:
            mine = rows if len(assets) == 1 else rows.take(rows.asset == asset)
            fresh = np.concatenate(([True], mine.time[1:] != mine.time[:-1]))
            mine = mine if fresh.all() else mine.take(fresh)
            tracker = self._own.setdefault(asset, self._new(asset))
            told = np.full(len(mine.time), "", dtype=object)
            for i in np.flatnonzero(mine.evidence != None):  # noqa: E711  an array is compared element by element
                told[i] = Told(self._model, self._ranges, mine.shares[i], mine.evidence[i])
            tracker.update(mine.time, mine.score, OUTCOMES[mine.outcome], mine.reason, mine.shares, told)

    def _new(self, asset: str) -> EpisodeTracker:
        model = self._model
        return EpisodeTracker(asset, model.threshold.value, episode_rules(model), model.contract.tags)

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What goes on, as JSON-ready values and arrays; episodes that can grow no more are left out."""
        plain, arrays = list[dict[str, Any]](), dict[str, NDArray[Any]]()
        for number, (asset, tracker) in enumerate(self._own.items()):
            own, held = tracker.to_state()
            plain.append({**own, "asset": asset, "done": []})
            arrays |= {f"{number}/{name}": array for name, array in held.items()}
        return {"assets": plain}, arrays

    @classmethod
    def from_state(cls, model: AnomalyModel, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Trackers:
        """Trackers that go on where ``to_state`` was called."""
        made, threshold, rules = cls(model), model.threshold.value, episode_rules(model)
        for number, own in enumerate(settings["assets"]):
            held = {k.partition("/")[2]: v for k, v in arrays.items() if k.startswith(f"{number}/")}
            asset, tags = str(own["asset"]), model.contract.tags
            made._own[asset] = EpisodeTracker.from_state(asset, threshold, rules, tags, own, held)
        return made

    def finish(self) -> list[Episode]:
        """All episodes, in time order."""
        found = [e for tracker in self._own.values() for e in tracker.finish()]
        return sorted(found, key=lambda e: (e.start_us, e.asset))


def score_writer(path: Path) -> pq.ParquetWriter:
    """A writer of a score file at ``path``."""
    return pq.ParquetWriter(path, SCORES_SCHEMA, compression="zstd", write_page_checksum=True)


def score_table(rows: ScoredRows, model: AnomalyModel) -> pa.Table:
    """Scored rows in the form of ``SCORES.parquet``; an unscorable row has a null score."""
    columns = [
        pa.array(rows.time, pa.timestamp("us", tz="UTC")),
        pa.array(rows.asset, pa.string()),
        pa.array(rows.score, pa.float32(), from_pandas=True),
        pa.array(np.full(len(rows.time), model.threshold.value, np.float32)),
        pa.array(OUTCOMES, pa.string()).take(pa.array(rows.outcome)),
        pa.array(rows.reason, pa.string()),
        _tag_lists(rows, model),
    ]
    return pa.Table.from_arrays(columns, schema=SCORES_SCHEMA)


class Coverage:
    """Time that was fully answered, per asset: stretches without a gap, and without warm-up, settling or unscorable rows.

    A warm-up row is scored on a padded window, a settling one without the rows before the log, an unscorable one not at
    all, so a fuller log may still have something to say about them.
    """

    def __init__(self, max_gap_us: int) -> None:
        self._max_gap_us = max_gap_us
        self.spans: dict[str, list[tuple[int, int]]] = {}

    def add(self, rows: ScoredRows) -> None:
        """Follow the next scored rows."""
        partly = (rows.reason == WARM_UP) | (rows.reason == SETTLING)
        answered = rows.take(~partly & (rows.outcome != UNSCORABLE))
        for asset in dict.fromkeys(answered.asset):
            time = answered.time[answered.asset == asset]
            edges = np.flatnonzero(np.diff(time) > self._max_gap_us) + 1
            spans = self.spans.setdefault(asset, [])
            for piece in np.split(time, edges):
                first, end = int(piece[0]), int(piece[-1]) + 1
                if spans and first - spans[-1][1] < self._max_gap_us:
                    spans[-1] = (spans[-1][0], max(spans[-1][1], end))
                else:
                    spans.append((first, end))


def _tag_lists(rows: ScoredRows, model: AnomalyModel) -> pa.ListArray:
    """The largest shares of every row as lists of (tag, share); empty where it has none. No Python loop over rows."""
    column, share = top_shares(rows.shares)
    scorable = has_shares(rows)
    offsets = np.concatenate(([0], np.cumsum(scorable * column.shape[1]))).astype(np.int32)
    tags = pa.array(model.contract.tags, pa.string()).take(pa.array(column[scorable].ravel()))
    pairs = pa.StructArray.from_arrays([tags, pa.array(share[scorable].ravel(), pa.float32())], ["tag", "share"])
    return pa.ListArray.from_arrays(pa.array(offsets), pairs)


def _count(run: Scored, rows: ScoredRows) -> None:
    run.rows += len(rows.time)
    run.outcomes.update(OUTCOMES[rows.outcome].tolist())
    run.reasons.update(r.partition(":")[0] for r in rows.reason.tolist() if r)


def batch_record(
    model: AnomalyModel, model_name: str, run: Scored, covered: Coverage, *, sha256: str, file_name: str
) -> BatchRecord:
    """The ledger's entry for a scored log; ``sha256`` is the log's digest, by which it is known when it comes again."""
    return BatchRecord(
        sha256=sha256,
        model=model.digest or model.contract.fingerprint(),
        model_name=model_name,
        file_name=file_name,
        rows=run.rows,
        outcomes=dict(run.outcomes),
        covered=covered.spans,
        score_path=str(run.out),
        lead_us=parse_duration(model.settings.window.lead) or None,
        merge_gap_us=episode_rules(model).merge_gap_us,
    )
