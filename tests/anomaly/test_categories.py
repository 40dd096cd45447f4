"""Categorical tags as trained vectors (METHODS S5)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from encoder_data import brief, data_of
from small_plant import SMALL, contract_of, small_frame

from anomaly.data.store import WindowStore, create_store
from anomaly.encoders.base import WindowShape
from anomaly.encoders.categories import CategoryVectors, vector_size, window_input
from anomaly.encoders.dense_ae import DenseAutoencoder
from anomaly.errors import InputRefused
from anomaly.fitting import fit_model, stream_part
from anomaly.model import chunk_from_frame

RNG = np.random.default_rng(0)


def plant(rows: int = 2000) -> np.ndarray:
    """Four grades: 1 and 2 run at the same speed, 3 and 4 at another; the code is the last channel."""
    grade = RNG.integers(1, 5, size=rows)
    speed = np.where(grade <= 2, -1.5, 1.5)[:, None, None] + RNG.normal(0, 0.1, (rows, 4, 2))
    return np.concatenate((speed, np.broadcast_to(grade[:, None, None], (rows, 4, 1))), axis=2).astype(np.float32)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    encoder = DenseAutoencoder(hidden=16, code=1, activity_l1=0.0)
    training = brief(epochs=12, learning_rate=1e-2, patience=12)
    encoder.fit(data_of(plant(), categories=(5,)), training=training, workdir=tmp_path_factory.mktemp("fit"))
    return encoder


def vectors(encoder: DenseAutoencoder) -> np.ndarray:
    return np.asarray(encoder._ready().embedder.get_layer("categories").tables[0].embeddings)


def test_s5_grades_that_behave_alike_end_up_near(fitted):
    table = vectors(fitted)

    def apart(a: int, b: int) -> float:
        return float(np.linalg.norm(table[a] - table[b]))

    assert max(apart(1, 2), apart(3, 4)) < 0.5 * min(apart(1, 3), apart(1, 4), apart(2, 3), apart(2, 4))


def test_s5_the_unknown_slot_is_trained_and_lies_between_the_grades(fitted):
    table = vectors(fitted)
    furthest = max(np.linalg.norm(table[a] - table[b]) for a in range(1, 5) for b in range(1, 5))
    assert all(np.linalg.norm(table[0] - table[g]) < furthest for g in range(1, 5))


def test_s5_an_unseen_grade_is_the_unknown_one(fitted):
    windows = plant(8)
    unknown, unseen = windows.copy(), windows.copy()
    unknown[..., -1], unseen[..., -1] = 0, 99
    np.testing.assert_array_equal(fitted.embed(unseen), fitted.embed(unknown))


def test_the_table_is_looked_up_by_code():
    shape = WindowShape(3, 1, (4, 2))
    layer = CategoryVectors(shape)
    windows = np.array([[[0.5, 1, 0], [0.5, 3, 1], [0.5, 9, -1]]], np.float32)
    out = np.asarray(layer(windows))
    assert out.shape == (1, 3, 1 + vector_size(4) + vector_size(2))
    first, second = (np.asarray(t.embeddings) for t in layer.tables)
    np.testing.assert_allclose(out[0, 1, 1:], np.concatenate((first[3], second[1])))
    np.testing.assert_allclose(out[0, 2, 1:], np.concatenate((first[0], second[0])))
    inputs, joined = window_input(WindowShape(3, 2))
    assert inputs is joined, "no category, no layer"


def test_s5_a_log_with_grades_scores_the_same_in_a_frame_and_a_store(tmp_path):
    """From words in a log to codes in a window, whichever way the rows come."""
    frame = small_frame(1500)
    frame["grade"] = np.where(np.arange(1500) // 50 % 2, "A4", "A5")
    frame.loc[1480:, "grade"] = "never seen"
    contract = replace(contract_of(frame), categories=("grade",))
    chunk = replace(chunk_from_frame(frame, contract), label=frame["label"].to_numpy(np.int8))
    with create_store(tmp_path / "s.h5", contract, SMALL.window, SMALL.split) as writer:
        writer.append(chunk)
    with WindowStore.open(tmp_path / "s.h5") as store:
        model = fit_model(store, SMALL.changed(training={"epochs": 3}), tmp_path / "work").model
        assert model.vocabulary.words == (("", "A4", "A5"),)
        streamed = np.concatenate([rows.score for _, rows in stream_part(store, model, "test")])
    whole = model.score_frame(frame)["anomaly_score"].to_numpy()[-len(streamed) :]
    np.testing.assert_allclose(streamed, whole, atol=1e-5)
    assert np.isfinite(whole[-20:]).all(), "a grade never seen is scored"
    other = model.score_frame(frame.assign(grade=pd.NA))["anomaly_score"].to_numpy()[-len(streamed) :]
    assert not np.allclose(other, whole, equal_nan=True), "the grade counts"
    with pytest.raises(InputRefused, match=r"E3101.*grade"):
        model.score_frame(frame.drop(columns="grade"))
