"""Inference engines: the same outputs from each, once per window, from any thread (METHODS S2)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from anomaly.encoders import encoder_class, inference
from anomaly.encoders.base import Encoder, WindowShape
from anomaly.encoders.inference import GraphEngine, LiteRtEngine, inference_engine, largest_difference
from anomaly.encoders.neural import NeuralEncoder
from anomaly.errors import UsageError

SHAPE = WindowShape(16, 3)


def fresh(name: str, shape: WindowShape = SHAPE, front: str = "none") -> Encoder:
    """An encoder with the weights it starts from: what it learned does not matter here."""
    encoder = encoder_class(name)(front=front)
    assert isinstance(encoder, NeuralEncoder)
    encoder.shape = shape
    encoder._made(encoder._inner_shape(), seed=3)
    return encoder


def windows(n: int, shape: WindowShape = SHAPE) -> np.ndarray:
    rng = np.random.default_rng(n)
    values = rng.normal(size=(n, shape.rows, shape.channels)).astype(np.float32)
    for number, words in enumerate(shape.categories):
        values[..., shape.tags + number] = rng.integers(words, size=(n, 1))
    return values


needs_export = pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX graphs cannot be exported to LiteRT")


@needs_export
@pytest.mark.parametrize("name", ["dense_ae", "conv_ae", "transformer", "contrastive", "masked_ae"])
@pytest.mark.parametrize("front", ["none", "normalise"])
def test_s2_the_exported_graph_agrees_with_the_graph_to_1e_5(name: str, front: str) -> None:
    encoder = fresh(name, front=front)
    fast = inference_engine(encoder, True, encoder.can_reconstruct, "litert")
    assert fast.name == "litert"
    block = windows(777)
    given = fast(block)
    np.testing.assert_allclose(given.embedding, encoder.embed(block), atol=1e-5, rtol=1e-5)
    if encoder.can_reconstruct:
        np.testing.assert_allclose(given.reconstruction, encoder.reconstruct(block), atol=1e-5, rtol=1e-5)


def test_the_graph_engine_gives_what_the_encoder_gives() -> None:
    encoder, block = fresh("conv_ae", front="demean"), windows(1500)
    given = inference_engine(encoder, True, True, "graph")(block)
    np.testing.assert_allclose(given.embedding, encoder.embed(block), atol=1e-6)
    np.testing.assert_allclose(given.reconstruction, encoder.reconstruct(block), atol=1e-6)


@needs_export
def test_categories_pass_the_exported_graph() -> None:
    shape = WindowShape(12, 2, (4, 3))
    encoder = fresh("dense_ae", shape)
    fast = inference_engine(encoder, True, True)
    assert largest_difference(GraphEngine(encoder, True, True), fast) <= 1e-5
    given = fast(windows(5, shape))
    assert given.reconstruction is not None and given.reconstruction.shape == (5, 12, 2)


@pytest.mark.parametrize("kind", ["graph", pytest.param("litert", marks=needs_export)])
def test_s2_a_row_does_not_depend_on_its_neighbours_or_the_number_of_rows(kind: str) -> None:
    engine = inference_engine(fresh("conv_ae"), True, True, kind)
    block = windows(1300)
    whole = engine(block)
    for low, high in ((0, 1), (3, 700), (1299, 1300)):
        part = engine(block[low:high])
        np.testing.assert_allclose(part.embedding, whole.embedding[low:high], atol=2e-7)
        np.testing.assert_allclose(part.reconstruction, whole.reconstruction[low:high], atol=2e-7)
    empty = engine(block[:0])
    assert empty.embedding.shape == (0, whole.embedding.shape[1]) and empty.reconstruction.shape == (0, 16, 3)


@pytest.mark.parametrize("kind", ["graph", pytest.param("litert", marks=needs_export)])
def test_threads_get_the_same_results(kind: str) -> None:
    engine = inference_engine(fresh("conv_ae"), True, False, kind)
    blocks = [windows(n) for n in range(200, 232)]
    alone = [engine(block).embedding for block in blocks]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda block: engine(block).embedding, blocks))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@needs_export
def test_an_encoder_that_cannot_be_exported_runs_as_a_graph_and_says_why() -> None:
    encoder = fresh("lstm_ae")
    engine = inference_engine(encoder, True, True)
    assert engine.name == "graph" and engine.why
    np.testing.assert_allclose(engine(windows(9)).embedding, encoder.embed(windows(9)), atol=1e-6)
    with pytest.raises(UsageError, match="leave engine at auto"):
        inference_engine(encoder, True, True, "litert")


def test_without_the_extra_the_graph_runs_and_the_reason_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference.importlib.util, "find_spec", lambda name: None)
    engine = inference_engine(fresh("dense_ae"), True, True)
    assert engine.name == "graph" and "fast" in engine.why


@needs_export
def test_an_exported_graph_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "largest_difference", lambda one, other: 3e-5)
    engine = inference_engine(fresh("dense_ae"), True, True)
    assert engine.name == "graph" and "3.0e-05" in engine.why


@needs_export
def test_exporting_writes_nothing_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    encoder = fresh("dense_ae")
    capfd.readouterr()
    assert isinstance(inference_engine(encoder, True, True, "litert"), LiteRtEngine)
    assert capfd.readouterr() == ("", "")


def test_an_encoder_without_a_graph_runs_its_own_code() -> None:
    encoder = encoder_class("features")()
    assert inference_engine(encoder, True, False).name == "own"


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(UsageError, match="one of auto, litert, graph"):
        inference_engine(fresh("dense_ae"), True, False, "gpu")


def test_windows_of_another_shape_are_refused() -> None:
    engine = inference_engine(fresh("dense_ae"), True, True, "graph")
    with pytest.raises(ValueError, match="expected windows"):
        engine(np.zeros((2, 16, 4), np.float32))
