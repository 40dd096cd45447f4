"""The moved threshold: exact where scores moved as a whole, unmoved where they did not."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.scores.recalibration import LEAST_ROWS, moved_level, propose

MINUTE = 60_000_000


def normal(rows: int, seed: int = 0) -> np.ndarray:
    """Calibrated scores of normal rows: -log10 of uniform tail probabilities."""
    return -np.log10(1 - np.random.default_rng(seed).random(rows))


def proposal(scores: np.ndarray, current: float = 3.0, **changed: object):
    given = {
        "time": np.arange(len(scores)) * MINUTE,
        "asset": np.full(len(scores), "pump", object),
        "current": current,
        "period_us": MINUTE,
        "merge_gap_us": 10 * MINUTE,
        "budget": 1.0,
    }
    return propose(scores, **(given | changed))


@pytest.mark.parametrize(("level", "spread"), [(0.0, 1.0), (0.7, 1.0), (0.2, 2.5), (-0.1, 0.6)])
def test_a_level_that_moved_as_a_whole_is_found(level: float, spread: float) -> None:
    found = moved_level(level + spread * normal(200_000))
    assert found == pytest.approx((level, spread), abs=0.03)


def test_the_moved_threshold_is_as_rare_as_the_old_one_was() -> None:
    moved = 0.5 + 2 * normal(100_000)
    made = proposal(moved)
    assert made.needed
    assert made.proposed == pytest.approx(0.5 + 2 * 3.0, abs=0.2)
    assert (moved >= made.proposed).mean() == pytest.approx(1e-3, rel=0.4)
    assert made.after < made.before / 5
    assert "risen" in made.words


def test_scores_that_did_not_move_leave_the_threshold_alone() -> None:
    made = proposal(normal(20_000))
    assert not made.needed
    assert made.proposed == pytest.approx(3.0, abs=0.3)
    assert "can stay" in made.words


def test_an_event_of_one_row_in_fifty_hardly_moves_it() -> None:
    scores = normal(50_000)
    scores[10_000:11_000] = 20.0
    assert proposal(scores).proposed == pytest.approx(3.0, abs=0.4)


def test_confirmed_events_take_no_part() -> None:
    scores = normal(10_000)
    scores[2000:5000] = 20.0
    known = np.zeros(len(scores), bool)
    known[2000:5000] = True
    assert proposal(scores).proposed > 6
    assert proposal(scores, known=known).proposed == pytest.approx(3.0, abs=0.3)


def test_a_fallen_level_lowers_it_and_says_so() -> None:
    made = proposal(0.4 * normal(50_000))
    assert made.proposed == pytest.approx(1.2, abs=0.1)
    assert "fallen" in made.words


def test_episodes_of_two_assets_are_counted_apart() -> None:
    scores = np.zeros(2 * LEAST_ROWS)
    scores[[10, LEAST_ROWS + 10]] = 9.0
    time = np.tile(np.arange(LEAST_ROWS) * MINUTE, 2)
    asset = np.repeat(np.array(["a", "b"], object), LEAST_ROWS)
    assert proposal(scores, time=time, asset=asset).before == 2


def test_too_few_rows_are_refused_and_nan_is_no_row() -> None:
    scores = normal(LEAST_ROWS)
    scores[0] = np.nan
    with pytest.raises(ValueError, match=f"at least {LEAST_ROWS} scored rows"):
        proposal(scores)
