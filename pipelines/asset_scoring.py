"""One stretch of one asset's log in, its scored rows out: Arrow to Arrow, and nothing of the engine that carries it.

A stretch brings the rows before it along, so that it is scored as if the log were scored at once: one window less a row,
what held values and their ages reach back, and what smoothing remembers. Where a tag was silent for longer than that, no
bounded number of rows is enough: ``HistoryTooShort`` is raised, and the asset is to be scored as one stretch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from anomaly.data.contract import UNKNOWN, LogChunk, LogContract
from anomaly.data.labels import segments
from anomaly.data.quality import QualityProfile, QualityWatch
from anomaly.data.scaling import LONG_AGO, hold_last
from anomaly.errors import Fault, InputRefused
from anomaly.model import OUTCOMES, UNSCORABLE, AnomalyModel, ScoredRows
from anomaly.scores.past_events import Alike
from anomaly.scores.thresholds import Threshold
from anomaly.stream import Evidence
from pipelines.drift_report import DriftSample
from pipelines.score import SCORES_SCHEMA, score_table

#: Rows as they are handed to ``score_asset``: ``part`` and ``row`` put them in order, ``again`` marks a time that an
#: earlier file covers already, ``values`` are the tags as float32 side by side.
ROWS_SCHEMA = pa.schema(
    [
        ("time", pa.int64()),
        ("part", pa.int32()),
        ("row", pa.int64()),
        ("again", pa.bool_()),
        ("values", pa.binary()),
        ("categories", pa.list_(pa.string())),
    ]
)
#: Scored rows with what alerts and drift need of some of them: ``shares`` of anomalous rows, ``evidence`` (held values,
#: then the window) and ``alike`` (JSON) of rows that may be a peak, ``prepared`` tags of the rows that drift is told from.
SCORED_SCHEMA = pa.schema(
    [*SCORES_SCHEMA, ("shares", pa.binary()), ("evidence", pa.binary()), ("alike", pa.string()),
     ("prepared", pa.binary())]
)  # fmt: skip
STRETCH, FOUND = b"anomaly.stretch", b"anomaly.found"

#: Half-lives after which what smoothing remembers is below the last bit of a score.
_HALF_LIVES = 64
_BLOCK = 1 << 16


class HistoryTooShort(Exception):
    """The rows before a stretch do not say what a tag's held value is."""


@dataclass(frozen=True)
class Stretch:
    """What is to be scored: rows of ``asset`` from ``start_us`` to before ``end_us``, UTC microseconds; rows before come
    along from ``low_us`` on. ``first_us`` is the asset's first row of all. ``engine_kind`` as in ``AnomalyModel``;
    ``threshold`` as ``Threshold.to_dict`` gives it, which people may have set in place of the bundle's.
    """

    asset: str
    first_us: int
    low_us: int
    start_us: int
    end_us: int
    bundle: str
    digest: str
    engine_kind: str
    threshold: dict[str, Any]

    def on(self, table: pa.Table) -> pa.Table:
        """``table`` with the stretch written into its metadata, as ``score_asset`` takes it."""
        return table.replace_schema_metadata({STRETCH: json.dumps(asdict(self)).encode()})

    @classmethod
    def of(cls, table: pa.Table) -> Stretch:
        """The stretch that ``on`` wrote; raises ValueError where there is none."""
        held = (table.schema.metadata or {}).get(STRETCH)
        if held is None:
            raise ValueError("table: expected a stretch in the metadata, got none; Stretch.on writes it")
        return cls(**json.loads(held))


def needed_rows(lookback: int, half_life: float) -> int:
    """Rows before a row that its score depends on, held values aside.

    >>> needed_rows(60, 0.0), needed_rows(6, 2.5)
    (59, 165)
    """
    return lookback - 1 + round(_HALF_LIVES * half_life)


def overlap_rows(model: AnomalyModel) -> int:
    """Rows that a stretch brings along: what scores depend on, and the reach of a value's age before them."""
    return needed_rows(model.history + 1, model.settings.detection.half_life) + LONG_AGO


@lru_cache(maxsize=1)
def model_of(bundle: str, digest: str) -> AnomalyModel:
    """The model of a bundle folder, checked and loaded once per process; raises ModelRefused as ``load_bundle``."""
    from registry.bundle import load_bundle

    return load_bundle(Path(bundle), expect_digest=digest)


def score_asset(table: pa.Table) -> pa.Table:
    """Score one stretch: a table of ROWS_SCHEMA in any order with a ``Stretch`` on it → SCORED_SCHEMA by time.

    Metadata FOUND holds as JSON what the sensor rules find in the stretch by itself, the rows in operation and their span.
    Raises InputRefused E3206 or E3205 where files that overlap disagree, HistoryTooShort where the rows before do not
    reach far enough.
    """
    stretch = Stretch.of(table)
    model = model_of(stretch.bundle, stretch.digest)
    model.engine_kind = stretch.engine_kind
    model = replace(model, threshold=Threshold.from_dict(stretch.threshold))
    chunk = _read_once(_sorted(table), stretch.asset, model.contract)
    chunk, owned, whole = _with_history(chunk, stretch, model)
    if not whole:
        _check_history(chunk, owned, model)
    stream = model.stream()
    if len(chunk) and chunk.time[0] != stretch.first_us:
        stream = stream.from_state(model, _something_before(stretch, int(chunk.time[0]), model), {})
    if owned:
        stream.score(chunk.take(slice(0, owned)))
    own = chunk.take(slice(owned, None))
    sample = DriftSample(len(model.contract.tags))
    scored = [stream.score(part) for part in _blocks(own)]
    for rows in scored:
        sample.add(rows)
    kept = sample.to_state()[1]["time"]
    tables = [_scored_table(rows, model, kept) for rows in scored]
    joined = pa.concat_tables(tables) if tables else SCORED_SCHEMA.empty_table()
    watch = quality_watch(model)
    watch.update(own)
    found = {
        "findings": [asdict(f) for f in watch.finish()],
        "operating": sample.operating,
        "span": sample.span,
    }
    return joined.replace_schema_metadata({FOUND: json.dumps(found).encode()})


def rows_table(chunk: LogChunk, part: int, again: NDArray[np.bool_]) -> pa.Table:
    """Rows of a log chunk in ROWS_SCHEMA; ``again (n,)`` marks times that an earlier file covers."""
    size = chunk.values.shape[1] * 4
    columns = [
        pa.array(chunk.time, pa.int64()),
        pa.array(np.full(len(chunk), part, np.int32)),
        pa.array(chunk.row, pa.int64()),
        pa.array(again, pa.bool_()),
        _packed(np.ascontiguousarray(chunk.values, np.float32), size),
        pa.array(chunk.categories.tolist(), pa.list_(pa.string())),
    ]
    return pa.Table.from_arrays(columns, schema=ROWS_SCHEMA)


def _packed(values: NDArray[np.float32], size: int) -> pa.Array:
    """Rows of numbers as one binary value each, without a loop over rows."""
    offsets = np.arange(len(values) + 1, dtype=np.int32) * size
    return pa.Array.from_buffers(pa.binary(), len(values), [None, pa.py_buffer(offsets), pa.py_buffer(values)])


def unpacked(column: pa.ChunkedArray, width: int) -> NDArray[np.float32]:
    """The numbers ``(n, width)`` of binary values, none of them null."""
    parts = [np.frombuffer(b"".join(chunk.to_pylist()), np.float32) for chunk in column.chunks]
    joined = np.concatenate(parts) if parts else np.empty(0, np.float32)
    return joined.reshape(len(column), width)


def narrowed(table: pa.Table, have: LogContract, want: LogContract) -> pa.Table:
    """Rows of ROWS_SCHEMA that were read under ``have`` with the tags and categories of ``want`` alone, in its order."""
    if (have.tags, have.categories) == (want.tags, want.categories):
        return table
    values = unpacked(table["values"], len(have.tags))
    kept = np.ascontiguousarray(values[:, [have.tags.index(t) for t in want.tags]], np.float32)
    places = [have.categories.index(c) for c in want.categories]
    words = [[row[i] for i in places] for row in table["categories"].to_pylist()]
    table = table.set_column(table.schema.get_field_index("values"), "values", _packed(kept, kept.shape[1] * 4))
    found = pa.array(words, pa.list_(pa.string()))
    return table.set_column(table.schema.get_field_index("categories"), "categories", found).cast(ROWS_SCHEMA)


def unscored(asset: str, table: pa.Table, reason: str) -> pa.Table:
    """Rows of ROWS_SCHEMA that no model scores, as SCORED_SCHEMA by time: unscorable for ``reason``; nothing found."""
    own = _sorted(table.filter(pc.invert(table["again"])))
    n = own.num_rows
    columns: dict[str, Any] = {field.name: pa.nulls(n, field.type) for field in SCORED_SCHEMA}
    columns["time"] = pa.array(own["time"].to_numpy(), pa.timestamp("us", tz="UTC"))
    columns["asset"], columns["reason"] = pa.array([asset] * n), pa.array([reason] * n)
    columns["outcome"] = pa.array([str(OUTCOMES[UNSCORABLE])] * n)
    columns["top_tags"] = pa.array([[]] * n, SCORED_SCHEMA.field("top_tags").type)
    found: dict[str, Any] = {"findings": [], "operating": 0, "span": None}
    return pa.table(columns, schema=SCORED_SCHEMA).replace_schema_metadata({FOUND: json.dumps(found).encode()})


def _sorted(table: pa.Table) -> pa.Table:
    time, part, row = (table[name].to_numpy() for name in ("time", "part", "row"))
    return table.take(pa.array(np.lexsort((row, part, time))))


def chunk_of(table: pa.Table, asset: str, contract: LogContract) -> LogChunk:
    """A table of ROWS_SCHEMA as a log chunk of ``asset``, row by row."""
    n, width = table.num_rows, len(contract.tags)
    words = table["categories"].to_pylist() if contract.categories else []
    return LogChunk(
        np.arange(n, dtype=np.int64),
        table["time"].to_numpy(),
        np.full(n, asset, dtype=object),
        unpacked(table["values"], width),
        np.array(words, dtype=object).reshape(n, len(contract.categories)),
        np.full(n, UNKNOWN, np.int8),
        np.zeros((n, width), dtype=bool),
    )


def _read_once(table: pa.Table, asset: str, contract: LogContract) -> LogChunk:
    """The rows as a log chunk; those that a later file repeats are compared with the earlier ones and left out."""
    chunk = chunk_of(table, asset, contract)
    again = table["again"].to_numpy()
    if not again.any():
        return chunk
    first, later = chunk.take(~again), chunk.take(again)
    at = np.minimum(np.searchsorted(first.time, later.time), max(len(first) - 1, 0))
    known = first.time[at] == later.time if len(first) else np.zeros(len(later), dtype=bool)
    if not known.all():
        raise disagree("E3205", "a time after the end of the earlier file", asset, later.time[~known])
    same = np.array_equal(first.values[at] + np.float32(0), later.values + np.float32(0), equal_nan=True)
    if not same or not np.array_equal(first.categories[at], later.categories):
        differs = ~((first.values[at] == later.values) | (np.isnan(first.values[at]) & np.isnan(later.values))).all(1)
        differs |= (first.categories[at] != later.categories).any(axis=1)
        raise disagree("E3206", "the values that an earlier file has", asset, later.time[differs])
    return first


def disagree(code: str, expected: str, asset: str, times: NDArray[np.int64]) -> InputRefused:
    """The refusal of rows at ``times`` that a later file of ``asset`` has otherwise than an earlier one."""
    found = f"asset {asset}: {len(times)} rows, the first at {np.datetime64(int(times[0]), 'us')}"
    return InputRefused(Fault(code, expected, found, "files of one asset overlap in time; keep one of them"))


def _with_history(chunk: LogChunk, stretch: Stretch, model: AnomalyModel) -> tuple[LogChunk, int, bool]:
    """The rows that matter, how many of them come before the stretch, and whether nothing that matters was left out."""
    owned = int(np.searchsorted(chunk.time, stretch.start_us))
    fresh = np.concatenate(([True], np.diff(chunk.time[:owned]) != 0))[:owned]
    seen = np.cumsum(fresh[::-1])[::-1]  # different times from here to the stretch
    skip = int((seen > overlap_rows(model)).sum())
    chunk = chunk.take(slice(skip, None))
    if not len(chunk):
        return chunk, 0, True
    begins = stretch.first_us == int(chunk.time[0])
    alone = skip == 0 and int(chunk.time[0]) - stretch.low_us > model.max_gap_us
    return chunk, owned - skip, begins or alone


def _check_history(chunk: LogChunk, owned: int, model: AnomalyModel) -> None:
    """Raise HistoryTooShort where a row before the first would change the stretch's scores."""
    fresh = np.flatnonzero(np.concatenate(([True], np.diff(chunk.time) != 0)))
    before = int((fresh < owned).sum())
    time, values = chunk.time[fresh[: before + 1]], chunk.values[fresh[: before + 1]]
    starts = segments(time, model.max_gap_us)
    if starts[1:].any():
        return  # nothing is carried over the start of a segment
    need = before - needed_rows(model.history + 1, model.settings.detection.half_life)
    if need < 0:
        raise HistoryTooShort(f"{chunk.asset[0]}: {before} rows before the stretch")
    held, _, _ = hold_last(values[: need + 1], starts[: need + 1])
    silent = np.flatnonzero(np.isnan(held[-1]))
    if len(silent):
        raise HistoryTooShort(f"{chunk.asset[0]}: tag {model.contract.tags[silent[0]]} was silent for too long")


def _something_before(stretch: Stretch, first_us: int, model: AnomalyModel) -> dict[str, Any]:
    """The state of a stream that saw the asset before, too long ago to carry anything on: a gap, not a beginning."""
    last = min(stretch.first_us, first_us - model.max_gap_us - 1)
    return {
        "calibrated": True,
        "assets": [{"asset": stretch.asset, "last_time": last, "since_start": 0, "smoothed": None}],
    }


def _blocks(chunk: LogChunk) -> Iterator[LogChunk]:
    for low in range(0, len(chunk), _BLOCK):
        yield chunk.take(slice(low, low + _BLOCK))


def quality_watch(model: AnomalyModel) -> QualityWatch:
    """The sensor rules, with nothing seen yet."""
    profile = QualityProfile.from_dict(model.quality)
    return QualityWatch(profile, model.contract, max_gap=model.settings.window.max_gap)


def _scored_table(rows: ScoredRows, model: AnomalyModel, sampled: NDArray[np.int64]) -> pa.Table:
    """Scored rows in SCORED_SCHEMA; what most rows need not tell is null."""
    table, n = score_table(rows, model), len(rows.time)
    kept = np.isin(rows.time, sampled) & (OUTCOMES[rows.outcome] != "unscorable")
    seen, alike = np.full(n, None, dtype=object), np.full(n, None, dtype=object)
    for i in np.flatnonzero(rows.evidence != None):  # noqa: E711  an array is compared element by element
        one: Evidence = rows.evidence[i]
        seen[i] = one.values.tobytes() + (b"" if one.window is None else np.ascontiguousarray(one.window).tobytes())
        alike[i] = json.dumps([asdict(a) for a in one.alike])
    more = [
        _some(rows.shares, OUTCOMES[rows.outcome] == "anomalous"),
        pa.array(seen, pa.binary()),
        pa.array(alike, pa.string()),
        _some(rows.prepared[:, : len(model.contract.tags)], kept),
    ]
    return pa.Table.from_arrays([*table.columns, *more], schema=SCORED_SCHEMA)


def evidence_of(table: pa.Table, tags: int, categories: int) -> NDArray[np.object_]:
    """The ``Evidence`` of the rows of a SCORED_SCHEMA table, None where a row has none."""
    found = np.full(table.num_rows, None, dtype=object)
    pairs = zip(table["evidence"].to_pylist(), table["alike"].to_pylist(), strict=True)
    for i, (seen, alike) in enumerate(pairs):
        if seen is not None:
            numbers = np.frombuffer(seen, np.float32)
            window = numbers[tags:].reshape(-1, tags + categories) if len(numbers) > tags else None
            found[i] = Evidence(numbers[:tags], tuple(Alike(**a) for a in json.loads(alike)), window)
    return found


def _some(values: NDArray[np.float32], wanted: NDArray[np.bool_]) -> pa.Array:
    """The ``wanted`` rows of numbers as binary values, null elsewhere."""
    packed = np.full(len(values), None, dtype=object)
    for i in np.flatnonzero(wanted):
        packed[i] = np.ascontiguousarray(values[i], np.float32).tobytes()
    return pa.array(packed, pa.binary())
