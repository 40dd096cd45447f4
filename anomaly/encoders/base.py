"""What every encoder promises. A class is either this interface or a leaf; nothing is overridden twice."""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from anomaly.config import TrainingSettings
from anomaly.errors import Fault, UsageError

#: Epoch number → one pass over prepared, finite batches ``(B, T, C)`` float32.
WindowBatches = Callable[[int], Iterator[NDArray[np.float32]]]
#: Told after each epoch: epoch number from 0, and the losses.
EpochReport = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class TrainingHistory:
    """How a training went: losses per epoch, the epoch whose weights were kept, windows of one epoch."""

    loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    windows: int = 0


class Encoder(ABC):
    """Learns from normal windows; embeds any window.

    Promises, held by ``tests/contracts/test_encoders.py``: shapes, the same seed gives the same embedding, a state that
    went through a fresh process gives the same embedding to 1e-5, input is not altered, training lowers the loss.
    """

    name: ClassVar[str]
    can_reconstruct: ClassVar[bool] = False

    @abstractmethod
    def fit(
        self,
        batches: WindowBatches,
        validation: WindowBatches,
        *,
        window_shape: tuple[int, int],
        training: TrainingSettings,
        workdir: Path,
        progress: EpochReport | None = None,
    ) -> TrainingHistory:
        """Learn from streamed batches; raises InputRefused E3302 (no window) or E3304 (non-finite)."""

    @abstractmethod
    def embed(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Windows ``(B, T, C)`` → embeddings ``(B, d)``."""

    def reconstruct(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Windows ``(B, T, C)`` → their reconstruction ``(B, T, C)``; only where ``can_reconstruct``."""
        raise UsageError(
            Fault("E2002", "an encoder that reconstructs", self.name, "choose dense_ae, or another detector")
        )

    @abstractmethod
    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready settings and weight arrays: no pickle, no Keras file format."""

    @classmethod
    @abstractmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Encoder:
        """The encoder from ``to_state``; raises ValueError when the weights belong to another architecture."""


def check_options(name: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Refuse an option that encoder ``name`` does not have (UsageError E2002), with the nearest name."""
    names = list(known)
    for option in options:
        if option not in names:
            near = difflib.get_close_matches(option, names, n=1) or names
            hint = f"did you mean {near[0]}?"
            raise UsageError(Fault("E2002", f"an option of {name}: {', '.join(names)}", option, hint))


def check_number(name: str, options: Mapping[str, Any], option: str, kind: type, least: float) -> None:
    """Refuse an option of encoder ``name`` that is no finite ``kind`` of at least ``least`` (UsageError E2002).

    >>> check_number("dense_ae", {"code": 8}, "code", int, 1)
    """
    if option not in options:
        return
    value = options[option]
    right = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not right or not math.isfinite(value) or value < least:
        raise UsageError(Fault("E2002", f"{option} of {name}: {kind.__name__}, at least {least:g}", repr(value)))
