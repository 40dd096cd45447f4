"""Plan B as an encoder: nothing trained, everything named (METHODS S46 to S50)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from encoder_data import brief, data_of

from anomaly.encoders import features
from anomaly.encoders.features import FeaturesEncoder, center_and_scale
from anomaly.errors import InputRefused, UsageError

TAGS = ["Flow", "Pressure", "Speed"]
WINDOWS = np.random.default_rng(0).normal(size=(300, 32, 3)).cumsum(axis=1).astype(np.float32)


def fitted(windows: np.ndarray = WINDOWS, categories: tuple[int, ...] = (), **options) -> FeaturesEncoder:
    encoder = FeaturesEncoder(**options)
    encoder.fit(data_of(windows, categories=categories), training=brief(), workdir=Path("unused"))
    return encoder


@pytest.fixture(scope="module")
def encoder() -> FeaturesEncoder:
    return fitted()


def column(encoder: FeaturesEncoder, name: str) -> int:
    return encoder.feature_names(TAGS).index(name)


def test_s50_it_learns_in_one_pass_with_no_training(tmp_path: Path):
    told: list[int] = []
    data = data_of(WINDOWS)
    history = FeaturesEncoder().fit(
        data, training=brief(), workdir=tmp_path, progress=lambda epoch, _: told.append(epoch)
    )
    assert not FeaturesEncoder.trained and history.loss == history.val_loss == []
    assert history.windows == len(WINDOWS) and told == [0] and not list(tmp_path.iterdir())


def test_s50_it_needs_no_keras():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, anomaly.encoders.features; sys.exit('keras' in sys.modules)"], check=False
    )
    assert done.returncode == 0


def test_normal_features_lie_around_zero_in_deviations(encoder: FeaturesEncoder):
    embedding = encoder.embed(WINDOWS)
    assert embedding.shape == (300, len(encoder.feature_names(TAGS))) == (300, 3 * 12 + 3 * 3)
    np.testing.assert_allclose(np.median(embedding, axis=0), 0, atol=1e-5)
    moving = embedding.std(axis=0) > 0
    assert moving.sum() == 3 * 12 + 3 * 2
    assert np.all(embedding[:, moving].std(axis=0) > 0.3) and np.all(embedding[:, moving].std(axis=0) < 3)


def test_a_name_leads_to_the_feature_it_names(encoder: FeaturesEncoder):
    normal, other = WINDOWS[:1], WINDOWS[:1].copy()
    other[..., 1] += 50 * np.arange(32, dtype=np.float32)
    changed = {
        name
        for name, difference in zip(
            encoder.feature_names(TAGS), (encoder.embed(other) - encoder.embed(normal))[0], strict=True
        )
        if difference
    }
    assert all("Pressure" in name for name in changed) and "Pressure slope" in changed
    rates = encoder.embed(normal)[0, column(encoder, "Speed max difference")]
    raw = np.abs(np.diff(normal[0, :, 2])).max()
    at = column(encoder, "Speed max difference")
    assert rates == pytest.approx((raw - encoder.center_[at]) / encoder.scale_[at], abs=1e-4)
    with pytest.raises(ValueError, match="expected the 3 names"):
        encoder.feature_names(TAGS[:2])


def test_one_wild_feature_does_not_drown_the_rest(encoder: FeaturesEncoder):
    wild = WINDOWS[:1].copy()
    wild[0, 5, 0] = 1e30
    embedding = encoder.embed(wild)
    assert np.isfinite(embedding).all() and np.abs(embedding).max() < 4 + np.log(1e31)


def test_s49_a_broken_relation_stands_out():
    rng = np.random.default_rng(1)
    windows = rng.normal(size=(400, 32, 3)).cumsum(axis=1)
    windows[..., 1] = -windows[..., 0] + 0.1 * rng.normal(size=(400, 32))
    together = fitted(windows.astype(np.float32), pairs=1)
    assert together.pairs_.tags.tolist() == [[0, 1]]
    broken = windows.copy()
    broken[..., 1] *= -1
    at = column(together, "Flow ~ Pressure correlation")
    assert (together.embed(broken.astype(np.float32))[:, at] > 4).mean() > 0.95


def test_pieces_of_a_block_give_the_same(encoder: FeaturesEncoder, monkeypatch: pytest.MonkeyPatch):
    whole = encoder.embed(WINDOWS)
    monkeypatch.setattr(features, "_PIECE", 500)
    np.testing.assert_allclose(encoder.embed(WINDOWS), whole, atol=1e-6)


def test_the_sample_is_bounded_and_the_fit_still_close(monkeypatch: pytest.MonkeyPatch, encoder: FeaturesEncoder):
    monkeypatch.setattr(features, "_SAMPLE_WINDOWS", 150)
    part = fitted()
    assert not np.array_equal(part.center_, encoder.center_)
    assert np.median(np.abs(part.center_ - encoder.center_) / encoder.scale_) < 0.15


def test_categories_are_ignored(encoder: FeaturesEncoder):
    codes = np.random.default_rng(2).integers(0, 3, size=(300, 32, 1)).astype(np.float32)
    both = np.concatenate((WINDOWS, codes), axis=2)
    with_codes = fitted(both, categories=(3,))
    np.testing.assert_array_equal(with_codes.embed(both), encoder.embed(WINDOWS))


@pytest.mark.parametrize(
    ("group", "width"), [("time", 18), ("frequency", 9), ("rate", 9), ("relation", 9), ("catch22", 66)]
)
def test_each_group_stands_alone_and_goes_through_a_state(group: str, width: int):
    if group == "catch22":
        pytest.importorskip("pycatch22")
    chosen = {name: name == group for name in ("time", "frequency", "rate", "relation", "catch22")}
    alone = fitted(WINDOWS[:40], **chosen)
    embedding = alone.embed(WINDOWS[:40])
    assert embedding.shape == (40, width) == (40, len(set(alone.feature_names(TAGS))))
    assert np.isfinite(embedding).all() and embedding.std() > 0
    values, arrays = alone.to_state()
    again = FeaturesEncoder.from_state(json.loads(json.dumps(values)), arrays)
    np.testing.assert_array_equal(again.embed(WINDOWS[:40]), embedding)
    assert again.feature_names(TAGS) == alone.feature_names(TAGS)


def test_a_front_gives_names_to_its_further_channels():
    behind = fitted(front="differences", relation=False, frequency=False, rate=False)
    names = behind.feature_names(TAGS)
    assert len(names) == len(set(names)) == behind.embed(WINDOWS).shape[1] == 3 * 4 * 6
    assert names[0] == "Flow mean" and names[18] == "Flow (differences 2) mean"


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize("tags", [1, 2])
def test_short_windows_one_tag_and_a_constant_tag_are_taken(rows: int, tags: int):
    windows = WINDOWS[:20, :rows, :tags].copy()
    windows[..., -1] = 0.3
    small = fitted(windows)
    assert np.isfinite(small.embed(windows)).all()
    assert np.isfinite(small.embed(windows + 1)).all()


def test_a_state_of_another_architecture_is_refused(encoder: FeaturesEncoder):
    values, arrays = encoder.to_state()
    for name in arrays:
        with pytest.raises(ValueError, match="another architecture"):
            FeaturesEncoder.from_state(values, arrays | {name: arrays[name][:-1]})
    with pytest.raises(ValueError, match="another architecture"):
        FeaturesEncoder.from_state(values, arrays | {"pairs": arrays["pairs"] + 5})
    with pytest.raises(ValueError, match="another architecture"):
        FeaturesEncoder.from_state(values, {"center": arrays["center"]})


def test_no_group_no_package_no_pair_and_no_window_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    off = dict.fromkeys(("time", "frequency", "rate", "relation"), False)
    with pytest.raises(UsageError, match=r"E2002.*leave one of them true"):
        FeaturesEncoder(**off)
    with pytest.raises(UsageError, match=r"E2002.*relation needs two tags"):
        fitted(WINDOWS[..., :1], **off | {"relation": True})
    with pytest.raises(InputRefused, match="E3302"):
        fitted(WINDOWS[:0])
    with pytest.raises(ValueError, match="was fitted or loaded"):
        FeaturesEncoder().embed(WINDOWS)
    monkeypatch.setattr(features.catch22_features, "installed", lambda: False)
    with pytest.raises(UsageError, match=r"E2002.*pip install pycatch22"):
        FeaturesEncoder(catch22=True)


def test_center_and_scale_are_robust_and_never_tiny():
    rng = np.random.default_rng(3)
    values = rng.normal(5, 2, size=(20_000, 4)).astype(np.float32)
    values[:1000, 0] = 1e6
    values[:, 1] = 3 + 1e-8 * rng.normal(size=20_000)
    values[:, 2] = np.arange(20_000) % 10 == 0
    center, scale = center_and_scale(values)
    assert center[0] == pytest.approx(5.13, abs=0.05) and scale[0] == pytest.approx(2.1, abs=0.1)
    assert scale[1] == 1
    assert scale[2] == pytest.approx(0.3) and center[2] == 0
    assert (center[3], scale[3]) == pytest.approx((5, 2), abs=0.05)
