"""The fitted model: nothing later moves a score, nothing labelled was learned, no chunking matters, NaN is never normal."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from small_plant import SMALL, chunk_of, contract_of, small_frame

from anomaly.data.contract import EVENT, LEAD, LogChunk
from anomaly.data.store import WindowStore
from anomaly.errors import InputRefused
from anomaly.fitting import PartScores, fit_model, stream_part
from anomaly.model import ANOMALOUS, OUTCOMES, UNSCORABLE, AnomalyModel


def scores(model: AnomalyModel, chunk: LogChunk, cuts: list[int]):
    stream = model.stream()
    edges = [0, *cuts, len(chunk)]
    return [stream.score(chunk.take(slice(a, b))) for a, b in pairwise(edges)]


@pytest.mark.parametrize("at", [7, 500, 1499, 1505, 2600])
def test_a_score_does_not_change_when_any_later_row_does(fitted, frame, at):
    before = fitted.model.score_frame(frame)
    altered = frame.copy()
    altered.iloc[at:, 1:7] = np.random.default_rng(1).normal(1e3, 1e5, (len(frame) - at, 6)).astype("f4")
    altered.iloc[at + 1 :: 3, 2] = np.nan
    after = fitted.model.score_frame(altered)
    pd.testing.assert_frame_equal(before[:at], after[:at])
    assert not before[at:].equals(after[at:])


def test_a_sensor_in_another_unit_does_not_end_the_ranking_of_rows(fitted, frame):
    """Every row is then far out; they used to end together at the cap, and no event was told from what is normal."""
    altered = frame[1500:].copy()
    altered["tag2"] = altered["tag2"] * 1000 + 1e12
    found = fitted.model.score_frame(altered)
    scored = found["anomaly_score"].to_numpy()[found["outcome"] != "unscorable"]
    assert np.median(scored) > 10
    assert len(np.unique(scored)) > 0.95 * len(scored)


def test_fitted_rows_and_labelled_or_lead_rows_are_disjoint(fitted, store_path):
    """METHODS S56: by the audit that travels with the model, not by how the fit was written."""
    with WindowStore.open(store_path) as store:
        start, end = store.part_rows("plant", "train")
        for name in ("scaler", "encoder"):
            audit = fitted.model.audits[name]
            kind = store.rows("plant", 0, store.n_rows("plant")).kind
            abnormal = np.flatnonzero((kind == EVENT) | (kind == LEAD))
            assert audit.rows > 500 and len(abnormal) > 50
            assert audit.overlap("plant", np.stack((abnormal, abnormal + 1), axis=1)) == 0
            assert audit.overlap("plant", [[start, end]]) == audit.rows


def test_s56_labelled_rows_change_nothing_that_was_fitted(fitted, frame, tmp_path):
    from anomaly.data.store import create_store

    poisoned = frame.copy()
    rows = np.flatnonzero(frame["label"].to_numpy()[:1700])
    poisoned.iloc[rows, 1:7] = 1e6
    with create_store(tmp_path / "s.h5", contract_of(frame), SMALL.window, SMALL.split) as writer:
        writer.append(chunk_of(poisoned))
    with WindowStore.open(tmp_path / "s.h5") as store:
        again = fit_model(store, SMALL, tmp_path / "w").model
    np.testing.assert_array_equal(again.preparer.center_, fitted.model.preparer.center_)
    np.testing.assert_allclose(again.reference, fitted.model.reference)


@pytest.mark.parametrize("cuts", [[1], [3, 5, 6, 7], [1498, 1501], list(range(10, 2990, 61))])
def test_scores_are_the_same_however_the_log_is_cut(fitted, frame, cuts):
    chunk = chunk_of(frame)
    whole, pieces = scores(fitted.model, chunk, [])[0], scores(fitted.model, chunk, cuts)
    # Products of few rows are summed in another order: the seventh digit of a raw score, times the slope of its tail.
    np.testing.assert_allclose(np.concatenate([p.score for p in pieces]), whole.score, atol=5e-5)
    assert np.concatenate([p.reason for p in pieces]).tolist() == whole.reason.tolist()
    assert np.concatenate([p.outcome for p in pieces]).tolist() == whole.outcome.tolist()


def test_the_store_and_the_stream_agree(fitted, frame, store_path):
    whole = scores(fitted.model, chunk_of(frame), [])[0]
    with WindowStore.open(store_path) as store:
        first, end = store.part_rows("plant", "test")
        blocks = stream_part(store, fitted.model, "test")
        part = PartScores.collect("test", ((rows, block.kind) for block, rows in blocks))
    np.testing.assert_allclose(part.score, whole.score[first:end], atol=1e-6)


def test_assets_may_be_interleaved_and_do_not_see_each_other(fitted, frame):
    chunk = chunk_of(frame[:400])
    both = np.repeat(np.arange(400), 2)
    mixed = chunk.take(both)
    names = np.tile(np.array(["north", "south"], dtype=object), 400)
    values = mixed.values.copy()
    values[1::2] = chunk_of(small_frame(seed=5)[:400]).values
    stream = fitted.model.stream()
    got = stream.score(LogChunk(mixed.row, mixed.time, names, values, mixed.categories, mixed.label, mixed.bad))
    alone = fitted.model.stream().score(chunk)
    np.testing.assert_allclose(got.score[::2], alone.score, atol=1e-6)


def test_a_missing_value_is_never_normal(fitted, frame):
    holed = frame.copy()
    holed.loc[700:710, "tag3"] = np.nan
    holed.loc[900, [f"tag{i}" for i in range(6)]] = np.nan
    got = fitted.model.score_frame(holed)
    assert (got.outcome[700:711] == "unscorable").all() and (got.reason[700:711] == "missing: tag3").all()
    assert got.anomaly_score[700:711].isna().all() and got.top_tags[700] == []
    assert got.outcome[900] == "unscorable" and got.reason[900].startswith("missing: tag0, tag1, tag2")
    assert got.reason[711:713].tolist() == ["missing: most of the window"] * 2
    assert got.outcome[714] != "unscorable"


def test_a_gap_is_never_normal_and_what_follows_is_warm_up(fitted, frame):
    got = fitted.model.score_frame(frame)
    first = len(frame) // 2 + 1
    assert (got.outcome[first], got.reason[first]) == ("unscorable", "gap")
    assert (got.reason[first + 1 : first + 5] == "warm_up").all() and got.reason[first + 5] == ""
    assert (got.reason[:5] == "warm_up").all() and got.anomaly_score[:5].notna().all()
    assert (got.reason == "gap").sum() == 2


@pytest.mark.parametrize("cuts", [[], [3], [60, 61, 134, 200]])
def test_rows_at_the_beginning_of_a_log_settle_and_rows_after_a_gap_do_not(fitted, frame, cuts):
    model = fitted.model
    assert model.history == SMALL.window.lookback - 1 + 128
    stream, reasons = model.stream(), []
    for a, b in pairwise([0, *cuts, len(frame)]):
        reasons.append(stream.score(chunk_of(frame[a:b])).reason)
        stream = type(stream).from_state(model, *stream.to_state())
    found = np.concatenate(reasons)
    assert (found[:5] == "warm_up").all() and (found[5 : model.history] == "settling").all()
    assert "settling" not in found[model.history :]


def test_a_log_that_begins_later_gives_the_same_scores_once_it_has_settled(fitted, frame):
    model, late = fitted.model, 137
    whole, part = (model.score_frame(f) for f in (frame[:700], frame[late:700].reset_index(drop=True)))
    settled = slice(model.history, None)
    np.testing.assert_allclose(
        part.anomaly_score[settled], whole.anomaly_score[late:].reset_index(drop=True)[settled], atol=5e-5
    )


def test_a_repeated_row_gets_the_answer_of_its_twin(fitted, frame):
    twice = pd.concat([frame[:600], frame[599:600], frame[600:800]])
    got, plain = fitted.model.score_frame(twice), fitted.model.score_frame(frame[:800])
    assert got.anomaly_score[600] == got.anomaly_score[599]
    np.testing.assert_allclose(got.anomaly_score.drop(index=600), plain.anomaly_score, atol=1e-6)


def test_planted_precursors_stand_out_by_the_tags_they_were_planted_in(fitted, frame):
    """METHODS S55: the share of each sensor leads to the sensor."""
    rows = scores(fitted.model, chunk_of(frame), [])[0]
    with_event = np.flatnonzero(frame["label"].to_numpy())[-6:]
    assert np.isin(rows.outcome[with_event], ANOMALOUS).mean() > 0.7
    assert np.isin(rows.shares[with_event].argmax(axis=1), (0, 1)).mean() > 0.7


def test_the_parts_of_a_model_are_json_and_arrays_and_give_it_back(fitted, frame):
    parts, arrays = fitted.model.to_parts()
    again = AnomalyModel.from_parts(json.loads(json.dumps(parts)), arrays)
    one, two = fitted.model.score_frame(frame[:500]), again.score_frame(frame[:500])
    pd.testing.assert_frame_equal(one, two)
    assert again.audits["encoder"].to_dict() == fitted.model.audits["encoder"].to_dict()


def test_an_absent_column_is_refused(fitted, frame):
    with pytest.raises(InputRefused, match="E3101 column=tag2"):
        fitted.model.score_frame(frame.drop(columns="tag2"))


def test_validation_outcomes_follow_the_threshold(fitted):
    part, value = fitted.validation, fitted.model.threshold.value
    scorable = part.outcome != UNSCORABLE
    assert ((part.score >= value) == (part.outcome == ANOMALOUS))[scorable].all()
    assert fitted.model.threshold.part == "validation" and OUTCOMES[UNSCORABLE] == "unscorable"
