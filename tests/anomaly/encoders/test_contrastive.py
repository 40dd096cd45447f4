"""The contrastive encoder: what it learns, and what it drops (METHODS S21, S27, S29)."""

from __future__ import annotations

import numpy as np
import pytest
from encoder_data import brief, data_of
from planted_windows import linear_probe, tones

from anomaly.encoders.contrastive import ContrastiveEncoder
from anomaly.encoders.weights import outputs
from anomaly.errors import InputRefused, UsageError


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    encoder = ContrastiveEncoder(embedding=32, width=32, head=32, crop=0.5)
    history = encoder.fit(
        data_of(tones(1500, 0)[0], tones(200, 1)[0], batch_size=128),
        training=brief(epochs=12, batch_size=128, patience=12), workdir=tmp_path_factory.mktemp("fit"),
    )  # fmt: skip
    return encoder, history


def test_s21_its_embedding_beats_raw_windows_on_a_linear_probe(fitted):
    (train, labels), (test, answers) = tones(600, 2), tones(600, 3)
    raw = linear_probe(train, labels, test, answers)
    learned = linear_probe(fitted[0].embed(train), labels, fitted[0].embed(test), answers)
    assert raw < 0.5
    assert learned > 0.85


def test_s29_the_head_is_not_part_of_the_state(fitted):
    encoder, _ = fitted
    networks = encoder._ready()
    kept, trained = len(networks.kept.weights), len(networks.task.model.weights)
    assert trained == kept + 4, "two dense layers of the head"
    assert len(encoder.to_state()[1]) == kept
    again = ContrastiveEncoder.from_state(*encoder.to_state())
    windows = tones(20, 4)[0]
    np.testing.assert_allclose(again.embed(windows), encoder.embed(windows), atol=1e-6)
    assert encoder.embed(windows).shape == (20, 32)


def test_s29_scoring_is_from_the_embedding_and_both_are_probed(fitted):
    """The embedding keeps at least what the projection keeps (printed: both figures)."""
    encoder, _ = fitted
    (train, labels), (test, answers) = tones(600, 2), tones(600, 3)
    head = encoder._ready().task.model
    from_h = linear_probe(encoder.embed(train), labels, encoder.embed(test), answers)
    from_z = linear_probe(outputs(head, train), labels, outputs(head, test), answers)
    print(f"linear probe from h {from_h:.3f}, from z {from_z:.3f}")
    assert from_h >= from_z - 0.02


def test_the_loss_falls_below_what_the_class_alone_could_reach(fitted):
    """Chance is log(2B − 1); whoever only knows the class of three still confuses a window with a third of the others."""
    history = fitted[1]
    assert history.val_loss[history.best_epoch] < np.log(2 * 128 / 3 - 1)


def test_a_width_that_attention_cannot_divide_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"E2002.*width: a multiple of 4"):
        ContrastiveEncoder(backbone="transformer", width=6).fit(
            data_of(tones(8, 0)[0]), training=brief(), workdir=tmp_path
        )


def test_a_batch_of_one_is_refused_and_fewer_windows_than_a_batch_are_enough(tmp_path):
    windows = tones(40, 5)[0]
    with pytest.raises(UsageError, match=r"E2004.*training.batch_size"):
        ContrastiveEncoder().fit(data_of(windows), training=brief(batch_size=1), workdir=tmp_path)
    with pytest.raises(InputRefused, match="E3302"):
        ContrastiveEncoder().fit(data_of(windows[:1]), training=brief(), workdir=tmp_path)
    few = ContrastiveEncoder(embedding=8, width=8, depth=1, head=8)
    history = few.fit(data_of(windows[:5]), training=brief(epochs=1), workdir=tmp_path)
    assert history.windows == 5
