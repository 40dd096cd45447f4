"""The masked autoencoder: decoder dropped, embedding worth having (METHODS S25)."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from encoder_data import brief, data_of
from planted_windows import linear_probe, tones

from anomaly.encoders.base import WindowShape
from anomaly.encoders.masked_ae import MaskedAutoencoder


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    encoder = MaskedAutoencoder(embedding=32, width=32, mask_share=0.5)
    encoder.fit(
        data_of(tones(1500, 0)[0], tones(200, 1)[0], batch_size=64),
        training=brief(epochs=15, batch_size=64, patience=15), workdir=tmp_path_factory.mktemp("fit"),
    )  # fmt: skip
    return encoder


def test_s25_the_decoder_is_dropped_and_nothing_can_be_reconstructed(fitted):
    networks = fitted._ready()
    assert len(networks.task.model.weights) == len(networks.kept.weights) + 5, "two dense layers and the token"
    assert len(fitted.to_state()[1]) == len(networks.kept.weights)
    assert not fitted.can_reconstruct


def test_s25_its_embedding_beats_raw_windows_and_random_weights_on_a_probe(fitted):
    (train, labels), (test, answers) = tones(600, 2), tones(600, 3)
    keras.utils.set_random_seed(3)
    fresh = MaskedAutoencoder(embedding=32, width=32)
    fresh.shape = fitted.shape
    fresh._networks = fresh.networks(WindowShape(32, 2), seed=3)
    learned, random = (linear_probe(e.embed(train), labels, e.embed(test), answers) for e in (fitted, fresh))
    raw = linear_probe(train, labels, test, answers)
    assert learned > raw + 0.2 and learned > random


@pytest.mark.parametrize("fill", ["zero", "mean", "token"])
def test_s25_every_fill_learns(fill, tmp_path):
    encoder = MaskedAutoencoder(fill=fill, embedding=8, width=8, depth=1)
    history = encoder.fit(data_of(tones(128, 0, rows=8)[0]), training=brief(), workdir=tmp_path)
    assert history.val_loss[-1] < history.val_loss[0]
    assert np.isfinite(encoder.embed(tones(4, 1, rows=8)[0])).all()
