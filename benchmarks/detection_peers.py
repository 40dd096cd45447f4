"""What people would use instead of us, through its own packages, with one fixed setting each.

Every peer gets rows that were filled, scaled and segmented with care (last value, then training median; median and the
larger of IQR / 1.349 and half the standard deviation of the normal training rows; linear to four deviations, logarithmic
beyond): plain standardisation would make them weaker. Learned from normal rows only. Arrays are ``(n, C)`` in,
``(n,)`` float64 out, higher is more anomalous.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from anomaly.baselines import energy_scores, knn_scores, pca_scores
from anomaly.data.contract import NORMAL
from benchmarks.detection_cases import segment_starts

Scores = NDArray[np.float64]

WINDOW, BANK, SEED = 16, 5000, 0
_LINEAR_TO, _TOO_LARGE, _STILL = 4.0, 1e30, 1e-12


@dataclass(frozen=True)
class Block:
    """Scaled rows ``values (n, C)`` and where segments begin, ``starts (n,)``."""

    values: NDArray[np.float64]
    starts: NDArray[np.bool_]


@dataclass(frozen=True)
class Scaler:
    """Centre and scale ``(C,)`` of the normal training rows."""

    centre: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Scaler:
        """Learn from rows ``(n, C)`` without missing values; a tag that never moved keeps its own unit."""
        low, middle, high = np.percentile(values, [25, 50, 75], axis=0)
        scale = np.maximum((high - low) / 1.349, values.std(axis=0) / 2)
        return cls(middle, np.where(scale > _STILL * np.maximum(np.abs(middle), 1), scale, 1.0))

    def transform(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Deviations, linear to four and logarithmic beyond.

        >>> Scaler(np.zeros(1), np.ones(1)).transform(np.array([[2.0], [-4.0]])).ravel().tolist()
        [2.0, -4.0]
        """
        z = (values - self.centre) / self.scale
        size = np.abs(z)
        beyond = _LINEAR_TO * (1 + np.log(np.maximum(size, _LINEAR_TO) / _LINEAR_TO))
        return np.where(size <= _LINEAR_TO, z, np.sign(z) * beyond)


def prepared(train: pd.DataFrame, rows: pd.DataFrame, period_us: int) -> tuple[Block, Block]:
    """The normal rows of ``train`` and all ``rows`` as scaled blocks; a row that is left out ends its segment."""
    tags = [name for name in train.columns if name not in ("time", "label")]
    normal = train["label"].to_numpy() == NORMAL
    known, later = _numbers(train, tags), _numbers(rows, tags)
    with np.errstate(invalid="ignore"):
        median = pd.DataFrame(known[normal]).median().fillna(0).to_numpy()
    known, later = _filled(known, median), _filled(later, median)
    scaler = Scaler.of(known[normal])
    after_cut = np.concatenate(([False], ~normal[:-1]))
    starts = (segment_starts(train, period_us) | after_cut)[normal]
    starts[:1] = True
    return Block(scaler.transform(known[normal]), starts), Block(
        scaler.transform(later), segment_starts(rows, period_us)
    )


def _numbers(frame: pd.DataFrame, tags: list[str]) -> NDArray[np.float64]:
    values = frame[tags].to_numpy(np.float64)
    return np.where(np.abs(values) < _TOO_LARGE, values, np.nan)


def _filled(values: NDArray[np.float64], median: NDArray[np.float64]) -> NDArray[np.float64]:
    held = pd.DataFrame(values).ffill().to_numpy()
    return np.where(np.isnan(held), median, held)


def windows(block: Block, length: int = WINDOW) -> NDArray[np.float64]:
    """The window ``(n, length * C)`` that ends at each row, inside its segment; the segment's first row pads it.

    >>> windows(Block(np.array([[1.0], [2.0], [9.0]]), np.array([True, False, True])), 2).tolist()
    [[1.0, 1.0], [1.0, 2.0], [9.0, 9.0]]
    """
    n = len(block.values)
    first = np.maximum.accumulate(np.where(block.starts, np.arange(n), 0))
    at = np.maximum(np.arange(n)[:, None] - np.arange(length - 1, -1, -1), first[:, None])
    return block.values[at].reshape(n, -1)


def drawn(values: NDArray[np.float64], most: int = BANK) -> NDArray[np.float64]:
    """At most ``most`` rows, drawn by lot with a fixed seed, in their order."""
    if len(values) <= most:
        return values
    return values[np.sort(np.random.default_rng(SEED).choice(len(values), most, replace=False))]


def always(known: Block, rows: Block) -> Scores:
    """Flag every row."""
    return np.ones(len(rows.values))


def never(known: Block, rows: Block) -> Scores:
    """Flag no row."""
    return np.zeros(len(rows.values))


def random(known: Block, rows: Block) -> Scores:
    """Scores by lot."""
    return np.random.default_rng([SEED, len(rows.values)]).random(len(rows.values))


def energy(known: Block, rows: Block) -> Scores:
    """Mean squared standardised value."""
    return energy_scores(rows.values)


def pca(known: Block, rows: Block) -> Scores:
    """Residual of a row beside the subspace that holds 90 %."""
    return pca_scores(known.values, rows.values)


def window_pca(known: Block, rows: Block) -> Scores:
    """The same for windows of 16 rows."""
    return pca_scores(windows(known), windows(rows))


def knn(known: Block, rows: Block) -> Scores:
    """Mean distance of a row to 5 of at most 5000 normal rows."""
    return knn_scores(known.values, rows.values, k=5, bank=BANK, seed=SEED)


def window_knn(known: Block, rows: Block) -> Scores:
    """The same for windows of 16 rows."""
    return knn_scores(windows(known), windows(rows), k=5, bank=BANK, seed=SEED)


def kmeans(known: Block, rows: Block) -> Scores:
    """Distance to the nearest of 10 centres (scikit-learn)."""
    from sklearn.cluster import KMeans

    centres = min(10, len(np.unique(known.values, axis=0)))
    found = KMeans(centres, n_init=3, random_state=SEED).fit(known.values)
    return np.asarray(found.transform(rows.values).min(axis=1), dtype=np.float64)


def pyod_ecod(known: Block, rows: Block) -> Scores:
    """PyOD ECOD; its tails are those of training and scored rows together."""
    return _pyod("ecod.ECOD", known.values, rows.values)


def pyod_iforest(known: Block, rows: Block) -> Scores:
    """PyOD IForest, 100 trees."""
    return _pyod("iforest.IForest", known.values, rows.values, random_state=SEED)


def pyod_knn(known: Block, rows: Block) -> Scores:
    """PyOD KNN: distance to the fifth of at most 5000 normal rows."""
    return _pyod("knn.KNN", drawn(known.values), rows.values)


def pyod_lof(known: Block, rows: Block) -> Scores:
    """PyOD LOF over at most 5000 normal rows."""
    return _pyod("lof.LOF", drawn(known.values), rows.values, novelty=True)


def pyod_autoencoder(known: Block, rows: Block) -> Scores:
    """PyOD AutoEncoder; needs torch."""
    return _pyod("auto_encoder.AutoEncoder", known.values, rows.values, random_state=SEED, verbose=0)


def _pyod(name: str, known: NDArray[np.float64], rows: NDArray[np.float64], **options: Any) -> Scores:
    """Scores by the class ``name`` of ``pyod.models``, all else at its defaults."""
    module, _, kind = name.partition(".")
    logging.getLogger("numba").setLevel(logging.WARNING)
    detector = getattr(importlib.import_module(f"pyod.models.{module}"), kind)(**options)
    detector.fit(known)
    return np.asarray(detector.decision_function(rows), dtype=np.float64)


def seed_ae(known: Block, rows: Block) -> Scores:
    """The dense autoencoder of the published notebook, row by row: 32 tanh with an L1 activity penalty, 16 relu, 16 tanh,
    and a relu output; 100 epochs of 128 rows, the epoch of lowest validation loss."""
    return _dense_autoencoder(known.values, rows.values, "relu")


def seed_ae_linear(known: Block, rows: Block) -> Scores:
    """The same with a linear output, which can give back negative values."""
    return _dense_autoencoder(known.values, rows.values, "linear")


def _dense_autoencoder(known: NDArray[np.float64], rows: NDArray[np.float64], output: str) -> Scores:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    import keras

    keras.utils.set_random_seed(SEED)
    size = known.shape[1]
    inputs = keras.Input((size,))
    hidden = keras.layers.Dense(32, activation="tanh", activity_regularizer=keras.regularizers.L1(1e-3))(inputs)
    hidden = keras.layers.Dense(16, activation="relu")(hidden)
    hidden = keras.layers.Dense(16, activation="tanh")(hidden)
    model = keras.Model(inputs, keras.layers.Dense(size, activation=output)(hidden))
    # Compiling so small a network takes longer than it saves; no figure depends on it.
    model.compile(optimizer="adam", loss="mean_squared_error", jit_compile=False)
    order = np.random.default_rng(SEED).permutation(len(known))
    learned, checked = np.split(known[order].astype(np.float32), [max(round(0.8 * len(known)), 1)])
    best = keras.callbacks.EarlyStopping("val_loss", patience=1000, restore_best_weights=True, start_from_epoch=0)
    model.fit(learned, learned, epochs=100, batch_size=128, validation_data=(checked, checked), callbacks=[best],
              verbose=0)  # fmt: skip
    back = model.predict(rows.astype(np.float32), batch_size=4096, verbose=0)
    return np.asarray(np.square(rows - back).mean(axis=1), dtype=np.float64)


#: References are no peers: the best peer is never one of them.
REFERENCES: dict[str, Callable[[Block, Block], Scores]] = {"always": always, "never": never, "random": random}
PEERS: dict[str, Callable[[Block, Block], Scores]] = {
    "energy": energy,
    "pca": pca,
    "window_pca": window_pca,
    "knn": knn,
    "window_knn": window_knn,
    "kmeans": kmeans,
    "pyod_ecod": pyod_ecod,
    "pyod_iforest": pyod_iforest,
    "pyod_knn": pyod_knn,
    "pyod_lof": pyod_lof,
    "pyod_autoencoder": pyod_autoencoder,
    "seed_ae": seed_ae,
    "seed_ae_linear": seed_ae_linear,
}
_NEEDS = {"pyod_autoencoder": ("pyod", "torch"), "seed_ae": ("keras",), "seed_ae_linear": ("keras",)}


def absent(name: str) -> str:
    """The package that peer ``name`` needs and that is not installed, or ""."""
    needed = _NEEDS.get(name, ("pyod",) if name.startswith("pyod_") else ())
    return next((package for package in needed if importlib.util.find_spec(package) is None), "")


def peer_scores(name: str, train: pd.DataFrame, rows: pd.DataFrame, period_us: int) -> Scores:
    """Scores ``(n,)`` of ``rows`` by a peer or reference that learned from the normal rows of ``train``."""
    known, later = prepared(train, rows, period_us)
    return (REFERENCES | PEERS)[name](known, later)
