"""The masked autoencoder: decoder dropped, embedding worth having (METHODS S25)."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from encoder_data import brief, data_of
from planted_windows import linear_probe, tones
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from anomaly.encoders.masked_ae import MaskedAutoencoder
from anomaly.errors import UsageError

OPTIONS = {"embedding": 32, "width": 32, "mask_share": 0.5}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    encoder = MaskedAutoencoder(**OPTIONS)
    encoder.fit(
        data_of(tones(1500, 0)[0], tones(200, 1)[0], batch_size=64),
        training=brief(epochs=15, batch_size=64, patience=15, learning_rate=3e-3),
        workdir=tmp_path_factory.mktemp("fit"),
    )
    return encoder


@pytest.fixture(scope="module")
def random(fitted):
    """The same encoder before any training, from three other seeds."""
    return [_untrained(fitted.shape, seed) for seed in range(3)]


def _untrained(shape, seed):
    encoder = MaskedAutoencoder(**OPTIONS)
    keras.utils.set_random_seed(seed)
    encoder.shape, encoder._networks = shape, encoder.networks(shape, seed)
    return encoder


def unseen_tones(count, seed, rows=32):
    """A tone of 5.5 cycles, which no normal window has."""
    rng = np.random.default_rng(seed)
    time = np.arange(rows)[None, :, None] / rows
    tone = np.sin(2 * np.pi * 5.5 * time + rng.uniform(0, 2 * np.pi, size=(count, 1, 2)))
    return (tone + 0.3 * rng.normal(size=tone.shape)).astype(np.float32)


def told_apart(encoder, normal, held, anomalous):
    """Area under the ROC of the distance to the three nearest normal embeddings."""
    scale = StandardScaler().fit(encoder.embed(normal))
    near = NearestNeighbors(n_neighbors=3).fit(scale.transform(encoder.embed(normal)))
    both = scale.transform(encoder.embed(np.concatenate((held, anomalous))))
    labels = np.repeat([0, 1], [len(held), len(anomalous)])
    return roc_auc_score(labels, near.kneighbors(both)[0].mean(axis=1))


def test_s25_the_decoder_is_dropped_and_nothing_can_be_reconstructed(fitted):
    networks = fitted._ready()
    assert len(networks.task.model.weights) == len(networks.kept.weights) + 5, "two dense layers and the token"
    assert len(fitted.to_state()[1]) == len(networks.kept.weights)
    assert not fitted.can_reconstruct


def test_s25_its_embedding_beats_raw_windows_on_a_probe(fitted):
    (train, labels), (test, answers) = tones(600, 2), tones(600, 3)
    raw = linear_probe(train, labels, test, answers)
    assert linear_probe(fitted.embed(train), labels, fitted.embed(test), answers) > raw + 0.4


def test_s25_its_embedding_tells_an_unseen_tone_better_than_random_weights_do(fitted, random):
    windows = tones(1000, 4)[0], tones(200, 5)[0], unseen_tones(200, 6)
    learned, *chance = (told_apart(encoder, *windows) for encoder in (fitted, *random))
    assert learned > 0.95
    assert learned > max(chance) + 0.05


def test_s25_a_single_row_cannot_be_hidden_and_shown(tmp_path):
    with pytest.raises(UsageError, match=r"E2004.*at least 2"):
        MaskedAutoencoder().fit(data_of(tones(64, 0, rows=1)[0]), training=brief(), workdir=tmp_path)


def test_a_width_that_the_heads_do_not_divide_is_refused(tmp_path):
    encoder = MaskedAutoencoder(backbone="transformer", width=6)
    with pytest.raises(UsageError, match=r"E2002.*width"):
        encoder.fit(data_of(tones(64, 0, rows=8)[0]), training=brief(), workdir=tmp_path)


@pytest.mark.parametrize("fill", ["zero", "mean", "token"])
def test_s25_every_fill_learns(fill, tmp_path):
    encoder = MaskedAutoencoder(fill=fill, embedding=8, width=8, depth=1)
    history = encoder.fit(data_of(tones(128, 0, rows=8)[0]), training=brief(), workdir=tmp_path)
    assert history.val_loss[-1] < history.val_loss[0]
    assert np.isfinite(encoder.embed(tones(4, 1, rows=8)[0])).all()
