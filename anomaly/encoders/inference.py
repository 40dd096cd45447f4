"""Inference engines: windows through an encoder once, embedding and reconstruction from the same pass (METHODS S2).

``litert`` runs the exported graph on one thread per caller, where ``ai-edge-litert`` is installed (the extra ``fast``) and
the graph can be exported; ``graph`` runs it on the Keras backend, ``own`` is the encoder's own code where it has no graph.
They agree to 1e-5, which is checked before an exported graph is used. None of them is ``predict``, whose set-up costs
more than a block.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly.encoders.base import Encoder
from anomaly.errors import Fault, UsageError

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

ENGINES = ("auto", "litert", "graph")
#: Largest difference to the graph, for outputs of about 1, at which an exported graph is used.
TOLERANCE = 1e-5
#: Windows from which an export, a second or two, costs less than it saves.
WORTH_EXPORTING = 100_000
#: Bytes of the windows of one call, which should stay in the cache with what is made of them, and rows of it.
_CALL_BYTES, _MOST_ROWS, _LEAST_ROWS = 256 << 10, 512, 16
_GRAPH_ROWS = 1024

Windows = NDArray[np.float32]


class Passed(NamedTuple):
    """What came of windows: ``embedding (B, d)`` and ``reconstruction (B, T, tags)``, None where it was not asked for."""

    embedding: Windows | None
    reconstruction: Windows | None


class Engine(ABC):
    """Windows ``(B, T, channels)`` → ``Passed``. May be called from several threads; ``name`` says what runs.

    ``why`` says in words why a faster engine was not taken, "" where there is nothing to say.
    """

    name: str
    why: str = ""

    def __init__(self, encoder: Encoder, embedding: bool, reconstruction: bool) -> None:
        self.encoder, self.embedding, self.reconstruction = encoder, embedding, reconstruction

    def __call__(self, windows: Windows) -> Passed:
        """Raises ValueError for windows of another shape."""
        if not (self.embedding or self.reconstruction):
            return Passed(None, None)
        return self._pass(windows)

    @abstractmethod
    def _pass(self, windows: Windows) -> Passed: ...


class OwnEngine(Engine):
    """The encoder's own methods, for encoders that are no graph."""

    name = "own"

    def _pass(self, windows: Windows) -> Passed:
        return Passed(
            self.encoder.embed(windows) if self.embedding else None,
            self.encoder.reconstruct(windows) if self.reconstruction else None,
        )


class GraphEngine(Engine):
    """The graph on the Keras backend, in padded calls of one fixed size; one call at a time, which uses all cores."""

    name = "graph"

    def __init__(self, encoder: Encoder, embedding: bool, reconstruction: bool) -> None:
        super().__init__(encoder, embedding, reconstruction)
        self.model = encoder.graph(embedding, reconstruction)
        self._one_at_a_time = threading.Lock()

    def _pass(self, windows: Windows) -> Passed:
        inner = self.encoder.through_front(self.encoder.checked(windows))
        with self._one_at_a_time:
            parts = [self._call(inner[low : low + _GRAPH_ROWS]) for low in range(0, max(len(inner), 1), _GRAPH_ROWS)]
        return _given_back(self, windows, [np.concatenate(column) for column in zip(*parts, strict=True)])

    def _call(self, part: Windows) -> list[Windows]:
        padded = part
        if len(part) < _GRAPH_ROWS:
            padded = np.zeros((_GRAPH_ROWS, *part.shape[1:]), np.float32)
            padded[: len(part)] = part
        made = self.model.predict_on_batch(padded)
        return [np.asarray(one)[: len(part)] for one in (made if isinstance(made, list | tuple) else [made])]


class LiteRtEngine(Engine):
    """The exported graph, one interpreter with one thread for every thread that calls."""

    name = "litert"

    def __init__(self, encoder: Encoder, embedding: bool, reconstruction: bool) -> None:
        super().__init__(encoder, embedding, reconstruction)
        self._content = exported(encoder.graph(embedding, reconstruction))
        self._own = threading.local()

    def _pass(self, windows: Windows) -> Passed:
        inner = self.encoder.through_front(self.encoder.checked(windows))
        held = getattr(self._own, "interpreter", None)
        if held is None:
            held = self._own.interpreter = _Interpreter(self._content, inner.shape[1:])
        outputs = [np.empty((len(inner), *shape), np.float32) for shape in held.shapes]
        for low in range(0, len(inner), held.rows):
            held.run(inner[low : low + held.rows], [output[low : low + held.rows] for output in outputs])
        return _given_back(self, windows, outputs)


class _Interpreter:
    """One interpreter for calls of ``rows`` windows ``shape``; ``shapes`` are those of one row of its outputs."""

    def __init__(self, content: bytes, shape: tuple[int, ...]) -> None:
        from ai_edge_litert.interpreter import Interpreter

        fitting = _CALL_BYTES // (4 * int(np.prod(shape)))
        self.rows = int(np.clip(1 << max(fitting.bit_length() - 1, 0), _LEAST_ROWS, _MOST_ROWS))
        with _quiet():
            self._made = Interpreter(model_content=content, num_threads=1)
            self._input = int(self._made.get_input_details()[0]["index"])
            self._made.resize_tensor_input(self._input, (self.rows, *shape))
            self._made.allocate_tensors()
        # Outputs are told apart by their rank: the order in the file is the exporter's.
        details = sorted(self._made.get_output_details(), key=lambda d: len(d["shape"]))
        self._outputs = [int(d["index"]) for d in details]
        self.shapes = [tuple(int(n) for n in d["shape"][1:]) for d in details]
        self._padded = np.zeros((self.rows, *shape), np.float32)

    def run(self, part: Windows, into: list[Windows]) -> None:
        """Windows ``(b, …)``, b at most ``rows``, → their outputs into ``into``."""
        self._padded[: len(part)] = part
        self._made.set_tensor(self._input, self._padded)
        self._made.invoke()
        for index, output in zip(self._outputs, into, strict=True):
            output[:] = self._made.get_tensor(index)[: len(part)]


def _given_back(engine: Engine, windows: Windows, outputs: list[Windows]) -> Passed:
    """Outputs in the order embedding, reconstruction; what is reconstructed in the window's own units."""
    embedding = outputs[0] if engine.embedding else None
    if not engine.reconstruction:
        return Passed(embedding, None)
    tags = engine.encoder.fitted_shape().tags
    return Passed(embedding, engine.encoder.front.undo(outputs[-1], windows[..., :tags]))


def inference_engine(encoder: Encoder, embedding: bool, reconstruction: bool, kind: str = "auto") -> Engine:
    """The engine ``kind`` of a fitted encoder: "graph", "litert", or "auto", which takes LiteRT where it can.

    Raises UsageError E2002 for another kind, and for "litert" where it cannot run: ``ai-edge-litert`` is missing, the
    graph cannot be exported from this backend, or what it gives differs from the graph by more than 1e-5.
    """
    if kind not in ENGINES:
        raise UsageError(Fault("E2002", f"engine: one of {', '.join(ENGINES)}", kind))
    graph = GraphEngine(encoder, embedding, reconstruction) if embedding or reconstruction else None
    if graph is None or graph.model is None:
        return OwnEngine(encoder, embedding, reconstruction)
    if kind == "graph":
        return graph
    made, why = _litert(graph, encoder)
    if made is not None:
        return made
    if kind == "litert":
        raise UsageError(Fault("E2002", "an encoder and machine that LiteRT can serve", why, "leave engine at auto"))
    graph.why = why
    return graph


def kind_for(windows: int, asked: str = "auto") -> str:
    """The engine kind for a job of so many windows: "auto" exports only where that pays.

    >>> kind_for(1000), kind_for(10**6), kind_for(1000, "litert")
    ('graph', 'auto', 'litert')
    """
    return "graph" if asked == "auto" and windows < WORTH_EXPORTING else asked


def _litert(graph: GraphEngine, encoder: Encoder) -> tuple[Engine | None, str]:
    """The exported engine, or why there is none. A wrong or missing engine must never stop a job."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        return None, "ai-edge-litert is not installed; the extra `fast` brings it"
    if backend() not in ("tensorflow", "torch"):
        return None, f"graphs of the backend {backend()} cannot be exported"
    try:
        made = LiteRtEngine(encoder, graph.embedding, graph.reconstruction)
        apart = largest_difference(graph, made)
    except Exception as error:  # the exporter raises whatever its parts raise
        log.debug("export of %s failed", encoder.name, exc_info=True)
        return None, f"{encoder.name} cannot be exported ({type(error).__name__})"
    if not apart <= TOLERANCE:
        return None, f"the exported graph differs by {apart:.1e}"
    return made, ""


def largest_difference(one: Engine, other: Engine) -> float:
    """Largest difference of outputs on random windows, over the size of the outputs where that is above 1."""
    shape = one.encoder.fitted_shape()
    rng = np.random.default_rng(0)
    windows = rng.standard_normal((64, shape.rows, shape.channels)).astype(np.float32)
    for number, words in enumerate(shape.categories):
        windows[..., shape.tags + number] = rng.integers(words, size=(64, 1))
    both = zip(one(windows), other(windows), strict=True)
    pairs = [(a, b) for a, b in both if a is not None and b is not None]
    return max(float(np.abs(a - b).max() / max(1.0, float(np.abs(a).max()))) for a, b in pairs)


def backend() -> str:
    """Name of the Keras backend in use."""
    import keras

    return str(keras.backend.backend())


def exported(model: keras.Model) -> bytes:
    """The model as a LiteRT flatbuffer; raises what the exporter raises."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "graph.tflite"
        model.export(str(path), format="litert", verbose=False)
        return path.read_bytes()


_redirecting = threading.Lock()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporter and interpreter write notes of their own making past every logger."""
    sys.stdout.flush()
    sys.stderr.flush()
    with _redirecting, tempfile.TemporaryFile() as sink:
        kept = [os.dup(1), os.dup(2)]
        try:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, handle in enumerate(kept, start=1):
                os.dup2(handle, number)
                os.close(handle)
