"""Promises that every encoder keeps (METHODS S55, S60)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from instances import ENCODERS

from anomaly.config import EncoderSettings, TrainingSettings
from anomaly.encoders import ENCODERS as NAMED
from anomaly.encoders import build_encoder, encoder_class
from anomaly.encoders.base import Encoder, TrainingHistory
from anomaly.errors import InputRefused, UsageError

SHAPE = (4, 3)
WINDOWS = np.random.default_rng(0).normal(size=(256, *SHAPE)).cumsum(axis=1).astype(np.float32)
TRAINING = TrainingSettings(epochs=4, batch_size=32, patience=4)


def passes(epoch: int) -> Iterator[np.ndarray]:
    yield from np.array_split(WINDOWS, 8)


def fitted(
    kind: type[Encoder], workdir: Path, training: TrainingSettings = TRAINING
) -> tuple[Encoder, TrainingHistory]:
    encoder = kind()
    return encoder, encoder.fit(passes, passes, window_shape=SHAPE, training=training, workdir=workdir)


@pytest.fixture(params=ENCODERS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> type[Encoder]:
    return request.param


def test_embeds_one_finite_vector_per_window_and_leaves_its_input_alone(kind, tmp_path):
    encoder, _ = fitted(kind, tmp_path)
    before = WINDOWS.copy()
    embedding = encoder.embed(WINDOWS)
    assert embedding.ndim == 2 and len(embedding) == len(WINDOWS) and np.isfinite(embedding).all()
    np.testing.assert_array_equal(WINDOWS, before)
    if encoder.can_reconstruct:
        assert encoder.reconstruct(WINDOWS).shape == WINDOWS.shape
    assert len(encoder.embed(WINDOWS[:0])) == 0


def test_a_row_does_not_depend_on_its_neighbours_in_the_block(kind, tmp_path):
    encoder, _ = fitted(kind, tmp_path)
    one_by_one = np.concatenate([encoder.embed(WINDOWS[i : i + 1]) for i in range(8)])
    np.testing.assert_allclose(one_by_one, encoder.embed(WINDOWS)[:8], atol=1e-6)


def test_the_same_seed_gives_the_same_embedding(kind, tmp_path):
    first, second = (fitted(kind, tmp_path / name)[0].embed(WINDOWS) for name in "ab")
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_training_lowers_the_loss(kind, tmp_path):
    _, history = fitted(kind, tmp_path)
    assert history.val_loss[history.best_epoch] < history.val_loss[0]
    assert history.windows == len(WINDOWS)


@pytest.mark.slow
def test_s60_a_state_gives_the_same_embedding_in_a_fresh_process(kind, tmp_path):
    encoder, _ = fitted(kind, tmp_path)
    settings, arrays = encoder.to_state()
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    np.savez(tmp_path / "arrays.npz", **arrays)
    np.save(tmp_path / "windows.npy", WINDOWS)
    script = (
        "import json, sys, numpy as np; from pathlib import Path; from anomaly.encoders import encoder_class\n"
        "folder = Path(sys.argv[1]); arrays = dict(np.load(folder / 'arrays.npz'))\n"
        "encoder = encoder_class(sys.argv[2]).from_state(json.loads((folder / 'settings.json').read_text()), arrays)\n"
        "np.save(folder / 'embedding.npy', encoder.embed(np.load(folder / 'windows.npy')))\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path), kind.name], check=True, timeout=120)
    np.testing.assert_allclose(np.load(tmp_path / "embedding.npy"), encoder.embed(WINDOWS), atol=1e-5)


def test_weights_of_another_architecture_are_refused(kind, tmp_path):
    settings, arrays = fitted(kind, tmp_path)[0].to_state()
    arrays[min(arrays)] = arrays[min(arrays)][:-1]
    with pytest.raises(ValueError, match="another architecture"):
        kind.from_state(settings, arrays)


def test_no_window_at_all_is_refused(kind, tmp_path):
    with pytest.raises(InputRefused, match="E3302"):
        kind().fit(lambda e: iter(()), passes, window_shape=SHAPE, training=TRAINING, workdir=tmp_path)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_s60_a_non_finite_window_stops_the_run_and_names_the_batch(kind, tmp_path, poison):
    def poisoned(epoch: int) -> Iterator[np.ndarray]:
        for number, batch in enumerate(passes(epoch)):
            yield np.where(number == 3, poison, batch).astype(np.float32)

    with pytest.raises(InputRefused, match=r"E3304.*epoch 1, batch 4"):
        kind().fit(poisoned, passes, window_shape=SHAPE, training=TRAINING, workdir=tmp_path)


def test_an_unknown_option_and_an_unknown_encoder_are_refused_with_the_nearest_name(kind):
    option = next(iter(getattr(kind, "known_options", ("code",))))
    with pytest.raises(UsageError, match=f"did you mean {option}"):
        kind(**{option + "e": 3})
    with pytest.raises(UsageError, match=f"did you mean {kind.name}"):
        encoder_class(kind.name + "x")


def test_every_named_encoder_is_in_the_list_of_instances():
    assert {build_encoder(EncoderSettings(name)).name for name in NAMED} == {k.name for k in ENCODERS}
