"""Score files as they land in a folder: windows, smoothing and episodes go on from file to file, exactly once after a kill.

A turn takes the files that have settled, puts their rows in order within the limit of lateness, scores what no row in time
can come before, writes one score file, and saves the state with the batch that is still to be recorded. Only then does the
alert database get the batch; its ledger knows a batch it had before.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alerts.database import Database
from alerts.episodes import Episode
from alerts.store import AlertStore, BatchRecord
from anomaly.config import parse_duration
from anomaly.data.contract import LogChunk
from anomaly.data.readers import PlantLog, open_log
from anomaly.drift import Drift
from anomaly.errors import Fault, InputRefused, Unavailable, UsageError
from anomaly.faults import killpoint
from anomaly.files import atomic_path, sha256
from anomaly.model import AnomalyModel
from pipelines import drift_report
from pipelines.notify import after_record
from pipelines.outages import record_outages
from pipelines.score import episode_rules, slack_us
from pipelines.score_family import family_drift
from pipelines.watch_health import HEARTBEAT, Return, stale_after_s
from pipelines.watch_landing import Landing
from pipelines.watch_members import WatchModels, model_key, thresholds_or
from pipelines.watch_sensors import sensor_watch
from pipelines.watch_shadow import check_challenger
from pipelines.watch_state import WatchState
from pipelines.watch_turn import HELD_ROWS, Part, Turn

_log = logging.getLogger(__name__)

QUARANTINE, REASON = "quarantine", ".reason.txt"
STATE = "state.npz"
#: Files of one turn: a bound of memory, and of what a kill costs.
FILES_A_TURN = 64
#: Refusals that mean "not ready": the file went away or was being written while it was read.
_NOT_READY = {"E3001", "E3008"}
_DATABASE_WAIT_S, _BEAT_S = 5.0, 10.0


@dataclass(frozen=True)
class WatchOptions:
    """``lateness_us``: how long a row may come after newer ones. ``ahead_us``: how far times may lie ahead of the clock.

    ``settle_s``: a file is read once its size and modification time stayed the same for so long. ``every_s``: the time between
    two looks, by which somebody else tells that the watch stands still; None where it looks once.
    """

    lateness_us: int = 600_000_000
    ahead_us: int = 86_400_000_000
    settle_s: float = 1.0
    every_s: float | None = None


class Watch:
    """The scoring of one folder with one model or a family of them, turn by turn; its state lies in the folder ``place``.

    ``model_name``: what the ledger calls a single model. ``database`` None records nothing. ``challenger``: a reference and a
    model that scores beside it and raises no alerts. Raises UsageError: E2003 where scores would land in the watched folder,
    E2001 for a challenger of other sensors.
    """

    def __init__(
        self,
        folder: Path,
        model: AnomalyModel | WatchModels,
        model_name: str,
        out: Path,
        database: str | None,
        place: Path,
        options: WatchOptions = WatchOptions(),
        challenger: tuple[str, AnomalyModel] | None = None,
    ) -> None:
        if not folder.is_dir():
            raise UsageError(Fault("E2001", "a folder to watch", "no such folder", file=str(folder)))
        if out.resolve() == folder.resolve():
            raise UsageError(Fault("E2003", "another folder for the scores", "the watched folder", file=str(out)))
        self.folder, self.out, self.place, self.options = folder, out, place, options
        self.challenger, self.every_s = challenger, None if database is None else options.every_s
        self._store = None if database is None else AlertStore(database, wait_s=_DATABASE_WAIT_S)
        self._loaded = self.models = model if isinstance(model, WatchModels) else WatchModels.one(model, model_name)
        self._begin(self._loaded)
        self._episodes: list[Episode] = []  # recorded, but not yet looked at for floods
        self._returned, self._beat_at = Return(place, folder), time.monotonic()
        self.models = self._with_thresholds()[0]
        if challenger is not None:
            check_challenger(self.models.contract, challenger[1].contract)
            challenger[1].engine_kind = "auto"
        self.state = self._load()
        if not (place / STATE).exists():  # the name of the score files must outlive a kill in the first turn
            self.state.save(place / STATE)
        self.found: list[Drift] = []  # the drift that was told last
        self.landing = Landing(folder, options.settle_s)

    def _begin(self, models: WatchModels) -> None:
        for model in models.loaded.values():
            model.engine_kind = "auto"
        self._sensors = {name: sensor_watch(model) for name, model in models.loaded.items()}

    def _load(self) -> WatchState:
        challenger = None if self.challenger is None else self.challenger[1]
        return WatchState.load(self.place / STATE, self.models, self.options.lateness_us, challenger)

    @property
    def model(self) -> AnomalyModel:
        """The model, or the first of a family."""
        return self.models.first

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
            self.state = self._load()
            self._begin(self.models)
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
        if self._store is not None:
            self._tell(self._store.database)
        return new

    def _tell(self, database: Database) -> None:
        """Alerts that no batch makes: on sensors, on assets that cannot be scored, on this watch where it stood still."""
        fresh = {name: own for name, own in self._sensors.items() if own.fresh}
        if fresh or self._episodes:
            found = [f for own in fresh.values() for f in own.findings()]
            after_record(database, found, self._episodes, max(slack_us(m) for m in self.models.loaded.values()))
            for own in fresh.values():
                own.fresh = False
            self._episodes = []
        if self.state.outages.fresh:
            record_outages(database, self.state.outages.fresh)
            self.state.outages.fresh = []
        self._returned.tell(database)

    def use(self, model: AnomalyModel | WatchModels) -> None:
        """Go on with another model of the same sensors, or other members; raises UsageError E2001 for other sensors."""
        before = self._loaded
        self._loaded = model if isinstance(model, WatchModels) else WatchModels.one(model, before.name)
        models = self._with_thresholds()[0]
        try:
            self.state.with_models(models)
        except UsageError:
            self._loaded = before
            raise
        self.models = models
        self._begin(models)

    def _with_thresholds(self) -> tuple[WatchModels, list[str]]:
        """The models with the thresholds that people set, and what changed; as they are where the database does not answer."""
        database = None if self._store is None else self._store.database
        models, told, trouble = thresholds_or(self._loaded, database, self.models)
        if trouble:
            _log.warning("the threshold stays as it is: %s", trouble)
        return models, told

    def _follow_threshold(self, done: Turn) -> None:
        """Go on with another threshold where people set one since the last turn: rows that come are judged by it."""
        models, told = self._with_thresholds()
        if told:
            self.models = models
            self.state = self._load()
            done.notices += told

    # -- a turn -------------------------------------------------------------------------------------------------------

    def _scored(self, files: dict[str, list[int]], everything: bool, done: Turn) -> Part:
        """Read, order and score; the score file appears when all of it is written."""
        order = self.state.order
        with ExitStack() as stack:
            path = self.out / f"scores-{self.state.name}-{self.state.sequence + 1:08d}.parquet"
            part = Part(self, path, stack)
            for name, stamp, log in self._opened(files, done):
                faults = self._faults(log)
                if faults:
                    self._quarantine(name, stamp, InputRefused(faults), done)
                    continue
                for chunk in log.chunks():
                    order.admit(chunk)
                    if order.rows >= HELD_ROWS:
                        part.score(done)
                self.state.files[name] = {"stamp": stamp, "sha256": log.files[0].sha256}
                done.files += 1
            part.score(done, everything)
        killpoint("watch.after_scores")
        return part

    def look_at_sensors(self, member: str, chunk: LogChunk) -> None:
        """Show rows to the sensor rules of a member's model."""
        if self._store is not None:
            self._sensors[member].update(chunk)

    def _opened(self, files: dict[str, list[int]], done: Turn) -> Iterator[tuple[str, list[int], PlantLog]]:
        """The files that can be read, by the time of their first row; the others are set aside."""
        known = {held["sha256"] for held in self.state.files.values()}
        logs = []
        for name, stamp in files.items():
            path = self.folder / name
            try:
                digest = sha256(path)
                if digest not in known:
                    logs.append((name, stamp, open_log([path], self.models.log, self.models.contract)))
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

    def _close(self, part: Part, done: Turn) -> None:
        """The turn becomes part of the state, with the batches that are to be recorded."""
        state = self.state
        state.files = {name: held for name, held in state.files.items() if (self.folder / name).exists()}
        if done.rows:
            for name, outcomes in part.outcomes.items():
                member, model = state.members[name], self.models.loaded[name]
                changed, new = member.close(model)
                done.episodes += new
                if self._store is not None:
                    state.unrecorded.append((self._batch(part.path, name, model, outcomes), changed))
                member.covered.spans = {asset: spans[-1:] for asset, spans in member.covered.spans.items()}
            state.sequence, state.rows = state.sequence + 1, state.rows + done.rows
            done.scores.append(part.path)
            if self._store is None:
                state.outages.fresh = []
        if part.shadow is not None:
            part.shadow.close()
            state.shadow, done.shadow = part.shadow.member, part.shadow.told
            done.shadow.champion_episodes = done.episodes
        state.save(self.place / STATE)
        killpoint("watch.after_state")

    def _batch(self, path: Path, name: str, model: AnomalyModel, outcomes: Counter[str]) -> BatchRecord:
        covered = self.state.members[name].covered.spans
        return BatchRecord(
            sha256=sha256(path),
            model=model_key(model),
            model_name=self.models.ledger_name(name),
            file_name=path.name,
            rows=sum(outcomes.values()),
            outcomes=dict(outcomes),
            covered={asset: list(spans) for asset, spans in covered.items()},
            score_path=str(path),
            lead_us=parse_duration(model.settings.window.lead) or None,
            merge_gap_us=episode_rules(model).merge_gap_us,
        )

    # -- what is told -------------------------------------------------------------------------------------------------

    def drift(self) -> tuple[str, ...]:
        """Drift of the rows scored since the samples began, kept beside the scores; what a person should know of it."""
        path, members = self.out / f"scores-{self.state.name}.drift.json", self.state.members
        live = {n: m for n, m in self.models.loaded.items() if members[n].sample.operating}
        if not live:
            return ()
        if self.models.family is None:
            self.found = drift_report.report(self.model, members[""].sample, members[""].alerts, path)
            return drift_report.notices(self.found)
        found = {n: drift_report.drifts(m, members[n].sample, members[n].alerts) for n, m in live.items()}
        self.found = [d for own in found.values() for d in own]
        return family_drift(self.models.name, found, path)

    def beat(self) -> None:
        """A heartbeat from within a long turn, where the last one is a while ago; a full disk is no reason to end the turn."""
        if time.monotonic() - self._beat_at > _BEAT_S:
            with suppress(OSError, Unavailable):
                self.heartbeat()

    def heartbeat(self, trouble: str = "") -> None:
        """Say in a file that the watch is alive, how far it is, and what is wrong."""
        order, every_s = self.state.order, self.every_s
        newest = {asset: known.newest for asset, known in order.answered.items()}
        content = {"time": time.time(), "pid": os.getpid(), "sequence": self.state.sequence, "rows": self.state.rows,
                   "waiting": order.rows, "unrecorded": len(self.state.unrecorded), "newest_us": newest,
                   "folder": str(self.folder.resolve()), "stale_after_s": None if every_s is None else stale_after_s(every_s),
                   "trouble": trouble}  # fmt: skip
        with atomic_path(self.place / HEARTBEAT) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")
        self._beat_at = time.monotonic()


def scores_of(folder: Path) -> list[Path]:
    """The score files that a watch wrote to ``folder``, in the order they were made."""
    return sorted(folder.glob("scores-*-*.parquet"))
