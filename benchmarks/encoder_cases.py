"""One case of the panel, one encoder, one budget → figures: the measuring part of ``benchmarks/encoders.py``.

Every encoder gets the same windows of the same store, the same number of epochs over them, and the same detector. A row
of the test log is scored from the window that ends at it, as the product does; no figure of a test part chooses anything.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from anomaly.baselines import energy_scores, knn_scores
from anomaly.config import EncoderSettings, Settings, TrainingSettings
from anomaly.data.contract import EVENT, NORMAL, LogChunk
from anomaly.data.readers import open_log
from anomaly.data.scaling import RowPreparer
from anomaly.data.store import WindowStore, create_store
from anomaly.data.vocabulary import Vocabulary
from anomaly.detectors import build_detector
from anomaly.encoders import build_encoder
from anomaly.encoders.base import Encoder, EpochReport, TrainingData, TrainingHistory
from anomaly.encoders.probes import compared_representations, grouped_folds, probe_table
from anomaly.ensemble import Ensemble
from anomaly.errors import Fault, UsageError
from anomaly.fitting import PreparedWindows, Repeated
from anomaly.intervals import from_flags
from anomaly.metrics import average_precision, roc_auc, time_blocks
from anomaly.model import AnomalyModel
from anomaly.scores.calibration import TailCalibrator
from anomaly.scores.thresholds import fixed_threshold
from benchmarks.vus import vus_pr

RAW = "raw_windows"
#: Before an encoder's name: the same network with the weights that it was born with.
RANDOM = "random:"
#: Scores without windows and without an encoder, to print beside the others.
REFERENCES = ("energy", "row_knn", "chance")

_TRAIN_SHARE = 0.8
_MOST_EPOCHS = 5
_SPEED_WINDOWS, _SPEED_SECONDS = 1024, 0.3
_PROBED, _EVENTS_APART, _LEAST_BLOCKS, _MOST_BLOCKS = 1500, 10, 10, 40
_NO_TRAINING = 1e-30

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Budget:
    """What every encoder may use of a case.

    At most ``windows`` training windows (the stride follows), ``epochs`` passes over them; a case with fewer windows gets
    more passes, at most five times as many, so that it sees about as many windows. ``share``: newest part of the
    training rows that is used. ``front``: the local normalisation that windows pass first.
    """

    epochs: int = 8
    windows: int = 4000
    lookback: int = 16
    batch_size: int = 64
    seed: int = 7
    front: str = "none"
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UsageError(Fault("E2002", "a share of the training rows above 0, at most 1", self.share))
        for name in ("epochs", "windows", "lookback", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(Fault("E2002", f"{name} of at least 1", getattr(self, name)))

    def passes(self, n_windows: int) -> int:
        """Epochs over ``n_windows`` windows.

        >>> Budget().passes(4000), Budget().passes(2000), Budget().passes(10)
        (8, 16, 40)
        """
        return min(round(self.epochs * self.windows / max(n_windows, 1)), self.epochs * _MOST_EPOCHS)

    def stride(self, rows: int) -> int:
        """Rows between windows so that ``rows`` training rows give at most ``windows`` of them."""
        return max(1, -(-rows // self.windows))

    def training(self, n_windows: int) -> TrainingSettings:
        """The same for every encoder: no early stop, the epoch of lowest validation loss is kept."""
        epochs = self.passes(n_windows)
        return TrainingSettings(epochs=epochs, patience=epochs, batch_size=self.batch_size, seed=self.seed)


@dataclass(frozen=True)
class Case:
    """A folder of the panel: a training log, a later test log, and what its ``meta.json`` says of them."""

    name: str
    dataset: str
    folder: Path
    vus_window: int
    train_rows: int


def read_cases(panel: Path, names: Sequence[str] = ()) -> list[Case]:
    """The cases of a panel, or those named; raises UsageError E2001 where there is none, or not that one."""
    found = {path.parent.name: path for path in sorted(panel.glob("*/meta.json"))}
    if not found:
        raise UsageError(Fault("E2001", "a panel: folders with train.parquet, test.parquet, meta.json", str(panel)))
    for name in names:
        if name not in found:
            raise UsageError(Fault("E2001", f"cases of {', '.join(found)}", name))
    return [_read_case(found[name]) for name in names or found]


def _read_case(path: Path) -> Case:
    meta = json.loads(path.read_text(encoding="utf-8"))
    window, rows = int(meta["vus_window"]), int(meta["train_rows"])
    return Case(path.parent.name, str(meta["dataset"]), path.parent, window, rows)


class RawWindows(Encoder):
    """No encoder at all: a window's prepared values side by side."""

    name: ClassVar[str] = RAW
    summary: ClassVar[str] = "the window's own values, nothing learned"
    trained: ClassVar[bool] = False

    def _fit(
        self, data: TrainingData, training: TrainingSettings, workdir: Path, progress: EpochReport | None
    ) -> TrainingHistory:
        return TrainingHistory(windows=data.n_windows)

    def _embed(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        return block.reshape(len(block), -1)

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        return {"front": self.front.name}, {}

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> RawWindows:
        return cls(**settings)


class Uncalibrated(TailCalibrator):
    """Leaves scores as they are: a map that piles them up would change the ranks that are compared."""

    def transform(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(scores, dtype=np.float64)


@dataclass(frozen=True)
class Stage:
    """A case made ready: its window store, the scaled windows of it, and the test log."""

    case: Case
    settings: Settings
    windows: PreparedWindows
    test: LogChunk
    judged: NDArray[np.bool_]  # (n,) rows of the test log whose label counts
    workdir: Path

    @property
    def positive(self) -> NDArray[np.bool_]:
        """Event rows among the judged ones."""
        return (self.test.label == EVENT)[self.judged]


@contextmanager
def staged(case: Case, budget: Budget) -> Iterator[Stage]:
    """The case under ``budget``; its files are gone afterwards. Raises InputRefused as the product does."""
    with tempfile.TemporaryDirectory(prefix="encoders-") as name:
        workdir = Path(name)
        path, train_share, rows = _training_log(case, budget, workdir)
        settings = Settings().changed(
            log={"time": "time", "label": "label"},
            window={"lookback": budget.lookback, "stride": budget.stride(rows)},
            split={"train": train_share, "validation": 1 - train_share, "test": 0.0},
            encoder={"front": budget.front},
        )
        log = open_log([path], settings.log)
        _write(log.chunks(), log.contract, settings, workdir / "train.h5")
        with WindowStore.open(workdir / "train.h5") as store:
            windows = _prepared_windows(store, budget)
            settings = replace(settings, training=budget.training(windows.n_windows))
            test = open_log([case.folder / "test.parquet"], settings.log, contract=log.contract)
            chunk = next(iter(test.chunks(1 << 22)))
            yield Stage(case, settings, windows, chunk, _judged(case, chunk), workdir)


def _training_log(case: Case, budget: Budget, workdir: Path) -> tuple[Path, float, int]:
    """The log to learn from, the share of it that is the train part, and that part's rows. With a smaller share the
    oldest rows are cut off: a plant that began to log later. The validation part stays as it is."""
    path, train = case.folder / "train.parquet", round(case.train_rows * _TRAIN_SHARE)
    if budget.share == 1:
        return path, _TRAIN_SHARE, train
    kept = max(round(train * budget.share), 1)
    shorter = pd.read_parquet(path).iloc[train - kept :]
    shorter.to_parquet(workdir / "train.parquet", index=False)
    return workdir / "train.parquet", kept / len(shorter), kept


def _write(chunks: Iterator[LogChunk], contract: Any, settings: Settings, target: Path) -> None:
    with create_store(target, contract, settings.window, settings.split) as writer:
        for chunk in chunks:
            writer.append(chunk)


def _prepared_windows(store: WindowStore, budget: Budget) -> PreparedWindows:
    """Windows scaled by the normal rows of the train part, counted."""
    preparer = RowPreparer()
    for block in store.row_blocks("train"):
        preparer.partial_fit(block.values, block.age, block.kind == NORMAL, block.asset, block.start)
    preparer.finish()
    counted = PreparedWindows(store, preparer, Vocabulary(), budget.training(1))
    n_windows = sum(len(block) for block in counted.blocks("train"))
    windows = PreparedWindows(store, preparer, Vocabulary(), budget.training(n_windows))
    windows.n_windows = n_windows
    return windows


def _judged(case: Case, test: LogChunk) -> NDArray[np.bool_]:
    """Rows of known label, less those that the case does not judge."""
    known = np.isin(test.label, (NORMAL, EVENT))
    path = case.folder / "eval.parquet"
    return known & pd.read_parquet(path)["judged"].to_numpy(bool) if path.is_file() else known


def measure(case: Case, name: str, budget: Budget) -> dict[str, Any]:
    """Fit encoder ``name`` on the case and judge it: a JSON-ready record. Raises what fitting raises."""
    with staged(case, budget) as stage:
        if name in REFERENCES:
            return _record(stage, name, budget) | {"knn": _ranked(stage, _reference(stage, name, budget.seed))}
        encoder, took, epochs = _fitted(stage, name)
        learns = name != RAW and not name.startswith(RANDOM)
        record = _record(stage, name, budget) | {
            "epochs": epochs,
            "fit_seconds": took if learns else None,
            "embed_per_second": None if name == RAW else _speed(stage, encoder),
            "parameters": sum(int(array.size) for array in encoder.to_state()[1].values()),
            "knn": _ranked(stage, _row_scores(stage, encoder, "knn")),
        }
        if encoder.can_reconstruct:
            record["reconstruction"] = _ranked(stage, _row_scores(stage, encoder, "reconstruction"))
        return record | {"peak_mb": peak_memory_mb()}


def _record(stage: Stage, name: str, budget: Budget) -> dict[str, Any]:
    whole = {"case": stage.case.name, "dataset": stage.case.dataset, "encoder": name, "budget": asdict(budget)}
    return whole | {"windows": stage.windows.n_windows, "rows": int(stage.judged.sum())}


def _fitted(stage: Stage, name: str) -> tuple[Encoder, float, int]:
    """The encoder, the seconds its fit took, and its epochs (0 where nothing is trained)."""
    training = stage.settings.training
    encoder = _encoder(name, stage.settings.encoder.front)
    if name.startswith(RANDOM):
        training = replace(training, epochs=1, learning_rate=_NO_TRAINING)
    started = time.perf_counter()
    history = encoder.fit(stage.windows.data(), training=training, workdir=stage.workdir / "fit")
    took = time.perf_counter() - started
    return encoder, took, len(history.loss) if encoder.trained and not name.startswith(RANDOM) else 0


def _encoder(name: str, front: str) -> Encoder:
    if name == RAW:
        return RawWindows(front=front)
    return build_encoder(EncoderSettings(name.removeprefix(RANDOM), front=front))


def _row_scores(stage: Stage, encoder: Encoder, detector: str) -> Scores:
    """Uncalibrated causal scores of every row of the test log, NaN where the product would not score."""
    ensemble = Ensemble([build_detector(detector)])
    ensemble.calibrators = (Uncalibrated(),)
    model = AnomalyModel(
        contract=stage.windows.store.contract,
        settings=stage.settings,
        preparer=stage.windows.preparer,
        encoder=encoder,
        ensemble=ensemble,
        calibrator=None,
        threshold=fixed_threshold(0.0),
        max_gap_us=stage.windows.store.max_gap_us,
        vocabulary=stage.windows.vocabulary,
        reference=np.empty((0, 0), np.float32),
    )
    ensemble.fit(Repeated(lambda: (model.encode(batch.windows) for batch in stage.windows.training(0))))
    return model.stream().score(stage.test).score.astype(np.float64)


def _reference(stage: Stage, name: str, seed: int) -> Scores:
    """Scores ``(n,)`` of the test log's rows without an encoder, in its order."""
    if name == "chance":
        return np.random.default_rng(seed).random(len(stage.test))
    preparer = stage.windows.preparer
    with WindowStore.open(_write_test(stage)) as held:
        rows = np.concatenate([preparer.transform(block.values) for block in held.row_blocks()])
    if len(rows) != len(stage.test):
        raise ValueError(
            f"{stage.case.name}: expected a test log whose times differ, got {len(stage.test)} rows "
            f"with {len(rows)} times"
        )
    if name == "energy":
        return energy_scores(rows)
    blocks = stage.windows.store.row_blocks("train")
    known = np.concatenate([preparer.transform(block.values[block.kind == NORMAL]) for block in blocks])
    return knn_scores(known, rows, seed=seed)


def _write_test(stage: Stage) -> Path:
    """The test log as a window store with windows at every row."""
    path = stage.workdir / "test.h5"
    settings = stage.settings.changed(window={"stride": 1})
    _write(iter([stage.test]), stage.windows.store.contract, settings, path)
    return path


def _ranked(stage: Stage, score: Scores) -> dict[str, float]:
    """AUC, AP and VUS-PR over the judged rows; what cannot be scored raises no alert, so it ranks below all others."""
    own = score[stage.judged]
    finite = np.isfinite(own)
    lowest = own[finite].min() - 1 if finite.any() else 0.0
    own = np.where(finite, own, lowest)
    return {
        "auc": roc_auc(own, stage.positive),
        "ap": average_precision(own, stage.positive),
        "vus_pr": vus_pr(own, stage.positive, stage.case.vus_window),
        "unscorable": int((~finite).sum()),
    }


def _speed(stage: Stage, encoder: Encoder) -> float:
    """Windows embedded per second, 1024 at a time, after a first call that builds what there is to build."""
    windows = next(stage.windows.training(0)).windows
    block = np.resize(windows, (_SPEED_WINDOWS, *windows.shape[1:])).astype(np.float32)
    encoder.embed(block)
    started, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - started < _SPEED_SECONDS:
        encoder.embed(block)
        calls += 1
    return calls * _SPEED_WINDOWS / (time.perf_counter() - started)


def peak_memory_mb() -> float | None:
    """The largest resident memory that this process ever had, in MB; None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would give a child the peak of its parent, whose memory it was for a moment
        peaks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(peaks[0]) / 1024 if peaks else None
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


def probe_case(case: Case, names: Sequence[str], budget: Budget) -> dict[str, Any]:
    """Linear, kNN and SVM probes of every encoder's embedding, of raw windows and of spectrum components, on the same
    folds of test windows: does a window hold an event row? A JSON-ready record."""
    with staged(case, budget) as stage:
        windows, label, step = _probed_windows(stage)
        embeddings = {name: _fitted(stage, name)[0].embed(windows).astype(np.float64) for name in names}
    usual = compared_representations(windows, windows.reshape(len(windows), -1))
    given = embeddings | {name: usual[name] for name in ("raw windows", "spectrum components")}
    purge = -(-budget.lookback // step)
    # Events stay whole where there are enough of them to judge on some and learn from others.
    whole = label.astype(bool) & (len(from_flags(label)) >= _EVENTS_APART)
    # Blocks are much longer than the purge around them, or it would leave nothing to learn from.
    n_blocks = min(max(len(label) // (4 * purge), _LEAST_BLOCKS), _MOST_BLOCKS)
    block = time_blocks(np.zeros(len(label), np.int64), whole, n_blocks)
    folds = grouped_folds(label, block, purge=purge, seed=budget.seed)
    table = probe_table(given, label, folds, groups=block, seed=budget.seed)
    own = {"case": case.name, "dataset": case.dataset, "encoder": ",".join(names), "budget": asdict(budget)}
    kept = "events whole" if whole.any() else "an event may lie in two folds"
    return own | {"probes": table.to_dict(), "text": f"{table.to_text()}; {kept}"}


def _probed_windows(stage: Stage) -> tuple[NDArray[np.float32], NDArray[np.int64], int]:
    """At most 1500 evenly spaced test windows, whether each holds an event row, and the rows from one to the next."""
    with WindowStore.open(_write_test(stage)) as store:
        step = max(-(-store.n_windows // _PROBED), 1)
        blocks = list(store.window_blocks(prepare=stage.windows.prepare))
    windows = np.concatenate([block.values for block in blocks])[::step]
    label = np.concatenate([block.kind == EVENT for block in blocks])[::step]
    return windows, label.astype(np.int64), step
