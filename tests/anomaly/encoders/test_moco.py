"""Momentum contrast: queue, moving average, no gradient to keys (METHODS S28)."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from encoder_data import brief, data_of
from planted_windows import linear_probe, tones

from anomaly.encoders.base import WindowShape
from anomaly.encoders.contrastive import ContrastiveEncoder
from anomaly.encoders.moco import KeyQueue, MocoEncoder, moved_towards
from anomaly.encoders.training import Training

SMALL = {"embedding": 8, "width": 8, "depth": 1, "head": 8, "backbone": "dense"}


def numbered(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.float32)[:, None]


@pytest.mark.parametrize("batches", [[3, 3, 3], [7], [8], [19], [1] * 23, [5, 2, 8, 13, 1]])
def test_s28_the_queue_holds_the_last_keys_in_order(batches):
    queue, pushed = KeyQueue(8, 1, seed=0), 0
    for size in batches:
        queue.push(numbered(pushed, size))
        pushed += size
    oldest_first = np.roll(queue.keys.ravel(), -queue.at)
    known = min(pushed, 8)
    np.testing.assert_array_equal(oldest_first[8 - known :], np.arange(pushed - known, pushed))


def test_s28_the_key_encoder_is_the_moving_average():
    slow, fast = [np.array([1.0, 2.0])], [np.array([3.0, -2.0])]
    np.testing.assert_allclose(moved_towards(slow, fast, 0.9)[0], [1.2, 1.6])
    np.testing.assert_array_equal(moved_towards(slow, fast, 1.0)[0], slow[0])


def test_s28_training_moves_keys_by_average_alone_and_the_queue_takes_them_in():
    windows = tones(64, 0, rows=8)[0]
    keras.utils.set_random_seed(0)
    networks = MocoEncoder(**SMALL, queue=32, momentum=0.9).networks(WindowShape(8, 2), seed=0)
    contrast = networks.task.after_batch.__self__
    before = [w.copy() for w in contrast.key.get_weights()]
    training = Training(networks.task, data_of(windows, batch_size=64), brief(batch_size=64))
    training.learn(0)
    expected = moved_towards(before, contrast.query.get_weights(), 0.9)
    for found, wanted in zip(contrast.key.get_weights(), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    trained = {id(v) for v in networks.task.model.trainable_variables}
    assert not trained & {id(v) for v in contrast.key.trainable_variables}, "no gradient can reach the key encoder"
    np.testing.assert_allclose(np.linalg.norm(contrast.queue.keys, axis=1), 1, atol=1e-5)


def test_s28_a_checkpoint_keeps_queue_and_key_encoder():
    networks = MocoEncoder(**SMALL, queue=16).networks(WindowShape(8, 2), seed=0)
    contrast = networks.task.after_batch.__self__
    contrast.queue.push(np.ones((5, 8), np.float32))
    kept = networks.task.state()
    other = MocoEncoder(**SMALL, queue=16).networks(WindowShape(8, 2), seed=9)
    other.task.restore(kept)
    again = other.task.after_batch.__self__
    np.testing.assert_array_equal(again.queue.keys, contrast.queue.keys)
    assert again.queue.at == 5
    for a, b in zip(again.key.get_weights(), contrast.key.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_s28_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    windows = tones(96, 0, rows=8)[0]

    def stop(epoch: int, losses: dict[str, float]) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    def fitted(workdir: str, progress=None) -> MocoEncoder:
        encoder = MocoEncoder(**SMALL, queue=64)
        encoder.fit(data_of(windows), training=brief(), workdir=tmp_path / workdir, progress=progress)
        return encoder

    with pytest.raises(KeyboardInterrupt):
        fitted("killed", stop)
    again, whole = fitted("killed"), fitted("whole")
    np.testing.assert_allclose(again.embed(windows), whole.embed(windows), atol=1e-5)
    went_on, ran_through = (encoder._ready().task.after_batch.__self__.queue for encoder in (again, whole))
    assert went_on.at == ran_through.at
    np.testing.assert_allclose(went_on.keys, ran_through.keys, atol=1e-5)


@pytest.mark.long
@pytest.mark.slow
def test_s28_small_batches_with_a_queue_match_a_large_batch_on_a_probe(tmp_path):
    windows, held_back = tones(1500, 0)[0], tones(200, 1)[0]
    (train, labels), (test, answers) = tones(600, 2), tones(600, 3)
    options = {"embedding": 32, "width": 32, "head": 32, "crop": 0.5}

    def probed(encoder, batch_size: int, workdir: str) -> float:
        encoder.fit(
            data_of(windows, held_back, batch_size=batch_size),
            training=brief(epochs=8, batch_size=batch_size, patience=8), workdir=tmp_path / workdir,
        )  # fmt: skip
        return linear_probe(encoder.embed(train), labels, encoder.embed(test), answers)

    large = probed(ContrastiveEncoder(**options), 256, "large")
    queued = probed(MocoEncoder(**options, queue=512), 16, "queued")
    assert queued > large - 0.05
