"""Streamed training: batches come from disk, the best epoch stays, a killed run goes on, a bad number stops it.

One NaN in a batch turns every weight into NaN without an exception, and every later score with it; so each batch is
checked before it is learned from, each loss after it, and the refusal names the batch and its rows (METHODS S60).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from anomaly.config import TrainingSettings
from anomaly.encoders.base import EpochReport, TrainingBatch, TrainingData, TrainingHistory
from anomaly.encoders.checkpoint import Checkpoint
from anomaly.encoders.collapse import refuse_collapse, sample_windows, spread_of
from anomaly.encoders.prefetch import ReadingAhead
from anomaly.encoders.schedule import learning_rate
from anomaly.encoders.weights import load_weights, outputs, save_weights, set_weight_arrays, weight_arrays
from anomaly.errors import Fault, InputRefused, UsageError
from anomaly.faults import killpoint

__all__ = ["Task", "load_weights", "outputs", "save_weights", "set_weight_arrays", "train", "weight_arrays"]

log = logging.getLogger(__name__)

Windows = NDArray[np.float32]
Loss = Callable[[Any, Any], Any]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Task:
    """What a model is trained on.

    ``model`` is compiled by ``train``. ``loss``: ``(targets, outputs) → scalar or (B,)`` in keras.ops, or one per
    output name. ``prepare``: windows ``(B, T, channels)`` and a generator → the model's inputs and targets.
    ``smallest_batch``: what is smaller is left out (a contrast needs two). ``after_batch`` runs after each step.
    ``state`` and ``restore``: arrays that a checkpoint keeps beside model and optimizer. ``ahead`` is false where what a
    batch is prepared into depends on the steps before it.
    """

    model: keras.Model
    loss: Loss | dict[str, Loss]
    prepare: Callable[[Windows, np.random.Generator], tuple[Any, Any]]
    loss_weights: dict[str, float] | None = None
    smallest_batch: int = 1
    after_batch: Callable[[], None] | None = None
    state: Callable[[], Arrays] | None = None
    restore: Callable[[Arrays], None] | None = None
    ahead: bool = True

    @classmethod
    def autoencoder(cls, model: keras.Model, tags: int) -> Task:
        """Draw the window's tags again: mean squared error."""
        return cls(model, keras.losses.mean_squared_error, lambda windows, rng: (windows, windows[..., :tags]))


@dataclass
class Progress:
    """Where a training stands after an epoch: what the next epoch, or a resumed run, goes on from."""

    epoch: int = 0  # the next one
    best: int = 0
    seconds: float = 0.0
    windows: int = 0
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, now: dict[str, float]) -> None:
        """Append an epoch's figures."""
        for name, value in now.items():
            self.figures.setdefault(name, []).append(value)

    def history(self) -> TrainingHistory:
        parts = {k: v for k, v in self.figures.items() if k not in ("loss", "val_loss")}
        loss, val_loss = self.figures.get("loss", []), self.figures.get("val_loss", [])
        return TrainingHistory(loss, val_loss, self.best, self.seconds, self.windows, parts)


def train(
    task: Task,
    embedder: keras.Model,
    data: TrainingData,
    settings: TrainingSettings,
    workdir: Path,
    progress: EpochReport | None = None,
) -> TrainingHistory:
    """Train ``task.model`` on the streamed windows and leave it with the weights of its best epoch.

    The best epoch is the one of lowest validation loss. After each epoch ``workdir`` holds a whole checkpoint; a run of
    the same data and settings goes on from it and ends with the same weights as one that was never killed. Stops after
    ``patience`` epochs without a better one. TensorBoard logs go to ``workdir/logs``.
    Raises InputRefused E3302, E3304, E3305 and UsageError E2004 (batch too small for the task).
    """
    _check_sizes(task, data, settings)
    training = Training(task, data, settings)
    sample = sample_windows(data.validation, settings.seed)
    with closing(_Board(workdir / "logs")) as board:
        done = _epochs(training, embedder, sample, workdir, board, progress)
    load_weights(task.model, workdir / "best.npz")
    refuse_collapse(sample, outputs(embedder, sample))
    return done.history()


def _epochs(
    training: Training,
    embedder: keras.Model,
    sample: Windows,
    workdir: Path,
    board: _Board,
    progress: EpochReport | None,
) -> Progress:
    """Epoch after epoch until patience ends; every finite epoch that is the best so far leaves its weights."""
    best, model, settings = workdir / "best.npz", training.task.model, training.settings
    checkpoint = Checkpoint(workdir / "checkpoint.npz", training.task, training.identity())
    done = _resumed(checkpoint, best, settings.patience, settings.epochs)
    while done.epoch < settings.epochs:
        started, epoch = time.monotonic(), done.epoch
        now, done.windows = training.learn(epoch)
        now |= {f"val_{name}": value for name, value in training.judge(epoch).items()}
        now |= vars(spread_of(outputs(embedder, sample)))
        done.add(now)
        board.write(epoch, now)
        if progress:
            progress(epoch, now)
        if epoch == 0 or now["val_loss"] < done.figures["val_loss"][done.best]:
            done.best = epoch
            save_weights(model, best)
            killpoint("training.after_best")
        done.epoch += 1
        done.seconds += time.monotonic() - started
        checkpoint.save(vars(done))
        killpoint("training.after_checkpoint")
        if epoch - done.best >= settings.patience:
            log.info("no better epoch since %d: stopped at %d", done.best + 1, epoch + 1)
            break
    return done


def _resumed(checkpoint: Checkpoint, best: Path, patience: int, epochs: int) -> Progress:
    """Where an earlier run of the same training stopped, or the start."""
    values = checkpoint.load() if best.is_file() else None
    if values is None:
        return Progress()
    done = Progress(**values)
    log.info("training goes on after epoch %d", done.epoch)
    if done.epoch - 1 - done.best >= patience:
        done.epoch = epochs
    return done


def _check_sizes(task: Task, data: TrainingData, settings: TrainingSettings) -> None:
    least = task.smallest_batch
    if settings.batch_size < least:
        hint = f"set training.batch_size to {least} or more: this encoder learns by comparing windows with each other"
        raise UsageError(Fault("E2004", f"training.batch_size of at least {least}", settings.batch_size, hint))
    if data.n_windows < least:
        hint = "give a longer log, shorten --lookback, or choose an encoder that learns from single windows (dense_ae)"
        raise InputRefused(Fault("E3302", f"at least {least} normal training windows", data.n_windows, hint))


def _optimizer(settings: TrainingSettings) -> keras.optimizers.Optimizer:
    common: dict[str, Any] = {"learning_rate": settings.learning_rate}
    if settings.clip:
        common["global_clipnorm"] = settings.clip
    if settings.optimizer == "adamw":
        return keras.optimizers.AdamW(weight_decay=settings.weight_decay, **common)
    if settings.optimizer == "sgd":
        return keras.optimizers.SGD(momentum=settings.momentum, **common)
    return keras.optimizers.Adam(**common)


class Training:
    """One training: its task, compiled, its data and its settings."""

    def __init__(self, task: Task, data: TrainingData, settings: TrainingSettings) -> None:
        self.task, self.data, self.settings = task, data, settings
        self.steps = -(-data.n_windows // settings.batch_size)
        self.reading = ReadingAhead(allowed=task.ahead)
        task.model.compile(
            optimizer=_optimizer(settings),
            loss=task.loss,
            loss_weights=task.loss_weights,
            # XLA pays on accelerators; on TensorFlow's CPU it costs seconds to compile and slows convolutions.
            jit_compile=False if keras.backend.backend() == "tensorflow" else "auto",
        )

    def identity(self) -> str:
        """What a checkpoint must have been made of to go on from it: the windows, the settings, the layers."""
        shapes = [list(w.shape) for w in self.task.model.weights]
        return repr((self.data.fingerprint, self.data.shape, self.settings, self.task.model.name, shapes))

    def learn(self, epoch: int) -> tuple[dict[str, float], int]:
        """One pass over the training windows: mean losses, and the windows seen."""
        model, settings = self.task.model, self.settings
        means = _Means()
        total = self.steps * settings.epochs
        with closing(self.reading.batches(self._prepared(epoch, (settings.seed, epoch)))) as batches:
            for number, (batch, inputs, targets) in enumerate(batches):
                if settings.schedule != "constant" or settings.warmup:
                    step = epoch * self.steps + number
                    rate = learning_rate(
                        step, total, peak=settings.learning_rate, schedule=settings.schedule, warmup=settings.warmup
                    )
                    model.optimizer.learning_rate = rate
                if not means.add(model.train_on_batch(inputs, targets, return_dict=True), len(batch)):
                    raise _non_finite(epoch, number, "the loss", batch)
                if self.task.after_batch:
                    self.task.after_batch()
        if not means.windows:
            raise _nothing("normal windows to learn from")
        if not all(np.isfinite(w).all() for w in model.get_weights()):
            raise _non_finite(epoch, number, "a weight", batch)
        return means.values(), means.windows

    def judge(self, epoch: int) -> dict[str, float]:
        """Mean losses over the validation windows, with whatever is random drawn alike in every epoch."""
        model = self.task.model
        means = _Means()
        batches = self._prepared(epoch, (self.settings.seed,), validation=True)
        for number, (batch, inputs, targets) in enumerate(batches):
            if not means.add(model.test_on_batch(inputs, targets, return_dict=True), len(batch)):
                raise _non_finite(epoch, number, "the validation loss", batch)
        if not means.windows:
            raise _nothing("normal windows in the validation part")
        return means.values()

    def _prepared(
        self, epoch: int, seed: tuple[int, ...], validation: bool = False
    ) -> Generator[tuple[TrainingBatch, Any, Any], None, None]:
        rng = np.random.default_rng(seed)
        stream = self.data.validation if validation else self.data.train
        for batch in stream(epoch):
            for piece in pieces(batch, self.settings.batch_size):
                if len(piece) >= self.task.smallest_batch:
                    yield piece, *self.task.prepare(piece.windows, rng)


class _Means:
    """Mean losses over the windows of a pass."""

    def __init__(self) -> None:
        self.windows = 0
        self._sums: dict[str, float] = {}

    def add(self, losses: dict[str, Any], windows: int) -> bool:
        """Add a batch's losses; False, and nothing added, where its loss is not finite."""
        if not np.isfinite(float(losses["loss"])):
            return False
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value) * windows
        self.windows += windows
        return True

    def values(self) -> dict[str, float]:
        return {name: total / self.windows for name, total in self._sums.items()}


def pieces(batch: TrainingBatch, size: int) -> Iterator[TrainingBatch]:
    """A batch in pieces of at most ``size`` windows."""
    if len(batch) <= size:
        yield batch
        return
    for start in range(0, len(batch), size):
        own = slice(start, start + size)
        yield replace(
            batch,
            windows=batch.windows[own],
            asset=None if batch.asset is None else batch.asset[own],
            starts=None if batch.starts is None else batch.starts[own],
        )


def _nothing(expected: str) -> InputRefused:
    return InputRefused(Fault("E3302", expected, "none, or too few for one batch", "give a longer log"))


def _non_finite(epoch: int, number: int, what: str, batch: TrainingBatch) -> InputRefused:
    hint = "look for values of impossible size in the log, or lower training.learning_rate"
    found = f"{what} in epoch {epoch + 1}, batch {number + 1}, which begins with {batch.where(0)}"
    return InputRefused(Fault("E3304", "finite numbers", found, hint))


class _Board:
    """TensorBoard event files, written by the tensorboard package itself so that any backend can."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary import Writer  # type: ignore[import-untyped]

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = Writer(str(folder))

    def write(self, epoch: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)

    def close(self) -> None:
        self._writer.flush()
        self._writer.close()
