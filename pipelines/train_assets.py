"""Train one model per asset, or per class of assets: one pass over the log, then one model after the other.

Memory does not grow with the number of models: many are trained by processes of some models each, one process at a time. A run
that was stopped or killed goes on, when it is started again, with the models that are not registered yet. A group that cannot
be trained is reported and the others finish.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from anomaly.config import Settings
from anomaly.data.contract import NORMAL, LogContract
from anomaly.data.readers import open_log
from anomaly.data.sensor_statistics import SensorStatistics
from anomaly.data.store import WindowStore, create_store
from anomaly.encoders.memory import release_memory
from anomaly.errors import AnomalyError, Fault, InputRefused, Unavailable, UsageError
from anomaly.faults import killpoint
from anomaly.fitting import Fitted, Progress, silent
from pipelines.asset_groups import Group, Places, Spool, from_table, reading, spool_log, without_class
from pipelines.evaluate import Judged
from pipelines.home import home, reports
from pipelines.ingest import Ingested, is_store, log_files
from pipelines.train import check_bundle_target, train_prepared, work_folder
from registry.families import Registered, member_name, registered_before
from registry.tracking import Membership

_log = logging.getLogger(__name__)

TRAINED, KEPT, FAILED = "trained", "registered before", "failed"

#: Models that one process trains at most.
PER_PROCESS = 20

#: Tag of a version that holds its row of the summary.
ROW_TAG = "training_summary"


@dataclass(frozen=True)
class AssetRow:
    """One group of the summary: an asset or a class, what was learned from and how good the model is.

    ``rows`` and ``events`` are of the whole log, ``average_precision`` with its 95 % interval and ``false_episodes_per_day``
    of the test part; None where they are not defined (no event). ``seconds`` is the time its training took.
    """

    group: str
    assets: int = 0
    rows: int = 0
    events: int = 0
    test_events: int = 0
    model: str = ""
    version: int | None = None
    threshold: float | None = None
    average_precision: float | None = None
    low: float | None = None
    high: float | None = None
    false_episodes_per_day: float | None = None
    seconds: float = 0.0
    outcome: str = TRAINED
    code: str = ""
    reason: str = ""
    report: str = ""


@dataclass(frozen=True)
class TrainedAssets:
    """What a training of many models did, row by row, and where its summary is."""

    name: str
    models: str
    rows: tuple[AssetRow, ...]
    table: Path
    page: Path
    seconds: float
    notices: tuple[str, ...] = ()

    @property
    def failed(self) -> int:
        """Groups without a model."""
        return sum(r.outcome == FAILED for r in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return {
            "name": self.name,
            "models": self.models,
            "rows": [asdict(r) for r in self.rows],
            "outcomes": dict(Counter(r.outcome for r in self.rows)),
            "table": str(self.table),
            "page": str(self.page),
            "seconds": self.seconds,
            "notices": list(self.notices),
        }


@dataclass(frozen=True)
class Job:
    """What every group of one training shares."""

    paths: tuple[Path, ...]
    settings: Settings
    out: Path | None
    contract: LogContract  # as the log was read
    spool: Path
    places: Places
    fingerprint: str


def train_assets(
    paths: Sequence[Path], settings: Settings, out: Path | None = None, progress: Progress = silent
) -> TrainedAssets:
    """Train and register a model for each asset or class of the logs at ``paths``, as ``settings.assets.models`` says.

    With ``out`` the bundles are kept in that folder. Raises UsageError (no asset column, one asset in two classes, a window
    store, a name that one model has), InputRefused where the whole log is refused, Unavailable where the registry or disk is
    (what is registered stays). A group's own refusal is in its row instead.
    """
    started = time.perf_counter()
    _check(paths, settings)
    before = registered_before(settings.name, home())
    with work_folder(paths, settings) as folder, Spool(folder / "rows.spool") as spool:
        progress("check", 0, 1)
        log = open_log(log_files(paths), reading(settings.log, settings.assets))
        progress("check", 1, 1)
        _check_assets(log.contract, settings)
        groups, classless = spool_log(log, settings.assets, spool, progress)
        job = Job(tuple(paths), settings, out, log.contract, spool.path, spool.places, log.fingerprint)
        rows = [_without_class_row(a) for a in classless]
        pending = list[Group]()
        for group in groups.values():
            kept = _kept(job, group, before)
            rows += [kept] if kept else []
            pending += [] if kept else [group]
        for number, row in enumerate(train_groups(job, pending, progress)):
            rows.append(row)
            progress("models", number + 1, len(pending))
    return _told(settings, log.fingerprint, rows, log.notices, time.perf_counter() - started)


def train_groups(job: Job, groups: list[Group], progress: Progress) -> Iterator[AssetRow]:
    """Train the groups one after the other; many of them in processes of a bounded number of models each.

    A neural library keeps some megabytes of every model it trained, whatever is dropped: only the end of its process gives
    them back.
    """
    if len(groups) > PER_PROCESS:
        from pipelines.train_apart import train_apart

        yield from train_apart(job, groups, PER_PROCESS, progress)
        return
    for group in groups:
        yield group_row(job, group, progress)
        killpoint("train_assets.after_model")


def _check(paths: Sequence[Path], settings: Settings) -> None:
    own = settings.assets
    member_name(settings.name, "")  # refuses a name that leaves no room
    if not paths:
        raise UsageError(Fault("E2001", "a log, or log.paths in the settings file", "none"))
    if any(p.is_file() and is_store(p) for p in paths):
        hint = "name the logs themselves; --per one takes a store"
        raise UsageError(Fault("E2001", "logs, to train a model per asset or class", "a window store", hint))
    if own.models == "class" and not (own.class_column or own.classes):
        hint = "--class-column COLUMN, or a table [assets.classes] in the settings file"
        raise UsageError(Fault("E2002", "the classes of the assets", "neither a column nor a table", hint))


def _check_assets(contract: LogContract, settings: Settings) -> None:
    if contract.asset is None and settings.log.asset_from_name is None:
        hint = "name the asset column with --asset, or --asset-from-name"
        raise UsageError(Fault("E2001", "a log of many assets", "no asset column", hint))


def _without_class_row(asset: str) -> AssetRow:
    hint = "name it, or a pattern that fits, in [assets.classes]"
    fault = Fault("E2001", "a class for the asset", "none", hint)
    return AssetRow(asset, 1, outcome=FAILED, code=fault.code, reason=fault.line())


def _kept(job: Job, group: Group, before: dict[tuple[str, str], Registered]) -> AssetRow | None:
    """The row of a group that an earlier run registered a model for."""
    try:
        name = member_name(job.settings.name, group.name)
        done = before[name, _key(job, group)]
        held = json.loads(done.tags[ROW_TAG])
        return AssetRow(**{**held, "model": name, "version": done.version, "outcome": KEPT})
    except (UsageError, LookupError, ValueError, TypeError):
        return None  # not there, or written by another release


def group_row(job: Job, group: Group, progress: Progress = silent) -> AssetRow:
    """Train the model of one group; what cannot be done becomes a row that says so. Raises Unavailable."""
    started = time.perf_counter()
    try:
        return _trained(job, group, progress)
    except Unavailable:
        raise  # the registry or the disk is away for every group
    except AnomalyError as error:
        fault = error.faults[0]
        return failed_row(group, fault.code, fault.line(), _since(started))
    except Exception as error:  # noqa: BLE001  a fault of ours with one asset must not stop the others
        _log.exception("the model of %s could not be trained", group.name)
        return failed_row(group, "E7000", f"{type(error).__name__}: {error}", _since(started))
    finally:
        release_memory()


def failed_row(group: Group, code: str, reason: str, seconds: float = 0.0) -> AssetRow:
    """The row of a group that has no model."""
    blank = AssetRow(group.name, len(group.assets), group.rows)
    return replace(blank, seconds=seconds, outcome=FAILED, code=code, reason=reason)


def _key(job: Job, group: Group) -> str:
    """What a model was trained from and how: equal keys, equal models."""
    held = [job.fingerprint, job.settings.to_dict(), group.name, sorted(group.assets)]
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def _trained(job: Job, group: Group, progress: Progress) -> AssetRow:
    started, key = time.perf_counter(), _key(job, group)
    name = member_name(job.settings.name, group.name)
    settings = job.settings.named(name)
    bundle = job.out / name if job.out else None
    if bundle is not None:
        check_bundle_target(bundle)
    with work_folder(job.paths, settings) as folder:
        prepared = _ingested(job, group, folder / "store.h5", key)
        with WindowStore.open(prepared.store) as store:
            events = sum(len(store.events(a)) for a in store.assets)

        def member(judged: Judged, fitted: Fitted) -> Membership:
            """The row goes to the registry with the version, so that it is there whenever the model is."""
            row = _of(group, events, judged.evaluation.to_dict(), fitted.model.threshold.value, _since(started))
            row = replace(row, report=str(reports() / f"{name}-{key[:12]}.html"))
            tags = {ROW_TAG: json.dumps(asdict(row))}
            kind = job.settings.assets.models
            return Membership(job.settings.name, kind, group.name, tuple(group.assets), key, tags)

        done = train_prepared(prepared, settings, folder, bundle, progress, member)
    row = _of(group, events, done.evaluation, done.threshold.value, _since(started))
    return replace(row, model=done.name, version=done.version, report=str(done.report))


def _ingested(job: Job, group: Group, target: Path, key: str) -> Ingested:
    """The window store of one group; a tag that never has a value there is left out."""
    if not group.labels.get(NORMAL):
        hint = "only rows labelled normal are learned from"
        raise InputRefused(Fault("E3302", "normal rows", f"{group.rows} rows, none labelled normal", hint))
    learned = without_class(job.contract, job.settings.assets)
    dead = {t for t, seen in zip(learned.tags, group.seen, strict=True) if not seen}
    if len(dead) == len(learned.tags):
        raise InputRefused(Fault("E3108", "a tag with values", "none"))
    contract = learned.without(dead, f"no value of {group.name}")
    statistics = SensorStatistics(contract, correlate=False)
    with (
        Spool(job.spool, job.places) as spool,
        create_store(target, contract, job.settings.window, job.settings.split) as writer,
    ):
        for _, piece in spool.pieces(group.name):
            chunk = from_table(piece, job.contract, contract)
            writer.append(chunk)
            statistics.update(chunk)
    notices = (f"tags without a value, left out: {', '.join(sorted(dead))}",) if dead else ()
    return Ingested(target, contract, key, group.rows, dict(group.labels), notices, tuple(statistics.grades()))


def _of(group: Group, events: int, evaluation: dict[str, Any], threshold: float, seconds: float) -> AssetRow:
    """The row of a model that was judged."""
    figures, test = evaluation["figures"], int(evaluation["events"])
    precision = figures["average_precision"] if test else {"value": None, "low": None, "high": None}
    return AssetRow(
        group.name,
        len(group.assets),
        group.rows,
        events,
        test,
        threshold=threshold,
        average_precision=precision["value"],
        low=precision["low"],
        high=precision["high"],
        false_episodes_per_day=figures["false_episodes_per_day"]["value"],
        seconds=seconds,
    )


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 2)


def _told(
    settings: Settings, fingerprint: str, rows: list[AssetRow], notices: tuple[str, ...], seconds: float
) -> TrainedAssets:
    from pipelines.assets_summary import write_page, write_table

    ordered = tuple(sorted(rows, key=lambda r: (r.outcome != FAILED, r.group)))
    stem = reports() / f"{settings.name}-{settings.assets.models}-{fingerprint[:12]}"
    table, page = stem.with_name(f"{stem.name}.csv"), stem.with_name(f"{stem.name}.html")
    done = TrainedAssets(settings.name, settings.assets.models, ordered, table, page, round(seconds, 2), notices)
    write_table(table, ordered)
    write_page(page, done)
    return done
