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
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a file run by its path sees only its own folder

from anomaly.baselines import knn_scores, pca_scores
from anomaly.config import EncoderSettings, LogSettings, Settings, TrainingSettings
from anomaly.data.contract import EVENT, LogChunk
from anomaly.data.labels import curve_shift
from anomaly.data.readers import PlantLog, open_log
from anomaly.data.scaling import RowPreparer
from anomaly.data.splits import random_split
from anomaly.data.store import WindowStore, create_store
from anomaly.detectors.reconstruction import reconstruction_error
from anomaly.encoders import build_encoder
from anomaly.encoders.base import TrainingBatch, TrainingData, WindowShape
from anomaly.errors import AnomalyError, Fault, InputRefused
from anomaly.fitting import PartScores, fit_model, positive_rows, stream_part
from anomaly.metrics import average_precision, bootstrap_interval, recall_at_fpr, roc_auc, time_blocks
from anomaly.metrics.rows import COMPARED_FPR, ranking_counts, ranking_statistics
from anomaly.scores.thresholds import fixed_threshold
from benchmarks.papermill_lookalike import write_lookalike

LEAD_ROWS = 2
PUBLISHED_SEED = 123
PUBLIC_TIMES = "%m/%d/%y %H:%M"  # as the public file prints them: 5/1/99 0:00
MOST_ROWS = 1 << 20
TAGS = tuple(f"x{i}" for i in range(1, 62))
STATISTICS = {
    "roc_auc": ("AUC", roc_auc),
    "average_precision": ("AP", average_precision),
    "recall_at_fpr": (f"recall at {COMPARED_FPR:.1%} false positives", recall_at_fpr),
}
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Judged rows of one part: ``values (n, 61)``; ``positive (n,)``, a break follows within the lead; ``row (n,)``, their
    places in the log, rising."""

    values: NDArray[np.float32]
    positive: NDArray[np.bool_]
    row: NDArray[np.int64]


@dataclass(frozen=True)
class Outcome:
    """A protocol's parts by name, and each method's scores ``(n,)`` of the test rows."""

    title: str
    parts: dict[str, Rows]
    scores: dict[str, Scores]


@dataclass(frozen=True)
class Measured:
    """A figure and its 95 % interval over blocks of neighbouring rows; None where it has none."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        own = f"{self.value:.3f}"
        return own if self.low is None or self.high is None else f"{own} ({self.low:.2f}–{self.high:.2f})"


def load(path: Path, time_format: str | None) -> tuple[PlantLog, LogChunk]:
    """The checked log, and all of it in memory: it has some twenty thousand rows. Raises InputRefused."""
    settings = LogSettings(time="time", label="y", tags=TAGS, time_format=time_format)
    try:
        log, chunk = _read(path, settings)
    except InputRefused as refused:
        if time_format is not None or any(fault.code != "E3204" for fault in refused.faults):
            raise
        log, chunk = _read_public_times(path, settings, refused)
    for notice in log.notices:
        print(f"note: {notice}", file=sys.stderr)
    return log, chunk


def _read(path: Path, settings: LogSettings) -> tuple[PlantLog, LogChunk]:
    log = open_log([path], settings)
    if log.rows > MOST_ROWS:
        raise InputRefused(Fault("E3007", f"at most {MOST_ROWS} rows", log.rows, file=str(path)))
    return log, next(iter(log.chunks(MOST_ROWS)))


def _read_public_times(path: Path, settings: LogSettings, refused: InputRefused) -> tuple[PlantLog, LogChunk]:
    """Times as the public file prints them, where every row reads so and a day past the 12th settles their order."""
    try:
        log, chunk = _read(path, replace(settings, time_format=PUBLIC_TIMES))
    except InputRefused:
        raise refused from None
    if pd.to_datetime(chunk.time, unit="us").day.max() <= 12:
        hint = f"if the month comes first: --time-format '{PUBLIC_TIMES}'"
        found = "no day past the 12th"
        raise InputRefused(Fault("E3202", "dates whose order of day and month can be told", found, hint, str(path)))
    print(f"note: times read as {PUBLIC_TIMES} (inferred; --time-format overrides)", file=sys.stderr)
    return log, chunk


def dense_scores(train: NDArray, validation: NDArray, rows: NDArray, seed: int, epochs: int) -> Scores:
    """The source's autoencoder on single rows: fitted on normal train rows, best epoch by normal validation rows."""

    def batches(epoch: int) -> Iterator[TrainingBatch]:
        order = np.random.default_rng((seed, epoch)).permutation(len(train))
        for at in range(0, len(train), 128):
            yield TrainingBatch(train[order[at : at + 128]][:, None])

    def held_back(epoch: int) -> Iterator[TrainingBatch]:
        yield TrainingBatch(validation[:, None])

    encoder = build_encoder(EncoderSettings("dense_ae", options={"hidden": 32, "code": 16}))
    training = TrainingSettings(epochs=epochs, batch_size=128, seed=seed)
    data = TrainingData(WindowShape(1, train.shape[1]), batches, held_back, len(train))
    with tempfile.TemporaryDirectory() as workdir:
        encoder.fit(data, training=training, workdir=Path(workdir))
    return reconstruction_error(rows[:, None] - encoder.reconstruct(rows[:, None]))


def scaled(parts: dict[str, Rows]) -> dict[str, Rows]:
    """Standardised by the normal train rows, as published: no compression of large deviations."""
    preparer, train = RowPreparer(compress=False), parts["train"]
    preparer.partial_fit(train.values, np.zeros(train.values.shape, np.uint8), ~train.positive, "plant", 0)
    preparer.finish()
    return {name: replace(part, values=preparer.transform(part.values)) for name, part in parts.items()}


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


def published(chunk: LogChunk, seed: int, epochs: int) -> Outcome:
    """Random rows after the label shift by rows; the split's seed is the published one whatever ``seed`` is."""
    label, kept = curve_shift((chunk.label == EVENT).astype(int), -LEAD_ROWS)
    values, parts = np.nan_to_num(chunk.values[kept]), {}
    for name, drawn in random_split(len(kept), seed=PUBLISHED_SEED).items():
        i = np.sort(drawn)
        parts[name] = Rows(values[i], label[i].astype(bool), kept[i])
    title = "random rows, as published (inflated: neighbours fall on both sides)"
    return Outcome(title, parts, row_methods(parts, seed, epochs))


def chronological(log: PlantLog, seed: int, epochs: int) -> Outcome:
    """Parts in time order from the window store; every method scores the same rows. A row that the product calls
    unscorable ranks below all others: it raises no alert."""
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
    scores = {**row_methods(parts, seed, epochs), "windows (default)": ours}
    return Outcome("chronological 60/20/20, purged", parts, scores)


def _rows_of(store: WindowStore, part: str) -> Rows:
    """The judged rows of a part: normal and lead rows, the break rows left out."""
    blocks = list(store.row_blocks(part))
    positive, judged = positive_rows(np.concatenate([b.kind for b in blocks]), store.lead_us)
    values = np.concatenate([b.values for b in blocks])
    row = np.concatenate([b.start + np.arange(len(b.time)) for b in blocks])
    return Rows(np.nan_to_num(values[judged]), positive[judged], row[judged])


def measure(scores: Scores, positive: NDArray[np.bool_]) -> dict[str, Measured]:
    """AUC, AP and recall at the published false positive rate, each with its block-bootstrap interval."""
    block = time_blocks(np.zeros(len(scores), np.int64), positive)
    n_blocks = int(block.max()) + 1
    positives, normals = ranking_counts(scores, positive, block, n_blocks)
    found = {}
    for name, (_, rule) in STATISTICS.items():

        def drawn(weights: Scores, name: str = name) -> Scores:
            return ranking_statistics(weights @ positives, weights @ normals)[name]

        interval = bootstrap_interval(drawn, n_blocks, holding=len(np.unique(block[positive])))
        found[name] = Measured(rule(scores, positive), interval.low, interval.high)
    return found


def table(outcome: Outcome, measured: dict[str, dict[str, Measured]]) -> list[str]:
    """The parts with their counts, then one line per method."""
    counts = {n: f"{len(p.positive):6} rows, {int(p.positive.sum()):4} positive" for n, p in outcome.parts.items()}
    lines = ["", outcome.title, *(f"  {n:<11}{c}" for n, c in counts.items()), ""]
    auc, ap, recall = (title for title, _ in STATISTICS.values())
    lines.append(f"  {'method':<18} {auc:<20} {ap:<20} {recall}")
    total = int(outcome.parts["test"].positive.sum())
    for method, own in measured.items():
        hits = round(own["recall_at_fpr"].value * total) if total else 0
        cells = f"{own['roc_auc']!s:<20} {own['average_precision']!s:<20} {own['recall_at_fpr']}"
        lines.append(f"  {method:<18} {cells} ({hits} of {total})")
    return lines


def comparison(random: dict[str, dict[str, Measured]], in_time: dict[str, dict[str, Measured]]) -> list[str]:
    """By how much the random rows make each method look better than time order does."""
    lines = ["", "random rows minus chronological, same methods:"]
    for name, (title, _) in STATISTICS.items():
        steps = {m: random[m][name].value - in_time[m][name].value for m in random if m != "random"}
        each = ", ".join(f"{method} {step:+.3f}" for method, step in steps.items())
        lines.append(f"  {title}: {each}; mean {np.mean(list(steps.values())):+.3f}")
    return lines


def run(path: Path, time_format: str | None, seed: int, epochs: int) -> list[Outcome]:
    """Both protocols on the log at ``path``. Raises InputRefused."""
    log, chunk = load(path, time_format)
    return [published(chunk, seed, epochs), chronological(log, seed, epochs)]


def main(arguments: list[str] | None = None) -> int:
    """Print both tables and by how much they differ; 0, or the exit status of the refusal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--csv", type=Path, help="the sheet-break log")
    source.add_argument("--lookalike", action="store_true", help="a synthetic log with the same columns and traits")
    parser.add_argument("--time-format", help=f"strptime form of the times, such as {PUBLIC_TIMES.replace('%', '%%')}")
    parser.add_argument("--seed", type=int, default=123)
    parser.add_argument("--epochs", type=int, default=60)
    chosen = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = chosen.csv
            if chosen.lookalike:
                path = Path(folder) / "lookalike.csv"
                write_lookalike(path)
            outcomes = run(path, chosen.time_format, chosen.seed, chosen.epochs)
    except AnomalyError as error:
        print("\n".join(fault.line() for fault in error.faults), file=sys.stderr)
        return error.exit_code
    measured = [{m: measure(s, o.parts["test"].positive) for m, s in o.scores.items()} for o in outcomes]
    for outcome, own in zip(outcomes, measured, strict=True):
        print("\n".join(table(outcome, own)))
    print("\n".join(comparison(*measured)))
    if chosen.lookalike:
        print("synthetic data: these figures say nothing about a paper mill, only how the two protocols differ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
