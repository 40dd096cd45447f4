"""The LSTM autoencoder: what it learns about order, and its gates against a loop; the rest is in tests/contracts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from encoder_data import brief, data_of

from anomaly.encoders.base import WindowShape
from anomaly.encoders.lstm_ae import LstmAutoencoder


def waves(n: int, rows: int = 8, seed: int = 0) -> np.ndarray:
    """Two waves of one period at any phase, the second a quarter behind."""
    phase = np.random.default_rng(seed).random((n, 1))
    turns = 2 * np.pi * (np.arange(rows)[None] / 8 + phase)
    return np.stack((np.sin(turns), np.cos(turns)), axis=-1).astype(np.float32)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> LstmAutoencoder:
    encoder = LstmAutoencoder(units=12, embedding=6)
    encoder.fit(
        data_of(waves(300)),
        training=brief(epochs=12, learning_rate=1e-2),
        workdir=tmp_path_factory.mktemp("lstm"),
    )
    return encoder


def test_waves_it_never_saw_are_drawn_again(fitted: LstmAutoencoder):
    fresh = waves(64, seed=1)
    assert np.mean((fitted.reconstruct(fresh) - fresh) ** 2) < 0.15 * np.mean(fresh**2)


def test_rows_in_another_order_are_drawn_worse(fitted: LstmAutoencoder):
    windows = waves(64)
    shuffled = windows[:, np.random.default_rng(1).permutation(8)]
    error = [np.mean((fitted.reconstruct(w) - w) ** 2) for w in (windows, shuffled)]
    assert error[1] > 4 * error[0]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_the_embedding_is_the_last_state_of_an_lstm_read_row_by_row():
    """Hochreiter and Schmidhuber's gates in a plain loop, with the network's own weights."""
    embedder = LstmAutoencoder(units=5, embedding=3).networks(WindowShape(7, 2), seed=0).embedder
    kernel, recurrent, bias, dense, offset = embedder.get_weights()
    windows = np.random.default_rng(2).normal(size=(4, 7, 2)).astype(np.float32)
    state = memory = np.zeros((4, 5))
    for t in range(7):
        entry, forget, cell, out = np.split(windows[:, t] @ kernel + state @ recurrent + bias, 4, axis=1)
        memory = sigmoid(forget) * memory + sigmoid(entry) * np.tanh(cell)
        state = sigmoid(out) * np.tanh(memory)
    np.testing.assert_allclose(embedder.predict_on_batch(windows), state @ dense + offset, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_any_length_is_drawn_back(rows: int, tmp_path: Path):
    networks = LstmAutoencoder(units=4, embedding=2).networks(WindowShape(rows, 3), seed=0)
    assert networks.reconstructor is not None
    assert networks.reconstructor.output_shape == (None, rows, 3)
