"""Pretext tasks: learned above chance, dropped cleanly (METHODS S32)."""

from __future__ import annotations

import numpy as np
import pytest
from encoder_data import brief, data_of
from planted_windows import sawteeth
from scipy.stats import binom

from anomaly.encoders.base import WindowShape
from anomaly.encoders.masking import filled, row_mask
from anomaly.encoders.pretext import ORDERS, TRANSFORMS, PretextEncoder, transformed, transforms_of
from anomaly.encoders.weights import outputs
from anomaly.errors import UsageError

WINDOWS = sawteeth(400, 0)


@pytest.mark.parametrize(("task", "transforms"), [("transform", TRANSFORMS), ("order", ORDERS)])
def test_s32_the_answer_is_above_chance_on_windows_not_seen_and_the_head_is_dropped(task, transforms, tmp_path):
    encoder = PretextEncoder(task=task, embedding=16, width=16)
    encoder.fit(data_of(sawteeth(1200, 1)), training=brief(epochs=8, patience=8), workdir=tmp_path)
    asked, answers = transformed(np.random.default_rng(5), WINDOWS, 2, transforms)
    networks = encoder._ready()
    right = int((outputs(networks.task.model, asked).argmax(axis=1) == answers).sum())
    assert binom.sf(right - 1, len(asked), 1 / len(transforms)) < 1e-6
    assert len(networks.task.model.weights) == len(networks.kept.weights) + 2 == len(encoder.to_state()[1]) + 2
    assert encoder.embed(WINDOWS).shape == (400, 16)


def test_s32_masking_draws_hidden_rows_better_than_their_mean_and_drops_its_decoder(tmp_path):
    encoder = PretextEncoder(task="masking", embedding=16, width=16)
    settings = brief(epochs=8, patience=8, learning_rate=3e-3)
    history = encoder.fit(data_of(sawteeth(1200, 1), WINDOWS), training=settings, workdir=tmp_path)
    mask = row_mask(np.random.default_rng(0), len(WINDOWS), WINDOWS.shape[1], 0.5)
    by_the_mean = float(((WINDOWS - filled(WINDOWS, mask, 2, "mean"))[mask] ** 2).mean())
    assert history.val_loss[history.best_epoch] < 0.8 * by_the_mean
    networks = encoder._ready()
    assert len(encoder.to_state()[1]) == len(networks.kept.weights) < len(networks.task.model.weights)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: t.__name__)
def test_a_transform_keeps_shape_and_input_and_leaves_categories_as_words(transform):
    codes = np.random.default_rng(0).integers(0, 9, size=(400, 16, 1)).astype(np.float32)
    windows = np.concatenate((WINDOWS, codes), axis=2)
    before = windows.copy()
    out = transform(np.random.default_rng(1), windows, 2)
    assert out.shape == windows.shape
    np.testing.assert_array_equal(np.sort(out[..., 2], axis=1), np.sort(codes[..., 0], axis=1))
    np.testing.assert_array_equal(windows, before)
    if transform.__name__ != "unchanged":
        assert not np.array_equal(out[..., :2], windows[..., :2])


@pytest.mark.parametrize(("rows", "tags"), [(2, 1), (2, 3), (3, 1), (3, 3), (4, 1), (8, 1), (8, 3)])
def test_s32_every_transform_asked_for_gives_another_window_at_any_shape(rows, tags):
    """What looks the same has no right answer, and a loss that cannot fall."""
    windows = np.random.default_rng(0).normal(size=(50, rows, tags)).astype(np.float32)
    done = [t(np.random.default_rng(1), windows, tags) for t in transforms_of("transform", WindowShape(rows, tags))]
    assert len(done) >= 2
    for first in range(len(done)):
        for second in range(first):
            assert not np.allclose(done[first], done[second], atol=1e-5)


def test_s32_the_tasks_ask_for_what_they_say():
    assert transforms_of("transform", WindowShape(8, 3)) == TRANSFORMS
    assert transforms_of("order", WindowShape(8, 3)) == ORDERS


def test_a_width_that_the_heads_do_not_divide_is_refused(tmp_path):
    encoder = PretextEncoder(backbone="transformer", width=6)
    with pytest.raises(UsageError, match=r"E2002.*width"):
        encoder.fit(data_of(WINDOWS), training=brief(), workdir=tmp_path)
