"""Several detectors as one: calibrated apart, fused, scaled by mode, shared out, saved (METHODS S18, S51, S63)."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.detectors.base import Detector, Encoded
from anomaly.detectors.distance import KnnDetector
from anomaly.detectors.reconstruction import ReconstructionDetector
from anomaly.ensemble import Ensemble, mode_levels
from anomaly.errors import UsageError


class Scaled(Detector):
    """The energy of a window, times ``factor``; its shares are counted as dear."""

    name, needs, summary, dear = "scaled", "embedding", "for tests", True

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.asked = factor, 0

    def fit(self, blocks):
        return self

    def anomaly_score(self, block):
        return self.factor * (block.windows.astype(np.float64) ** 2).sum(axis=(1, 2))

    def shares(self, block):
        self.asked += len(block)
        return self.factor * (block.windows.astype(np.float64) ** 2).sum(axis=1)

    def to_state(self):
        return {"factor": self.factor}, {}

    @classmethod
    def from_state(cls, settings, arrays):
        return cls(**settings)


def encoded(windows: np.ndarray) -> Encoded:
    return Encoded(windows, windows.reshape(len(windows), -1), windows, lambda other, index: encoded(other))


RNG = np.random.default_rng(0)
TRAIN, HELD, FRESH = (encoded(RNG.normal(size=(n, 4, 3)).astype(np.float32)) for n in (2000, 4000, 4000))


def fitted(*detectors: Detector, **options) -> Ensemble:
    ensemble = Ensemble(detectors, **options).fit([TRAIN])
    ensemble.calibrate([HELD])
    return ensemble


def test_s63_each_detector_alone_keeps_its_nominal_rate_on_fresh_normal_windows():
    ensemble = fitted(ReconstructionDetector(), KnnDetector(), Scaled(1e6))
    rates = (ensemble.alone(FRESH) >= 2).mean(axis=0)
    np.testing.assert_allclose(rates, 0.01, atol=0.006)


def test_a_detectors_unit_does_not_matter():
    small, large = fitted(ReconstructionDetector(), Scaled(1e-6)), fitted(ReconstructionDetector(), Scaled(1e6))
    np.testing.assert_allclose(small.fused(small.alone(FRESH)), large.fused(large.alone(FRESH)), rtol=1e-9)


@pytest.mark.parametrize("rule", ["mean", "max", "fisher"])
def test_shares_add_up_to_the_fused_score_and_name_the_sensor(rule):
    ensemble = fitted(ReconstructionDetector(), KnnDetector(), Scaled(), rule=rule)
    windows = FRESH.windows[:50].copy()
    windows[:25, :, 1] += 6
    block = encoded(windows)
    alone = ensemble.alone(block)
    shares = ensemble.shares(block, alone)
    np.testing.assert_allclose(shares.sum(axis=1), ensemble.fused(alone), rtol=1e-6, atol=1e-9)
    assert (shares[:25].argmax(axis=1) == 1).all()
    assert (shares >= 0).all()


def test_dear_shares_are_made_only_for_rows_that_some_detector_finds_rare():
    dear = Scaled()
    ensemble = fitted(dear)
    alone = ensemble.alone(FRESH)
    dear.asked = 0
    shares = ensemble.shares(FRESH, alone)
    rare = (alone >= 1).any(axis=1)
    assert dear.asked == rare.sum() < 0.15 * len(FRESH)
    assert (shares[~rare] == 0).all(), "nothing is made up for rows nobody asks about"
    np.testing.assert_allclose(shares[rare].sum(axis=1), ensemble.fused(alone)[rare], rtol=1e-6)


def test_a_state_gives_the_same_scores_and_shares():
    ensemble = fitted(ReconstructionDetector(), KnnDetector(bank=64), rule="weighted", weights=(1, 3))
    settings, arrays = ensemble.to_state()
    again = Ensemble.from_state(settings, arrays)
    assert (again.names, again.rule, again.weights) == (("reconstruction", "knn"), "weighted", (1, 3))
    np.testing.assert_array_equal(again.alone(FRESH), ensemble.alone(FRESH))
    alone = ensemble.alone(FRESH)
    np.testing.assert_array_equal(again.shares(FRESH, alone), ensemble.shares(FRESH, alone))


def test_levels_of_modes_make_their_scores_comparable():
    modes = np.repeat([0, 1, 2], [3000, 3000, 10])
    raw = RNG.exponential(size=(6010, 2)) * np.array([1.0, 8.0, 50.0])[modes][:, None] + modes[:, None] * 5
    levels = mode_levels(raw, modes, 4)
    scaled = (raw - levels[modes, 0]) / levels[modes, 1]
    for low, high in ((0, 1),):
        first, second = scaled[modes == low], scaled[modes == high]
        np.testing.assert_allclose(np.quantile(first, 0.99, axis=0), np.quantile(second, 0.99, axis=0), rtol=0.2)
    whole = mode_levels(raw, np.zeros(6010, np.int64), 1)[0]
    np.testing.assert_allclose(levels[2], whole, err_msg="ten windows have no level of their own")
    np.testing.assert_allclose(levels[3], whole, err_msg="nor has a mode that was never met")
    still = mode_levels(np.ones((200, 1)), np.zeros(200, np.int64), 2)
    assert (still[:, 1] > 0).all()


def test_s13_s14_with_modes_a_loud_mode_no_longer_hides_a_fault_in_a_quiet_one():
    from anomaly.embeddings.space import Space

    def plant(n: int, seed: int, fault: float = 0.0) -> tuple[Encoded, np.ndarray]:
        rng = np.random.default_rng(seed)
        loud = rng.random(n) < 0.5
        level, noise = np.where(loud, 20.0, 0.0), np.where(loud, 3.0, 0.2) + fault
        values = level[:, None, None] + noise[:, None, None] * rng.normal(size=(n, 4, 3))
        windows = values.astype(np.float32)
        return Encoded(windows, windows.mean(axis=1), (windows - level[:, None, None]).astype(np.float32)), loud

    train, held = plant(3000, 0)[0], plant(3000, 1)[0]
    space = Space.fit([train.embedding], clusters=2, seed=0)
    before = space.digest()
    quiet_fault, loud = plant(1000, 2, fault=0.8)
    found = {}
    for name, own in (("blind", None), ("modes", space)):
        ensemble = Ensemble([ReconstructionDetector()], space=own)
        ensemble.calibrate([held])
        found[name] = (ensemble.fused(ensemble.alone(quiet_fault)) >= 2)[~loud].mean()
        again = Ensemble.from_state(*ensemble.to_state())
        np.testing.assert_array_equal(again.alone(quiet_fault), ensemble.alone(quiet_fault))
    assert found["blind"] < 0.2
    assert found["modes"] > 0.9
    assert space.digest() == before, "scoring never changes clusters"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Ensemble([]), "detectors: expected at least one"),
        (lambda: Ensemble([KnnDetector()], "weighted", (1, 2)), "weights: expected one for each of 1"),
        (lambda: Ensemble([KnnDetector()]).calibrate([]), "held-back normal windows, got none"),
    ],
)
def test_what_cannot_work_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_s9_s12_a_fit_with_modes_in_a_reduced_space_reports_what_it_found(tmp_path):
    from small_plant import SMALL, chunk_of, contract_of, small_frame

    from anomaly.data.store import WindowStore, create_store
    from anomaly.fitting import fit_model
    from anomaly.model import AnomalyModel

    frame = small_frame(1500)
    with create_store(tmp_path / "s.h5", contract_of(frame), SMALL.window, SMALL.split) as writer:
        writer.append(chunk_of(frame))
    settings = SMALL.changed(training={"epochs": 1}, detection={"modes": -1, "reduce": 4, "half_life": 2.0})
    with WindowStore.open(tmp_path / "s.h5") as store:
        fitted = fit_model(store, settings, tmp_path / "work")
        facts = fitted.model.ensemble.facts()
        assert facts["operating modes"] >= 1
        assert 0 < facts["variance kept by the reduction"] <= 1
        assert any(name.startswith("silhouette of") for name in facts)
        again = AnomalyModel.from_parts(*fitted.model.to_parts())
        rows = frame.drop(columns="label")
        left, right = (m.score_frame(rows)["anomaly_score"] for m in (fitted.model, again))
        np.testing.assert_array_equal(left, right)
        too_many = settings.changed(detection={"modes": 3, "reduce": 400})
        with pytest.raises(UsageError, match=r"detection\.modes and reduce"):
            fit_model(store, too_many, tmp_path / "other")
