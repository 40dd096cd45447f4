"""Score files as they land in a folder: windows, smoothing and episodes go on from file to file, exactly once after a kill.

A turn takes the files that have settled, puts their rows in order within the limit of lateness, scores what no row in time
can come before, writes one score file, and saves the state with the batch that is still to be recorded. Only then does the
alert database get the batch; its ledger knows a batch it had before.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from alerts.episodes import Episode
from alerts.store import AlertStore, BatchRecord
from anomaly.config import parse_duration
from anomaly.data.readers import PlantLog, open_log
from anomaly.drift import Drift
from anomaly.errors import Fault, InputRefused, Unavailable, UsageError
from anomaly.faults import killpoint
from anomaly.files import atomic_path, sha256
from anomaly.model import OUTCOMES, AnomalyModel, ScoredRows
from pipelines import drift_report
from pipelines.drift_report import DriftSample
from pipelines.feedback import with_threshold
from pipelines.notify import after_record
from pipelines.score import episode_rules, score_table, score_writer, slack_us
from pipelines.watch_sensors import sensor_watch
from pipelines.watch_state import WatchState, model_key

_log = logging.getLogger(__name__)

QUARANTINE, REASON = "quarantine", ".reason.txt"
STATE, HEARTBEAT = "state.npz", "heartbeat.json"
#: Rows that are gathered before some are released, and files of one turn: bounds of memory, and of what a kill costs.
_HELD_ROWS, FILES_A_TURN = 65_536, 64
#: Refusals that mean "not ready": the file went away or was being written while it was read.
_NOT_READY = {"E3001", "E3008"}
_DRIFT_SPAN_US = 7 * 86_400_000_000
_DATABASE_WAIT_S = 5.0


@dataclass(frozen=True)
class WatchOptions:
    """``lateness_us``: how long a row may come after newer ones. ``ahead_us``: how far times may lie ahead of the clock.

    ``settle_s``: a file is read once its size and modification time stayed the same for so long.
    """

    lateness_us: int = 600_000_000
    ahead_us: int = 86_400_000_000
    settle_s: float = 1.0


@dataclass
class Turn:
    """What one turn did, or several added up; ``quarantined`` maps file names to reasons."""

    files: int = 0
    repeated: int = 0
    rows: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    episodes: int = 0
    scores: list[Path] = field(default_factory=list)
    quarantined: dict[str, str] = field(default_factory=dict)
    not_ready: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def add(self, other: Turn) -> None:
        """Count another turn in."""
        for name in ("files", "repeated", "rows", "episodes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.outcomes.update(other.outcomes)
        self.scores += other.scores
        self.notices += other.notices
        self.quarantined |= other.quarantined
        self.not_ready = other.not_ready

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return {**vars(self), "outcomes": dict(self.outcomes), "scores": [str(p) for p in self.scores]}


class Landing:
    """Tells which files of a folder have settled; names with a leading dot, links and other kinds of files are passed over."""

    def __init__(self, folder: Path, settle_s: float) -> None:
        self._folder, self._settle_s = folder, settle_s
        self._seen: dict[str, tuple[list[int], float]] = {}

    def look(self) -> tuple[dict[str, list[int]], int]:
        """Name to stamp (size, modification time in ns) of the settled files, by name, and how many have not settled."""
        now, settled, seen = time.monotonic(), dict[str, list[int]](), dict[str, tuple[list[int], float]]()
        for path in sorted(self._folder.iterdir()):
            if path.suffix.lower() not in (".csv", ".parquet") or path.name.startswith(".") or path.is_symlink():
                continue
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            if not path.is_file():
                continue
            stamp = [stat.st_size, stat.st_mtime_ns]
            since = self._seen.get(path.name, (None, now))
            seen[path.name] = (stamp, since[1] if since[0] == stamp else now)
            still = max(time.time() - stat.st_mtime, now - seen[path.name][1])
            if still >= self._settle_s:
                settled[path.name] = stamp
        self._seen = seen
        return settled, len(seen) - len(settled)


class Watch:
    """The scoring of one folder with one model, turn by turn; its state lies in the folder ``place``.

    ``database`` None records nothing. Raises UsageError E2003 where scores would land in the watched folder.
    """

    def __init__(
        self,
        folder: Path,
        model: AnomalyModel,
        model_name: str,
        out: Path,
        database: str | None,
        place: Path,
        options: WatchOptions = WatchOptions(),
    ) -> None:
        if not folder.is_dir():
            raise UsageError(Fault("E2001", "a folder to watch", "no such folder", file=str(folder)))
        if out.resolve() == folder.resolve():
            raise UsageError(Fault("E2003", "another folder for the scores", "the watched folder", file=str(out)))
        self.folder, self.out, self.place, self.options = folder, out, place, options
        self.model_name = model_name
        self._store = None if database is None else AlertStore(database, wait_s=_DATABASE_WAIT_S)
        self._loaded = self.model = model
        model.engine_kind = "auto"
        self._sensors = sensor_watch(model)
        self._episodes: list[Episode] = []  # recorded, but not yet looked at for floods
        model = self.model = self._with_threshold()[0]
        self.state = WatchState.load(place / STATE, model, options.lateness_us)
        if not (place / STATE).exists():  # the name of the score files must outlive a kill in the first turn
            self.state.save(place / STATE)
        self.found: list[Drift] = []  # the drift that was told last
        self.landing = Landing(folder, options.settle_s)

    # -- what there is to do ------------------------------------------------------------------------------------------

    def new_files(self) -> tuple[dict[str, list[int]], int]:
        """Settled files that were not taken yet, and how many files have not settled."""
        found, unsettled = self.landing.look()
        known = self.state.files
        return {n: s for n, s in found.items() if n not in known or known[n]["stamp"] != s}, unsettled

    def turn(self, files: dict[str, list[int]], everything: bool = False) -> Turn:
        """Take ``files`` (from ``new_files``), score what can be scored, save; ``record`` comes after. With ``everything`` no
        row waits on.

        Raises Unavailable E5002 for the disk; then the turn did not happen, but for files that were quarantined.
        """
        done = Turn()
        if files:
            self._follow_threshold(done)
        try:
            scored = self._scored(files, everything, done)
            if files or done.rows:
                self._close(scored, done)
        except BaseException:
            self.state = WatchState.load(self.place / STATE, self.model, self.options.lateness_us)
            self._sensors = sensor_watch(self.model)
            raise
        return done

    def record(self) -> int:
        """Record what the ledger may not have yet, oldest first; gives how many batches were new to it.

        Raises Unavailable E5001 where the database does not answer; what was not recorded is kept for the next try.
        """
        new = 0
        while self._store is not None and self.state.unrecorded:
            batch, episodes = self.state.unrecorded[0]
            new += self._store.record_batch(batch, episodes)
            killpoint("watch.after_record")
            self._episodes += episodes
            del self.state.unrecorded[0]
        if self._store is not None and (self._sensors.fresh or self._episodes):
            after_record(self._store.database, self._sensors.findings(), self._episodes, slack_us(self.model))
            self._sensors.fresh, self._episodes = False, []
        return new

    def use(self, model: AnomalyModel) -> None:
        """Go on with another model of the same sensors; raises UsageError E2001 for others."""
        model.engine_kind = "auto"
        self._loaded, before = model, self._loaded
        model = self._with_threshold()[0]
        try:
            self.state.with_model(model)
        except UsageError:
            self._loaded = before
            raise
        self.model, self._sensors = model, sensor_watch(model)

    def _with_threshold(self) -> tuple[AnomalyModel, str]:
        """The model with the threshold that people set, and that in words; as it is where the database does not answer."""
        database = None if self._store is None else self._store.database
        try:
            return with_threshold(self._loaded, database)
        except Unavailable as error:
            _log.warning("the threshold stays as it is: %s", error)
            known = self.model if self.model.digest == self._loaded.digest else self._loaded
            return known, ""

    def _follow_threshold(self, done: Turn) -> None:
        """Go on with another threshold where people set one since the last turn: rows that come are judged by it."""
        model, told = self._with_threshold()
        if model.threshold.value != self.model.threshold.value:
            self.model = model
            self.state = WatchState.load(self.place / STATE, model, self.options.lateness_us)
            done.notices.append(told or f"the model's own threshold {model.threshold.value:.6g} holds again")

    # -- a turn -------------------------------------------------------------------------------------------------------

    def _scored(self, files: dict[str, list[int]], everything: bool, done: Turn) -> _Part:
        """Read, order and score; the score file appears when all of it is written."""
        order = self.state.order
        with ExitStack() as stack:
            part = _Part(self, self.out / f"scores-{self.state.name}-{self.state.sequence + 1:08d}.parquet", stack)
            for name, stamp, log in self._opened(files, done):
                faults = self._faults(log)
                if faults:
                    self._quarantine(name, stamp, InputRefused(faults), done)
                    continue
                for chunk in log.chunks():
                    order.admit(chunk)
                    if order.rows >= _HELD_ROWS:
                        part.score(done)
                self.state.files[name] = {"stamp": stamp, "sha256": log.files[0].sha256}
                done.files += 1
            part.score(done, everything)
        killpoint("watch.after_scores")
        return part

    def _opened(self, files: dict[str, list[int]], done: Turn) -> Iterator[tuple[str, list[int], PlantLog]]:
        """The files that can be read, by the time of their first row; the others are set aside."""
        known = {held["sha256"] for held in self.state.files.values()}
        logs = []
        for name, stamp in files.items():
            path = self.folder / name
            try:
                digest = sha256(path)
                if digest not in known:
                    logs.append((name, stamp, open_log([path], self.model.settings.log, self.model.contract)))
                    known.add(digest)
                    continue
            except (InputRefused, OSError) as error:
                codes = {f.code for f in error.faults} if isinstance(error, InputRefused) else _NOT_READY
                if codes <= _NOT_READY:
                    done.not_ready[name] = str(error)
                elif isinstance(error, InputRefused):
                    self._quarantine(name, stamp, error, done)
                continue
            self.state.files[name] = {"stamp": stamp, "sha256": digest}
            done.repeated += 1
        yield from sorted(logs, key=lambda entry: (entry[2].files[0].first_us, entry[0]))

    def _faults(self, log: PlantLog) -> list[Fault]:
        """Why a file that can be read cannot be taken: times ahead of the clock, rows too late, other values than before."""
        file, limit = log.files[0], time.time_ns() // 1000 + self.options.ahead_us
        if file.last_us > limit:
            expected = f"times up to {np.datetime64(limit, 'us')}, a little ahead of the clock"
            return [
                Fault("E3207", expected, np.datetime64(file.last_us, "us"), "check the logger's clock", str(file.path))
            ]
        if self.state.order.in_order(file.first_us):
            return []
        return [f for chunk in log.chunks() for f in self.state.order.faults(chunk, str(file.path))][:20]

    def _quarantine(self, name: str, stamp: list[int], error: InputRefused, done: Turn) -> None:
        """Move a file aside with the reason beside it; where it cannot be moved it is passed over from now on."""
        path, aside = self.folder / name, self.folder / QUARANTINE
        done.quarantined[name] = str(error)
        _log.warning("%s is quarantined: %s", name, error)
        try:
            target = aside / name
            number = 1
            while target.exists():
                number += 1
                target = aside / f"{path.stem}.{number}{path.suffix}"
            with atomic_path(target.with_name(target.name + REASON)) as temporary:
                temporary.write_text(f"{error}\n", encoding="utf-8")
            killpoint("watch.before_quarantine")
            path.replace(target)
        except (OSError, Unavailable) as failed:
            done.notices.append(f"{name} cannot be moved to {aside}: {failed}")
            self.state.files[name] = {"stamp": stamp, "sha256": ""}

    def _close(self, part: _Part, done: Turn) -> None:
        """The turn becomes part of the state, with the batch that is to be recorded."""
        state, model = self.state, self.model
        state.files = {name: held for name, held in state.files.items() if (self.folder / name).exists()}
        if done.rows:
            now = state.trackers.finish()
            known = {(e.asset, e.start_us): e for e in state.told}
            changed = [e for e in now if known.get((e.asset, e.start_us)) != e]
            new = sum((e.asset, e.start_us) not in known for e in now)
            done.episodes, state.alerts, state.told = new, state.alerts + new, now
            state.trackers = type(state.trackers).from_state(model, *state.trackers.to_state())
            state.sequence, state.rows = state.sequence + 1, state.rows + done.rows
            done.scores.append(part.path)
            if self._store is not None:
                state.unrecorded.append((self._batch(part.path, done), changed))
            state.covered.spans = {asset: spans[-1:] for asset, spans in state.covered.spans.items()}
        state.save(self.place / STATE)
        killpoint("watch.after_state")

    def _batch(self, path: Path, done: Turn) -> BatchRecord:
        return BatchRecord(
            sha256=sha256(path),
            model=model_key(self.model),
            model_name=self.model_name,
            file_name=path.name,
            rows=done.rows,
            outcomes=dict(done.outcomes),
            covered={asset: list(spans) for asset, spans in self.state.covered.spans.items()},
            score_path=str(path),
            lead_us=parse_duration(self.model.settings.window.lead) or None,
            merge_gap_us=episode_rules(self.model).merge_gap_us,
        )

    # -- what is told -------------------------------------------------------------------------------------------------

    def drift(self) -> list[Drift]:
        """Drift of the rows scored since the sample began, kept beside the scores; nothing where there are no rows."""
        if not self.state.sample.operating:
            return []
        path = self.out / f"scores-{self.state.name}.drift.json"
        self.found = drift_report.report(self.model, self.state.sample, self.state.alerts, path)
        return self.found

    def heartbeat(self, trouble: str = "") -> None:
        """Say in a file that the watch is alive, how far it is, and what is wrong."""
        order = self.state.order
        newest = {asset: known.newest for asset, known in order.answered.items()}
        content = {"time": time.time(), "pid": os.getpid(), "sequence": self.state.sequence, "rows": self.state.rows,
                   "waiting": order.rows, "unrecorded": len(self.state.unrecorded), "newest_us": newest,
                   "trouble": trouble}  # fmt: skip
        with atomic_path(self.place / HEARTBEAT) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")


class _Part:
    """The score file of one turn, made when the first row is scored."""

    def __init__(self, watch: Watch, path: Path, stack: ExitStack) -> None:
        self.path, self._watch, self._stack = path, watch, stack
        self._writer: pq.ParquetWriter | None = None

    def score(self, done: Turn, everything: bool = False) -> None:
        """Score what the order releases."""
        state, model = self._watch.state, self._watch.model
        chunk = state.order.release(everything)
        if chunk is None:
            return
        if self._watch._store is not None:
            self._watch._sensors.update(chunk)
        if self._writer is None:
            temporary = self._stack.enter_context(atomic_path(self.path))
            self._writer = self._stack.enter_context(score_writer(temporary))
        for low in range(0, len(chunk), _HELD_ROWS):
            rows = state.stream.score(chunk.take(slice(low, low + _HELD_ROWS)))
            self._writer.write_table(score_table(rows, model))
            state.trackers.update(rows)
            state.covered.add(rows)
            _sampled(state, rows)
            done.rows += len(rows.time)
            done.outcomes.update(OUTCOMES[rows.outcome].tolist())


def _sampled(state: WatchState, rows: ScoredRows) -> None:
    """Count rows in for drift; a sample of more than a week begins anew, so that what is told is of late."""
    span = state.sample.span
    if span is not None and int(rows.time.max()) - span[0] > _DRIFT_SPAN_US:
        state.sample, state.alerts = DriftSample(state.sample.tags, state.sample.size), 0
    state.sample.add(rows)


@contextmanager
def one_watch(place: Path) -> Iterator[None]:
    """Hold ``place`` for this process; raises Unavailable E5001 where another one watches the folder."""
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (place / ".lock").open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fault = Fault("E5001", "one watch of a folder", "another one is running", "stop it first", str(place))
                raise Unavailable(fault) from None
            yield
    except PermissionError as error:
        raise Unavailable(Fault("E5002", "a folder we can write", error.strerror or error, file=str(place))) from error


def scores_of(folder: Path) -> list[Path]:
    """The score files that a watch wrote to ``folder``, in the order they were made."""
    return sorted(folder.glob("scores-*-*.parquet"))
