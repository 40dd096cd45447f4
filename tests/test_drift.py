"""Drift: nothing is claimed of rows that are only alike, and each planted change is found under its own name."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.stats import ks_2samp, poisson, wasserstein_distance

from anomaly import drift
from anomaly.drift import (
    Drift,
    alert_rate_drift,
    autocorrelation_time,
    block_ids,
    input_drift,
    multivariate_drift,
    score_drift,
)

TAGS = ("speed", "pressure", "moisture", "level", "flow", "heat")
MIXING = np.random.default_rng(0).normal(size=(2, 6))
Floats = NDArray[np.float64]


def wandering(n: int, phi: float, rng: np.random.Generator, columns: int) -> Floats:
    """Autoregressive columns of unit variance, already settled: 1 row in (1 + phi) / (1 - phi) is an independent one."""
    noise = rng.normal(size=(n + 500, columns))
    return np.asarray(lfilter([1.0], [1.0, -phi], noise, axis=0) * math.sqrt(1 - phi**2))[500:]


def plant(n: int, seed: int, phi: float = 0.9) -> Floats:
    """Six sensors that follow two hidden states."""
    rng = np.random.default_rng(seed)
    return np.asarray(wandering(n, phi, rng, 2) @ MIXING + 0.4 * wandering(n, phi / 2, rng, 6))


@pytest.fixture(scope="module")
def reference() -> Floats:
    """A sample of training rows without order, as a model keeps it."""
    return plant(60_000, 1000)[np.random.default_rng(0).choice(60_000, 4000, replace=False)]


def drifted(found: list[Drift]) -> list[str]:
    return [d.tag or d.kind for d in found if d.verdict == "drift"]


# Autocorrelation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, 0.97])
def test_the_time_of_an_autoregressive_series_is_the_closed_form(phi: float) -> None:
    found = [autocorrelation_time(wandering(20_000, phi, np.random.default_rng(s), 1)[:, 0]) for s in range(10)]
    assert np.mean(found) == pytest.approx((1 + phi) / (1 - phi), rel=0.15)


def test_a_ramp_holds_hardly_any_independent_row_and_a_constant_has_no_time() -> None:
    assert autocorrelation_time(np.arange(1000.0)) > 300
    assert autocorrelation_time(np.full(100, 3.0)) == autocorrelation_time(np.empty(0)) == 1.0


def test_blocks_hold_neighbours_and_are_never_short() -> None:
    ids = block_ids(1003, 30.0)
    assert (np.diff(ids) >= 0).all() and np.bincount(ids).min() >= 60
    assert block_ids(10_000, 1.0)[-1] == 49
    assert block_ids(5, 30.0).tolist() == [0] * 5


# Sensors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("phi", "rows"), [(0.5, 500), (0.9, 500), (0.9, 2000), (0.98, 500), (0.98, 2000)])
def test_rows_that_are_only_alike_raise_no_alarm(phi: float, rows: int) -> None:
    alarms = []
    for seed in range(30):
        both = plant(40_000, seed, phi)
        held = both[np.random.default_rng(seed).choice(35_000, 3000, replace=False)]
        now = both[-rows:]
        alarms.append((drifted(input_drift(held, now, TAGS)), drifted(multivariate_drift(held, now))))
    assert sum(bool(a) for a, _ in alarms) <= 3, "per-sensor false alarms in 30 clean samples"
    assert sum(bool(b) for _, b in alarms) <= 2, "multivariate false alarms in 30 clean samples"


def test_without_the_autocorrelation_the_same_rows_would_raise_alarms(
    reference: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [plant(500, seed, 0.98) for seed in range(20)]
    assert sum(bool(drifted(input_drift(reference, s, TAGS))) for s in samples) <= 2
    monkeypatch.setattr(drift, "autocorrelation_time", lambda x: 1.0)
    assert sum(bool(drifted(input_drift(reference, s, TAGS))) for s in samples) >= 15


def test_independent_rows_give_the_distance_and_p_value_of_scipy() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=3000), rng.normal(0.1, 1, size=3000)
    found = input_drift(a[:, None], b[:, None], ["x"])[0]
    assert found.size == pytest.approx(wasserstein_distance(a, b) / a.std(), rel=1e-9)
    expected = ks_2samp(a, b, method="asymp").pvalue
    assert found.p is not None and math.log10(found.p) == pytest.approx(math.log10(expected), rel=0.2)
    assert found.low is not None and found.high is not None and found.low < found.size < found.high


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, s: x + 1.0 * s, "mean +"),
        (lambda x, s: 3 * x, "spread times"),
        (lambda x, s: np.full_like(x, 0.2), "spread times 0.00"),
        (lambda x, s: x * 1.8 + 32, "mean +"),
    ],
    ids=["offset", "spread", "stuck", "unit"],
)
def test_a_planted_change_of_one_sensor_is_found_and_named(reference: Floats, change, words: str) -> None:  # type: ignore[no-untyped-def]
    now = plant(3000, 7)
    now[:, 2] = change(now[:, 2], reference[:, 2].std())
    found = input_drift(reference, now, TAGS)
    assert drifted(found) == ["moisture"]
    assert words in found[2].words and found[2].words.endswith("drift") and found[2].size >= 0.3


def test_a_shift_is_measured_in_training_deviations(reference: Floats) -> None:
    now = plant(20_000, 8)
    now[:, 4] += 2 * reference[:, 4].std()
    found = input_drift(reference, now, TAGS)[4]
    assert found.size == pytest.approx(2.0, abs=0.15) and found.low is not None and found.low > 1.7


def test_a_sure_but_small_change_is_no_drift(reference: Floats) -> None:
    now = np.random.default_rng(3).permutation(plant(60_000, 1000)) + 0.1 * reference.std(axis=0)
    found = input_drift(reference, now[:30_000], TAGS)
    assert drifted(found) == [] and any("too small to matter" in d.words for d in found)


def test_rows_out_of_operation_are_not_counted(reference: Floats) -> None:
    now = plant(3000, 9)
    off = np.arange(3000) % 50 >= 35
    now[off] = -20.0
    assert len(drifted(input_drift(reference, now, TAGS))) == 6
    assert drifted(input_drift(reference, now, TAGS, operating=~off)) == []
    assert drifted(multivariate_drift(reference, now)) != []
    assert drifted(multivariate_drift(reference, now, operating=~off)) == []


def test_constant_sensors_are_compared_with_their_constant(reference: Floats) -> None:
    held, now = reference.copy(), plant(2000, 10)
    held[:, :2] = 1.0
    now[:, 0], now[:, 1] = 1.0, 1.5
    found = input_drift(held, now, TAGS)
    assert drifted(found) == ["pressure"] and found[1].size == math.inf and found[1].to_dict()["size"] is None
    assert drifted(multivariate_drift(held, now)) == []


def test_missing_values_take_no_part(reference: Floats) -> None:
    now = plant(3000, 11)
    holes = np.random.default_rng(1).random(now.shape) < 0.1
    now[holes] = np.nan
    assert drifted(input_drift(reference, now, TAGS)) == []
    now[:, 3] = np.nan
    found = input_drift(reference, now, TAGS)
    assert found[3].verdict == "too few to tell" and math.isnan(found[3].size)
    assert {d.verdict for d in multivariate_drift(reference, now)} == {"too few to tell"}


def test_few_or_slow_rows_are_too_few_to_tell(reference: Floats) -> None:
    for now in (plant(15, 1), np.empty((0, 6)), plant(60, 1, 0.98) + 5):
        assert {d.verdict for d in input_drift(reference, now, TAGS)} == {"too few to tell"}
    assert {d.verdict for d in input_drift(reference[:10], plant(2000, 1), TAGS)} == {"too few to tell"}
    assert {d.verdict for d in multivariate_drift(reference[:10], plant(2000, 1))} == {"too few to tell"}


def test_wrong_shapes_are_named(reference: Floats) -> None:
    with pytest.raises(ValueError, match="current: expected"):
        input_drift(reference, plant(10, 0)[:, :3], TAGS)
    with pytest.raises(ValueError, match="tags: expected one name"):
        input_drift(reference, plant(10, 0), TAGS[:2])
    with pytest.raises(ValueError, match="operating: expected"):
        multivariate_drift(reference, plant(10, 0), operating=np.ones(3, bool))


# All sensors together -----------------------------------------------------------------------------------------------


def test_a_drifting_sensor_breaks_relations_and_another_load_does_not(reference: Floats) -> None:
    rng = np.random.default_rng(12)
    states, noise = wandering(4000, 0.9, rng, 2), 0.4 * wandering(4000, 0.45, rng, 6)
    load = multivariate_drift(reference, (2.2 * states) @ MIXING + noise)
    assert drifted(load) == ["level"]
    sensor = states @ MIXING + noise
    sensor[:, 1] += 1.5 * reference[:, 1].std()
    assert "relations" in drifted(multivariate_drift(reference, sensor))


def test_relations_that_break_are_seen_where_no_sensor_moved(reference: Floats) -> None:
    now = plant(4000, 13)
    now[:, 0] = plant(4000, 99)[:, 0]
    assert drifted(input_drift(reference, now, TAGS)) == []
    assert "relations" in drifted(multivariate_drift(reference, now))


def test_one_sensor_has_a_level_and_no_relations() -> None:
    held = np.random.default_rng(0).normal(size=(500, 1))
    assert [d.kind for d in multivariate_drift(held, held[::-1])] == ["level"]


# Scores and alerts --------------------------------------------------------------------------------------------------


def tail_scores(x: Floats, phi: float) -> Floats:
    from scipy.stats import norm

    return np.asarray(-np.log10(norm.sf(x)))


def test_s63_calibrated_scores_of_alike_rows_do_not_drift() -> None:
    found = [
        score_drift(tail_scores(wandering(5000, 0.9, np.random.default_rng(s), 1)[:, 0], 0.9)).verdict
        for s in range(60)
    ]
    assert found.count("drift") <= 4


def test_s63_scores_that_pass_too_often_or_never_drift() -> None:
    x = wandering(20_000, 0.8, np.random.default_rng(1), 1)[:, 0]
    many = score_drift(tail_scores(x + 1, 0.8))
    assert many.verdict == "drift" and many.size == pytest.approx(math.log10(np.mean(x + 1 > 2.326) / 0.01), abs=0.01)
    assert many.low is not None and many.high is not None and many.low < many.size < many.high
    none = score_drift(np.full(20_000, 0.5))
    assert none.verdict == "drift" and none.size < -1
    off = np.arange(20_000) % 60 >= 40
    mixed = np.where(off, 9.0, tail_scores(x, 0.8))
    assert score_drift(mixed).verdict == "drift" and score_drift(mixed, operating=~off).verdict == "no drift"


def test_s63_too_few_scores_are_told_apart() -> None:
    assert score_drift(np.zeros(50)).verdict == "too few to tell"
    assert score_drift(np.full(5000, np.nan)).verdict == "too few to tell"
    with pytest.raises(ValueError, match="nominal"):
        score_drift(np.zeros(50), nominal=0)


def test_alert_rate_against_the_budget_is_an_exact_poisson_test() -> None:
    for count in range(60):
        found = alert_rate_drift(count, 20.0, 1.0)
        assert (found.verdict == "drift") == (poisson.sf(count - 1, 20.0) < 0.025), count
    assert alert_rate_drift(3, 0.0, 1.0).verdict == "too few to tell"
    assert alert_rate_drift(0, 0.5, 1.0).verdict == "too few to tell"
    assert alert_rate_drift(20, 20.0, 1.0).size == 1.0


def test_alerts_that_fell_silent_are_drift_too() -> None:
    silent = alert_rate_drift(0, 30.0, 1.0, before=(20, 30.0))
    assert silent.verdict == "drift" and "fewer than the 0.667 a day before" in silent.words
    assert alert_rate_drift(0, 30.0, 1.0).verdict == "no drift"
    assert alert_rate_drift(18, 30.0, 1.0, before=(20, 30.0)).verdict == "no drift"
    with pytest.raises(ValueError, match="count, budget"):
        alert_rate_drift(-1, 1.0, 1.0)
