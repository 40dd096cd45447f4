"""Training that a log cannot silence: whole batches in, the best epoch out, never a bad number (METHODS S31, S34, S60)."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from encoder_data import brief, data_of, passes

from anomaly.config import TrainingSettings
from anomaly.encoders.base import TrainingBatch, WindowShape
from anomaly.encoders.collapse import refuse_collapse, spread_of
from anomaly.encoders.dense_ae import DenseAutoencoder
from anomaly.encoders.neural import Networks
from anomaly.encoders.prefetch import ReadingAhead, prefetched
from anomaly.encoders.schedule import learning_rate
from anomaly.encoders.training import Task, load_weights, outputs, save_weights, train
from anomaly.errors import InputRefused, UsageError

WINDOWS = np.random.default_rng(0).normal(size=(96, 2, 3)).astype(np.float32)


def networks(activity_l1: float = 1e-3) -> Networks:
    keras.utils.set_random_seed(0)
    return DenseAutoencoder(hidden=8, code=4, activity_l1=activity_l1).networks(WindowShape(2, 3), seed=0)


def run(workdir: Path, train_batches=None, validation=None, made: Networks | None = None, **settings):
    """A brief training of a small autoencoder on the windows, or on the batches given."""
    made = made or networks()
    data = data_of(WINDOWS, fingerprint="windows")
    data = replace(data, train=passes(*train_batches) if train_batches else data.train)
    data = replace(data, validation=passes(*validation) if validation is not None else data.validation)
    return train(made.task, made.embedder, data, brief(**settings), workdir), made


def test_fewer_windows_than_a_batch_are_enough(tmp_path):
    history, _ = run(tmp_path, [WINDOWS[:3]], [WINDOWS[:2]], epochs=2)
    assert history.windows == 3 and len(history.loss) == 2 and history.seconds > 0


def test_the_loss_is_the_mean_over_windows_not_over_batches(tmp_path):
    made = networks(activity_l1=0.0)
    batches = [WINDOWS[:30], WINDOWS[30:36] * 3]
    expected = np.mean([(b - outputs(made.task.model, b)) ** 2 for w in batches for b in w[:, None]])
    history, _ = run(tmp_path, batches, batches, made, epochs=1, learning_rate=1e-12)
    assert history.val_loss[0] == pytest.approx(expected, rel=1e-4)
    assert history.loss[0] == pytest.approx(expected, rel=1e-4)


def test_epochs_are_reported_as_they_end(tmp_path):
    told, made = [], networks()
    train(made.task, made.embedder, data_of(WINDOWS), brief(epochs=3), tmp_path, lambda e, now: told.append((e, *now)))
    assert told == [(e, "loss", "val_loss", "rank", "spread") for e in range(3)]


def test_s60_a_loss_that_grows_past_all_numbers_names_its_batch_and_rows(tmp_path):
    with pytest.raises(InputRefused, match=r"E3304.*the loss in epoch 1, batch 2, which begins with window 1"):
        run(tmp_path, [WINDOWS[:32], WINDOWS[:32] * 1e30], epochs=1)
    assert TrainingBatch(WINDOWS, np.array(["P-1"] * 96), np.arange(96)).where(5) == "asset P-1, rows 6 to 7"


def test_s60_non_finite_validation_stops_the_run_before_weights_are_kept(tmp_path):
    with pytest.raises(InputRefused, match=r"E3304.*validation loss in epoch 1, batch 2"):
        run(tmp_path, validation=[WINDOWS, WINDOWS[:2] * 1e30], batch_size=96, epochs=1)
    assert not (tmp_path / "best.npz").exists()


def test_no_validation_window_is_refused(tmp_path):
    with pytest.raises(InputRefused, match=r"E3302.*validation part"):
        run(tmp_path, validation=[], epochs=1)


def test_a_batch_too_small_for_a_contrast_is_refused_with_the_cure(tmp_path):
    made = networks()
    pairs = replace(made, task=replace(made.task, smallest_batch=2))
    with pytest.raises(UsageError, match=r"E2004.*training.batch_size"):
        run(tmp_path, made=pairs, batch_size=1)
    with pytest.raises(InputRefused, match=r"E3302.*dense_ae"):
        train(pairs.task, pairs.embedder, data_of(WINDOWS[:1]), brief(), tmp_path)
    history, _ = run(tmp_path, [WINDOWS[:32], WINDOWS[32:33]], made=pairs, epochs=1)
    assert history.windows == 32  # the batch of one is left out


def test_a_row_is_the_same_in_any_block():
    model = networks().task.model
    whole = outputs(model, np.tile(WINDOWS, (20, 1, 1)))
    np.testing.assert_allclose(whole[1900:1905], outputs(model, WINDOWS[76:81]), atol=1e-6)


def test_weights_with_an_object_in_them_are_not_unpickled(tmp_path):
    model = networks().task.model
    save_weights(model, tmp_path / "w.npz")
    np.savez(tmp_path / "bad.npz", w000=np.array([print], dtype=object))
    load_weights(model, tmp_path / "w.npz")
    with pytest.raises(ValueError, match="allow_pickle"):
        load_weights(model, tmp_path / "bad.npz")


@pytest.mark.parametrize(
    "options",
    [{"hidden": -1}, {"code": "x"}, {"code": 2.5}, {"hidden": True}, {"activity_l1": -1}, {"activity_l1": np.nan}],
)
def test_an_option_of_the_wrong_size_or_type_is_refused(options):
    with pytest.raises(UsageError, match=f"E2002.*{next(iter(options))} of dense_ae"):
        DenseAutoencoder(**options)


def test_naming_an_encoder_does_not_start_keras():
    code = "import sys, anomaly.encoders; assert not {'keras', 'tensorflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# The learning rate -------------------------------------------------------------------------------------------------


def test_s31_the_rate_rises_in_a_line_and_falls_along_half_a_cosine():
    rates = [learning_rate(s, 200, peak=0.3, schedule="cosine", warmup=0.1) for s in range(201)]
    np.testing.assert_allclose(rates[:20], 0.3 * np.arange(1, 21) / 20)
    falling = 0.3 * 0.5 * (1 + np.cos(np.pi * np.arange(181) / 180))
    np.testing.assert_allclose(rates[20:], falling, atol=1e-15)
    assert learning_rate(150, 200, peak=0.3) == 0.3
    assert math.isclose(learning_rate(500, 200, peak=1, schedule="cosine"), 0, abs_tol=1e-12)


def test_s31_every_step_takes_its_rate(tmp_path):
    made, seen = networks(), []
    task = replace(made.task, after_batch=lambda: seen.append(float(made.task.model.optimizer.learning_rate)))
    train(task, made.embedder, data_of(WINDOWS), brief(schedule="cosine", warmup=0.25), tmp_path)
    expected = [learning_rate(s, 12, peak=1e-3, schedule="cosine", warmup=0.25) for s in range(12)]
    np.testing.assert_allclose(seen, expected, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_s31_every_optimizer_learns_and_a_clipped_step_is_short(tmp_path, optimizer):
    history, _ = run(tmp_path / "a", optimizer=optimizer, learning_rate=1e-2)
    assert history.val_loss[-1] < history.val_loss[0]
    before = networks().task.model.get_weights()
    _, made = run(
        tmp_path / "b", [WINDOWS[:32] * 100], optimizer="sgd", momentum=0.0, learning_rate=0.1, clip=1.0, epochs=1
    )
    step = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(made.task.model.get_weights(), before, strict=True)))
    assert step == pytest.approx(0.1, rel=1e-3)


# Going on after a kill ---------------------------------------------------------------------------------------------

SETTINGS = {"epochs": 6, "schedule": "cosine", "warmup": 0.1, "patience": 9}


class Interrupted(BaseException):
    """Ends a training from inside, as a signal would."""


def stop_after(batches: int):
    count = [0]

    def tick() -> None:
        count[0] += 1
        if count[0] == batches:
            raise Interrupted

    return tick


@pytest.mark.parametrize("batches", [2, 4, 11, 17])
def test_s31_a_stopped_training_ends_with_the_weights_of_one_that_was_not(tmp_path, batches):
    whole, straight = run(tmp_path / "whole", **SETTINGS)
    made = networks()
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", made=replace(made, task=replace(made.task, after_batch=stop_after(batches))), **SETTINGS)
    history, resumed = run(tmp_path / "cut", **SETTINGS)
    assert history.loss == pytest.approx(whole.loss, rel=1e-5) and history.best_epoch == whole.best_epoch
    for a, b in zip(resumed.task.model.get_weights(), straight.task.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_checkpoint_of_other_settings_or_a_damaged_one_is_not_gone_on_from(tmp_path, caplog):
    run(tmp_path, **SETTINGS)
    history, _ = run(tmp_path, **SETTINGS | {"learning_rate": 1e-4, "epochs": 2})
    assert len(history.loss) == 2
    (tmp_path / "checkpoint.npz").write_bytes(b"PK no zip")
    history, _ = run(tmp_path, epochs=2)
    assert len(history.loss) == 2 and "cannot be read" in caplog.text


def test_a_task_keeps_its_own_state_in_the_checkpoint(tmp_path):
    made, steps = networks(), {"n": np.zeros(1)}

    def counted(task: Task, tick=lambda: None) -> Task:
        def after() -> None:
            steps["n"] = steps["n"] + 1
            tick()

        return replace(task, after_batch=after, state=lambda: dict(steps), restore=steps.update)

    with pytest.raises(Interrupted):
        run(tmp_path, made=replace(made, task=counted(made.task, stop_after(8))), epochs=4)
    steps["n"] = np.zeros(1)
    fresh = networks()
    run(tmp_path, made=replace(fresh, task=counted(fresh.task)), epochs=4)
    assert steps["n"][0] == 12


@pytest.mark.slow
@pytest.mark.parametrize("point", ["training.after_best:2", "training.after_checkpoint:3"])
def test_s60_a_kill_at_any_point_loses_nothing(tmp_path, point):
    code = "import sys; from pathlib import Path; import test_training as t\nt.run(Path(sys.argv[1]), **t.SETTINGS)\n"
    here = Path(__file__).parent
    paths = os.pathsep.join([str(Path.cwd()), str(here), str(here.parent)])
    env = {**os.environ, "ANOMALY_KILLPOINT": point, "PYTHONPATH": paths}
    command = [sys.executable, "-c", code, str(tmp_path / "killed")]
    assert subprocess.run(command, env=env, timeout=120, check=False).returncode == -signal.SIGKILL
    history, resumed = run(tmp_path / "killed", **SETTINGS)
    whole, straight = run(tmp_path / "whole", **SETTINGS)
    assert len(history.loss) == len(whole.loss) == 6
    np.testing.assert_allclose(
        outputs(resumed.task.model, WINDOWS), outputs(straight.task.model, WINDOWS), rtol=1e-3, atol=1e-4
    )


# Collapse ----------------------------------------------------------------------------------------------------------


def test_s34_spread_and_rank_match_closed_forms():
    assert spread_of(np.ones((9, 4), np.float32)) == spread_of(np.zeros((9, 4), np.float32))
    assert spread_of(np.ones((9, 4), np.float32)).spread == 0
    line = np.outer(np.linspace(-1, 1, 50), np.arange(1, 5)).astype(np.float32)
    assert spread_of(line).rank == pytest.approx(1) and spread_of(line).spread == pytest.approx(1)
    round_cloud = np.random.default_rng(0).normal(size=(20000, 4)).astype(np.float32)
    assert spread_of(round_cloud).rank == pytest.approx(4, rel=1e-2)


def test_s34_a_forced_collapse_fails_the_run_and_steady_windows_do_not(tmp_path):
    made = networks()
    dead = keras.Model(made.embedder.input, made.embedder.output * 0.0)
    with pytest.raises(InputRefused, match=r"E3305.*spread 0\.0e\+00.*learning_rate"):
        run(tmp_path / "dead", made=Networks(dead, made.task, made.reconstructor), epochs=1)
    steady = np.ones((64, 2, 3), np.float32)
    run(tmp_path / "steady", [steady], [steady], epochs=1)
    refuse_collapse(steady, np.ones((64, 8), np.float32))
    with pytest.raises(InputRefused, match="E3305"):
        refuse_collapse(WINDOWS, np.outer(np.arange(96), np.ones(8)).astype(np.float32))


# Reading ahead -----------------------------------------------------------------------------------------------------


def test_batches_read_ahead_come_in_order_and_an_error_where_its_batch_would():
    def failing():
        yield 1
        yield 2
        raise ValueError("no third")

    got = []
    with pytest.raises(ValueError, match="no third"):
        for item in prefetched(failing()):
            got.append(item)
    assert got == [1, 2]


def test_closing_early_ends_the_reader():
    read = []

    def endless():
        while True:
            read.append(1)
            yield len(read)

    items = prefetched(endless(), ahead=2)
    assert next(items) == 1
    items.close()
    count = len(read)
    time.sleep(0.05)
    assert len(read) == count < 8
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]


def test_a_thread_reads_ahead_only_after_a_pass_in_which_making_batches_took_long():
    def slow(seconds):
        for number in range(5):
            time.sleep(seconds)
            yield number, threading.current_thread().name

    def one_pass(reading, making, using):
        got = []
        for number, maker in reading.batches(slow(making)):
            time.sleep(using)
            got.append((number, maker))
        return got

    for making, using, later in ((0.02, 0.02, "prefetch"), (0.0, 0.02, "MainThread")):
        reading = ReadingAhead()
        first, second = one_pass(reading, making, using), one_pass(reading, making, using)
        assert [n for n, _ in first] == [n for n, _ in second] == [0, 1, 2, 3, 4]
        assert {maker for _, maker in first} == {"MainThread"}
        assert {maker for _, maker in second} == {later}
    forbidden = ReadingAhead(allowed=False)
    assert {m for _ in range(2) for _, m in one_pass(forbidden, 0.02, 0.0)} == {"MainThread"}


def test_settings_of_training_are_checked():
    from anomaly.config import Settings

    for wrong in ({"optimizer": "adma"}, {"schedule": "step"}, {"warmup": 1.0}, {"clip": -1.0}, {"momentum": 1.0}):
        with pytest.raises(UsageError, match=f"E2002.*training.{next(iter(wrong))}"):
            Settings().changed(training=wrong)
    assert TrainingSettings().optimizer == "adam"
