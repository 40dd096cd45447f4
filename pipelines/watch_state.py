"""What a watch knows between two looks: rows that wait to be put in order, what was answered, and how scoring goes on.

One file holds all of it and appears whole or not at all, so that after a kill the watch goes on from its last whole turn.
"""

from __future__ import annotations

import json
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from alerts.episodes import Episode, episode_from
from alerts.store import BatchRecord
from anomaly.data.contract import LogChunk
from anomaly.data.sensor_statistics import mixed
from anomaly.errors import Fault, InputRefused, UsageError
from anomaly.files import atomic_path
from anomaly.intervals import as_intervals, contains, merge
from anomaly.model import AnomalyModel
from pipelines.outages import Outages
from pipelines.watch_members import Arrays, Member, WatchModels, below, model_key

#: Of so many rows per asset that were answered last it is known what they held.
_REMEMBERED = 4096
_FORMAT = 2


def row_digests(chunk: LogChunk) -> NDArray[np.uint64]:
    """A 64-bit digest of the values and categories of each row, ``(n,)``; equal rows have equal digests.

    >>> from anomaly.model import chunk_from_frame
    >>> from anomaly.data.contract import LogContract
    >>> frame = pd.DataFrame({"time": pd.to_datetime([0, 1, 2], utc=True), "P": [1.0, 1.0, 2.0]})
    >>> a, b, c = row_digests(chunk_from_frame(frame, LogContract("time", ("P",), 1)))
    >>> bool(a == b), bool(a == c)
    (True, False)
    """
    values = np.where(np.isnan(chunk.values), np.float32(np.nan), chunk.values + np.float32(0))
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    words = [pd.util.hash_array(chunk.categories[:, k].astype(object)) for k in range(chunk.categories.shape[1])]
    parts = np.column_stack([bits, *words]).astype(np.uint64)
    place = np.arange(parts.shape[1], dtype=np.uint64) << np.uint64(32)
    return mixed(mixed(parts ^ mixed(place)).sum(axis=1, dtype=np.uint64))


@dataclass
class Answered:
    """What was answered of one asset: times in UTC microseconds, ``spans`` without gaps, and what the last rows held."""

    newest: int | None = None  # of all rows that came, those that wait included
    frontier: int | None = None  # of the rows that were scored
    spans: list[tuple[int, int]] = field(default_factory=list)
    time: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    digest: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))


class Order:
    """Puts the rows of files that come out of order into order, per asset, within a limit of lateness.

    A row waits until a row of its asset came that is ``lateness_us`` newer (the watermark). A row that comes after newer ones
    of its asset were scored is late, unless it was answered before.
    """

    def __init__(self, lateness_us: int, max_gap_us: int) -> None:
        self.lateness_us, self.max_gap_us = lateness_us, max_gap_us
        self.waiting: dict[str, LogChunk] = {}
        self.answered: dict[str, Answered] = {}

    @property
    def rows(self) -> int:
        """Rows that wait."""
        return sum(len(chunk) for chunk in self.waiting.values())

    def in_order(self, first_us: int) -> bool:
        """Whether everything from ``first_us`` on is newer than all that came."""
        return all(a.newest is None or first_us > a.newest for a in self.answered.values())

    def faults(self, chunk: LogChunk, name: str) -> list[Fault]:
        """Why the rows cannot be taken: the first late row of each asset and the first that differs from one already taken."""
        found = []
        for asset, part in _by_asset(chunk):
            _, late, other = self._judged(asset, part)
            known = self.answered.get(asset)
            if late.any() and known is not None:
                at, n = int(np.argmax(late)), int(late.sum())
                expected = f"rows of {asset} after {_moment(known.frontier)}, the last that was scored"
                hint = "raise --lateness, or score the file by itself with anomaly score"
                said = f"{_moment(int(part.time[at]))}, {n} rows too late"
                found.append(Fault("E3205", expected, said, hint, name, row=int(part.row[at]) + 1))
            if other.any():
                at = int(np.argmax(other))
                expected = f"the values that came before for {asset} at {_moment(int(part.time[at]))}"
                found.append(Fault("E3206", expected, "other values", "", name, row=int(part.row[at]) + 1))
        return found

    def admit(self, chunk: LogChunk) -> int:
        """Take the rows that are new; gives how many. Call ``faults`` first where rows may be late."""
        taken = 0
        for asset, part in _by_asset(chunk):
            fresh, _, _ = self._judged(asset, part)
            known = self.answered.setdefault(asset, Answered())
            known.newest = max(int(part.time.max()), known.newest if known.newest is not None else int(part.time.max()))
            if not fresh.any():
                continue
            taken += int(fresh.sum())
            own = part.take(fresh)
            joined = LogChunk.join([self.waiting[asset], own]) if asset in self.waiting else own
            self.waiting[asset] = joined.take(np.argsort(joined.time, kind="stable"))
        return taken

    def release(self, everything: bool = False) -> LogChunk | None:
        """The rows that no row in time can come before, by asset and time; with ``everything`` all that wait."""
        parts = []
        for asset in list(self.waiting):
            own, known = self.waiting[asset], self.answered[asset]
            limit = int(own.time[-1]) if everything or known.newest is None else known.newest - self.lateness_us
            n = int(np.searchsorted(own.time, limit, side="right"))
            if not n:
                continue
            parts.append(own.take(slice(0, n)))
            self._remember(known, parts[-1])
            if n < len(own):
                self.waiting[asset] = own.take(slice(n, None))
            else:
                del self.waiting[asset]
        return LogChunk.join(parts) if parts else None

    def _judged(self, asset: str, part: LogChunk) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
        """Of the rows of one asset ``(n,)`` each: which are new, which are late, which differ from the one already taken."""
        time, known = part.time, self.answered.get(asset) or Answered()
        again = np.concatenate(([False], time[1:] == time[:-1]))
        if known.newest is None or time[0] > known.newest:
            return ~again, np.zeros(len(time), bool), np.zeros(len(time), bool)
        waiting = self.waiting.get(asset)
        held_time, held = known.time, known.digest
        if waiting is not None:
            held_time = np.concatenate((held_time, waiting.time))
            held = np.concatenate((held, row_digests(waiting)))
        at = np.minimum(np.searchsorted(held_time, time), max(len(held_time) - 1, 0))
        hit = held_time[at] == time if len(held_time) else np.zeros(len(time), bool)
        other = hit & (held[at] != row_digests(part)) if len(held_time) else hit
        behind = ~hit & (time <= known.frontier) if known.frontier is not None else np.zeros(len(time), bool)
        forgotten = time < known.time[0] if len(known.time) else np.zeros(len(time), bool)
        before = behind & forgotten & contains(as_intervals(known.spans), time)
        return ~hit & ~behind & ~again, behind & ~before, other

    def _remember(self, known: Answered, part: LogChunk) -> None:
        digest = row_digests(part.take(slice(-_REMEMBERED, None)))
        known.time = np.concatenate((known.time, part.time[-_REMEMBERED:]))[-_REMEMBERED:]
        known.digest = np.concatenate((known.digest, digest))[-_REMEMBERED:]
        edges = np.concatenate(([0], np.flatnonzero(np.diff(part.time) > self.max_gap_us) + 1, [len(part)]))
        runs = [(int(part.time[a]), int(part.time[b - 1]) + 1) for a, b in pairwise(edges.tolist())]
        known.spans = [(a, b) for a, b in merge([*known.spans, *runs], self.max_gap_us).tolist()]
        known.frontier = int(part.time[-1])

    def to_state(self) -> tuple[dict[str, Any], Arrays]:
        """JSON-ready values and arrays; the limits are not part of it."""
        plain, arrays = list[dict[str, Any]](), Arrays()
        for number, (asset, known) in enumerate(self.answered.items()):
            held: Arrays = {"time": known.time, "digest": known.digest}
            if asset in self.waiting:
                held |= {f"waiting_{f.name}": getattr(self.waiting[asset], f.name) for f in fields(LogChunk)}
                held |= {f"waiting_{name}": held[f"waiting_{name}"].astype(np.str_) for name in ("asset", "categories")}
            arrays |= {f"{number}/{name}": array for name, array in held.items()}
            plain.append({"asset": asset, "newest": known.newest, "frontier": known.frontier, "spans": known.spans})
        return {"assets": plain}, arrays

    @classmethod
    def from_state(cls, lateness_us: int, max_gap_us: int, settings: dict[str, Any], arrays: Arrays) -> Order:
        """The order from what ``to_state`` gave, under limits that may be others."""
        made = cls(lateness_us, max_gap_us)
        for number, own in enumerate(settings["assets"]):
            held = {k.partition("/")[2]: v for k, v in arrays.items() if k.startswith(f"{number}/")}
            spans = [(int(a), int(b)) for a, b in own["spans"]]
            known = Answered(own["newest"], own["frontier"], spans, held["time"], held["digest"])
            made.answered[own["asset"]] = known
            if "waiting_time" in held:
                columns = {f.name: held[f"waiting_{f.name}"] for f in fields(LogChunk)}
                columns |= {name: columns[name].astype(object) for name in ("asset", "categories")}
                made.waiting[own["asset"]] = LogChunk(**columns)
        return made


@dataclass
class WatchState:
    """All that a watch needs to go on.

    ``members``: how scoring goes on by each model, "" where there is one; ``shadow`` by the challenger. ``files``: by name,
    size, modification time and digest of what was taken from the folder. ``unrecorded``: batches whose ledger entry may be
    missing; the ledger itself knows. ``outages``: assets that cannot be scored, those that are to be told included.
    """

    contract: str
    order: Order
    members: dict[str, Member]
    outages: Outages = field(default_factory=Outages)
    shadow: Member | None = None
    sequence: int = 0
    rows: int = 0
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    unrecorded: list[tuple[BatchRecord, list[Episode]]] = field(default_factory=list)
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:8])  # part of the names of the score files

    @classmethod
    def new(cls, models: WatchModels, lateness_us: int, challenger: AnomalyModel | None = None) -> WatchState:
        """Nothing seen yet."""
        members = {name: Member.new(model) for name, model in models.loaded.items()}
        made = cls(models.contract.fingerprint(), Order(lateness_us, models.max_gap_us), members)
        made.shadow = None if challenger is None else Member.new(challenger)
        return made

    def with_models(self, models: WatchModels) -> None:
        """Score with ``models`` from here on: windows begin anew where a model is another one; what came stays known.

        Raises UsageError E2001 for models of other sensors or another period.
        """
        self._check_contract(models.contract.fingerprint())
        before, self.members = self.members, {}
        for name, model in models.loaded.items():
            known = before.get(name)
            self.members[name] = known if known is not None and known.key == model_key(model) else Member.new(model)

    def _check_contract(self, fingerprint: str) -> None:
        if fingerprint != self.contract:
            hint = "finish with the former model (anomaly watch --once --flush), then watch another folder"
            raise UsageError(Fault("E2001", "a model of the same sensors and period as before", "another", hint))

    def save(self, path: Path) -> None:
        """Write all of it to ``path`` in one rename; raises Unavailable E5002 where the disk is full or read-only."""
        plain: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN} | {"format": _FORMAT}
        plain["unrecorded"] = [[asdict(b), [asdict(e) for e in own]] for b, own in self.unrecorded]
        plain["outages"] = self.outages.to_state()
        plain["order"], held = self.order.to_state()
        arrays = {f"order/{key}": array for key, array in held.items()}
        members = list(self.members.items()) + ([(SHADOW, self.shadow)] if self.shadow is not None else [])
        plain["members"] = []
        for number, (name, member) in enumerate(members):
            own, held = member.to_state()
            plain["members"].append({**own, "name": name})
            arrays |= {f"{number}/{key}": array for key, array in held.items()}
        arrays["settings"] = np.frombuffer(json.dumps(plain).encode(), np.uint8)
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)

    @classmethod
    def load(
        cls, path: Path, models: WatchModels, lateness_us: int, challenger: AnomalyModel | None = None
    ) -> WatchState:
        """What ``save`` wrote, or nothing seen yet where there is no such file.

        A state of another model keeps what came and begins the windows anew. Raises InputRefused E3006 for a damaged file.
        """
        if not path.exists():
            return cls.new(models, lateness_us, challenger)
        try:
            with np.load(path, allow_pickle=False) as held:
                arrays = {name: held[name] for name in held.files}
            plain = json.loads(arrays.pop("settings").tobytes())
            if plain["format"] == 1:
                plain, arrays = _from_first(plain, arrays)
            if plain["format"] != _FORMAT:
                raise ValueError(f"format: expected {_FORMAT}, got {plain['format']}")
            return cls._from_parts(plain, arrays, models, lateness_us, challenger)
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            hint = "move it away: the watch then begins anew, and the ledger answers repeated rows once"
            raise InputRefused(Fault("E3006", "the state of a watch", error, hint, str(path))) from error

    @classmethod
    def _from_parts(
        cls, plain: dict[str, Any], arrays: Arrays, models: WatchModels, lateness_us: int,
        challenger: AnomalyModel | None,
    ) -> WatchState:  # fmt: skip
        made = cls.new(models, lateness_us, challenger)
        made._check_contract(plain["contract"])
        made.order = Order.from_state(lateness_us, models.max_gap_us, plain["order"], below(arrays, "order"))
        for number, own in enumerate(plain["members"]):
            name, held = own["name"], below(arrays, str(number))
            if name == SHADOW:
                made.shadow = None if challenger is None else Member.from_state(challenger, own, held)
            elif name in models.loaded:
                made.members[name] = Member.from_state(models.loaded[name], own, held)
        made.outages = Outages.from_state(plain["outages"])
        for key in _PLAIN:
            setattr(made, key, plain[key])
        made.unrecorded = [(BatchRecord(**b), [episode_from(e) for e in own_]) for b, own_ in plain["unrecorded"]]
        return made


_PLAIN = ("contract", "sequence", "rows", "files", "name")
#: The member that raises no alerts.
SHADOW = "@shadow"


def _from_first(plain: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
    """A state as it was before a watch could have many models."""
    member = {name: plain[name] for name in ("stream", "trackers", "sample", "alerts", "covered", "told")}
    member |= {"name": "", "key": plain["model"]}
    kept = {k if k.startswith("order/") else f"0/{k}": v for k, v in arrays.items()}
    more = {"format": _FORMAT, "members": [member], "outages": Outages().to_state()}
    return {**plain, **more}, kept


def _by_asset(chunk: LogChunk) -> Iterator[tuple[str, LogChunk]]:
    for asset in pd.unique(chunk.asset):
        yield str(asset), chunk.take(chunk.asset == asset)


def _moment(time_us: int | None) -> str:
    return "nothing" if time_us is None else str(pd.Timestamp(time_us, unit="us"))
