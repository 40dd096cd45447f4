"""Score a log of many assets, each asset by its own model or by its class's: one score file in the order of the log.

One pass sorts the rows by model on disk, then one model after the other is loaded, scores and is let go: one chunk of rows and
one model are held at a time (a neural library keeps a few megabytes more of each). Alerts, ledger and coverage are recorded per
model, as if each had scored its own log.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from alerts.database import Database
from alerts.episodes import Episode
from alerts.store import AlertStore, BatchRecord
from anomaly.config import Settings
from anomaly.data.contract import LogContract
from anomaly.data.quality import Finding, QualityProfile, QualityWatch
from anomaly.data.readers import PlantLog, open_log
from anomaly.drift import Drift
from anomaly.encoders.inference import kind_for
from anomaly.encoders.memory import release_memory
from anomaly.errors import Fault, InputRefused, ModelRefused, UsageError
from anomaly.faults import killpoint
from anomaly.files import atomic_path
from anomaly.fitting import Progress, silent
from anomaly.model import OUTCOMES, UNSCORABLE, AnomalyModel
from pipelines import drift_report
from pipelines.asset_groups import Spool, class_of, from_table, to_table
from pipelines.drift_report import DriftSample
from pipelines.feedback import with_threshold
from pipelines.home import home
from pipelines.ingest import log_files
from pipelines.notify import after_record
from pipelines.outages import outages_in, record_outages
from pipelines.score import SCORES_SCHEMA, Coverage, Scored, Trackers, batch_record, score_table, score_writer, slack_us
from registry.bundle import load_bundle, read_manifest
from registry.catalogue import ResolvedModel, resolve_model
from registry.families import Family, Member

_log = logging.getLogger(__name__)

#: Why a row has no score: no model is there for its asset, or the model was refused.
NO_MODEL, REFUSED = "no_model", "model_refused"

_NAMED = 5


@dataclass
class ScoredFamily(Scored):
    """What a scoring by many models did; ``refused`` maps a model that could not be used to its refusal, ``set_aside`` a file
    that could not be read."""

    models: int = 0
    without_model: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    set_aside: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        own = {"models": self.models, "without_model": list(self.without_model), "refused": self.refused}
        return {**super().to_dict(), **own, "set_aside": self.set_aside}


@dataclass(frozen=True)
class Known:
    """A member whose bundle is on this machine: where, and what it says of itself before it is loaded."""

    member: Member
    model: ResolvedModel
    contract: LogContract
    settings: Settings


def score_family(
    paths: Sequence[Path], family: Family, out: Path, database: str | None, progress: Progress = silent
) -> ScoredFamily:
    """Score the logs at ``paths`` by the models of ``family``, write ``out``, and record alerts in ``database``.

    The rows of an asset that has no model are unscorable (``no_model``), those whose model is refused as well
    (``model_refused: CODE``). A file that is refused or lacks a tag that some model needs is set aside, the others are scored.
    Raises InputRefused where none is left, ModelRefused where no model can be used; then nothing is written.
    """
    files = log_files(paths)
    if out.resolve() in {f.resolve() for f in files}:
        raise UsageError(Fault("E2003", "an output that is not the input", "the log itself", file=str(out)))
    run = ScoredFamily(out)
    known = known_members(family, run.refused)
    progress("check", 0, 1)
    log, run.set_aside = readable_log(files, known)
    progress("check", 1, 1)
    run.notices, job = log.notices, _Job(log, family, known, run, database)
    with (
        tempfile.TemporaryDirectory(prefix="anomaly-family-") as folder,
        Spool(Path(folder) / "rows") as rows,
        Spool(Path(folder) / "scores") as scores,
    ):
        job.sort(rows, progress)
        records = [job.score(name, rows, scores, progress) for name in job.groups]
        with atomic_path(out) as temporary, score_writer(temporary) as writer:
            for table in in_input_order(scores, rows.numbers):
                writer.write_table(table)
    if database is not None:
        _record(database, [r for r in records if r is not None], run)
    job.report_drift()
    run.notices += job.notices()
    return run


@dataclass(frozen=True)
class _Record:
    """What is recorded of one model's rows."""

    batch: BatchRecord
    episodes: list[Episode]
    findings: list[Finding]
    slack_us: int


def _record(database: str, records: list[_Record], run: ScoredFamily) -> None:
    """The models' ledger entries and alerts, then the alerts on sensors; each step may be done again after a kill."""
    for record in records:
        run.recorded |= AlertStore(database).record_batch(record.batch, record.episodes)
        killpoint("score_family.after_record")
    slack = max((r.slack_us for r in records), default=0)
    after_record(database, [f for r in records for f in r.findings], [e for r in records for e in r.episodes], slack)
    record_outages(Database(database), outages_in(run.out))


def shared_contract(contracts: Sequence[LogContract]) -> LogContract:
    """One contract to read a log by for all models: every tag and category that one of them needs.

    A column that only some of the models left out is read for the others. Raises ModelRefused E4003 where the models were
    trained for different periods.
    """
    tags = tuple(dict.fromkeys(t for c in contracts for t in c.tags))
    categories = tuple(dict.fromkeys(k for c in contracts for k in c.categories))
    periods = {c.period_us for c in contracts}
    if len(periods) > 1:
        found = ", ".join(f"{p / 1e6:g} s" for p in sorted(periods))
        raise ModelRefused(Fault("E4003", "models of one sampling period", found, "train the family anew"))
    out = tuple(dict.fromkeys((c, r) for own in contracts for c, r in own.left_out if c not in (*tags, *categories)))
    return replace(contracts[0], tags=tags, categories=categories, left_out=out)


def unscored_table(time: NDArray[np.int64], asset: NDArray[np.object_], reason: str) -> pa.Table:
    """Rows ``(n,)`` that no model can score, in the form of a score file."""
    n = len(time)
    columns: dict[str, Any] = {field.name: pa.nulls(n, field.type) for field in SCORES_SCHEMA}
    columns["time"], columns["asset"] = pa.array(time, pa.timestamp("us", tz="UTC")), pa.array(asset, pa.string())
    columns["outcome"] = pa.array([str(OUTCOMES[UNSCORABLE])] * n)
    columns["reason"] = pa.array([reason] * n)
    columns["top_tags"] = pa.array([[]] * n, SCORES_SCHEMA.field("top_tags").type)
    return pa.table(columns, schema=SCORES_SCHEMA)


def in_input_order(scores: Spool, numbers: int) -> Iterator[pa.Table]:
    """Scored pieces put together again: the rows of each chunk of the log in the order they came."""
    for number in range(numbers):
        pieces = scores.across(number)
        if pieces:
            whole = pa.concat_tables(pieces)
            yield whole.sort_by("row").drop_columns("row").cast(SCORES_SCHEMA)


def readable_log(files: Sequence[Path], known: Mapping[str, Known]) -> tuple[PlantLog, dict[str, str]]:
    """The log of the files that can be read, for all models, and why the others are set aside (issue 6: one asset's file is
    damaged, the others finish).

    Raises InputRefused where no file can be read, or where what is wrong lies in no single file.
    """
    settings = next(iter(known.values())).settings.log
    contract, left, aside = shared_contract([k.contract for k in known.values()]), list(files), dict[str, str]()
    first: InputRefused | None = None
    while left:
        try:
            return open_log(left, settings, contract=contract), aside
        except InputRefused as error:
            first = first or error
            named = {f.file for f in error.faults}
            bad = [path for path in left if str(path) in named]
            if None in named or not bad:
                raise
            for path in bad:
                aside[str(path)] = "\n".join(f.line() for f in error.faults if f.file == str(path))
                _log.warning("%s is set aside: %s", path, aside[str(path)])
            left = [path for path in left if path not in bad]
    raise first or InputRefused(Fault("E3001", "at least one log file", "none"))


def known_members(family: Family, refused: dict[str, str]) -> dict[str, Known]:
    """The members whose bundles are sound, by name; the others are noted in ``refused``. Raises ModelRefused without any."""
    found, first = {}, None
    for member in family.members:
        try:
            model = resolve_model(f"models:/{member.name}@{family.alias}", home())
            parts = read_manifest(model.path)["model"]
            contract, settings = LogContract.from_dict(parts["contract"]), Settings.from_dict(parts["settings"])
            found[member.name] = Known(member, model, contract, settings)
        except ModelRefused as error:
            first = first or error
            refused[member.name] = error.faults[0].line()
            _log.warning("%s cannot be used: %s", member.name, error.faults[0].line())
    if not found:
        raise first or ModelRefused(Fault("E4001", f"a model of {family.name}", "none"))
    return found


class Assignment:
    """Says which member of a family an asset's rows are for: the one that learned from it, else its class's, else NO_MODEL."""

    def __init__(self, family: Family, settings: Settings) -> None:
        self._by_asset = {a: m for m in family.members for a in m.assets}
        self._by_group = {m.group: m for m in family.members}
        self._classes = settings.assets.classes if family.kind == "class" else {}

    def __call__(self, asset: str) -> str:
        member = self._by_asset.get(asset) or self._by_group.get(class_of(asset, self._classes) or "")
        return member.name if member else NO_MODEL


class _Job:
    """The parts of one scoring."""

    def __init__(
        self, log: PlantLog, family: Family, known: dict[str, Known], run: ScoredFamily, database: str | None
    ) -> None:
        self._log, self._family, self._known, self._run, self._database = log, family, known, run, database
        self._group = Assignment(family, next(iter(known.values())).settings)
        self._drift: dict[str, list[Drift]] = {}
        self._said = tuple[str, ...]()
        self.groups: dict[str, int] = {}  # model, or why there is none → rows

    def sort(self, spool: Spool, progress: Progress) -> None:
        """One pass over the log: its rows by the model that is to score them."""
        done, of = 0, dict[str, str]()
        for number, chunk in enumerate(self._log.chunks()):
            of |= {a: self._group(a) for a in map(str, dict.fromkeys(chunk.asset)) if a not in of}
            names = np.array([of[str(a)] for a in chunk.asset], dtype=object)
            for name in dict.fromkeys(names):
                own = chunk.take(names == name)
                spool.add(number, name, to_table(own))
                self.groups[name] = self.groups.get(name, 0) + len(own)
            done += len(chunk)
            progress("sorting by asset", done, self._log.rows)
        self._run.without_model = tuple(a for a, name in of.items() if name == NO_MODEL)

    def score(self, name: str, rows: Spool, scores: Spool, progress: Progress) -> _Record | None:
        """Score the rows of one model into ``scores``; gives what is to be recorded of them."""
        known, model = self._known.get(name), None
        if known is not None:
            try:
                model = load_bundle(known.model.path, expect_digest=known.model.digest)
            except ModelRefused as error:
                self._run.refused[name] = error.faults[0].line()
        if known is None or model is None:
            self._unscored(name, rows, scores)
            return None
        try:
            return self._scored(known, model, rows, scores, progress)
        finally:
            del model
            release_memory()

    def _scored(self, known: Known, model: AnomalyModel, rows: Spool, scores: Spool, progress: Progress) -> _Record:
        name = known.member.name
        model, threshold_told = with_threshold(model, self._database)
        if threshold_told:
            self._run.notices += (f"{name}: {threshold_told}",)
        model.engine_kind = kind_for(self.groups[name])
        own, covered, stream = Scored(self._run.out), Coverage(model.max_gap_us), model.stream()
        trackers, sample = Trackers(model), DriftSample(len(model.contract.tags))
        watch = QualityWatch(
            QualityProfile.from_dict(model.quality), model.contract, max_gap=model.settings.window.max_gap
        )
        for number, piece in rows.pieces(name):
            chunk = from_table(piece, self._log.contract, model.contract)
            scored = stream.score(chunk)
            scores.add(number, name, score_table(scored, model).append_column("row", pa.array(chunk.row)))
            trackers.update(scored)
            watch.update(chunk)
            covered.add(scored)
            sample.add(scored)
            own.rows += len(chunk)
            own.outcomes.update(OUTCOMES[scored.outcome].tolist())
            self._run.reasons.update(r.partition(":")[0] for r in scored.reason.tolist() if r)
            progress("score", self._run.rows + own.rows, self._log.rows)
        own.episodes, own.findings = trackers.finish(), watch.finish()
        self._run.models += 1
        self._add(own.rows, dict(own.outcomes))
        self._run.episodes += own.episodes
        self._run.findings += own.findings
        self._drift[name] = drift_report.drifts(model, sample, len(own.episodes))
        files = self._log.files
        sha256 = files[0].sha256 if len(files) == 1 else self._log.fingerprint
        batch = batch_record(model, name, own, covered, sha256=sha256, file_name=", ".join(f.path.name for f in files))
        return _Record(batch, own.episodes, own.findings, slack_us(model))

    def _unscored(self, name: str, rows: Spool, scores: Spool) -> None:
        """Rows that no model can score."""
        told = self._run.refused.get(name, "")
        reason = f"{REFUSED}: {told.partition(' ')[0]}" if told else NO_MODEL
        for number, piece in rows.pieces(name):
            n, time = piece.num_rows, piece["time"].to_numpy()
            asset = piece["asset"].to_numpy(zero_copy_only=False).astype(object)
            scores.add(number, name, unscored_table(time, asset, reason).append_column("row", piece["row"]))
            self._add(n, {str(OUTCOMES[UNSCORABLE]): n})
            self._run.reasons.update({reason.partition(":")[0]: n})

    def _add(self, rows: int, outcomes: dict[str, int]) -> None:
        self._run.rows += rows
        self._run.outcomes.update(outcomes)

    def report_drift(self) -> None:
        """Write the drift of every model beside the scores."""
        self._run.drifts = [d for own in self._drift.values() for d in own]
        self._said = family_drift(self._family.name, self._drift, drift_report.drift_path(self._run.out))

    def notices(self) -> tuple[str, ...]:
        """What a person should know: assets without a model, models that were refused, drift."""
        said = []
        if self._run.without_model:
            said.append(f"no model for {_some(self._run.without_model)}: their rows are unscorable ({NO_MODEL})")
        said += [f"{name} was refused: {line}" for name, line in self._run.refused.items()]
        said += [f"{path} is set aside: {why}" for path, why in self._run.set_aside.items()]
        said += self._said
        return tuple(said)


def family_drift(name: str, found: Mapping[str, list[Drift]], path: Path) -> tuple[str, ...]:
    """Write the drift of every model to ``path``, whole or not at all; gives what a person should know of it."""
    held = {model: [d.to_dict() for d in own] for model, own in found.items()}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"family": name, "models": held}, indent=1, allow_nan=False), encoding="utf-8")
    drifted = [model for model, own in found.items() if drift_report.notices(own)]
    return (f"drift for {len(drifted)} of {len(found)} models: {_some(drifted)}; see {path.name}",) if drifted else ()


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
