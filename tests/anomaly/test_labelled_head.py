"""A head that learned from the log's own events joins the detectors where later events agree (DETECTION §2.6)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_plant import SMALL

from anomaly import labelled_head
from anomaly.config import DetectionSettings
from anomaly.data.store import WindowStore
from anomaly.detectors.labelled import LabelledDetector, level_features
from anomaly.errors import UsageError
from anomaly.fitting import Fitted, fit_model
from anomaly.model import AnomalyModel

WEAK = replace(SMALL, detection=DetectionSettings(("knn",)), training=replace(SMALL.training, epochs=2))


def fitted(store_path: Path, work: Path, detection: DetectionSettings = WEAK.detection) -> Fitted:
    with WindowStore.open(store_path) as store:
        return fit_model(store, replace(WEAK, detection=detection), work)


@pytest.fixture(scope="module")
def joined(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fitted(store_path, tmp_path_factory.mktemp("work"))


def test_events_that_repeat_are_ranked_better_and_the_reason_is_said(joined: Fitted):
    model = joined.model
    assert model.ensemble.names == ("knn", "labelled") and model.ensemble.rule == "raised"
    assert sum(model.ensemble.weights) == pytest.approx(1) and model.ensemble.weights[0] >= 0.5
    [notice] = joined.notices
    assert notice.startswith("labelled head with ") and notice.endswith(": used") and "later events" in notice


def test_the_model_scores_the_same_from_its_parts_and_its_shares_add_up(joined: Fitted, frame):
    again = AnomalyModel.from_parts(*joined.model.to_parts())
    scores = [m.score_frame(frame[-300:])["anomaly_score"].to_numpy() for m in (joined.model, again)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    windows = np.random.default_rng(0).normal(size=(20, WEAK.window.lookback, len(joined.model.contract.tags)))
    fused, shares, _ = joined.model.window_scores(windows.astype(np.float32))
    np.testing.assert_allclose(shares.sum(axis=1), fused, rtol=1e-4, atol=1e-5)


def test_it_is_left_out_where_it_is_not_wanted_or_weights_were_stated(store_path: Path, tmp_path: Path):
    without = fitted(store_path, tmp_path / "a", DetectionSettings(("knn",), labelled=False))
    assert without.model.ensemble.names == ("knn",) and without.notices == ()
    stated = fitted(store_path, tmp_path / "b", DetectionSettings(("knn", "subspace"), fusion="max"))
    assert stated.model.ensemble.names == ("knn", "subspace") and stated.notices == ()


def test_too_few_events_are_not_tried_and_a_head_without_gain_is_dropped(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(labelled_head, "LEAST_EVENTS", 999)
    few = fitted(store_path, tmp_path / "a")
    assert few.model.ensemble.names == ("knn",) and "not tried" in few.notices[0] and "999" in few.notices[0]
    monkeypatch.undo()
    learned = LabelledDetector.learned
    monkeypatch.setattr(
        LabelledDetector, "learned", lambda windows, positive: learned(windows, np.roll(positive, len(positive) // 2))
    )
    useless = fitted(store_path, tmp_path / "b")
    assert useless.model.ensemble.names == ("knn",) and "not used, no gain" in useless.notices[0]


def test_it_cannot_be_named_and_one_kind_of_window_is_refused(store_path: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=r"E2002.*labelled"):
        fitted(store_path, tmp_path / "a", DetectionSettings(("labelled",)))
    with pytest.raises(ValueError, match=r"positive: .*one kind"):
        LabelledDetector.learned(np.zeros((5, 4, 2), np.float32), np.zeros(5, bool))


def test_features_are_levels_departures_and_their_sizes():
    windows = np.random.default_rng(3).normal(size=(7, 16, 2)).astype(np.float32)
    found = level_features(windows)
    assert found.shape == (7, 8, 2)
    last, exact = windows[:, -1].astype(float), windows.astype(float)
    wanted = [last, last - exact[:, 14], last - exact[:, 11:15].mean(axis=1), last - exact[:, :15].mean(axis=1)]
    np.testing.assert_allclose(found[:, :4], np.stack(wanted, axis=1), atol=1e-6)
    np.testing.assert_array_equal(found[:, 4:], np.abs(found[:, :4]))


def test_it_raises_scores_and_lowers_none(joined: Fitted, frame):
    windows = np.random.default_rng(1).normal(size=(200, WEAK.window.lookback, len(joined.model.contract.tags)))
    fused, _, alone = joined.model.window_scores(windows.astype(np.float32))
    others = alone[:, :-1].astype(float).mean(axis=1)
    assert (fused >= others - 1e-5).all() and (fused > others + 1e-3).any()
