"""Draw windows of a store for people to label: novel ones first, every mode covered, as a table and a picture (METHODS S20).

Modes are clusters of the embedded normal windows of the train part. The filled-in table is what ``anomaly train --verdicts``
reads.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alerts.export import safe_cell
from anomaly.data.reading.verdicts import read_verdicts
from anomaly.data.store import WindowBlock, WindowStore
from anomaly.data.windows import cut_windows
from anomaly.errors import Fault, InputRefused, UsageError
from anomaly.files import atomic_path
from anomaly.fitting import PreparedWindows, Progress, Repeated, silent
from anomaly.model import AnomalyModel
from anomaly.scores.sampling import Drawn, StratifiedSample
from anomaly.scores.window_scores import (
    SCORES,
    WEIGHTS,
    Limits,
    ModeStability,
    composite,
    energy,
    filled_radius,
    novelty,
)

if TYPE_CHECKING:
    from anomaly.embeddings.space import Space

COLUMNS = (
    "asset", "start", "end", "mode", "mode_share", "stability", "cosine", "novelty", "energy", "weight",
    "probability_rank", "draw_order", "verdict",
)  # fmt: skip
TABLE, SHEET, LIMITS = "samples.csv", "contact_sheet.png", "limits.json"
#: Windows that stability looks back over, this one included.
RECENT = 20
_SIZE = 2048


@dataclass(frozen=True)
class Measured:
    """Every window that could be drawn, in store order, a few numbers each.

    ``row (n,)`` int64 the number of its first row over all assets, unique; ``mode (n,)`` int32; ``recent``, ``cosine``,
    ``novelty``, ``energy (n,)`` float32.
    """

    row: NDArray[np.int64]
    mode: NDArray[np.int32]
    recent: NDArray[np.float32]
    cosine: NDArray[np.float32]
    novelty: NDArray[np.float32]
    energy: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class SampledWindow:
    """One drawn window: rows [start_row, start_row + T) of ``asset``; times in UTC microseconds, ``end_us`` one period after
    the last row, because verdicts are half-open. ``draw_order`` counts within its mode, ``probability_rank`` is its
    place by weight in the mode."""

    asset: str
    start_row: int
    start_us: int
    end_us: int
    mode: int
    mode_share: float
    stability: float
    cosine: float
    novelty: float
    energy: float
    weight: float
    probability_rank: int
    draw_order: int


@dataclass(frozen=True)
class Sampled:
    """What a draw did: where it wrote, and what it drew from."""

    out: Path
    table: Path
    sheet: Path
    windows: int  # that could be drawn
    modes: dict[int, int]  # windows in each mode
    drawn: list[SampledWindow] = field(default_factory=list)
    notices: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        drawn = {mode: sum(w.mode == mode for w in self.drawn) for mode in self.modes}
        return {
            "table": str(self.table),
            "sheet": str(self.sheet),
            "windows": self.windows,
            "drawn": len(self.drawn),
            "modes": [{"mode": mode, "windows": n, "drawn": drawn[mode]} for mode, n in self.modes.items()],
            "notices": list(self.notices),
        }


def sample(
    store_path: Path,
    model: AnomalyModel,
    k: int = 10,
    temperature: float = 0.1,
    out: Path = Path("samples"),
    seed: int = 7,
    weights: Sequence[float] = WEIGHTS,
    part: str | None = None,
    progress: Progress = silent,
    *,
    clusters: int | None = None,
    limits: Path | None = None,
    overlapping: bool = False,
) -> Sampled:
    """Draw ``k`` windows of each mode from ``part`` of a store (None: all of it) and write table, picture and limits to ``out``.

    ``weights`` are those of stability (share of recent windows), novelty and energy; ``clusters`` None lets the modes be
    counted; ``limits`` are those of an earlier draw, to be comparable with it. Windows share no row, unless they may be
    ``overlapping``: neighbours would be labelled again and again.

    Raises InputRefused E3301 where no window can be drawn, E3302 without a normal one to learn modes from, E3402 for a store
    that does not fit the model; UsageError E2002 for values that cannot be followed, E2003 where ``out`` holds verdicts.
    """
    _check(k, temperature, weights)
    _spare_verdicts(out / TABLE)
    given = None if limits is None else read_limits(limits)
    with WindowStore.open(store_path, expect=model.contract) as store:
        if store.lookback != model.lookback:
            raise InputRefused(
                Fault("E3402", f"windows of {model.lookback} rows", store.lookback, file=str(store_path))
            )
        windows = PreparedWindows(store, model.preparer, model.vocabulary, model.settings.training)
        progress("space", 0, 1)
        space = fit_space(model, windows, clusters, seed)
        progress("space", 1, 1)
        measured = measure(store, model, windows, space, part, progress, overlapping)
        used = given or Limits().fit([_scores(measured)])
        total = composite(used.scale(_scores(measured)), weights)
        drawn = _draw(measured, total.score, k, temperature, seed)
        found = _described(store, measured, total.score, drawn)
        _write(out, store, model, found, used)
    modes, counts = np.unique(measured.mode, return_counts=True)
    table = dict(zip(modes.tolist(), counts.tolist(), strict=True))
    return Sampled(out, out / TABLE, out / SHEET, len(measured), table, found, tuple(filter(None, [total.warning])))


def _check(k: int, temperature: float, weights: Sequence[float]) -> None:
    """Refuse what the draw would refuse, before anything is read."""
    try:
        StratifiedSample(k, temperature, 0)
        composite(np.empty((0, len(SCORES))), weights)
    except ValueError as error:
        raise UsageError(Fault("E2002", "k, temperature and weights that can be followed", error)) from error


def _spare_verdicts(table: Path) -> None:
    """A table that people have filled in is not written over."""
    if table.exists() and (filled := len(read_verdicts(table))):
        hint = "choose another --out, or move the table away"
        raise UsageError(Fault("E2003", "a table without verdicts", f"{filled} verdicts", hint, str(table)))


def fit_space(model: AnomalyModel, windows: PreparedWindows, clusters: int | None, seed: int) -> Space:
    """Modes of the embedded normal windows of the train part; raises InputRefused E3302 where there is none."""
    from anomaly.embeddings.space import Space

    if next(windows.blocks("train"), None) is None:
        raise InputRefused(Fault("E3302", "normal windows in the train part", "none", "give a longer log"))
    embedded = Repeated(lambda: (model.encoder.embed(block.values) for block in windows.blocks("train")))
    try:
        return Space.fit(embedded, clusters=clusters, seed=seed)
    except ValueError as error:
        raise UsageError(Fault("E2002", "a number of modes that the windows can have", error)) from error


def measure(
    store: WindowStore,
    model: AnomalyModel,
    windows: PreparedWindows,
    space: Space,
    part: str | None,
    progress: Progress = silent,
    overlapping: bool = False,
) -> Measured:
    """The windows of ``part`` that may be drawn, read once, block by block; 28 bytes of each are kept.

    Without ``overlapping`` each begins after the one before it. Raises InputRefused E3301 where there is none.
    """
    radius, first = filled_radius(space.kmeans.radius_), _first_rows(store)
    balance = tag_weights(model)
    stability, total, kept, done = ModeStability(RECENT), store.n_part_rows(part), [], 0
    blocks = store.window_blocks(part, size=_SIZE, prepare=windows.prepare)
    for block in blocks if overlapping else _apart(blocks, store.lookback):
        placed = space.place(model.encoder.embed(block.values))
        kept.append(
            (
                first[block.asset] + block.starts,
                placed.ids.astype(np.int32),
                stability.add(block.asset, placed.ids).astype(np.float32),
                placed.cosine.astype(np.float32),
                novelty(placed.distance, radius[placed.ids]).astype(np.float32),
                energy(_raw(store, block), balance).astype(np.float32),
            )
        )
        done += len(block) * (store.stride if overlapping else store.lookback)
        progress("measure", min(done, total), total)
    if not kept:
        hint = "shorten the lookback, or sample another part"
        raise InputRefused(Fault("E3301", f"a complete window of {store.lookback} rows", "none", hint, str(store.path)))
    progress("measure", total, total)
    return Measured(*(np.concatenate(column) for column in zip(*kept, strict=True)))


def _apart(blocks: Iterator[WindowBlock], lookback: int) -> Iterator[WindowBlock]:
    """Only windows that begin after the last one that was kept of their asset ends."""
    asset, free = "", 0
    for block in blocks:
        asset, free = block.asset, free if block.asset == asset else 0
        kept, at = [], int(np.searchsorted(block.starts, free))
        while at < len(block):
            kept.append(at)
            free = int(block.starts[at]) + lookback
            at = int(np.searchsorted(block.starts, free))
        if kept:
            yield block.take(np.array(kept))


def tag_weights(model: AnomalyModel) -> NDArray[np.float64]:
    """Channel weights of the energy, ``(C,)``: one over each tag's mean square in normal rows, so that units do not decide."""
    square: NDArray[np.float64] = model.preparer.center_**2 + model.preparer.scale_**2
    return 1 / square


def _raw(store: WindowStore, block: WindowBlock) -> NDArray[np.float32]:
    """The windows of a prepared block as they were measured, ``(B, T, C)``."""
    low = int(block.starts[0])
    rows = store.rows(block.asset, low, int(block.starts[-1]) + store.lookback)
    return cut_windows(rows.values, block.starts - low, store.lookback)


def _first_rows(store: WindowStore) -> dict[str, int]:
    """How many rows lie before each asset's own, in store order."""
    before = np.cumsum([0, *(store.n_rows(asset) for asset in store.assets)]).tolist()
    return dict(zip(store.assets, before, strict=False))


def _scores(measured: Measured) -> NDArray[np.float32]:
    return np.column_stack((measured.recent, measured.novelty, measured.energy))


def _draw(measured: Measured, weight: NDArray[np.float64], k: int, temperature: float, seed: int) -> Drawn:
    """The draw, with each window's position in ``measured`` as its column."""
    chosen = StratifiedSample(k, temperature, seed)
    chosen.add(measured.mode, weight, measured.row, np.arange(len(measured)))
    return chosen.drawn()


def _described(
    store: WindowStore, measured: Measured, weight: NDArray[np.float64], drawn: Drawn
) -> list[SampledWindow]:
    """The drawn windows with their times and figures, modes in order."""
    first, found = _first_rows(store), []
    ranked = {mode: np.sort(weight[measured.mode == mode]) for mode in np.unique(drawn.ids).tolist()}
    starts = np.array([first[asset] for asset in store.assets])
    for at, order in zip(drawn.columns[0].tolist(), drawn.order.tolist(), strict=True):
        asset = store.assets[int(np.searchsorted(starts, measured.row[at], side="right")) - 1]
        row = int(measured.row[at]) - first[asset]
        time = store.rows(asset, row, row + store.lookback).time
        mode = int(measured.mode[at])
        found.append(
            SampledWindow(
                asset=asset,
                start_row=row,
                start_us=int(time[0]),
                end_us=int(time[-1]) + store.period_us,
                mode=mode,
                mode_share=len(ranked[mode]) / len(measured),
                stability=float(measured.recent[at]),
                cosine=float(measured.cosine[at]),
                novelty=float(measured.novelty[at]),
                energy=float(measured.energy[at]),
                weight=float(weight[at]),
                probability_rank=len(ranked[mode]) - int(np.searchsorted(ranked[mode], weight[at], side="right")) + 1,
                draw_order=order,
            )
        )
    return found


def _write(out: Path, store: WindowStore, model: AnomalyModel, found: Sequence[SampledWindow], used: Limits) -> None:
    """Picture and limits first: who finds the table finds the rest."""
    from pipelines.contact_sheet import panels, write_sheet

    with atomic_path(out / SHEET) as temporary:
        write_sheet(panels(store, model, found), temporary)
    with atomic_path(out / LIMITS) as temporary:
        own = {name: used.to_state()[1][name].tolist() for name in ("low", "high")}
        temporary.write_text(json.dumps({"scores": SCORES, **own}, indent=2) + "\n", encoding="utf-8")
    with atomic_path(out / TABLE) as temporary:
        temporary.write_text(table_text(found), encoding="utf-8", newline="")


def read_limits(path: Path) -> Limits:
    """The limits that an earlier draw saved; raises UsageError E2001 for a file that holds none."""
    try:
        own = json.loads(path.read_text(encoding="utf-8"))
        limits = Limits.from_state({}, {name: np.array(own[name], dtype=np.float64) for name in ("low", "high")})
        if limits.low.shape != (len(SCORES),):
            raise ValueError(f"expected {len(SCORES)} limits, got {limits.low.shape}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(Fault("E2001", f"the {LIMITS} of an earlier draw", error, file=str(path))) from error
    return limits


def table_text(found: Sequence[SampledWindow]) -> str:
    """The drawn windows as CSV with the columns ``COLUMNS``; verdicts empty, times ISO 8601 in UTC, no cell that runs as a
    formula."""
    return "".join(_lines(found))


def _lines(found: Sequence[SampledWindow]) -> Iterator[str]:
    yield ",".join(COLUMNS) + "\n"
    for window in found:
        cells = {
            **{name: getattr(window, name, "") for name in COLUMNS},
            "start": iso(window.start_us),
            "end": iso(window.end_us),
        }
        text = io.StringIO()
        csv.writer(text, lineterminator="\r\n").writerow([safe_cell(_short(cells[name])) for name in COLUMNS])
        yield text.getvalue()[:-2] + "\n"


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def iso(microseconds: int) -> str:
    """UTC microseconds as ISO 8601.

    >>> iso(1_500_000)
    '1970-01-01T00:00:01.500000+00:00'
    """
    seconds, rest = divmod(microseconds, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest).isoformat()
