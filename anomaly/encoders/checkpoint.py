"""Everything a killed training needs to go on, in one file that appears whole or not at all."""

from __future__ import annotations

import json
import logging
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from anomaly.files import atomic_path

if TYPE_CHECKING:
    from anomaly.encoders.training import Task

log = logging.getLogger(__name__)


class Checkpoint:
    """The file at ``path``: model, optimizer and task state with where the training stands. ``identity`` says what the
    training is made of; a file of another one is not gone on from."""

    def __init__(self, path: Path, task: Task, identity: str) -> None:
        self.path, self.task, self.identity = path, task, identity

    def save(self, progress: dict[str, Any]) -> None:
        """Write the state, whole or not at all."""
        model = self.task.model
        arrays = {f"model/{i:04d}": np.asarray(v) for i, v in enumerate(_model_variables(model))}
        arrays |= {f"optimizer/{i:04d}": np.asarray(v) for i, v in enumerate(model.optimizer.variables)}
        if self.task.state:
            arrays |= {f"task/{name}": value for name, value in self.task.state().items()}
        arrays["progress"] = _text(json.dumps(progress))
        arrays["identity"] = _text(self.identity)
        with atomic_path(self.path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)

    def load(self) -> dict[str, Any] | None:
        """Put the state back and give its progress; None where there is none of this training."""
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                arrays = dict(stored)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            log.warning("the checkpoint cannot be read, training starts anew: %s", error)
            return None
        if _words(arrays.pop("identity", None)) != self.identity:
            log.info("the checkpoint is of other data or settings: training starts anew")
            return None
        progress: dict[str, Any] = json.loads(_words(arrays.pop("progress")))
        model = self.task.model
        model.optimizer.build(model.trainable_variables)
        for kind, variables in (("model", _model_variables(model)), ("optimizer", model.optimizer.variables)):
            own = _of(arrays, kind)
            for variable, name in zip(variables, sorted(own), strict=True):
                variable.assign(own[name])
        if self.task.restore:
            self.task.restore(_of(arrays, "task"))
        return progress


def _model_variables(model: keras.Model) -> list[Any]:
    """Weights and the states of random generators, without the metrics' running sums."""
    metrics = {id(v) for v in model.metrics_variables}
    return [v for v in model.variables if id(v) not in metrics]


def _of(arrays: dict[str, NDArray[Any]], kind: str) -> dict[str, NDArray[Any]]:
    return {name.partition("/")[2]: value for name, value in arrays.items() if name.startswith(f"{kind}/")}


def _text(words: str) -> NDArray[np.uint8]:
    return np.frombuffer(words.encode(), dtype=np.uint8)


def _words(array: NDArray[np.uint8] | None) -> str:
    return "" if array is None else array.tobytes().decode()
