"""The transformer encoder: its defaults, its options, what each pooling learns (METHODS S22, S23, S24)."""

from __future__ import annotations

import numpy as np
import pytest
from encoder_data import brief, data_of

from anomaly.encoders.base import WindowShape
from anomaly.encoders.layers import SelfAttention
from anomaly.encoders.probes import probe_table
from anomaly.encoders.transformer import TransformerEncoder
from anomaly.errors import UsageError

SMALL = {"width": 16, "depth": 1, "heads": 2, "embedding": 16}


def attentions(encoder: TransformerEncoder, rows: int = 5) -> list[SelfAttention]:
    layers = encoder.networks(WindowShape(rows, 2), seed=0).embedder.layers
    return [layer for layer in layers if isinstance(layer, SelfAttention)]


def test_s22_four_blocks_of_four_heads_at_64_by_default():
    encoder = TransformerEncoder()
    found = attentions(encoder)
    assert [(layer.heads, layer.kind, layer.output.shape) for layer in found] == [(4, "full", (None, 6, 64))] * 4
    assert encoder.networks(WindowShape(5, 2), seed=0).embedder.output_shape == (None, 64)


@pytest.mark.parametrize("rows", [1, 3, 9, 16])
@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_s22_odd_and_even_lengths_are_drawn_back(rows, pooling):
    networks = TransformerEncoder(**SMALL | {"pooling": pooling}).networks(WindowShape(rows, 3), seed=0)
    assert networks.reconstructor is not None
    assert networks.reconstructor.output_shape == (None, rows, 3)


def test_s24_the_option_reaches_every_block():
    found = attentions(TransformerEncoder(**SMALL | {"depth": 3, "attention": "probsparse"}), rows=64)
    assert [layer.kind for layer in found] == ["probsparse"] * 3
    assert all(layer.count < 64 for layer in found)


def test_s22_heads_that_do_not_divide_the_width_are_refused(tmp_path):
    windows = np.zeros((4, 5, 2), np.float32)
    with pytest.raises(UsageError, match=r"E2002.*heads of transformer: a divisor of width 16"):
        TransformerEncoder(**SMALL | {"heads": 3}).fit(data_of(windows), training=brief(), workdir=tmp_path)
    with pytest.raises(UsageError, match=r"E2002.*pooling of transformer: one of cls, mean, max"):
        TransformerEncoder(pooling="median")


def tones(n: int, rows: int = 31) -> tuple[np.ndarray, np.ndarray]:
    """Waves of 6 or 9 rows at any phase in noise: both classes have the same mean."""
    rng = np.random.default_rng(1)
    label = rng.integers(0, 2, n)
    turns = np.arange(rows)[None] / np.where(label, 6.0, 9.0)[:, None] + rng.random((n, 1))
    return (np.sin(2 * np.pi * turns) + 0.3 * rng.normal(size=(n, rows)))[..., None].astype(np.float32), label


@pytest.mark.slow
def test_s23_class_token_and_mean_each_beat_raw_windows_on_a_linear_probe(tmp_path):
    windows, label = tones(2500)
    given = {"raw windows": windows[..., 0]}
    for pooling in ("cls", "mean"):
        encoder = TransformerEncoder(**SMALL | {"pooling": pooling})
        encoder.fit(
            data_of(windows[:1500], batch_size=64),
            training=brief(epochs=8, learning_rate=3e-3, batch_size=64),
            workdir=tmp_path / pooling,
        )
        given[pooling] = encoder.embed(windows)
    table = probe_table(given, label, [(np.arange(1500), np.arange(1500, 2500))], probes=("linear",))
    assert table.value("raw windows", "linear") < 0.6, table.to_text()
    for pooling in ("cls", "mean"):
        assert table.value(pooling, "linear") > 0.8, table.to_text()
