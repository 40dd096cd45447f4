"""The convolutional autoencoder and the 1-D CNN encoder (METHODS S21); what every encoder promises is in tests/contracts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import keras
import numpy as np
import pytest
from encoder_data import brief, data_of

from anomaly.encoders.backbones import build_embedder
from anomaly.encoders.base import Option, WindowShape
from anomaly.encoders.conv_ae import ConvAutoencoder
from anomaly.encoders.neural import Networks, NeuralEncoder
from anomaly.encoders.probes import probe_table
from anomaly.encoders.training import Task
from anomaly.errors import UsageError

LEARNED = 1500  # the probes learn from as many windows, and are judged on the rest


class CnnEncoder(NeuralEncoder):
    """The cnn backbone, made to draw its window again from its pooled vector."""

    name: ClassVar[str] = "cnn"
    summary: ClassVar[str] = "the cnn backbone under a dense decoder"
    option_list: ClassVar[Mapping[str, Option]] = {}

    def networks(self, shape: WindowShape, seed: int) -> Networks:
        embedder = build_embedder("cnn", shape, embedding=24)
        x = keras.layers.Dense(64, activation="relu")(embedder.output)
        drawn = keras.layers.Reshape((shape.rows, shape.tags))(keras.layers.Dense(shape.rows * shape.tags)(x))
        return Networks(embedder, Task.autoencoder(keras.Model(embedder.input, drawn), shape.tags))


def tones(n: int, rows: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Waves of 6 or 9 rows at any phase, in noise: both classes have the same mean, so no line through raw windows
    parts them."""
    rng = np.random.default_rng(1)
    label = rng.integers(0, 2, n)
    turns = np.arange(rows)[None] / np.where(label, 6.0, 9.0)[:, None] + rng.random((n, 1))
    windows = np.sin(2 * np.pi * turns) + 0.3 * rng.normal(size=(n, rows))
    return windows[..., None].astype(np.float32), label


def bumps(n: int, rows: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """A slow rise with a sudden fall, or the same backwards, anywhere in the window, in noise."""
    rng = np.random.default_rng(2)
    label, at = rng.integers(0, 2, n), rng.integers(0, rows - 8, n)
    rise = 0.7 * np.array([0, 1, 2, 3, 4, 0, -1, -1])
    windows = 0.3 * rng.normal(size=(n, rows))
    windows[np.arange(n)[:, None], at[:, None] + np.arange(8)] += np.where(label[:, None], rise[::-1], rise)
    return windows[..., None].astype(np.float32), label


@pytest.mark.parametrize(
    ("kind", "planted", "epochs", "at_least"),
    [
        (CnnEncoder, tones, 1, 0.85),
        pytest.param(CnnEncoder, bumps, 6, 0.8, marks=pytest.mark.slow),
        pytest.param(ConvAutoencoder, tones, 5, 0.7, marks=pytest.mark.slow),
    ],
)
def test_s21_the_embedding_beats_raw_windows_on_a_linear_probe(kind, planted, epochs, at_least, tmp_path):
    """What wins is above all the architecture: pooled convolutions with random weights reach the same on these two
    plants, while the autoencoder's dense embedding gains some eight points by training."""
    windows, label = planted(2500)
    encoder = kind()
    encoder.fit(data_of(windows[:LEARNED]), training=brief(epochs=epochs), workdir=tmp_path)
    fold = (np.arange(LEARNED), np.arange(LEARNED, len(windows)))
    given = {"embedding": encoder.embed(windows), "raw windows": windows[..., 0]}
    table = probe_table(given, label, [fold], probes=("linear",))
    raw, embedded = (next(s for s in table.scores if s.representation == name) for name in ("raw windows", "embedding"))
    assert raw.value < 0.65 and embedded.value > at_least, table.to_text()
    assert raw.high is not None and embedded.low is not None and embedded.low > raw.high


@pytest.mark.parametrize("rows", [3, 4, 5, 7, 13, 31, 32])
@pytest.mark.parametrize("depth", [1, 3])
def test_s21_any_length_from_the_kernel_on_is_drawn_back_exactly_as_long(rows, depth):
    networks = ConvAutoencoder(depth=depth, width=4).networks(WindowShape(rows, 2), seed=0)
    assert networks.reconstructor is not None
    assert networks.reconstructor.output_shape == (None, rows, 2)
    assert networks.embedder.output_shape == (None, 24)


def test_s21_a_kernel_longer_than_the_window_is_refused_with_the_cure(tmp_path):
    windows = np.random.default_rng(0).normal(size=(8, 4, 2)).astype(np.float32)
    with pytest.raises(UsageError, match=r"E2004.*kernel of conv_ae: window.lookback of at least 5.*lower kernel"):
        ConvAutoencoder(kernel=5).fit(data_of(windows), training=brief(), workdir=tmp_path)
    ConvAutoencoder(kernel=4, width=4).fit(data_of(windows), training=brief(epochs=1), workdir=tmp_path)


def test_s21_a_window_too_short_for_the_depth_takes_fewer_halvings():
    deep, enough = (ConvAutoencoder(depth=depth, width=4).networks(WindowShape(3, 1), 0) for depth in (8, 2))
    assert len(deep.embedder.layers) == len(enough.embedder.layers)


def test_an_event_is_drawn_worse_than_normal_rows(tmp_path):
    windows, _ = tones(400)
    encoder = ConvAutoencoder(width=8)
    encoder.fit(data_of(windows), training=brief(epochs=6, learning_rate=5e-3), workdir=tmp_path)
    events = windows[:100].copy()
    events[:, 12:20] += 4
    error = {name: np.mean((encoder.reconstruct(w) - w) ** 2) for name, w in (("normal", windows), ("event", events))}
    assert error["event"] > 5 * error["normal"]
