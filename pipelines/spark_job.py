"""What a Spark scoring job is: its files, and how the time of each asset is cut into stretches. Plain values, no Spark."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from anomaly.config import LogSettings
from anomaly.data.contract import ONE_ASSET, LogContract
from anomaly.errors import Fault, InputRefused, UsageError
from anomaly.files import TEMPORARY
from anomaly.model import AnomalyModel
from pipelines.asset_scoring import Stretch, overlap_rows

#: Rows of one stretch: as many as have so many bytes, within these limits.
_STRETCH_BYTES, _MOST_ROWS, _FEWEST_ROWS = 64 << 20, 100_000, 5_000
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class LogFile:
    """A Parquet file of the log; ``asset`` is what its folder says (``asset=P-1``), None where rows say it."""

    path: str
    asset: str | None = None


@dataclass(frozen=True)
class Inspected:
    """What one file is: digest, rows, per asset its rows, first and last time; or why it is refused, one line a fault."""

    file: LogFile
    sha256: str = ""
    rows: int = 0
    assets: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    def key(self) -> tuple[str, int, str]:
        """Reading order: by asset where the folder names it, then by time and name."""
        return self.file.asset or ONE_ASSET, min((s[1] for s in self.assets.values()), default=0), self.file.path


@dataclass(frozen=True)
class Reading:
    """How workers read files: the log's settings and the model's contract."""

    settings: LogSettings
    contract: LogContract


@dataclass(frozen=True)
class Cut:
    """How an asset's time is cut: ``pieces`` stretches of ``length_us`` from ``first_us`` on; the last one has no end."""

    first_us: int
    length_us: int
    pieces: int

    def piece(self, time: NDArray[np.int64]) -> NDArray[np.int64]:
        """The piece of each time ``(n,)``.

        >>> Cut(0, 10, 2).piece(np.array([0, 9, 10, 25])).tolist()
        [0, 0, 1, 1]
        """
        return np.minimum((time - self.first_us) // self.length_us, self.pieces - 1)

    def end_us(self, piece: int) -> int:
        """Where the time of ``piece`` ends; that of the last one has no end, this is where it was meant to."""
        return self.first_us + (piece + 1) * self.length_us


@dataclass(frozen=True)
class Scorer:
    """A model as workers load it: ``bundle`` folder, ``digest``, ``engine_kind``, ``threshold`` as ``Stretch`` has them;
    ``overlap_us`` is how much time a stretch brings along."""

    bundle: str
    digest: str
    engine_kind: str
    threshold: dict[str, Any]
    overlap_us: int

    @classmethod
    def of(cls, model: AnomalyModel, bundle: str, engine_kind: str) -> Scorer:
        """Of ``model``, which was loaded from ``bundle``."""
        overlap_us = overlap_rows(model) * model.max_gap_us
        return cls(bundle, str(model.digest), engine_kind, model.threshold.to_dict(), overlap_us)


@dataclass(frozen=True)
class Job:
    """Everything that workers need; ``resume[i]`` maps assets to the time up to which files before file i hold rows,
    ``begins[i]`` the assets of file i to their first time there.

    ``scorers`` maps assets to their model, or to the reason why their rows have no score.
    """

    reading: Reading
    files: tuple[LogFile, ...]
    resume: tuple[dict[str, int], ...]
    cuts: dict[str, Cut]
    scorers: dict[str, Scorer | str]
    shards: str = ""
    begins: tuple[dict[str, int], ...] = ()

    def by_files(self, tasks: int) -> tuple[str, ...]:
        """The assets, where each can be scored by the task that reads its files and ``tasks`` at a time still share the work
        evenly: no file holds two assets, there are twice as many of them, and none is larger than a task's share. Else none.
        """
        each = [cut.pieces for cut in self.cuts.values()]
        even = len(each) >= 2 * tasks and max(each, default=0) * tasks <= sum(each)
        return tuple(self.cuts) if even and all(len(held) == 1 for held in self.begins) else ()

    def files_of(self, asset: str) -> list[tuple[int, int]]:
        """The numbers of the files that hold ``asset``, in reading order, and the first time of it in all later ones."""
        numbers = [i for i, held in enumerate(self.begins) if asset in held]
        never = int(np.iinfo(np.int64).max)
        return [
            (n, min((self.begins[m][asset] for m in numbers[k + 1 :]), default=never)) for k, n in enumerate(numbers)
        ]

    def scorer(self, asset: str) -> Scorer:
        """The model of ``asset``; raises ValueError where it has none."""
        found = self.scorers[asset]
        if isinstance(found, str):
            raise ValueError(f"asset: expected one with a model, got {asset}: {found}")
        return found

    def overlap_us(self, asset: str) -> int:
        """How much time a stretch of ``asset`` brings along."""
        found = self.scorers[asset]
        return 0 if isinstance(found, str) else found.overlap_us

    def stretch(self, asset: str, piece: int) -> Stretch:
        """The ``piece`` of ``asset``, as ``score_asset`` takes it."""
        cut = self.cuts[asset]
        start = cut.first_us + piece * cut.length_us
        end = start + cut.length_us if piece < cut.pieces - 1 else np.iinfo(np.int64).max
        own = self.scorer(asset)
        fixed = own.bundle, own.digest, own.engine_kind, own.threshold
        return Stretch(asset, cut.first_us, start - own.overlap_us, start, int(end), *fixed)

    def whole(self, assets: Iterable[str]) -> Job:
        """The same job over some assets, each in one stretch."""
        cuts = {a: self.cuts[a] for a in assets}
        return replace(self, cuts={a: Cut(c.first_us, c.length_us * c.pieces, 1) for a, c in cuts.items()})

    def shard(self, asset: str, piece: int) -> Path:
        """Where the scored rows of a piece go; the name holds what they depend on beside the job."""
        key = hashlib.sha256(json.dumps([asset, piece, asdict(self.cuts[asset])]).encode()).hexdigest()[:24]
        return Path(self.shards) / f"{key}.parquet"

    def pieces(self) -> int:
        """All stretches."""
        return sum(cut.pieces for cut in self.cuts.values())


def parquet_files(paths: Sequence[Path], asset_column: str | None) -> list[LogFile]:
    """The Parquet files at ``paths``: those of a folder and of its ``name=value`` folders, which may name the asset.

    Raises UsageError E2001 for another kind of file, InputRefused E3001 where there is none.
    """
    found: list[LogFile] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*.parquet") if _is_data(p.relative_to(path)))
            if not inside:
                raise InputRefused(Fault("E3001", "Parquet files in the folder", "none", file=str(path)))
            found += [LogFile(str(p.resolve()), _asset_of(p.relative_to(path), asset_column)) for p in inside]
        elif path.suffix.lower() == ".parquet":
            found.append(LogFile(str(path.resolve())))
        else:
            hint = "turn it into Parquet, or score it with --engine local"
            raise UsageError(Fault("E2001", "Parquet files for --engine spark", path.name, hint))
    return found


def _is_data(path: Path) -> bool:
    """Whether Spark would take the file as data: nothing hidden, and folders only of the form name=value."""
    plain = not any(part.startswith((".", "_")) or TEMPORARY in part for part in path.parts)
    return plain and all("=" in part for part in path.parent.parts)


def _asset_of(path: Path, asset_column: str | None) -> str | None:
    """The asset that the folders of ``path`` name.

    >>> _asset_of(Path("asset=P%201/part-0.parquet"), "asset")
    'P 1'
    """
    for part in path.parent.parts:
        name, _, value = part.partition("=")
        if unquote(name) == (asset_column or "asset") and value != _NO_VALUE:
            return unquote(value)
    return None


def in_order(inspected: Sequence[Inspected]) -> tuple[list[Inspected], dict[str, str]]:
    """The files to score in reading order, and what is set aside with the reason: file or asset → its faults.

    An asset that a refused file's folder names is set aside whole: with a part of its rows missing, its answers would be
    others.
    """
    aside: dict[str, str] = {}
    bad = {i.file.asset for i in inspected if i.faults and i.file.asset is not None}
    for one in inspected:
        if one.faults:
            name = f"asset {one.file.asset}" if one.file.asset is not None else one.file.path
            aside[name] = "\n".join(filter(None, (aside.get(name), *one.faults)))
    good = [i for i in inspected if not i.faults and i.file.asset not in bad]
    return sorted(good, key=Inspected.key), aside


def planned(
    files: Sequence[Inspected], reading: Reading, model: AnomalyModel, bundle: str, engine_kind: str, rows: int | None
) -> Job:
    """The job over checked ``files``, all assets by one model; ``rows`` as in ``planned_by``."""
    scorer = Scorer.of(model, bundle, engine_kind)
    return planned_by(files, reading, lambda asset: scorer, rows)


def planned_by(
    files: Sequence[Inspected], reading: Reading, scorer: Callable[[str], Scorer | str], rows: int | None
) -> Job:
    """The job over checked ``files``, each asset by its ``scorer``, or with the reason why it has none.

    ``rows`` is about how many rows a stretch holds (None: by the width of the log).
    """
    width = max(len(reading.contract.tags), 1)
    rows = rows or min(max(_STRETCH_BYTES // (4 * width), _FEWEST_ROWS), _MOST_ROWS)
    resume, spans = _spans(files)
    scorers = {asset: scorer(asset) for asset in spans}
    begins = tuple({asset: first for asset, (_, first, _) in one.assets.items()} for one in files)
    job = Job(reading, tuple(one.file for one in files), resume, {}, scorers, begins=begins)
    return replace(job, cuts={asset: _cut(*span, rows, job.overlap_us(asset)) for asset, span in spans.items()})


def in_one_piece(files: Sequence[Inspected], reading: Reading, scorer: Scorer, shards: str) -> Job:
    """The job over checked ``files`` with every asset whole."""
    resume, spans = _spans(files)
    cuts = {asset: Cut(first, last + 1 - first, 1) for asset, (_, first, last) in spans.items()}
    return Job(reading, tuple(one.file for one in files), resume, cuts, dict.fromkeys(spans, scorer), shards)


def _spans(files: Sequence[Inspected]) -> tuple[tuple[dict[str, int], ...], dict[str, tuple[int, int, int]]]:
    """``Job.resume``, and of each asset its rows, first and last time."""
    resume, spans = list[dict[str, int]](), dict[str, tuple[int, int, int]]()
    for one in files:
        resume.append({a: spans[a][2] for a in one.assets if a in spans})
        for asset, (n, first, last) in one.assets.items():
            known = spans.get(asset, (0, first, last))
            spans[asset] = (known[0] + n, min(known[1], first), max(known[2], last))
    return tuple(resume), spans


def _cut(n: int, first: int, last: int, rows: int, overlap_us: int) -> Cut:
    """An asset's pieces of about ``rows`` rows, none shorter than what it brings along."""
    length = last + 1 - first
    pieces = max(min(math.ceil(n / rows), length // max(overlap_us, 1)), 1)
    return Cut(first, math.ceil(length / pieces), pieces)


def fingerprint(files: Sequence[Inspected]) -> str:
    """The digest of the log, as single-process scoring has it: what the alert database knows the batch by."""
    if len(files) == 1:
        return files[0].sha256
    return hashlib.sha256("".join(f.sha256 for f in files).encode()).hexdigest()
