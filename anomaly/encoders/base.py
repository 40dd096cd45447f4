"""What every encoder promises: fit on streamed normal windows, embed any window, reconstruct where it can."""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from anomaly.config import TrainingSettings
from anomaly.data.local_normalisation import local_normalisation
from anomaly.errors import Fault, InputRefused, UsageError

#: Told after each epoch: epoch number from 0, and the losses.
EpochReport = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class WindowShape:
    """What one window holds: ``rows`` T, ``tags`` C, and per category the size of its vocabulary, slot 0 = unknown.

    A window is an array ``(T, channels)``: the tags first, then one channel of codes per category.
    """

    rows: int
    tags: int
    categories: tuple[int, ...] = ()

    @property
    def channels(self) -> int:
        """Tags and categories together."""
        return self.tags + len(self.categories)


@dataclass(frozen=True)
class TrainingBatch:
    """Prepared, finite windows ``(B, T, channels)`` float32, and where in the log each begins, for messages.

    ``asset (B,)`` names, ``starts (B,)`` first rows; None where the windows come from no log.
    """

    windows: NDArray[np.float32]
    asset: NDArray[np.object_] | None = None
    starts: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.windows)

    def where(self, window: int) -> str:
        """The window's place in the log, as an engineer would look it up; empty where unknown."""
        if self.asset is None or self.starts is None:
            return f"window {window + 1} of it"
        first = int(self.starts[window])
        return f"asset {self.asset[window]}, rows {first + 1} to {first + self.windows.shape[1]}"


#: Epoch number → one pass over prepared batches.
WindowBatches = Callable[[int], Iterator[TrainingBatch]]


@dataclass(frozen=True)
class TrainingData:
    """Streams of normal windows. ``train`` is mixed anew each epoch, ``validation`` is in order; both can be read again
    and again. ``n_windows`` is the length of one training pass, ``fingerprint`` what a checkpoint must have been made of."""

    shape: WindowShape
    train: WindowBatches
    validation: WindowBatches
    n_windows: int
    fingerprint: str = ""


@dataclass(frozen=True)
class TrainingHistory:
    """How a training went: losses per epoch, the epoch whose weights were kept, windows of one epoch.

    ``parts``: every further figure logged per epoch by its name: the losses of a sum apart, and of a sample of
    validation embeddings ``rank`` (effective dimensions) and ``spread``.
    """

    loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    windows: int = 0
    parts: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Option:
    """One option of an encoder: its default (which also gives the type), its meaning, its allowed values."""

    default: int | float | str | bool
    meaning: str
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()


class Encoder(ABC):
    """Learns from normal windows; embeds any window.

    Promises, held by ``tests/contracts/test_encoders.py``: shapes, the same seed gives the same embedding, a state that
    went through a fresh process gives the same embedding to 1e-5, input is not altered, training lowers the loss.

    ``front`` is the local normalisation that every window passes first (``anomaly.data.local_normalisation``); what is
    reconstructed is given back in the window's own units. ``options`` are listed in ``docs/encoders.md``.
    """

    name: ClassVar[str]
    summary: ClassVar[str]  # one line: what it is and where it comes from
    can_reconstruct: ClassVar[bool] = False
    option_list: ClassVar[Mapping[str, Option]] = {}
    trained: ClassVar[bool] = True  # learns by descent, epoch after epoch
    shortest: ClassVar[int] = 1  # rows of the shortest window it can learn from

    def __init__(self, front: str = "none", **options: Any) -> None:
        check_options(self.name, options, self.option_list)
        self.front = local_normalisation(front)
        self.options: dict[str, Any] = {name: o.default for name, o in self.option_list.items()} | options
        self.shape: WindowShape | None = None

    def fit(
        self,
        data: TrainingData,
        *,
        training: TrainingSettings,
        workdir: Path,
        progress: EpochReport | None = None,
    ) -> TrainingHistory:
        """Learn from streamed windows; ``workdir`` keeps the checkpoint that a killed run goes on from.

        Raises InputRefused E3302 (no window, or too few for a batch), E3304 (non-finite), E3305 (collapsed embedding),
        UsageError E2004 where the window is too short for the encoder.
        """
        if data.shape.rows < self.shortest:
            hint = f"set --lookback to {self.shortest} or more, or choose another encoder"
            raise UsageError(
                Fault("E2004", f"{self.name}: window.lookback of at least {self.shortest}", data.shape.rows, hint)
            )
        self.shape = data.shape
        return self._fit(self._fronted(data), training, workdir, progress)

    def embed(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Windows ``(B, T, channels)`` → embeddings ``(B, d)``; raises ValueError for windows of another shape."""
        return self._embed(self.through_front(self.checked(block)))

    def reconstruct(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Windows ``(B, T, channels)`` → what their tags should have been, ``(B, T, tags)``, where ``can_reconstruct``."""
        if not self.can_reconstruct:
            raise UsageError(
                Fault("E2002", "an encoder that reconstructs", self.name, "choose dense_ae, or the detector knn")
            )
        values = self.checked(block)
        tags = self.fitted_shape().tags
        return self.front.undo(self._reconstruct(self.through_front(values)), values[..., :tags])

    def graph(self, embedding: bool, reconstruction: bool) -> Any:
        """A Keras model from windows behind the front to what is asked for, in this order; None where there is none."""
        return None

    def facts(self) -> dict[str, int | str]:
        """What a reader of a report should know of it: its window, its embedding, and what else is its own."""
        shape = self.fitted_shape()
        width = self.embed(np.zeros((1, shape.rows, shape.channels), np.float32)).shape[1]
        window = f"{shape.rows} rows of {shape.tags} tags"
        if shape.categories:
            window += f" and {len(shape.categories)} categories"
        return {"encoder": self.name, "front": self.front.name, "window": window, "embedding width": width}

    @abstractmethod
    def _fit(
        self, data: TrainingData, training: TrainingSettings, workdir: Path, progress: EpochReport | None
    ) -> TrainingHistory:
        """``fit`` on windows that went through the front; ``data.shape.tags`` counts the front's channels."""

    @abstractmethod
    def _embed(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """``embed`` of windows that went through the front."""

    def _reconstruct(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """``reconstruct`` of windows that went through the front, in the front's own channels."""
        raise NotImplementedError(f"{self.name}: expected _reconstruct where can_reconstruct is set")

    @abstractmethod
    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready settings and weight arrays: no pickle, no Keras file format."""

    @classmethod
    @abstractmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Encoder:
        """The encoder from ``to_state``; raises ValueError when the weights belong to another architecture."""

    def fitted_shape(self) -> WindowShape:
        """The window it was fitted for; raises ValueError before a fit."""
        if self.shape is None:
            raise ValueError(
                f"{self.name}: expected an encoder that was fitted or loaded, got a new one; call fit first"
            )
        return self.shape

    def _inner_shape(self) -> WindowShape:
        """The window's shape behind the front."""
        shape = self.fitted_shape()
        return replace(shape, tags=self.front.channels(shape.tags))

    def checked(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """The block as it is; raises ValueError where it holds windows of another shape."""
        shape = self.fitted_shape()
        if block.ndim != 3 or block.shape[1:] != (shape.rows, shape.channels):
            raise ValueError(f"block: expected windows (B, {shape.rows}, {shape.channels}), got {block.shape}")
        return block

    def through_front(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Windows as the encoder itself sees them: tags locally normalised, category codes as they are."""
        tags = self.fitted_shape().tags
        values = self.front.apply(block[..., :tags])
        return np.concatenate((values, block[..., tags:]), axis=-1) if block.shape[-1] > tags else values

    def _fronted(self, data: TrainingData) -> TrainingData:
        """The same streams behind the front. What is not finite is refused here, before it can harm a weight."""

        def through(batches: WindowBatches, part: str) -> WindowBatches:
            def one_pass(epoch: int) -> Iterator[TrainingBatch]:
                for number, batch in enumerate(batches(epoch)):
                    check_finite(batch, epoch, number, part)
                    yield replace(batch, windows=self.through_front(batch.windows))

            return one_pass

        return replace(
            data,
            shape=self._inner_shape(),
            train=through(data.train, "training"),
            validation=through(data.validation, "validation"),
        )


def check_finite(batch: TrainingBatch, epoch: int, number: int, part: str) -> None:
    """Refuse (InputRefused E3304) a batch with NaN or infinity, naming the batch and the rows of its first bad window."""
    if np.isfinite(batch.windows).all():
        return
    bad = int(np.flatnonzero(~np.isfinite(batch.windows).reshape(len(batch), -1).all(axis=1))[0])
    found = f"a {part} window in epoch {epoch + 1}, batch {number + 1}: {batch.where(bad)}"
    raise InputRefused(Fault("E3304", "finite numbers", found, "look for values of impossible size in the log"))


def refuse_short_window(encoder: Encoder, shape: WindowShape, option: str, rows: int) -> None:
    """Refuse (UsageError E2004) a window with fewer rows than ``option`` of ``encoder`` asks for."""
    if shape.rows < rows:
        hint = f"lower {option}, or set --lookback to {rows} or more"
        raise UsageError(
            Fault("E2004", f"{option} of {encoder.name}: window.lookback of at least {rows}", shape.rows, hint)
        )


def refuse_indivisible(encoder: Encoder, whole: str, part: str) -> None:
    """Refuse (UsageError E2002) options where ``part`` does not divide ``whole``."""
    if encoder.options[whole] % encoder.options[part]:
        expected = f"{part} of {encoder.name}: a divisor of {whole} {encoder.options[whole]}"
        raise UsageError(Fault("E2002", expected, encoder.options[part]))


def check_options(name: str, given: Mapping[str, Any], known: Mapping[str, Option]) -> None:
    """Refuse an option that encoder ``name`` does not have, or a value outside its bounds (UsageError E2002)."""
    for option, value in given.items():
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1) or list(known)
            hint = f"did you mean {near[0]}?" if near else f"{name} has no options"
            raise UsageError(Fault("E2002", f"an option of {name}: {', '.join(known) or 'none'}", option, hint))
        if not _allowed(value, known[option]):
            raise UsageError(Fault("E2002", f"{option} of {name}: {_bounds(known[option])}", repr(value)))


def _allowed(value: Any, option: Option) -> bool:
    kind = type(option.default)
    right = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not right or (isinstance(value, bool) and kind is not bool):
        return False
    if option.choices:
        return value in option.choices
    if isinstance(value, int | float):
        low = -math.inf if option.least is None else option.least
        high = math.inf if option.most is None else option.most
        return math.isfinite(value) and low <= value <= high
    return True


def _bounds(option: Option) -> str:
    """What an option may be, in words.

    >>> _bounds(Option(8, "units", least=1))
    'int, at least 1'
    """
    if option.choices:
        return "one of " + ", ".join(option.choices)
    words = [type(option.default).__name__]
    words += [f"at least {option.least:g}"] if option.least is not None else []
    words += [f"at most {option.most:g}"] if option.most is not None else []
    return ", ".join(words)
