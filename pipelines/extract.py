"""Embeddings, modes and scores of every window of a store, in one streamed pass (METHODS S2 to S4, S8 to S13).

Raw windows are read once and everything is written once. Pass A: one reader, workers with an inference engine each, and
commits in order on this thread. Where modes are still to be learned, what they are learned from is gathered on the way,
and pass B adds them from the embeddings on disk; modes that are known already are added in pass A.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.data.store_beside import Beside, OpenStore, beside, open_windows
from anomaly.data.store_features import (
    FORMAT,
    FORMAT_VERSION,
    Features,
    FeaturesFile,
    Journal,
    Making,
    check_room,
    is_complete,
    making,
    part_folder,
)
from anomaly.embeddings.reduction import StreamedPCA, subspace_angle
from anomaly.embeddings.space import Space
from anomaly.encoders.inference import kind_for
from anomaly.errors import Fault, InputRefused, UsageError
from anomaly.extraction import Columns, Gathered, InOrder, Piece, Stability, Wanted, WindowPass, placed, placed_columns
from anomaly.fitting import Progress, silent
from anomaly.model import ANOMALOUS, UNSCORABLE, AnomalyModel
from anomaly.parallel import cores, in_order
from pipelines.stopping import Wish, stopping

#: Windows read at once; a multiple of every piece.
BLOCK = 2048
_BLOCK_BYTES = 32 << 20
#: Seconds between commits: what a kill costs at most.
_COMMIT_SECONDS = 5.0
_WINDOWS, _SPACE, _MODES = "windows", "space", "modes"


@dataclass(frozen=True)
class ExtractOptions:
    """How a store is extracted.

    ``workers`` threads (None: one per core); ``engine`` as in ``anomaly.encoders.inference``; ``reduce`` components (0: full
    space; None: 32 where embeddings have more) and ``clusters`` (None: counted) of the space that is learned; ``space``: a
    features file whose space is used instead; ``pca`` "covariance" or "incremental"; ``features_only`` leaves scores and
    modes out; ``signals`` "leave", "link" or "copy"; ``block`` windows read at once.
    """

    workers: int | None = None
    engine: str = "auto"
    reduce: int | None = None
    clusters: int | None = None
    space: Path | None = None
    pca: str = "covariance"
    features_only: bool = False
    signals: str = "leave"
    block: int | None = None
    seed: int = 7
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        wrong = [
            ("workers", "at least 1", self.workers is not None and self.workers < 1),
            ("reduce", "at least 0", self.reduce is not None and self.reduce < 0),
            ("clusters", "at least 1", self.clusters is not None and self.clusters < 1),
            ("block", "at least 1", self.block is not None and self.block < 1),
            ("signals", "one of leave, link, copy", self.signals not in ("leave", "link", "copy")),
            ("pca", "covariance or incremental", self.pca not in ("covariance", "incremental")),
        ]
        for name, expected, is_wrong in wrong:
            if is_wrong:
                raise UsageError(Fault("E2002", f"{name}: {expected}", getattr(self, name)))


@dataclass
class Extracted:
    """What an extraction did."""

    out: Path
    windows: int
    width: int = 0
    engine: str = ""
    why_not_faster: str = ""
    unscorable: int = 0
    anomalous: int = 0
    modes: int = 0
    variance_kept: float | None = None
    pca_angle_degrees: float | None = None
    resumed_at: int = 0
    seconds: float = 0.0
    notices: tuple[str, ...] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return asdict(self) | {"out": str(self.out), "notices": list(self.notices)}


def extract(
    store_path: Path,
    model: AnomalyModel,
    out: Path,
    options: ExtractOptions | None = None,
    progress: Progress = silent,
) -> Extracted:
    """Write ``out`` (FEATURES.h5) for all windows of the store, or file of signals, at ``store_path``.

    Raises InputRefused: as ``open_windows`` for a store that is damaged, unfinished or does not fit the model, E3301 without
    a window, E3302 where there is no normal window to learn a space from; UsageError E2002, E2003 as ``making``;
    Unavailable E5002 for a full disk; ``Stopped`` after a signal, at a commit.
    """
    options, started = options or ExtractOptions(), time.perf_counter()
    space = None if options.features_only else _known_space(model, options)
    with open_windows(store_path, model) as store:
        model.engine_kind = kind_for(store.n_windows, options.engine)
        if not store.n_windows:
            hint = "shorten the lookback, or give a longer log"
            raise InputRefused(
                Fault("E3301", f"a complete window of {model.lookback} rows", "none", hint, str(store_path))
            )
        run = _Run(store, model, out, options, space, progress)
        if out.exists() and not options.overwrite and options.resume and is_complete(out, run.identity):
            with Features.open(out) as done:
                shutil.rmtree(part_folder(out), ignore_errors=True)  # left by a kill after the last step
                return Extracted(out, done.n, notices=("it was complete already",))
        needed = run.bytes_needed()
        check_room(out, needed)
        with (
            stopping() as run.wish,
            making(out, store.n_windows, run.identity, resume=options.resume, overwrite=options.overwrite) as made,
        ):
            run.go(made)
    run.done.seconds = time.perf_counter() - started
    return run.done


def _known_space(model: AnomalyModel, options: ExtractOptions) -> Space | None:
    """The space of another features file, or the model's own; None where one is to be learned."""
    if options.space is None:
        return model.ensemble.space
    with Features.open(options.space) as other:
        kept = other.kept("space")
    if kept is None:
        raise UsageError(Fault("E2001", "a features file with a space", "none in it", file=str(options.space)))
    space = Space.from_state(*kept)
    width = len(space.pca.mean_) if space.pca is not None else space.kmeans.centers_.shape[1]
    own = model.encoder.embed(np.zeros((1, model.lookback, model.encoder.fitted_shape().channels), np.float32)).shape[1]
    if width != own:
        raise UsageError(
            Fault("E2001", f"a space of embeddings as wide as the model's {own}", width, file=str(options.space))
        )
    return space


class _Run:
    """One extraction: what is written, where it stands."""

    def __init__(
        self,
        store: OpenStore,
        model: AnomalyModel,
        out: Path,
        options: ExtractOptions,
        space: Space | None,
        progress: Progress,
    ) -> None:
        self.store, self.model, self.options, self.space, self.progress = store, model, options, space, progress
        self.learns = space is None and not options.features_only
        enriched = not options.features_only
        wanted = Wanted(enriched, self.learns, energy_weights(model), options.seed)
        self.passes = WindowPass(model, wanted, store.vocabulary, space)
        self.beside: Beside = beside(store, options.signals)
        self.order, self.gathered, self.stability = InOrder(model, store.stride), Gathered(), Stability()
        engine = model.engine(embedding=True)
        self.layout = self.passes.layout() | self.beside.columns()
        self.done = Extracted(out, store.n_windows, self.layout["features"].shape[0], engine.name, engine.why)
        self.done.notices = tuple(filter(None, [store.notice]))
        if self.learns:
            self.layout |= placed_columns(self._components())
        elif space is not None:
            self.layout |= placed_columns(0 if space.pca is None else space.pca.components)
        self.identity = self._identity()
        self._committed, self.wish = time.monotonic(), Wish()

    def _components(self) -> int:
        """Dimensions of the space that is learned; 0 for all of them."""
        if self.options.reduce is not None:
            return self.options.reduce
        return 32 if self.done.width > 32 else 0

    def _identity(self) -> dict[str, Any]:
        """What an unfinished run must have in common with the one that goes on with it."""
        options = {
            k: str(v) for k, v in asdict(self.options).items() if k not in ("workers", "resume", "overwrite", "block")
        }
        model = self.model.digest or self.model.contract.fingerprint()
        return {"store": self.store.identity(), "model": model, "engine": self.done.engine, "options": options}

    def bytes_needed(self) -> int:
        """Bytes of the finished file, about."""
        return int(sum(column.row_bytes for column in self.layout.values()) * self.store.n_windows * 1.01) + (1 << 20)

    def go(self, made: Making) -> None:
        """Everything up to the last commit."""
        file, stage = made.file, _WINDOWS
        for name, column in self.layout.items():
            file.add(name, column)
        at = 0
        if made.journal is not None:
            stage, at = made.journal.stage, made.journal.done
            self._restore(made.journal)
        else:
            self._head(file)
        self.done.resumed_at = at
        if stage == _WINDOWS:
            self._pass_a(file, at)
            at = 0
        if self.learns:
            self.space = self.space or self._learn(file)
            self._pass_b(file, self.space, at)
        self._tail(file)

    def _head(self, file: FeaturesFile) -> None:
        file.attributes(
            "/",
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "identity": json.dumps(self.identity, sort_keys=True),
                "model": self.identity["model"],
                "store": str(self.store.path.name),
                "engine": self.done.engine,
                "lookback": self.model.lookback,
                "tags": json.dumps(list(self.model.contract.tags)),
                "detectors": json.dumps(list(self.model.ensemble.names)),
                "threshold": float(self.model.threshold.value),
            },
        )
        self.beside.start(file)
        if self.space is not None:
            file.keep("space", *self.space.to_state())

    def _pass_a(self, file: FeaturesFile, start: int) -> None:
        """Raw windows to embeddings and scores."""
        total, size = self.store.n_windows, self._block()
        workers = self.options.workers or cores()
        blocks = self.store.raw_blocks(size, start, self.model.ensemble.trail)
        for pieces in in_order(self.passes, blocks, workers):
            for piece in pieces:
                self._write(file, piece)
            at = pieces[-1].block.first + len(pieces[-1].block)
            self.progress("extract", at, total)
            self._maybe_commit(file, _WINDOWS, at)
        if self.learns:
            self._commit(file, _SPACE, 0)

    def _block(self) -> int:
        """Windows read at once: whole pieces, of a bounded number of bytes."""
        piece = self.passes.size
        stride = min(self.store.stride or self.model.lookback, self.model.lookback)
        fitting = _BLOCK_BYTES // (4 * stride * max(len(self.model.contract.tags), 1))
        wanted = self.options.block or min(BLOCK, fitting)
        return max(-(-wanted // piece), 1) * piece

    def _write(self, file: FeaturesFile, piece: Piece) -> None:
        columns = self.order.finish(piece)
        if self.space is not None:
            columns["stability"] = self.stability.add(piece.block.asset, columns["cluster_id"])
        if piece.gathered is not None:
            self.gathered.merge(piece.gathered)
        file.write(piece.block.first, columns | self.beside.rows(piece.block))
        self._count(columns)

    def _count(self, columns: Columns) -> None:
        if "outcome" in columns:
            self.done.anomalous += int((columns["outcome"] == ANOMALOUS).sum())
            self.done.unscorable += int((columns["outcome"] == UNSCORABLE).sum())
        else:
            self.done.unscorable += int(np.isnan(columns["features"][:, 0]).sum())

    def _learn(self, file: FeaturesFile) -> Space:
        """The space, from what pass A gathered."""
        if self.gathered.moments is None:
            hint = (
                "give a store with normal windows in its train part, --space of another extraction, or --features-only"
            )
            raise InputRefused(Fault("E3302", "normal windows to learn modes from", "none", hint, str(self.store.path)))
        self.progress("space", 0, 1)
        reduce = self._components()
        try:
            space = self.gathered.space(reduce, self.options.clusters, self.options.seed)
            if self.options.pca == "incremental" and space.pca is not None:
                space = self._incremental(file, reduce, space.pca)
        except ValueError as error:
            raise UsageError(Fault("E2002", "a space that the windows can have", error)) from error
        file.keep("space", *space.to_state())
        self.space = space
        self._commit(file, _MODES, 0)
        self.progress("space", 1, 1)
        return space

    def _incremental(self, file: FeaturesFile, reduce: int, exact: StreamedPCA) -> Space:
        """scikit-learn's way, over the embeddings on disk, and how far it is from the exact one (METHODS S8)."""
        learned = (block.features[block.learn] for block in self._embedded(file, 0))
        inner = StreamedPCA(reduce, "incremental").fit(block for block in learned if len(block))
        self.done.pca_angle_degrees = float(np.degrees(subspace_angle(exact.components_, inner.components_)))
        return self.gathered.space_with(inner, self.options.clusters, self.options.seed)

    def _pass_b(self, file: FeaturesFile, space: Space, start: int) -> None:
        """Embeddings on disk to modes."""
        total = self.store.n_windows
        if start:
            self._replay(file, start)
        for block, columns in in_order(
            lambda b: (b, placed(space, b.features)), self._embedded(file, start), self.options.workers
        ):
            columns["stability"] = self.stability.add(block.asset, columns["cluster_id"])
            file.write(block.first, columns)
            at = block.first + len(block.features)
            self.progress("modes", at, total)
            self._maybe_commit(file, _MODES, at)

    def _replay(self, file: FeaturesFile, start: int) -> None:
        """Stability looks back: have it see again what it saw before the commit."""
        for low, high, asset in self.store.asset_blocks(self.passes.size):
            if low < start:
                self.stability.add(asset, file.read("cluster_id", low, min(high, start)))

    def _embedded(self, file: FeaturesFile, start: int) -> Iterator[_Embedded]:
        """Embeddings of neighbouring windows of one asset, in pieces that begin where those of pass A do."""
        for low, high, asset in self.store.asset_blocks(self.passes.size):
            if low >= start:
                learn = self.store.learn(low, high) if self.options.pca == "incremental" else np.empty(0, bool)
                rows = file.read("features", low, high)
                if len(learn):
                    learn &= ~np.isnan(rows[:, 0])
                yield _Embedded(low, asset, rows, learn)

    def _maybe_commit(self, file: FeaturesFile, stage: str, at: int) -> None:
        if self.wish.number or time.monotonic() - self._committed > _COMMIT_SECONDS:
            self._commit(file, stage, at)
        self.wish.heed(f"{at} of {self.store.n_windows} windows are done; go on with --resume")

    def _commit(self, file: FeaturesFile, stage: str, at: int) -> None:
        counts = {"counts": np.array([self.done.anomalous, self.done.unscorable])}
        arrays = self.order.to_arrays() | self.gathered.to_arrays() | counts
        if self.space is not None and not self.learns:
            arrays["stability.asset"], arrays["stability.ids"] = self.stability.state()
        if self.space is not None and self.learns:
            arrays |= {f"space.{k}": v for k, v in self.space.to_state()[1].items()}
            arrays["space_settings"] = np.array(json.dumps(self.space.to_state()[0], sort_keys=True))
        file.commit(Journal(self.identity, stage, at, arrays))
        self._committed = time.monotonic()

    def _restore(self, journal: Journal) -> None:
        arrays = journal.arrays
        self.done.anomalous, self.done.unscorable = arrays["counts"].tolist()
        self.order.restore(arrays)
        self.gathered = Gathered.from_arrays(arrays)
        if "stability.ids" in arrays:
            self.stability.restore(str(arrays["stability.asset"]), arrays["stability.ids"])
        if "space_settings" in arrays:
            own = {k.removeprefix("space."): v for k, v in arrays.items() if k.startswith("space.")}
            self.space = Space.from_state(json.loads(str(arrays["space_settings"])), own)

    def _tail(self, file: FeaturesFile) -> None:
        if self.space is not None:
            self.done.modes = self.space.clusters
            self.done.variance_kept = None if self.space.pca is None else self.space.pca.variance_kept
        told = {"windows": self.done.windows, "unscorable": self.done.unscorable, "anomalous": self.done.anomalous}
        file.attributes("/", told)


@dataclass(frozen=True)
class _Embedded:
    """Embeddings ``(B, d)`` of windows from number ``first`` on; ``learn (B,)`` or empty where nobody asks."""

    first: int
    asset: str
    features: NDArray[np.float32]
    learn: NDArray[np.bool_]


def energy_weights(model: AnomalyModel) -> NDArray[np.float64]:
    """Channel weights of the energy, ``(C,)``: one over each tag's mean square in normal rows, so that units do not decide."""
    square: NDArray[np.float64] = model.preparer.center_**2 + model.preparer.scale_**2
    return 1 / square
