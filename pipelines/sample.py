"""Draw windows of a store for people to label: novel ones first, every mode covered, as a table and a picture (METHODS S20).

Modes are clusters of the embedded normal windows of the train part. What is drawn from are the small columns of a features
file, ``anomaly extract``'s or one of our own. The filled-in table is what ``anomaly train --verdicts`` reads.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from alerts.export import safe_cell
from anomaly.data.reading.verdicts import read_verdicts
from anomaly.data.store import WindowStore
from anomaly.data.store_beside import OpenStore
from anomaly.data.store_features import Features
from anomaly.errors import Fault, InputRefused, UsageError
from anomaly.files import atomic_path, beside
from anomaly.fitting import Progress, silent
from anomaly.model import AnomalyModel
from anomaly.scores.sampling import StratifiedSample
from anomaly.scores.window_scores import SCORES, WEIGHTS, Limits, composite
from pipelines.extract import ExtractOptions, extract
from pipelines.sample_draw import FIGURES, Candidates, Draw, draw, first_rows
from pipelines.stopping import Stopped

COLUMNS = (
    "asset", "start", "end", "mode", "mode_share", "stability", "cosine", "novelty", "energy", "weight",
    "probability_rank", "draw_order", "verdict",
)  # fmt: skip
TABLE, SHEET, LIMITS = "samples.csv", "contact_sheet.png", "limits.json"


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
    features: Path | None = None,
) -> Sampled:
    """Draw ``k`` windows of each mode from ``part`` of a store (None: all of it) and write table, picture and limits to ``out``.

    ``weights`` are those of stability (share of recent windows), novelty and energy; ``clusters`` None lets the modes be
    counted; ``limits`` are those of an earlier draw, to be comparable with it. Windows share no row, unless they may be
    ``overlapping``: neighbours would be labelled again and again. ``features`` is the store's features file; None makes
    one for the time being, beside ``out``.

    Raises InputRefused E3301 where no window can be drawn, E3302 without a normal one to learn modes from, E3402 for a store
    that does not fit the model or features of another store or model, and as ``Features.open``; UsageError E2001 for
    features without modes, E2002 for values that cannot be followed, E2003 where ``out`` holds verdicts; Unavailable
    E5002 for a full disk.
    """
    _check(k, temperature, weights)
    _spare_verdicts(out / TABLE)
    if features is not None and clusters is not None:
        raise UsageError(Fault("E2002", "clusters: none beside features, which have their modes", clusters))
    given = None if limits is None else read_limits(limits)
    with (
        _open(store_path, model, part) as store,
        _features(store, model, out, clusters, seed, features, progress) as held,
    ):
        candidates = Candidates(store, held, part, overlapping=overlapping, progress=progress)
        if next(candidates.blocks(), None) is None:
            raise _no_window(store)
        used = given or Limits().fit(block.scores() for block in candidates.blocks())
        made = draw(candidates, used, weights, k, temperature, seed)
        found = _described(store, made)
        _write(out, store, model, found, used)
    notices = tuple(filter(None, [_whose_modes(model, clusters), made.warning]))
    return Sampled(out, out / TABLE, out / SHEET, sum(made.modes.values()), made.modes, found, notices)


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


def _open(path: Path, model: AnomalyModel, part: str | None) -> WindowStore:
    """The store, which fits the model and has a window in ``part``; blocks are checked by their checksums as they are read."""
    store = WindowStore.open(path, expect=model.contract, verify=False)
    try:
        if store.lookback != model.lookback:
            raise InputRefused(Fault("E3402", f"windows of {model.lookback} rows", store.lookback, file=str(path)))
        if not any(high > low for low, high, _ in store.window_spans(part)):
            raise _no_window(store)
    except InputRefused:
        store.close()
        raise
    return store


def _no_window(store: WindowStore) -> InputRefused:
    hint = "shorten the lookback, or sample another part"
    return InputRefused(Fault("E3301", f"a complete window of {store.lookback} rows", "none", hint, str(store.path)))


def _whose_modes(model: AnomalyModel, clusters: int | None) -> str:
    """What to know where modes were asked for that the model has already."""
    own = model.ensemble.space
    if own is None or clusters in (None, own.clusters):
        return ""
    return f"the modes are the {own.clusters} that the model has; {clusters} were asked for"


@contextmanager
def _features(
    store: WindowStore,
    model: AnomalyModel,
    out: Path,
    clusters: int | None,
    seed: int,
    given: Path | None,
    progress: Progress,
) -> Iterator[Features]:
    """The features file of the store, or one that is made beside ``out`` and removed afterwards."""
    if given is not None:
        with Features.open(given) as features:
            _check_features(store, model, features)
            yield features
        return
    with beside(out.resolve(), folder=True) as folder:
        made = folder / "features.h5"
        try:
            extract(store.path, model, made, ExtractOptions(reduce=0, clusters=clusters, seed=seed), progress)
        except Stopped as stopped:
            raise Stopped(stopped.number, "nothing was drawn; run the same command again") from None
        with Features.open(made) as features:
            yield features


def _check_features(store: WindowStore, model: AnomalyModel, features: Features) -> None:
    """Raises InputRefused E3402 for features of another store or model."""
    try:
        own = dict(json.loads(features.attributes["identity"]))
    except (KeyError, ValueError, TypeError):
        own = {}
    wanted = {"store": OpenStore(store).identity(), "model": model.digest or model.contract.fingerprint()}
    for name, value in wanted.items():
        if own.get(name) != value:
            hint = "extract this store with this model, or leave --features out"
            expected, found = f"features of the {name} {value}", own.get(name, "unknown")
            raise InputRefused(Fault("E3402", expected, found, hint, str(features.path)))


def _described(store: WindowStore, made: Draw) -> list[SampledWindow]:
    """The drawn windows with their times and figures, modes in order."""
    first, drawn, found = first_rows(store), made.drawn, []
    total = sum(made.modes.values())
    for number, over_all in enumerate(drawn.rows.tolist()):
        owner = int(np.searchsorted(first, over_all, side="right")) - 1
        asset, row, mode = store.assets[owner], over_all - int(first[owner]), int(drawn.ids[number])
        time = store.rows(asset, row, row + store.lookback).time
        figures = {name: float(column[number]) for name, column in zip(FIGURES, drawn.columns, strict=True)}
        found.append(
            SampledWindow(
                asset=asset,
                start_row=row,
                start_us=int(time[0]),
                end_us=int(time[-1]) + store.period_us,
                mode=mode,
                mode_share=made.modes[mode] / total,
                weight=float(drawn.weights[number]),
                probability_rank=int(made.rank[number]),
                draw_order=int(drawn.order[number]),
                **figures,
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
