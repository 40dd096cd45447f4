"""The front door: CSV and Parquet logs, wide or long, one file or many, become checked chunks.

``open_log`` passes over every file once in bounded memory and either refuses the log with all faults of all files,
or gives a ``PlantLog`` whose ``chunks()`` read it again. Everything that was inferred is in ``notices``.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from anomaly.config import LogSettings, parse_duration
from anomaly.data.contract import EVENT, NORMAL, ONE_ASSET, UNKNOWN, LogChunk, LogContract
from anomaly.data.reading import column_faults, long_form, overlaps, time_columns
from anomaly.data.reading.chunking import Layout, Part, part_chunks, rebatch
from anomaly.data.reading.order import StepCounter
from anomaly.data.reading.profile import FileProfile, Reading, profile_file
from anomaly.data.reading.roles import Roles, inferred, matched, some_names
from anomaly.data.reading.sources import Source, open_source
from anomaly.data.reading.spool import LEAST_BYTES, SpoolFile
from anomaly.data.reading.times import TimeReading
from anomaly.errors import Fault, InputRefused, UsageError
from anomaly.files import sha256

#: Taken as the period of a log with fewer than two different times, for want of any step.
_ASSUMED_PERIOD_US = 10**6
_INFER_ALL = LogSettings()
#: First batches, a few megabytes each, are kept until the file is checked where there are at most so many files.
_FEW_FILES = 8


@dataclass(frozen=True)
class SourceFile:
    """One file of a log: its digest, its rows, its first and last time in UTC microseconds."""

    path: Path
    sha256: str
    rows: int
    first_us: int
    last_us: int


@dataclass(frozen=True)
class PlantLog:
    """A log that passed every check.

    ``files`` are in reading order (by asset, then by time); ``notices`` are printable sentences on what was inferred
    or left out; ``rows`` counts the rows that ``chunks`` gives; ``label_counts`` maps UNKNOWN, NORMAL and EVENT to
    rows; ``duplicates`` counts rows that repeat an asset, time and values: those within a file stay in the chunks,
    those that an overlapping file repeats are read once. ``fingerprint`` is the digest of the files' digests.
    """

    contract: LogContract
    files: tuple[SourceFile, ...]
    notices: tuple[str, ...]
    rows: int
    label_counts: dict[int, int]
    duplicates: int
    fingerprint: str
    _layout: Layout = field(repr=False)
    _parts: tuple[Part, ...] = field(repr=False)

    def chunks(self, rows: int = 65536) -> Iterator[LogChunk]:
        """The log in chunks of ``rows`` (the last one may be shorter), in reading order.

        Raises InputRefused E3008 if a file changed since it was checked.
        """
        if rows < 1:
            raise ValueError(f"rows: expected at least 1, got {rows}")
        return self._chunks(rows)

    def _chunks(self, rows: int) -> Iterator[LogChunk]:
        # A generator of this object's own: rows kept on disk must not go away with the log while they are read.
        yield from rebatch((c for part in self._parts for c in part_chunks(part, self._layout)), rows)


@dataclass
class _Draft:
    """A log while it is being opened."""

    settings: LogSettings
    contract: LogContract | None
    sources: list[Source] = field(default_factory=list)
    assets: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    reading: Reading = field(default_factory=lambda: Reading(None, TimeReading()))
    zoned: bool | None = None
    long: long_form.Widened | None = None
    long_asset: str | None = None
    scratch: Path | None = None


def open_log(
    paths: Sequence[Path], settings: LogSettings = _INFER_ALL, contract: LogContract | None = None
) -> PlantLog:
    """Check the log files at ``paths`` and open them as one log.

    With ``contract`` (scoring) the log must match the model's: the same tags in any order, the same kind of times,
    about the same period; the label may be missing. Without, the columns' parts are declared by ``settings`` or
    inferred. Raises InputRefused with every fault of every file, UsageError for an impossible setting.
    """
    if not paths:
        raise UsageError(Fault("E2001", "at least one log file", "none"))
    draft = _Draft(settings, contract)
    try:
        log = _open(draft, [Path(p) for p in paths])
    except InputRefused as refused:
        _discard(draft.scratch)
        more = [f for f in refused.faults if f not in draft.faults]
        raise InputRefused(column_faults.limited(draft.faults + more)) from refused
    except BaseException:
        _discard(draft.scratch)
        raise
    weakref.finalize(log, _discard, draft.scratch)
    return log


def _discard(scratch: Path | None) -> None:
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)


def _open(draft: _Draft, paths: list[Path]) -> PlantLog:
    _open_sources(draft, paths)
    time, times = _settle_time(draft)
    label = draft.settings.label or (draft.contract.label if draft.contract else None)
    asset = None if draft.settings.asset_from_name else draft.settings.asset or (
        draft.contract.asset if draft.contract else None
    )  # fmt: skip
    used = {*(draft.settings.tags or ()), *draft.settings.categories, asset, label}
    if draft.contract:
        used |= {*draft.contract.tags, *draft.contract.categories}
    texts = {*draft.settings.categories, *(draft.contract.categories if draft.contract else ())}
    draft.reading = Reading(time, times, asset, label, frozenset(draft.settings.drop) - used, frozenset(texts))
    originals = draft.sources
    _widen(draft)
    profiles = _profiles(draft)
    roles = _roles(draft, profiles)
    period = _period(draft, profiles)
    _refuse(draft)
    return _finished(draft, originals, profiles, roles, period)


def _refuse(draft: _Draft) -> None:
    if draft.faults:
        raise InputRefused(column_faults.limited(draft.faults))


def _open_sources(draft: _Draft, paths: list[Path]) -> None:
    """Open every file; files that cannot be opened become faults, the others go on to be checked."""
    pattern = draft.settings.asset_from_name
    for path in paths:
        try:
            source = open_source(path, draft.settings)
            digest = sha256(path)
        except InputRefused as refused:
            draft.faults += refused.faults
            continue
        except OSError as error:
            draft.faults.append(Fault("E3001", "a readable file", error.strerror or error, "", str(path)))
            continue
        asset = _asset_from_name(path, pattern) if pattern else ONE_ASSET
        if asset is None:
            hint = f"the name has no match for {pattern}"
            draft.faults.append(Fault("E3113", "an asset in the file's name", path.name, hint, str(path)))
        source.keep_first = len(paths) <= _FEW_FILES
        draft.sources.append(source)
        draft.assets.append(asset or ONE_ASSET)
        draft.digests.append(digest)
    if not draft.sources:
        _refuse(draft)


def _asset_from_name(path: Path, pattern: str) -> str | None:
    try:
        found = re.search(pattern, path.name)
        return found[1] if found and found[1] else None
    except (re.error, IndexError) as error:
        expected = "a regular expression whose first group is the asset"
        raise UsageError(Fault("E2001", expected, f"{pattern} ({error})")) from error


def _settle_time(draft: _Draft) -> tuple[str | None, TimeReading]:
    """The time column and how it is read; what cannot be settled becomes a fault and times go unchecked."""
    try:
        time, notices = time_columns.find(draft.sources, draft.settings, draft.contract)
        times, more = time_columns.settle(draft.sources, time, draft.settings, draft.contract)
    except InputRefused as refused:
        draft.faults += refused.faults
        return None, TimeReading()
    draft.notices += notices + more
    return time, times


def _widen(draft: _Draft) -> None:
    """Turn a log in long form into one wide scratch file, which is then checked like any other."""
    reading, settings = draft.reading, draft.settings
    columns = long_form.recognised(draft.sources[0], settings, reading.asset, reading.label)
    if columns is None:
        return
    if any(long_form.recognised(s, settings, reading.asset, reading.label) is None for s in draft.sources[1:]):
        expected = "files that are all in long form, or all in wide form"
        draft.faults.append(Fault("E3007", expected, "both", "", draft.sources[0].name))
    if reading.time is None or draft.faults:
        _refuse(draft)
    draft.scratch = Path(tempfile.mkdtemp(prefix="anomaly-long-"))
    needed = (*draft.contract.tags, *draft.contract.categories) if draft.contract else ()
    wide = long_form.widen(
        draft.sources, draft.assets, columns, str(reading.time), reading.times, settings, draft.scratch, needed
    )
    draft.long, draft.long_asset = wide, columns.asset
    draft.notices += [f"long form: tag {columns.tag}, value {columns.value}, quality {columns.quality or 'not given'}"]
    draft.notices += wide.notices
    draft.zoned = wide.files[0].zoned
    for file, source in zip(wide.files, draft.sources, strict=True):
        if file.zoned != draft.zoned:
            draft.faults.append(_other_kind(source, reading.time, file.zoned))
    label = reading.label if reading.label in wide.source.columns else None
    draft.reading = Reading(reading.time, TimeReading("epoch_us"), columns.asset or long_form.NO_ASSET,
                            label or reading.label, reading.ignored)  # fmt: skip
    draft.sources, draft.assets = [wide.source], [ONE_ASSET]


def _profiles(draft: _Draft) -> list[FileProfile]:
    profiles = []
    file: SpoolFile | None = None
    for source, asset in zip(draft.sources, draft.assets, strict=True):
        try:
            if file is None and source.parses_text and _worth_keeping(source):
                file = SpoolFile()
            profile = profile_file(source, draft.reading, asset, file if _worth_keeping(source) else None)
            profiles.append(profile)
            draft.faults += profile.time_faults
        except InputRefused as refused:
            draft.faults += refused.faults
        draft.faults += source.faults
    if not profiles:
        _refuse(draft)
    draft.notices += _shared_notices(draft.sources)
    return profiles


def _worth_keeping(source: Source) -> bool:
    """Whether the checked rows of ``source`` are kept: parsing it again takes long, and there is room on disk."""
    size = source.state[0]
    return source.parses_text and size >= LEAST_BYTES and SpoolFile.room_for(size)


def _shared_notices(sources: list[Source]) -> list[str]:
    """The files' notices, each once; with the files' names where it does not hold for all."""
    told: dict[str, list[str]] = {}
    for source in sources:
        for notice in source.notices:
            told.setdefault(notice, []).append(source.path.name)
    return [n if len(names) == len(sources) else f"{some_names(names)}: {n}" for n, names in told.items()]


def _roles(draft: _Draft, profiles: list[FileProfile]) -> Roles:
    """The columns' parts, with the faults of the columns that matter and of the times' kinds."""
    settings = draft.settings
    if draft.long is not None:
        settings = replace(settings, asset=draft.reading.asset, asset_from_name=None)
    roles = matched(profiles, settings, draft.contract) if draft.contract else inferred(profiles, settings)
    draft.faults += roles.faults + column_faults.column_faults(profiles, roles, settings)
    labels = column_faults.label_scheme(profiles, roles, settings, draft.contract is not None)
    # the wide form of a long log has rows of its own: a row number would mislead
    draft.faults += [replace(f, row=None) for f in labels] if draft.long else labels
    if draft.zoned is None:
        draft.zoned = next((p.zoned for p in profiles if p.zoned is not None), None)
        different = [p for p in profiles if p.zoned not in (None, draft.zoned)]
        draft.faults += [_other_kind(p.source, draft.reading.time, p.zoned) for p in different]
    if draft.contract and draft.zoned not in (None, draft.contract.zoned):
        expected = f"times {'with' if draft.contract.zoned else 'without'} a zone, as the model was trained on"
        found = "times with a zone" if draft.zoned else "times without a zone"
        draft.faults.append(Fault("E3201", expected, found, "", profiles[0].source.name, draft.reading.time))
    draft.notices += roles.notices
    return roles


def _other_kind(source: Source, column: str | None, zoned: bool | None) -> Fault:
    found = "times with a zone" if zoned else "times without a zone"
    return Fault("E3201", "times of one kind in all files", found, "", source.name, column)


def _period(draft: _Draft, profiles: list[FileProfile]) -> int:
    """The sampling period in microseconds: the contract's, the declared or the usual step; E3303 if they disagree."""
    steps = StepCounter()
    for profile in profiles:
        steps.merge(profile.order.steps)
    usual, contract, declared = steps.median(), draft.contract, draft.settings.period
    if contract is not None:
        rows = sum(p.rows for p in profiles)
        if usual and rows >= 10 and not 1 / 1.5 <= usual / contract.period_us <= 1.5:
            expected = f"a period of about {contract.period_us / 1e6:g} s, as the model was trained on"
            hint = "resample the log, or train a model for this period"
            fault = Fault("E3303", expected, f"{usual / 1e6:g} s", hint, profiles[0].source.name, draft.reading.time)
            draft.faults.append(fault)
        return contract.period_us
    if declared:
        return parse_duration(declared)
    if usual is None:
        draft.notices.append("period 1 s (assumed: there is no step in time)")
        return _ASSUMED_PERIOD_US
    draft.notices.append(f"period {usual / 1e6:g} s (inferred)")
    return usual


def _finished(
    draft: _Draft, originals: list[Source], profiles: list[FileProfile], roles: Roles, period: int
) -> PlantLog:
    """The log, once its parts are in order and overlapping files agree."""
    contract = draft.contract or _contract(draft, roles, period)
    unlabelled = NORMAL if draft.contract is None and roles.label is None else UNKNOWN
    if roles.label is not None and draft.settings.unlabelled == "normal":
        unlabelled = NORMAL
    reading = draft.reading
    layout = Layout(contract, str(reading.time), reading.times, roles.asset, roles.label, unlabelled)
    parts = sorted((Part(p) for p in profiles), key=lambda p: (p.profile.asset, p.profile.first_us, p.source.name))
    faults, dropped = overlaps.settle(parts, layout)
    draft.faults += faults
    _refuse(draft)
    counts = _label_counts(profiles, roles, unlabelled, dropped)
    duplicates = sum(p.repeated for p in profiles) + (draft.long.duplicates if draft.long else 0)
    files = _files(draft, originals, parts)
    if sum(dropped.values()):
        draft.notices.append(f"{sum(dropped.values())} rows that overlapping files repeat are read once")
    bad = sum(c.bad for p in profiles for n, c in p.columns.items() if n in contract.tags)
    if bad:
        draft.notices.append(f"{bad} values of bad quality are taken as missing")
    return PlantLog(
        contract, files, tuple(dict.fromkeys(draft.notices)), sum(counts.values()), counts,
        duplicates + sum(dropped.values()),
        hashlib.sha256("".join(f.sha256 for f in files).encode()).hexdigest(), layout, tuple(parts),
    )  # fmt: skip


def _contract(draft: _Draft, roles: Roles, period: int) -> LogContract:
    zone = draft.settings.timezone or "UTC"
    if draft.zoned is False and draft.settings.timezone is None:
        draft.notices.append("times carry no zone: read as UTC; declare --timezone if they are local")
    draft.notices.append(f"{len(roles.tags)} tags: {', '.join(roles.tags)}")
    return LogContract(
        time=str(draft.reading.time), tags=tuple(roles.tags), period_us=period, categories=tuple(roles.categories),
        asset=draft.long_asset if draft.long else roles.asset, label=roles.label, timezone=zone,
        zoned=bool(draft.zoned), form="long" if draft.long else "wide", left_out=tuple(roles.left_out),
    )  # fmt: skip


def _label_counts(
    profiles: list[FileProfile], roles: Roles, unlabelled: int, dropped: dict[int, int]
) -> dict[int, int]:
    counts = {UNKNOWN: 0, NORMAL: 0, EVENT: 0}
    for profile in profiles:
        column = profile.columns.get(roles.label) if roles.label else None
        if column is None:
            counts[unlabelled] += profile.rows
            continue
        counts[NORMAL] += column.zeros
        counts[EVENT] += column.values - column.zeros
        counts[UNKNOWN] += profile.rows - column.values
    return {kind: count - dropped.get(kind, 0) for kind, count in counts.items()}


def _files(draft: _Draft, originals: list[Source], parts: list[Part]) -> tuple[SourceFile, ...]:
    digests = {source.name: digest for source, digest in zip(originals, draft.digests, strict=True)}
    if draft.long is None:
        return tuple(
            SourceFile(p.source.path, digests[p.source.name], p.profile.rows, p.profile.first_us, p.profile.last_us)
            for p in parts
        )
    pairs = sorted(zip(originals, draft.long.files, strict=True), key=lambda pair: (pair[1].first_us, pair[0].name))
    return tuple(SourceFile(s.path, digests[s.name], f.rows, f.first_us, f.last_us) for s, f in pairs)
