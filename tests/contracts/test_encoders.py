"""Promises that every encoder keeps, on TensorFlow and on JAX (METHODS S21 to S50, S55, S60)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_data import brief, data_of, passes
from instances import ENCODERS, Instance

from anomaly.data.local_normalisation import FRONTS
from anomaly.encoders import ENCODERS as NAMED
from anomaly.encoders import encoder_class
from anomaly.encoders.base import Encoder, TrainingHistory
from anomaly.errors import InputRefused, UsageError

SHAPE = (8, 3)
WINDOWS = np.random.default_rng(0).normal(size=(256, *SHAPE)).cumsum(axis=1).astype(np.float32)
GRADES = np.random.default_rng(1).integers(0, 3, size=(256, 1, 1)).repeat(SHAPE[0], axis=1).astype(np.float32)
WITH_GRADE = np.concatenate((WINDOWS, GRADES), axis=2)

Fitted = tuple[Encoder, TrainingHistory]
_FITTED: dict[str, Fitted] = {}


def fit(instance: Instance, workdir: Path, front: str = "none", data: Any = None, **training: Any) -> Fitted:
    encoder = instance.build(front)
    return encoder, encoder.fit(data or data_of(WINDOWS), training=brief(**training), workdir=workdir)


#: All tests of an instance in one worker, which then fits it once.
#: Other forms of an encoder that stands before them in the list keep the promises in `make test-long`.
LATER = [i for n, i in enumerate(ENCODERS) if i.name in {before.name for before in ENCODERS[:n]}]
GROUPED = [
    pytest.param(i, id=str(i), marks=[pytest.mark.xdist_group(str(i)), *([pytest.mark.long] if i in LATER else [])])
    for i in ENCODERS
]


@pytest.fixture(params=GROUPED)
def instance(request: pytest.FixtureRequest) -> Instance:
    return request.param


@pytest.fixture
def fitted(instance: Instance, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Each instance fitted once; the tests only read it."""
    if str(instance) not in _FITTED:
        _FITTED[str(instance)] = fit(instance, tmp_path_factory.mktemp("fit"))
    return _FITTED[str(instance)]


def trained(instance: Instance) -> None:
    if not encoder_class(instance.name).trained:
        pytest.skip(f"{instance.name} has nothing to train")


def test_embeds_one_finite_vector_per_window_and_leaves_its_input_alone(fitted: Fitted):
    encoder, _ = fitted
    before = WINDOWS.copy()
    embedding = encoder.embed(WINDOWS)
    assert embedding.ndim == 2 and len(embedding) == len(WINDOWS) and np.isfinite(embedding).all()
    assert embedding.dtype == np.float32
    np.testing.assert_array_equal(WINDOWS, before)
    assert encoder.embed(WINDOWS[:0]).shape == (0, embedding.shape[1])


def test_what_is_reconstructed_has_the_shape_of_the_window(fitted: Fitted):
    encoder, _ = fitted
    if encoder.can_reconstruct:
        drawn = encoder.reconstruct(WINDOWS)
        assert drawn.shape == WINDOWS.shape and np.isfinite(drawn).all()
        assert np.mean((WINDOWS - drawn) ** 2) < np.mean(WINDOWS**2)
    else:
        with pytest.raises(UsageError, match="knn"):
            encoder.reconstruct(WINDOWS)


def test_a_row_does_not_depend_on_its_neighbours_in_the_block(fitted: Fitted):
    encoder, _ = fitted
    one_by_one = np.concatenate([encoder.embed(WINDOWS[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(one_by_one, encoder.embed(WINDOWS)[:4], atol=2e-5)


def test_the_same_seed_gives_the_same_embedding(instance: Instance, fitted: Fitted, tmp_path: Path):
    again = fit(instance, tmp_path)[0]
    np.testing.assert_allclose(again.embed(WINDOWS), fitted[0].embed(WINDOWS), atol=1e-5)


def test_training_lowers_the_loss_and_logs_rank_and_spread(instance: Instance, fitted: Fitted):
    trained(instance)
    history = fitted[1]
    assert history.val_loss[history.best_epoch] < history.val_loss[0]
    assert history.windows == len(WINDOWS)
    assert len(history.parts["rank"]) == len(history.parts["spread"]) == len(history.loss)


def test_a_state_gives_the_same_embedding(fitted: Fitted):
    encoder, _ = fitted
    settings, arrays = encoder.to_state()
    again = type(encoder).from_state(json.loads(json.dumps(settings)), arrays)
    np.testing.assert_allclose(again.embed(WINDOWS), encoder.embed(WINDOWS), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["the same", "jax"])
def test_s60_a_state_gives_the_same_embedding_in_a_fresh_process(tmp_path: Path, backend: str):
    """All encoders in one process, which starts Keras once; weights learned on one backend are read by the other."""
    expected = {}
    for number, instance in enumerate(ENCODERS):
        encoder, _ = _FITTED.get(str(instance)) or fit(instance, tmp_path / f"fit{number}")
        settings, arrays = encoder.to_state()
        (tmp_path / f"{number}.json").write_text(json.dumps({"name": instance.name, "settings": settings}))
        np.savez(tmp_path / f"{number}.npz", **arrays)
        expected[number] = encoder.embed(WINDOWS)
    np.save(tmp_path / "windows.npy", WINDOWS)
    script = (
        "import json, sys, numpy as np; from pathlib import Path; from anomaly.encoders import encoder_class\n"
        "folder = Path(sys.argv[1]); windows = np.load(folder / 'windows.npy')\n"
        "for path in folder.glob('*.json'):\n"
        "    kept = json.loads(path.read_text()); arrays = dict(np.load(path.with_suffix('.npz')))\n"
        "    encoder = encoder_class(kept['name']).from_state(kept['settings'], arrays)\n"
        "    np.save(path.with_suffix('.embedding.npy'), encoder.embed(windows))\n"
    )
    env = os.environ | ({} if backend == "the same" else {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"})
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=env, check=True, timeout=300)
    for number, embedding in expected.items():
        found = np.load(tmp_path / f"{number}.embedding.npy")
        np.testing.assert_allclose(
            found, embedding, atol=1e-5 if backend == "the same" else 1e-3, err_msg=str(ENCODERS[number])
        )


def test_weights_of_another_architecture_are_refused(fitted: Fitted):
    encoder, _ = fitted
    settings, arrays = encoder.to_state()
    first = next(name for name in sorted(arrays) if arrays[name].ndim and len(arrays[name]) > 1)
    arrays[first] = arrays[first][:-1]
    with pytest.raises(ValueError, match="another architecture"):
        type(encoder).from_state(settings, arrays)


def test_windows_of_another_shape_are_refused(fitted: Fitted):
    with pytest.raises(ValueError, match=r"expected windows \(B, 8, 3\)"):
        fitted[0].embed(WINDOWS[:, :4])


def test_no_window_at_all_is_refused(instance: Instance, tmp_path: Path):
    nothing = replace(data_of(WINDOWS[:0]), validation=passes(WINDOWS))
    with pytest.raises(InputRefused, match="E3302"):
        fit(instance, tmp_path, data=nothing)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_s60_a_non_finite_window_stops_the_run_and_names_the_batch_and_its_rows(instance, tmp_path, poison):
    bad = WINDOWS.copy()
    bad[100, 2, 1] = poison
    in_order = data_of(bad)
    order = [start for batch in in_order.train(0) for start in batch.starts.tolist()]
    batch = order.index(100) // 32 + 1
    with pytest.raises(InputRefused, match=rf"E3304.*epoch 1, batch {batch}: asset P-1, rows 101 to 108"):
        fit(instance, tmp_path, data=replace(in_order, validation=passes(WINDOWS)))


def test_one_tag_a_constant_tag_and_a_short_window_are_learned(instance: Instance, tmp_path: Path):
    rows = max(4, encoder_class(instance.name).shortest)
    for number, windows in enumerate((WINDOWS[:64, :rows, :1], WINDOWS[:64, :rows] * np.float32([1, 0, 1]))):
        encoder, _ = fit(instance, tmp_path / str(number), data=data_of(windows), epochs=1)
        assert np.isfinite(encoder.embed(windows)).all()


def test_s5_a_category_joins_the_window_and_an_unseen_one_scores(instance: Instance, tmp_path: Path):
    encoder, _ = fit(instance, tmp_path, data=data_of(WITH_GRADE, categories=(3,)), epochs=1)
    unseen = WITH_GRADE.copy()
    unseen[..., -1] = 77
    assert np.isfinite(encoder.embed(unseen)).all()
    settings, arrays = encoder.to_state()
    again = type(encoder).from_state(settings, arrays)
    np.testing.assert_allclose(again.embed(WITH_GRADE), encoder.embed(WITH_GRADE), atol=1e-6)
    if encoder.can_reconstruct:
        assert encoder.reconstruct(WITH_GRADE).shape == WINDOWS.shape


@pytest.mark.long
@pytest.mark.parametrize("front", [name for name in FRONTS if name != "none"])
def test_s36_every_front_fits_every_encoder(instance: Instance, front: str, tmp_path: Path):
    if front not in ("differences", "normalise") and instance.name != ENCODERS[0].name:
        pytest.skip("every encoder takes a front in one place: two forms for each, all for the first")
    encoder, _ = fit(instance, tmp_path, front, epochs=1)
    settings, arrays = encoder.to_state()
    again = type(encoder).from_state(settings, arrays)
    np.testing.assert_allclose(again.embed(WINDOWS), encoder.embed(WINDOWS), atol=1e-6)
    if encoder.can_reconstruct:
        assert encoder.reconstruct(WINDOWS).shape == WINDOWS.shape


def test_an_unknown_option_and_an_unknown_encoder_are_refused_with_the_nearest_name(instance: Instance):
    kind = encoder_class(instance.name)
    option = next(iter(kind.option_list))
    with pytest.raises(UsageError, match=f"did you mean {option}"):
        kind(**{option + "e": 3})
    with pytest.raises(UsageError, match=f"did you mean {instance.name}"):
        encoder_class(instance.name + "x")


def test_every_option_has_a_meaning_and_every_number_its_bounds():
    for name in NAMED:
        for option, declared in encoder_class(name).option_list.items():
            assert declared.meaning, f"{name}.{option}"
            if isinstance(declared.default, int | float) and not isinstance(declared.default, bool):
                assert declared.least is not None, f"{name}.{option}"


def test_every_named_encoder_is_in_the_list_of_instances():
    assert set(NAMED) == {instance.name for instance in ENCODERS}
    assert {encoder_class(name).name for name in NAMED} == set(NAMED)


@pytest.mark.long
@pytest.mark.slow
def test_the_same_promises_hold_on_jax(tmp_path: Path):
    """This file again, in a process whose Keras runs on JAX."""
    if os.environ.get("KERAS_BACKEND") == "jax":
        pytest.skip("this is that process")
    env = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    env.pop("PYTEST_XDIST_WORKER", None)
    options = ["-q", "-p", "no:cacheprovider", "-n", "0", "--no-cov", "-x", "--basetemp", str(tmp_path / "jax")]
    chosen = "embeds_one or reconstructed or same_seed or lowers_the_loss or a_state_gives and not fresh or joins"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(Path(__file__)), *options, "-k", chosen],
        env=env, capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
