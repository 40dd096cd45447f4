"""Views of a window (METHODS S26)."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from anomaly.encoders.augmentations import AUGMENTATIONS, at_rows, crop_rows, view

WINDOWS = np.random.default_rng(0).normal(size=(40, 16, 3)).cumsum(axis=1).astype(np.float32)


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_s26_strength_zero_is_identity_and_the_seed_decides(name):
    augment, before = AUGMENTATIONS[name], WINDOWS.copy()
    np.testing.assert_array_equal(augment(rng(), WINDOWS, 0.0), WINDOWS)
    first = augment(rng(), WINDOWS, 0.4)
    np.testing.assert_array_equal(first, augment(rng(), WINDOWS, 0.4))
    assert not np.array_equal(first, augment(rng(2), WINDOWS, 0.4))
    assert first.shape == WINDOWS.shape and first.dtype == np.float32 and np.isfinite(first).all()
    np.testing.assert_array_equal(WINDOWS, before)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_s26_strength_zero_is_identity_for_windows_of_every_length(name):
    """Rows read at 2.9999999 in place of 3 differ in the last bit: lengths that are no power of two show it."""
    for rows in range(1, 70):
        windows = rng(rows).normal(size=(3, rows, 2)).astype(np.float32)
        np.testing.assert_array_equal(AUGMENTATIONS[name](rng(), windows, 0.0), windows)


def test_a_view_without_augmentations_is_a_copy():
    assert not np.shares_memory(view(rng(), WINDOWS, 3, {}), WINDOWS)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_one_tag_and_a_short_window_are_views_too(name):
    for windows in (WINDOWS[:, :, :1], WINDOWS[:, :2], WINDOWS[:1]):
        assert np.isfinite(AUGMENTATIONS[name](rng(), windows, 0.5)).all()


def test_s26_sizes_of_the_changes():
    noise = AUGMENTATIONS["jitter"](rng(), np.zeros((200, 16, 3), np.float32), 0.3)
    assert noise.std() == pytest.approx(0.3, rel=0.02)
    ratio = AUGMENTATIONS["scale"](rng(), WINDOWS, 0.1) / WINDOWS
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-4)
    held = AUGMENTATIONS["time_mask"](rng(), WINDOWS, 0.25)
    changed = (held != WINDOWS).any(axis=2).sum(axis=1)
    assert (changed == 4).all()
    silent = (AUGMENTATIONS["sensor_dropout"](rng(), WINDOWS, 0.9).std(axis=1) < 1e-6).sum(axis=1)
    assert silent.max() == 2, "one tag always stays"


def test_s26_warps_keep_ends_and_order_and_a_crop_stays_inside():
    ramp = np.broadcast_to(np.arange(16, dtype=np.float32)[None, :, None], (50, 16, 1)).copy()
    warped = AUGMENTATIONS["time_warp"](rng(), ramp, 0.5)[..., 0]
    np.testing.assert_allclose(warped[:, [0, -1]], [[0, 15]] * 50, atol=1e-4)
    assert (np.diff(warped, axis=1) > 0).all() and np.abs(warped - ramp[..., 0]).max() > 0.5
    rows = crop_rows(rng(), ramp, 0.4)
    assert rows.min() >= 0 and rows.max() <= 15 and (rows[:, -1] - rows[:, 0]).min() >= 0.6 * 15 - 1e-9
    np.testing.assert_allclose(at_rows(ramp, rows)[..., 0], rows, atol=1e-4)


def test_categories_move_with_their_rows_and_never_change_in_value():
    codes = np.arange(16, dtype=np.float32)[None, :, None].repeat(40, axis=0)
    joined = np.concatenate((WINDOWS, codes), axis=2)
    strengths = dict.fromkeys(AUGMENTATIONS, 0.3)
    seen = view(rng(), joined, 3, strengths)
    assert seen.shape == joined.shape
    assert set(np.unique(seen[..., 3])) <= set(range(16))
    assert (np.diff(seen[..., 3], axis=1) >= 0).all()
    still = view(rng(), joined, 3, {"jitter": 0.5, "sensor_dropout": 0.5})
    np.testing.assert_array_equal(still[..., 3], codes[..., 0])
    np.testing.assert_array_equal(view(rng(), joined, 3, {}), joined)


@pytest.mark.slow
def test_s26_positives_that_look_like_faults_teach_the_encoder_to_overlook_them(tmp_path, monkeypatch):
    """With level shifts among the positives, planted level shifts are found less often, at the same alarm rate."""
    from encoder_data import brief, data_of

    from anomaly.encoders import augmentations
    from anomaly.encoders.contrastive import ContrastiveEncoder

    def recall(workdir: str) -> float:
        draw = rng(5)
        normal = draw.normal(size=(1500, 16, 2)).astype(np.float32) * 0.5
        normal[..., 1] += normal[..., 0]
        faulty = normal[:300].copy()
        faulty[:, 8:, 0] += 2.0
        encoder = ContrastiveEncoder(embedding=16, width=16, depth=1, head=16, crop=0.0, scale=0.1, jitter=0.2)
        encoder.fit(data_of(normal[300:], batch_size=64), training=brief(epochs=6), workdir=tmp_path / workdir)
        bank = NearestNeighbors(n_neighbors=3).fit(encoder.embed(normal[300:1000]))
        usual = bank.kneighbors(encoder.embed(normal[1000:]))[0].mean(axis=1)
        found = bank.kneighbors(encoder.embed(faulty))[0].mean(axis=1)
        return float((found > np.quantile(usual, 0.95)).mean())

    chosen = recall("chosen")

    def shifted(draw: np.random.Generator, windows: np.ndarray, strength: float) -> np.ndarray:
        first = draw.integers(0, windows.shape[1], size=(len(windows), 1, windows.shape[2]))
        size = draw.normal(0, 2.0, size=(len(windows), 1, windows.shape[2])).astype(np.float32)
        return windows + size * (np.arange(windows.shape[1])[None, :, None] >= first)

    monkeypatch.setitem(augmentations.AUGMENTATIONS, "jitter", shifted)
    assert recall("faults among positives") < chosen - 0.1
