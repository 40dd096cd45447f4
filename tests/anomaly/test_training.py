"""Training that a log cannot silence: whole batches in, the best epoch out, never a non-finite weight (METHODS S60)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from anomaly.config import TrainingSettings
from anomaly.encoders.dense_ae import DenseAutoencoder, build
from anomaly.encoders.training import reconstruct, save_weights, train
from anomaly.errors import InputRefused, UsageError

WINDOWS = np.random.default_rng(0).normal(size=(96, 2, 3)).astype(np.float32)


def feed(*batches):
    return lambda epoch: iter(batches)


def compiled(rate: float = 1e-3) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = build((2, 3), 8, 4, 1e-3)
    model.compile(optimizer=keras.optimizers.Adam(rate), loss="mean_squared_error")
    return model


def test_fewer_windows_than_a_batch_are_enough(tmp_path):
    history = train(compiled(), feed(WINDOWS[:3]), feed(WINDOWS[:2]), TrainingSettings(epochs=2), tmp_path)
    assert history.windows == 3 and len(history.loss) == 2 and history.seconds > 0


def test_the_loss_is_the_mean_over_windows_not_over_batches(tmp_path):
    model = compiled(rate=1e-12)
    expected = np.mean((WINDOWS - reconstruct(model, WINDOWS)) ** 2)
    history = train(model, feed(WINDOWS[:90], WINDOWS[90:]), feed(WINDOWS[:90], WINDOWS[90:]),
                    TrainingSettings(epochs=1), tmp_path)  # fmt: skip
    assert history.val_loss[0] == pytest.approx(expected, rel=1e-5)
    assert history.loss[0] > history.val_loss[0]  # the penalty on activity is part of the loss alone


def test_epochs_are_reported_as_they_end(tmp_path):
    told = []
    train(compiled(), feed(WINDOWS), feed(WINDOWS), TrainingSettings(epochs=3), tmp_path,
          lambda epoch, losses: told.append((epoch, sorted(losses))))  # fmt: skip
    assert told == [(e, ["loss", "val_loss"]) for e in range(3)]


def test_s60_a_loss_that_grows_past_all_numbers_names_its_batch(tmp_path):
    with pytest.raises(InputRefused, match=r"E3304.*the loss in epoch 1, batch 2"):
        train(compiled(), feed(WINDOWS, WINDOWS * 1e30), feed(WINDOWS), TrainingSettings(epochs=1), tmp_path)


def test_s60_non_finite_validation_windows_stop_the_run(tmp_path):
    bad = np.where(np.arange(2)[:, None] == 1, np.nan, WINDOWS[:1]).astype(np.float32)
    with pytest.raises(InputRefused, match=r"E3304.*validation error in epoch 1, batch 2"):
        train(compiled(), feed(WINDOWS), feed(WINDOWS, bad), TrainingSettings(epochs=1), tmp_path)
    assert not (tmp_path / "best.npz").exists()


def test_no_validation_window_is_refused(tmp_path):
    with pytest.raises(InputRefused, match=r"E3302.*validation part"):
        train(compiled(), feed(WINDOWS), feed(), TrainingSettings(epochs=1), tmp_path)


def test_a_row_is_the_same_in_any_block():
    model = compiled()
    whole = reconstruct(model, np.tile(WINDOWS, (20, 1, 1)))
    np.testing.assert_allclose(whole[1900:1905], reconstruct(model, WINDOWS[76:81]), atol=1e-6)


def test_weights_with_an_object_in_them_are_not_unpickled(tmp_path):
    from anomaly.encoders.training import load_weights

    model = compiled()
    save_weights(model, tmp_path / "w.npz")
    np.savez(tmp_path / "bad.npz", w000=np.array([print], dtype=object))
    load_weights(model, tmp_path / "w.npz")
    with pytest.raises(ValueError, match="allow_pickle"):
        load_weights(model, tmp_path / "bad.npz")


@pytest.mark.parametrize(
    "options",
    [{"hidden": 0}, {"code": "x"}, {"code": 2.5}, {"hidden": True}, {"activity_l1": -1}, {"activity_l1": np.nan}],
)
def test_an_option_of_the_wrong_size_or_type_is_refused(options):
    with pytest.raises(UsageError, match=f"E2002.*{next(iter(options))} of dense_ae"):
        DenseAutoencoder(**options)


def test_naming_an_encoder_does_not_start_keras():
    code = "import sys, anomaly.encoders; assert not {'keras', 'tensorflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.slow
def test_s60_a_kill_after_a_better_epoch_leaves_whole_weights(tmp_path):
    code = (
        "import sys; from pathlib import Path; import test_training as t\n"
        "t.train(t.compiled(), t.feed(t.WINDOWS), t.feed(t.WINDOWS), t.TrainingSettings(epochs=5), Path(sys.argv[1]))\n"
    )
    here = str(Path(__file__).parent)
    env = {
        **os.environ,
        "ANOMALY_KILLPOINT": "training.after_best:2",
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), here]),
    }
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    from anomaly.encoders.training import load_weights

    model = compiled()
    load_weights(model, tmp_path / "best.npz")
    assert np.isfinite(reconstruct(model, WINDOWS)).all()
