"""Logs in, window store out: check every row, grade every sensor, write the store in one rename."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly.config import Settings
from anomaly.data.contract import NORMAL, LogContract
from anomaly.data.quality import SensorGrade, SensorStatistics
from anomaly.data.readers import PlantLog, open_log
from anomaly.data.store import create_store
from anomaly.data.store_layout import filters
from anomaly.data.store_repack import repack_filtered
from anomaly.errors import Fault, InputRefused, UsageError
from anomaly.fitting import Progress, silent

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Ingested:
    """A window store and what was learned while it was written."""

    store: Path
    contract: LogContract
    fingerprint: str
    rows: int
    label_counts: dict[int, int]
    notices: tuple[str, ...]
    grades: tuple[SensorGrade, ...]


def is_store(path: Path) -> bool:
    """Whether ``path`` is an HDF5 file, ours with its leading block or a plain one."""
    try:
        with path.open("rb") as stream:
            head = stream.read(520)
    except OSError as error:
        raise InputRefused(Fault("E3001", "a readable file", error.strerror or error, file=str(path))) from error
    return head[:8] == HDF5_SIGNATURE or head[512:520] == HDF5_SIGNATURE


def log_files(paths: Sequence[Path]) -> list[Path]:
    """The files named by ``paths``; a folder stands for the CSV and Parquet files in it."""
    found: list[Path] = []
    for path in paths:
        inside = (
            sorted(p for p in path.iterdir() if p.suffix.lower() in (".csv", ".parquet")) if path.is_dir() else [path]
        )
        if not inside:
            raise InputRefused(Fault("E3001", "CSV or Parquet files in the folder", "none", file=str(path)))
        found += inside
    if not found:
        raise UsageError(Fault("E2001", "at least one log", "none"))
    return found


def ingest(
    paths: Sequence[Path], settings: Settings, target: Path, progress: Progress = silent, *, compress: str = "none"
) -> Ingested:
    """Read and check the logs at ``paths`` and write their window store to ``target``.

    ``compress`` is none, gzip or zstd. Raises InputRefused with every fault found, UsageError for a compression that is
    not there; then nothing is written. A folder is read as the files in it.
    """
    filters(compress)  # a word on what is missing comes before the log is read
    if target.exists() and not is_store(target):
        raise UsageError(
            Fault("E2003", "a new path, or a window store to replace", "another kind of file", file=str(target))
        )
    progress("check", 0, 1)
    log = open_log(log_files(paths), settings.log)
    progress("check", 1, 1)
    statistics = write_store(log, settings, target, progress, compress=compress)
    return Ingested(
        target, log.contract, log.fingerprint, log.rows, log.label_counts, log.notices, tuple(statistics.grades())
    )


@dataclass(frozen=True)
class Repacked:
    """A copy of a file of windows in chunks of whole rows, and what was slow about the file."""

    store: Path
    windows: int
    notice: str


def repack(paths: Sequence[Path], target: Path, progress: Progress = silent, *, compress: str = "none") -> Repacked:
    """Copy the one file of windows (``signals (N, T, C)``) at ``paths`` into chunks of whole rows, streamed.

    Raises UsageError E2001 for more or fewer files than one, and what ``repack_filtered`` raises.
    """
    if len(paths) != 1 or not paths[0].is_file():
        raise UsageError(Fault("E2001", "one HDF5 file of signals to repack", ", ".join(map(str, paths)) or "none"))
    if target.exists() and not is_store(target):
        raise UsageError(Fault("E2003", "a new path, or an HDF5 file to replace", "something else", file=str(target)))
    windows = 0

    def told(done: int, total: int) -> None:
        nonlocal windows
        windows = total
        progress("repack", done, total)

    notice = repack_filtered(paths[0], target, compress, told)
    return Repacked(target, windows, notice)


def write_store(
    log: PlantLog, settings: Settings, target: Path, progress: Progress = silent, *, compress: str = "none"
) -> SensorStatistics:
    """Write a checked log as a window store; the sensors' statistics are gathered on the way."""
    if not log.label_counts.get(NORMAL):
        hint = "only rows labelled normal are learned from; --unlabelled normal takes rows without a label as normal"
        raise InputRefused(Fault("E3302", "normal rows", f"{log.rows} rows, none labelled normal", hint))
    statistics, done = SensorStatistics(log.contract, correlate=False), 0
    with create_store(target, log.contract, settings.window, settings.split, compress) as writer:
        for chunk in log.chunks():
            writer.append(chunk)
            statistics.update(chunk)
            done += len(chunk)
            progress("ingest", done, log.rows)
    return statistics
