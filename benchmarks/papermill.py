"""The sheet-break job of the rare-event source, by its published split and by an honest one, in one table.

    python benchmarks/papermill.py --csv FILE        columns time, y, x1…x61; 2-minute rows; y is 1 where the sheet broke
    python benchmarks/papermill.py --lookalike       the same on a synthetic look-alike

Random rows: 20 % test, then 20 % of the rest validation, seed 123, as published; neighbouring rows fall on both sides, so
these figures are inflated. Chronological: 60/20/20 in time order, purge gap, whole events, label leads that stop at
downtime. Both use a label lead of two rows (curve_shift 2), leave the break rows out, and judge the test part only.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anomaly.baselines import knn_scores, pca_scores
from anomaly.config import LogSettings, Settings, TrainingSettings
from anomaly.data.contract import EVENT, LogChunk
from anomaly.data.labels import curve_shift
from anomaly.data.readers import PlantLog, open_log
from anomaly.data.scaling import RowPreparer
from anomaly.data.splits import random_split
from anomaly.data.store import WindowStore, create_store
from anomaly.detectors.reconstruction import reconstruction_error
from anomaly.encoders.dense_ae import DenseAutoencoder
from anomaly.fitting import PartScores, fit_model, positive_rows, stream_part
from anomaly.metrics import average_precision, bootstrap_interval, recall_at_fpr, roc_auc, time_blocks
from anomaly.scores.thresholds import fixed_threshold
from benchmarks.papermill_lookalike import write_lookalike

LEAD_ROWS = 2
FPR = 0.063
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Rows of one part, prepared or not: values, 1 where a break follows within the lead, and their place in time."""

    values: NDArray[np.float32]
    positive: NDArray[np.bool_]


def load(path: Path, time_format: str | None) -> tuple[PlantLog, LogChunk]:
    """The checked log, and all of it in memory: it has some twenty thousand rows."""
    tags = tuple(f"x{i}" for i in range(1, 62))
    log = open_log([path], LogSettings(time="time", label="y", tags=tags, time_format=time_format))
    for notice in log.notices:
        print(f"note: {notice}", file=sys.stderr)
    chunks = list(log.chunks(1 << 20))
    if len(chunks) != 1:
        raise SystemExit(f"{path}: expected at most {1 << 20} rows")
    return log, chunks[0]


def dense_scores(train: NDArray, validation: NDArray, rows: NDArray, seed: int, epochs: int) -> Scores:
    """The source's autoencoder on single rows: fitted on normal train rows, best epoch by normal validation rows."""

    def batches(epoch: int) -> Iterator[NDArray[np.float32]]:
        order = np.random.default_rng((seed, epoch)).permutation(len(train))
        for at in range(0, len(train), 128):
            yield train[order[at : at + 128]][:, None]

    encoder, training = DenseAutoencoder(hidden=32, code=16), TrainingSettings(epochs=epochs, batch_size=128, seed=seed)
    with tempfile.TemporaryDirectory() as workdir:
        encoder.fit(
            batches, lambda e: iter([validation[:, None]]),
            window_shape=(1, train.shape[1]), training=training, workdir=Path(workdir),
        )  # fmt: skip
    return reconstruction_error(rows[:, None] - encoder.reconstruct(rows[:, None]))


def scaled(parts: dict[str, Rows]) -> dict[str, Rows]:
    """Standardised by the normal train rows, as published: no compression of large deviations."""
    preparer, train = RowPreparer(compress=False), parts["train"]
    preparer.partial_fit(train.values, np.zeros(train.values.shape, np.uint8), ~train.positive, "plant", 0)
    preparer.finish()
    return {name: Rows(preparer.transform(part.values), part.positive) for name, part in parts.items()}


def row_methods(parts: dict[str, Rows], seed: int, epochs: int) -> dict[str, Scores]:
    """Test scores of the methods that look at single rows."""
    parts = scaled(parts)
    train, test = parts["train"].values[~parts["train"].positive], parts["test"].values
    validation = parts["validation"].values[~parts["validation"].positive]
    return {
        "random": np.random.default_rng(seed).random(len(test)),
        "row PCA": pca_scores(train, test),
        "5-NN": knn_scores(train, test),
        "dense AE (source)": dense_scores(train, validation, test, seed, epochs),
    }


def published_parts(log: LogChunk) -> dict[str, Rows]:
    """Random rows after the label shift by rows."""
    label, kept = curve_shift((log.label == EVENT).astype(int), -LEAD_ROWS)
    values = log.values[kept]
    return {n: Rows(values[i], label[i].astype(bool)) for n, i in random_split(len(kept), seed=123).items()}


def chronological(log: PlantLog, seed: int, epochs: int) -> tuple[dict[str, Rows], dict[str, Scores]]:
    """Parts in time order from the window store, and test scores of every method on the same rows."""
    period_s = log.contract.period_us // 1_000_000
    settings = Settings().changed(
        window={"lead": f"{LEAD_ROWS * period_s}s"}, training={"seed": seed, "epochs": epochs}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.h5"
        with create_store(path, log.contract, settings.window, settings.split) as writer:
            for chunk in log.chunks():
                writer.append(chunk)
        with WindowStore.open(path) as store:
            parts = {part: _rows_of(store, part) for part in ("train", "validation", "test")}
            model = fit_model(store, settings, Path(folder) / "work").model
            model.threshold = fixed_threshold(0.0)
            blocks = ((rows, block.kind) for block, rows in stream_part(store, model, "test"))
            scored = PartScores.collect("test", blocks)
    _, judged = positive_rows(scored.kind, 1)
    ours = np.nan_to_num(scored.score[judged].astype(np.float64), nan=0.0)
    return parts, {**row_methods(parts, seed, epochs), "windows (default)": ours}


def _rows_of(store: WindowStore, part: str) -> Rows:
    """The judged rows of a part: normal and lead rows, the break rows left out."""
    blocks = list(store.row_blocks(part))
    kind = np.concatenate([b.kind for b in blocks])
    positive, judged = positive_rows(kind, store.lead_us)
    values = np.concatenate([b.values for b in blocks])
    return Rows(np.nan_to_num(values[judged]), positive[judged])


def table(protocol: str, parts: dict[str, Rows], scores: dict[str, Scores]) -> list[str]:
    """One line per method: AUC, AP and recall at the published false positive rate, with block-bootstrap intervals."""
    positive = parts["test"].positive
    counts = {n: f"{len(p.positive)} rows, {int(p.positive.sum())} positive" for n, p in parts.items()}
    lines = [f"\n{protocol}", *(f"  {n:<11} {c}" for n, c in counts.items()), ""]
    lines.append(f"  {'method':<18} {'AUC':<20} {'AP':<22} {f'recall at {FPR:.1%} false positives':<34}")
    for method, own in scores.items():
        cells = [
            _cell(roc_auc, own, positive),
            _cell(average_precision, own, positive),
            _cell(lambda s, p: recall_at_fpr(s, p, FPR), own, positive),
        ]
        found = round(recall_at_fpr(own, positive, FPR) * positive.sum())
        lines.append(f"  {method:<18} {cells[0]:<20} {cells[1]:<22} {cells[2]} ({found} of {int(positive.sum())})")
    return lines


def _cell(statistic: Callable[[Scores, NDArray[np.bool_]], float], scores: Scores, positive: NDArray[np.bool_]) -> str:
    """A figure and its interval over blocks of neighbouring rows."""
    block = time_blocks(np.zeros(len(scores), np.int64), positive)
    members = [np.flatnonzero(block == b) for b in range(int(block.max()) + 1)]

    def of(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        rows = [np.concatenate([np.tile(members[b], int(w[b])) for b in np.flatnonzero(w)]) for w in weights]
        return np.array([statistic(scores[r], positive[r]) for r in rows])

    interval = bootstrap_interval(of, len(members), holding=len(np.unique(block[positive])))
    value = statistic(scores, positive)
    if interval.low is None:
        return f"{value:.3f}"
    return f"{value:.3f} ({interval.low:.2f}–{interval.high:.2f})"


def main(arguments: list[str] | None = None) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--csv", type=Path, help="the sheet-break log")
    source.add_argument("--lookalike", action="store_true", help="a synthetic log with the same columns and traits")
    parser.add_argument("--time-format", help="strptime form of the times, such as %%m/%%d/%%y %%H:%%M")
    parser.add_argument("--seed", type=int, default=123)
    parser.add_argument("--epochs", type=int, default=60)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = chosen.csv
        if chosen.lookalike:
            path = Path(folder) / "lookalike.csv"
            write_lookalike(path)
        log, chunk = load(path, chosen.time_format)
        published = published_parts(chunk)
        lines = table(
            "random rows, as published (inflated: neighbours fall on both sides)",
            published,
            row_methods(published, chosen.seed, chosen.epochs),
        )
        lines += table("chronological 60/20/20, purged", *chronological(log, chosen.seed, chosen.epochs))
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
