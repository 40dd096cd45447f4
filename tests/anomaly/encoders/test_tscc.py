"""Contrastive clustering on planted waveforms, and its two stages piece by piece (METHODS S36, S37, S39 to S42)."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from encoder_data import brief, data_of
from keras import ops
from scipy.optimize import linear_sum_assignment

from anomaly.encoders import tscc
from anomaly.encoders.backbones import build_tokens, receptive_field
from anomaly.encoders.base import WindowShape
from anomaly.encoders.checkpoint import Checkpoint
from anomaly.encoders.clustering import nearest, sharpened_target, start_centres
from anomaly.encoders.crops import CropSizes, crop_pairs, take_crops
from anomaly.encoders.training import outputs
from anomaly.encoders.tscc import ClusterStage, TsccEncoder, crop_graph, crop_inputs, membership_loss
from anomaly.errors import InputRefused, UsageError

#: Dear fixtures are made once, on one worker.
pytestmark = pytest.mark.xdist_group("tscc")

KINDS = 4


def waveforms(windows: int, rows: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows (B, rows, 2) of four waveforms at random phases or places, and which each is."""
    rng = np.random.default_rng(seed)
    kind, t = rng.integers(0, KINDS, size=windows), np.arange(rows)
    phase, at = rng.uniform(0, 2 * np.pi, size=(windows, 1)), rng.integers(4, rows - 8, size=(windows, 1))
    burst = np.where(t >= at, 2.5 * np.exp(-(t - at) / 4) * np.cos(np.pi * (t - at) / 2), 0)
    tone, square = np.sin(np.pi * t / 4 + phase), np.sign(np.sin(np.pi * t / 8 + phase))
    growing = 1.5 * np.sin(np.pi * t / 10 + phase) * t / rows
    forms = np.stack((tone, square, burst, growing), axis=1)[np.arange(windows), kind]
    values = forms[:, :, None] * [1.0, 0.7] + rng.normal(0, noise, size=(windows, rows, 2))
    return values.astype(np.float32), kind


def matched_accuracy(found: np.ndarray, kinds: np.ndarray) -> float:
    """Share of right labels under the best one-to-one naming of clusters."""
    table = np.zeros((KINDS, KINDS))
    np.add.at(table, (found, kinds), 1)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / len(kinds))


def kmeans_accuracy(features: np.ndarray, kinds: np.ndarray) -> float:
    flat = features.reshape(len(features), -1)
    return matched_accuracy(nearest(flat, start_centres(flat, KINDS, seed=0))[0], kinds)


WINDOWS, KIND = waveforms(320, 32, noise=0.6, seed=1)
SMALL = np.random.default_rng(0).normal(size=(96, 6, 2)).cumsum(axis=1).astype(np.float32)


class Watched(TsccEncoder):
    """Keeps the embeddings that the first stage ended with."""

    def refine(self, networks, data, training, workdir):
        self.start = outputs(networks.embedder, WINDOWS)
        return super().refine(networks, data, training, workdir)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    encoder = Watched(clusters=KINDS)
    training = brief(epochs=8, learning_rate=2e-3)
    history = encoder.fit(data_of(WINDOWS), training=training, workdir=tmp_path_factory.mktemp("planted"))
    return encoder, history


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    encoder = TsccEncoder(clusters=3, rounds=2, delta=0.0, depth=1)
    history = encoder.fit(data_of(SMALL), training=brief(epochs=2), workdir=tmp_path_factory.mktemp("small"))
    return encoder, history


@pytest.mark.slow
def test_s42_the_second_stage_is_not_less_accurate_than_its_start(planted):
    encoder, _ = planted
    start = kmeans_accuracy(encoder.start, KIND)
    end = matched_accuracy(encoder.memberships(WINDOWS).argmax(axis=1), KIND)
    print(f"matched accuracy: raw {kmeans_accuracy(WINDOWS, KIND):.3f}, start {start:.3f}, end {end:.3f}")
    assert end >= start
    assert end > kmeans_accuracy(WINDOWS, KIND) + 0.2


@pytest.mark.slow
def test_s42_memberships_sum_to_one_and_grow_sharper(planted):
    encoder, history = planted
    q = encoder.memberships(WINDOWS)
    assert q.shape == (len(WINDOWS), KINDS) and q.dtype == np.float32
    np.testing.assert_allclose(q.sum(axis=1), 1, atol=1e-5)
    centres = start_centres(encoder.start, KINDS, seed=7)
    at_start = ops.convert_to_numpy(tscc.student_t_memberships(encoder.start, centres))
    assert q.max(axis=1).mean() > at_start.max(axis=1).mean()
    assert history.parts["clustering_loss"][-1] > 0


@pytest.mark.slow
def test_s42_rounds_end_when_fewer_than_delta_of_labels_move(planted):
    encoder, history = planted
    moved, delta = history.parts["clustering_moved"], encoder.options["delta"]
    assert all(share >= delta for share in moved[:-1])
    assert moved[-1] < delta or len(moved) == encoder.options["rounds"]


@pytest.mark.parametrize(("delta", "expected"), [(1.0, 1), (0.0, 3)])
def test_s42_delta_of_all_labels_ends_after_one_round_and_of_none_after_all(tmp_path, delta, expected):
    encoder = TsccEncoder(clusters=2, rounds=3, delta=delta, depth=1, width=4)
    history = encoder.fit(data_of(SMALL), training=brief(epochs=1), workdir=tmp_path)
    assert len(history.parts["clustering_moved"]) == expected


def test_s42_the_loss_holds_the_target_still():
    """Its gradient to the logits of q is then q − p; one step of rate 1 moves them by p − q."""
    logits, shares = np.float32([[0.5, -0.3, 0.1]]), np.float32([[0.5, 0.3, 0.2]])
    layer = keras.layers.Dense(3, use_bias=False, activation="softmax")
    model = keras.Sequential([keras.Input((1,)), layer])
    layer.kernel.assign(logits)
    q = model.predict_on_batch(np.ones((1, 1)))
    p = ops.convert_to_numpy(sharpened_target(q, shares))
    model.compile(keras.optimizers.SGD(1.0), membership_loss)
    model.train_on_batch(np.ones((1, 1)), shares)
    np.testing.assert_allclose(ops.convert_to_numpy(layer.kernel) - logits, p - q, atol=1e-5)


def test_s42_every_loss_is_logged_apart_and_their_weighted_sum_is_the_loss(small):
    encoder, history = small
    parts, weight = history.parts, encoder.options["contrast_weight"]
    whole = weight * np.array(parts["clustering_contrast_loss"]) + parts["clustering_memberships_loss"]
    np.testing.assert_allclose(parts["clustering_loss"], whole, rtol=1e-4)


def test_s40_the_embedding_is_the_largest_context_value_over_time(small):
    encoder, _ = small
    embedder = encoder._networks.embedder
    rows = keras.Model(embedder.input, embedder.get_layer("embedding").input)
    context = outputs(rows, SMALL)
    assert context.shape == (len(SMALL), 6, 32)
    np.testing.assert_array_equal(encoder.embed(SMALL), context.max(axis=1))


def test_s37_s39_aligned_vectors_are_those_of_the_same_rows_of_the_window():
    """Away from the ends of a crop, a layer sees there what it sees in the whole window."""
    shape, sizes = WindowShape(24, 2), CropSizes(rows=24, crop=16, overlap=9)
    tokens = build_tokens("dilated", shape, width=4, depth=1, kernel=3)
    inputs, aligned = crop_graph(tokens, shape, sizes)
    windows = np.random.default_rng(0).normal(size=(20, 24, 2)).astype(np.float32)
    given, _ = crop_inputs(sizes)(windows, np.random.default_rng(5))
    found = np.asarray(keras.Model(inputs, aligned).predict_on_batch(given))
    assert found.shape == (20, 2, 9, 4)
    starts = crop_pairs(np.random.default_rng(5), 20, sizes).starts
    rows = starts[:, :, None] + given["places"]
    whole = outputs(tokens, windows)[np.arange(20)[:, None, None], rows]
    inner = (given["places"] > 0) & (given["places"] < sizes.crop - 1)
    np.testing.assert_allclose(found[inner], whole[inner], atol=1e-5)
    assert not np.allclose(found[~inner], whole[~inner], atol=1e-5), "the end of a crop has no neighbour"


def test_s39_a_report_is_told_how_far_the_vector_of_a_row_reaches(small):
    """Measured: the rows whose change moves the middle row's vector are as many as the fact says, or the whole window."""
    encoder, _ = small
    facts = encoder.facts()
    shape = encoder.shape
    assert facts["encoder"] == "tscc"
    assert facts["weights"] == encoder._ready().kept.count_params()
    tokens = build_tokens("dilated", WindowShape(64, shape.tags), width=8, depth=3, kernel=3)
    window = np.zeros((1, 64, shape.tags), np.float32)
    moved = np.repeat(window, 64, axis=0)
    moved[np.arange(64), np.arange(64)] = 5
    reached = np.abs(outputs(tokens, moved)[:, 32] - outputs(tokens, window)[0, 32]).max(axis=1) > 0
    assert reached.sum() == receptive_field(3, 3) == 15
    assert facts["receptive field, rows"] == receptive_field(3, 1) == 3, "the fixture has one layer"


def test_s37_training_sees_crops_of_the_windows_with_their_categories():
    coded = np.concatenate((SMALL, np.full((96, 6, 1), 2, np.float32)), axis=2)
    sizes = CropSizes.of(6, crop=0.75, overlap=0.5)
    given, _ = crop_inputs(sizes)(coded, np.random.default_rng(0))
    starts = crop_pairs(np.random.default_rng(0), 96, sizes).starts
    np.testing.assert_array_equal(given["crops"], take_crops(coded, starts, sizes.crop))
    assert (given["crops"][..., 2] == 2).all()


def test_memberships_and_centres_survive_the_state(small):
    encoder, _ = small
    settings, arrays = encoder.to_state()
    again = TsccEncoder.from_state(settings, arrays)
    np.testing.assert_allclose(again.memberships(SMALL), encoder.memberships(SMALL), atol=1e-6)
    assert any(array.shape == (3, 32) for array in arrays.values())


def test_s36_behind_normalise_neither_level_nor_size_of_a_window_changes_its_memberships(tmp_path):
    encoder = TsccEncoder(front="normalise", clusters=2, rounds=1, depth=1)
    encoder.fit(data_of(SMALL), training=brief(epochs=1), workdir=tmp_path)
    wide = SMALL[SMALL.std(axis=1).min(axis=1) > 0.2]
    np.testing.assert_allclose(encoder.memberships(3 * wide + 10), encoder.memberships(wide), atol=1e-4)


def stage_of(encoder: TsccEncoder) -> ClusterStage:
    networks = encoder._networks
    return ClusterStage(networks, networks.memberships, data_of(SMALL), brief(), encoder.options)


def test_the_sample_is_every_nth_window_and_bounded(small, monkeypatch):
    monkeypatch.setattr(tscc, "SAMPLE", 14)
    encoder, _ = small
    stage = stage_of(encoder)
    sample = np.concatenate([values[some] for values, some in stage._pass(stage.embedder)])
    in_order = np.concatenate([batch.windows for batch in stage.data.train(0)])
    assert stage.every == 7 and len(sample) == 14
    np.testing.assert_allclose(sample, encoder.embed(in_order)[::7], atol=1e-5)


def test_s42_a_census_gives_mean_memberships_and_nearest_labels(small):
    encoder, _ = small
    census = stage_of(encoder)._census()
    in_order = np.concatenate([batch.windows for batch in data_of(SMALL).train(0)])
    q = encoder.memberships(in_order)
    np.testing.assert_allclose(census.frequencies, q.mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(census.labels, q.argmax(axis=1))


class Killed(BaseException):
    """Stands for kill -9 after a round's checkpoint."""


@pytest.mark.slow
def test_a_second_stage_that_was_killed_goes_on_and_ends_alike(tmp_path, monkeypatch):
    def fitted(workdir: Path) -> TsccEncoder:
        encoder = TsccEncoder(clusters=3, rounds=3, delta=0.0, depth=1)
        encoder.fit(data_of(SMALL, fingerprint="same"), training=brief(epochs=2), workdir=workdir)
        return encoder

    saves = []

    class Dying(Checkpoint):
        def save(self, progress):
            super().save(progress)
            saves.append(len(progress["moved"]))
            if len(saves) == 1:
                raise Killed

    monkeypatch.setattr(tscc, "Checkpoint", Dying)
    with pytest.raises(Killed):
        fitted(tmp_path / "killed")
    assert len(saves) == 1
    resumed = fitted(tmp_path / "killed")
    assert len(saves) == 3, "rounds 2 and 3 were left to do"
    whole = fitted(tmp_path / "whole")
    np.testing.assert_allclose(resumed.embed(SMALL), whole.embed(SMALL), atol=1e-5)
    np.testing.assert_allclose(resumed.memberships(SMALL), whole.memberships(SMALL), atol=1e-5)


def test_a_batch_of_one_learns_from_its_rows_alone(tmp_path):
    encoder = TsccEncoder(clusters=2, rounds=1, depth=1, width=4)
    training = brief(epochs=1, batch_size=1)
    history = encoder.fit(data_of(SMALL[:12], batch_size=1), training=training, workdir=tmp_path)
    assert np.isfinite(history.loss).all() and history.loss[0] > 0
    assert np.isfinite(encoder.memberships(SMALL)).all()


def test_without_the_second_stage_there_are_no_memberships(tmp_path):
    encoder = TsccEncoder(cluster_stage=False, depth=1, width=4)
    history = encoder.fit(data_of(SMALL), training=brief(epochs=1), workdir=tmp_path)
    assert encoder.embed(SMALL).shape == (len(SMALL), 4)
    assert not [name for name in history.parts if name.startswith("clustering")]
    with pytest.raises(UsageError, match=r"E2002.*cluster_stage"):
        encoder.memberships(SMALL)


def test_fewer_windows_than_clusters_are_refused_before_training(tmp_path):
    with pytest.raises(InputRefused, match=r"E3302.*one per cluster"):
        TsccEncoder(clusters=8).fit(data_of(SMALL[:7]), training=brief(), workdir=tmp_path)


def test_a_kernel_longer_than_a_crop_and_a_window_of_three_rows_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"E2004.*kernel of tscc to 4"):
        TsccEncoder(kernel=5).fit(data_of(SMALL), training=brief(), workdir=tmp_path)
    short = data_of(SMALL[:, :3])
    with pytest.raises(UsageError, match=r"E2004.*at least 4"):
        TsccEncoder().fit(short, training=brief(), workdir=tmp_path)
