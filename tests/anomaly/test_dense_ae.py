"""The dense autoencoder of the source, with its faults mended (METHODS S55, S60)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from encoder_data import data_of

from anomaly.config import TrainingSettings
from anomaly.detectors.reconstruction import (
    ReconstructionDetector,
    recency_weights,
    reconstruction_error,
    sensor_shares,
)
from anomaly.encoders.base import TrainingBatch, WindowShape
from anomaly.encoders.dense_ae import DenseAutoencoder
from anomaly.encoders.training import load_weights, outputs


def test_s55_layers_are_those_of_the_source_with_a_linear_output():
    model = DenseAutoencoder().networks(WindowShape(1, 61), seed=0).reconstructor
    dense = [layer for layer in model.layers if hasattr(layer, "units")]
    assert [(layer.units, layer.activation.__name__) for layer in dense] == [
        (32, "tanh"), (16, "relu"), (16, "tanh"), (61, "linear"),
    ]  # fmt: skip
    assert float(dense[0].activity_regularizer.l1) == pytest.approx(1e-3)


def test_s55_negative_values_can_be_drawn_again(tmp_path):
    windows = np.full((256, 1, 3), -2.0, np.float32) + np.random.default_rng(0).normal(0, 0.05, (256, 1, 3)).astype(
        "f4"
    )
    encoder = DenseAutoencoder(activity_l1=0.0)
    training = TrainingSettings(epochs=60, batch_size=32, learning_rate=1e-2, patience=60)
    encoder.fit(data_of(windows, batch_size=256), training=training, workdir=tmp_path)
    assert encoder.reconstruct(windows).mean() == pytest.approx(-2, abs=0.3)


def test_s55_per_sensor_error_is_the_mean_square_and_sums_to_the_score():
    residual = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    by_loop = [[np.mean([residual[b, t, c] ** 2 for t in range(4)]) / 3 for c in range(3)] for b in range(5)]
    np.testing.assert_allclose(sensor_shares(residual), by_loop, rtol=1e-6)
    np.testing.assert_allclose(reconstruction_error(residual), (residual**2).mean(axis=(1, 2)), rtol=1e-6)


def test_s60_the_best_epoch_stays_and_tensorboard_has_the_curves(tmp_path):
    windows = np.random.default_rng(0).normal(size=(128, 2, 3)).astype(np.float32)
    encoder = DenseAutoencoder()
    validation = [windows, windows, windows * 5, windows * 50]  # each epoch looks worse than the last
    training = TrainingSettings(epochs=4, batch_size=32, patience=4)
    changing = replace(data_of(windows), validation=lambda e: iter([TrainingBatch(validation[e])]))
    history = encoder.fit(changing, training=training, workdir=tmp_path)
    assert history.best_epoch == int(np.argmin(history.val_loss)) < 3
    before = encoder.reconstruct(windows)
    model = encoder._ready().task.model
    load_weights(model, tmp_path / "best.npz")
    np.testing.assert_array_equal(outputs(model, windows), before)
    assert any((tmp_path / "logs").iterdir())


def test_training_stops_early_when_nothing_gets_better(tmp_path):
    windows = np.random.default_rng(0).normal(size=(64, 2, 3)).astype(np.float32)
    training = TrainingSettings(epochs=50, batch_size=64, patience=2)
    worse = replace(data_of(windows), validation=lambda e: iter([TrainingBatch(windows * (e + 1))]))
    history = DenseAutoencoder().fit(worse, training=training, workdir=tmp_path)
    assert len(history.val_loss) < 10


def test_s55_recent_rows_weigh_more_and_the_weights_add_up_to_one():
    weights = recency_weights(8, 2.0)
    assert weights.sum() == pytest.approx(1) and weights[-1] == pytest.approx(2 * weights[-3])
    residual = np.random.default_rng(0).normal(size=(5, 8, 3)).astype(np.float32)
    by_loop = [[sum(weights[t] * residual[b, t, c] ** 2 for t in range(8)) / 3 for c in range(3)] for b in range(5)]
    np.testing.assert_allclose(sensor_shares(residual, weights), by_loop, rtol=1e-6)
    with pytest.raises(ValueError, match="half_life"):
        ReconstructionDetector(half_life=0)
