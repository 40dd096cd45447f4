"""Windows with a class that raw values hide: a tone at a random phase, or a bump at a random place."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def tones(count: int, seed: int, rows: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Two tags, a tone of 2, 4 or 7 cycles at a random phase with noise; windows ``(n, rows, 2)`` and the class."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, size=count)
    cycles = np.array([2, 4, 7])[kind][:, None, None]
    phase = rng.uniform(0, 2 * np.pi, size=(count, 1, 2))
    time = np.arange(rows)[None, :, None] / rows
    windows = np.sin(2 * np.pi * cycles * time + phase) + 0.3 * rng.normal(size=(count, rows, 2))
    return windows.astype(np.float32), kind


def sawteeth(count: int, seed: int, rows: int = 16) -> np.ndarray:
    """A direction in time: each tooth rises slowly and falls at once."""
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 8, size=(count, 1, 2))
    teeth = np.mod(np.arange(rows)[None, :, None] + start, 8.0) / 4 - 1
    return (teeth + 0.1 * rng.normal(size=teeth.shape)).astype(np.float32)


def linear_probe(train: np.ndarray, labels: np.ndarray, test: np.ndarray, answers: np.ndarray) -> float:
    """Accuracy of a linear classifier on features, on rows it has not seen."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    flat = (a.reshape(len(a), -1) for a in (train, test))
    return float(probe.fit(next(flat), labels).score(next(flat), answers))


def neighbour_probe(train: np.ndarray, labels: np.ndarray, test: np.ndarray, answers: np.ndarray) -> float:
    """Accuracy of the five nearest neighbours."""
    probe = make_pipeline(StandardScaler(), KNeighborsClassifier(5))
    return float(probe.fit(train.reshape(len(train), -1), labels).score(test.reshape(len(test), -1), answers))
