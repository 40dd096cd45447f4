"""`anomaly extract --engine spark`: a folder of Parquet by asset becomes embeddings by asset, the numbers of one process.

Workers check and read the files, each asset's rows are brought together in time order, and ``embedded`` turns them into
shards; the driver puts the shards under one folder in one rename. What an interrupted run finished is kept for ``resume``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from anomaly.data.store_features import Features
from anomaly.embeddings.space import Space
from anomaly.encoders.inference import kind_for
from anomaly.errors import Fault, InputRefused, Unavailable, UsageError
from anomaly.files import atomic_path
from anomaly.fitting import Progress, silent
from anomaly.model import AnomalyModel
from pipelines import spark_embed
from pipelines.spark import all_refused, by_asset_and_time, checked
from pipelines.spark_commit import check_apart
from pipelines.spark_job import Inspected, Job, Reading, Scorer, in_one_piece, parquet_files
from pipelines.spark_session import LOCAL, session, told_failures

#: What is in a folder of embeddings, and the mark that it is one of ours; readers pass over its name.
MARK = "_anomaly_embeddings.json"
FILE = "embeddings.parquet"


@dataclass(frozen=True)
class SparkExtractOptions:
    """``features_only`` leaves scores and modes out; ``space``: a features file whose reduction and modes are taken, else
    the model's own; ``resume`` goes on with a run that was stopped, ``overwrite`` makes the folder anew."""

    features_only: bool = False
    space: Path | None = None
    seed: int = 7
    resume: bool = False
    overwrite: bool = False


@dataclass
class SparkExtracted:
    """What an extraction on Spark did; ``set_aside`` and ``workers`` as in ``SparkScored``."""

    out: Path
    windows: int = 0
    assets: int = 0
    width: int = 0
    engine: str = ""
    unscorable: int = 0
    anomalous: int = 0
    modes: int = 0
    set_aside: dict[str, str] = field(default_factory=dict)
    workers: Counter[str] = field(default_factory=Counter)
    session_s: float = 0.0
    seconds: float = 0.0
    notices: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return asdict(self) | {"out": str(self.out), "workers": dict(self.workers), "notices": list(self.notices)}


def extract_on_spark(
    paths: Sequence[Path],
    model: AnomalyModel,
    bundle: Path,
    out: Path,
    options: SparkExtractOptions | None = None,
    *,
    master: str = LOCAL,
    progress: Progress = silent,
) -> SparkExtracted:
    """Embed every window of the Parquet logs at ``paths`` into the folder ``out``, ``asset=…/embeddings.parquet`` each.

    Windows are those of `anomaly ingest` with the model's window. Files and assets that are refused are set aside and the
    others finish; InputRefused where nothing is left, and E3402 where ``resume`` finds a run of something else. Raises
    UsageError E2003 where ``out`` exists, or a run of it was begun, and neither ``resume`` nor ``overwrite`` was said;
    Unavailable E5005 where the job fails.
    """
    options, started = options or SparkExtractOptions(), time.perf_counter()
    _check_target(out, paths, options)
    space = _space(model, options)
    reading, run = Reading(model.settings.log, model.contract), SparkExtracted(out)
    files = parquet_files(paths, model.settings.log.asset or model.contract.asset)
    with session(master) as spark:
        run.session_s = time.perf_counter() - started
        good, run.set_aside = checked(spark, files, reading, progress)
        job, identity = _planned(good, reading, model, bundle, options)
        if _is_complete(out, identity) and options.resume and not options.overwrite:
            return replace(run, **_counted(out), notices=("it was complete already",))
        job = _begun(job, out, identity, options)
        state = None if space is None else space.to_state()
        work = spark_embed.Embedding(job, not options.features_only, state, options.seed)
        progress("extract", 0, len(job.cuts))
        rows = by_asset_and_time(spark, job).mapInArrow(_embed(work), spark_embed.TOLD_DDL)
        with told_failures():
            told = {row["asset"]: json.loads(row["told"]) for row in rows.collect()}
        progress("extract", len(job.cuts), len(job.cuts))
    run.modes = 0 if space is None else space.clusters
    run.notices = tuple(dict.fromkeys(n for one in good for n in one.notices))
    if space is None and not options.features_only:
        run.notices += ("no modes: they are not learned on Spark; give --space, a features file of anomaly extract",)
    _commit(run, job, told, identity)
    shutil.rmtree(job.shards, ignore_errors=True)
    run.seconds = time.perf_counter() - started
    return run


def _space(model: AnomalyModel, options: SparkExtractOptions) -> Space | None:
    """Reduction and modes: another features file's, or the model's own; none where nobody asks."""
    if options.features_only:
        return None
    if options.space is None:
        return model.ensemble.space
    with Features.open(options.space) as other:
        kept = other.kept("space")
    if kept is None:
        raise UsageError(Fault("E2001", "a features file with a space", "none in it", file=str(options.space)))
    return Space.from_state(*kept)


def _check_target(out: Path, paths: Sequence[Path], options: SparkExtractOptions) -> None:
    """Raise UsageError E2003 where embeddings may not go to ``out``."""
    check_apart(out, paths)
    if out.exists() and not out.is_dir():
        raise UsageError(Fault("E2003", "the path of a folder", "a file", file=str(out)))
    if out.is_dir() and any(out.iterdir()):
        if not (out / MARK).exists():
            raise UsageError(Fault("E2003", "a new folder", "a folder of other files", "name a new one", str(out)))
        if not (options.resume or options.overwrite):
            hint = "add --overwrite to make it again"
            raise UsageError(Fault("E2003", "an output that does not exist", "a folder", hint, str(out)))
    if _unfinished(out) and not (options.resume or options.overwrite):
        hint = "add --resume to go on with it, or --overwrite to start again"
        raise UsageError(Fault("E2003", "an output that was not begun", "an unfinished run", hint, str(out)))


def _unfinished(out: Path) -> list[Path]:
    """Folders of shards that runs for ``out`` left behind."""
    return sorted(out.resolve().parent.glob(f".{out.name}.embedded-*"))


def _planned(
    good: list[Inspected], reading: Reading, model: AnomalyModel, bundle: Path, options: SparkExtractOptions
) -> tuple[Job, dict[str, Any]]:
    """The job without a place for its shards, and what it depends on."""
    rows = sum(one.rows for one in good)
    scorer = Scorer.of(model, str(bundle.resolve()), kind_for(rows // max(model.settings.window.stride, 1)))
    space = "" if options.space is None else hashlib.sha256(options.space.read_bytes()).hexdigest()
    identity = {
        "log": [[one.file.asset, one.sha256] for one in good],
        "model": scorer.digest,
        "engine": scorer.engine_kind,
        "options": {"features_only": options.features_only, "space": space, "seed": options.seed},
    }
    return in_one_piece(good, reading, scorer, ""), identity


def _begun(job: Job, out: Path, identity: dict[str, Any], options: SparkExtractOptions) -> Job:
    """The job with its folder of shards; what another run left there is gone on with, removed, or refused."""
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    shards = out.resolve().parent / f".{out.name}.embedded-{key}"
    others = [place for place in _unfinished(out) if place != shards]
    if options.overwrite:
        for place in _unfinished(out):
            shutil.rmtree(place, ignore_errors=True)
    elif others or (out / MARK).exists():
        hint = "add --overwrite to start again"
        raise InputRefused(Fault("E3402", "the log, model and options of the earlier run", "others", hint, str(out)))
    shards.mkdir(parents=True, exist_ok=True)
    return replace(job, shards=str(shards))


def _embed(work: spark_embed.Embedding) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """What Spark ships by value: the work alone; the code is imported by the worker, with its caches."""

    def embed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return spark_embed.embedded(work, batches)

    return embed


def _commit(run: SparkExtracted, job: Job, told: dict[str, dict[str, Any]], identity: dict[str, Any]) -> None:
    """Put the shards under ``run.out`` in one rename, with a mark that says what is in it."""
    for asset, own in sorted(told.items()):
        run.workers[own["worker"]] += 1
        if "refused" in own:
            run.set_aside[f"asset {asset}"] = own["refused"]
            continue
        run.assets += 1
        run.width, run.engine = own["width"], own["engine"]
        run.windows += own["windows"]
        run.unscorable += own["unscorable"]
        run.anomalous += own["anomalous"]
    if not run.assets:
        raise all_refused(run.set_aside)
    with atomic_path(run.out, folder=True) as temporary:
        for asset in sorted(a for a, own in told.items() if "refused" not in own):
            place = temporary / f"asset={quote(asset, safe=' ')}"
            place.mkdir()
            _placed(job.shard(asset, 0), place / FILE)
        names = ("windows", "assets", "width", "engine", "unscorable", "anomalous", "modes", "set_aside")
        held = {"identity": identity, **{name: getattr(run, name) for name in names}}
        (temporary / MARK).write_text(json.dumps(held, indent=1), encoding="utf-8")


def _placed(shard: Path, target: Path) -> None:
    """The shard under its name in the folder: a second name where the disk can, else a copy."""
    try:
        os.link(shard, target)
    except FileNotFoundError as error:
        hint = "log, model and output must be on a file system that all workers share"
        raise Unavailable(Fault("E5005", "what a worker embedded", error, hint, str(shard))) from error
    except OSError:
        shutil.copyfile(shard, target)


def _is_complete(out: Path, identity: dict[str, Any]) -> bool:
    """Whether ``out`` is a finished folder made of just this."""
    try:
        return bool(json.loads((out / MARK).read_text(encoding="utf-8"))["identity"] == identity)
    except (OSError, ValueError, KeyError):
        return False


def _counted(out: Path) -> dict[str, Any]:
    """What the mark of a finished folder says of it."""
    held = json.loads((out / MARK).read_text(encoding="utf-8"))
    return {name: value for name, value in held.items() if name != "identity"}
