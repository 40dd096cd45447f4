"""The hybrid objective: its parts alone, and together (METHODS S30)."""

from __future__ import annotations

import numpy as np
import pytest
from encoder_data import brief, data_of
from planted_windows import tones

from anomaly.encoders.contrastive import ContrastiveEncoder
from anomaly.encoders.hybrid import HybridEncoder
from anomaly.encoders.masked_ae import MaskedAutoencoder
from anomaly.errors import UsageError

SMALL = {"embedding": 8, "width": 8, "depth": 1}
WINDOWS = tones(128, 0, rows=8)[0]


def losses(encoder, workdir):
    history = encoder.fit(data_of(WINDOWS), training=brief(epochs=2), workdir=workdir)
    return history, encoder.embed(WINDOWS[:5])


def test_s30_a_weight_of_zero_leaves_the_other_part_exactly(tmp_path):
    masked, drawn = losses(MaskedAutoencoder(**SMALL), tmp_path / "m")
    only, same = losses(HybridEncoder(**SMALL, head=8, contrastive_weight=0.0), tmp_path / "hm")
    np.testing.assert_allclose(only.loss, masked.loss, rtol=1e-6)
    np.testing.assert_allclose(same, drawn, atol=1e-6)
    contrast, drawn = losses(ContrastiveEncoder(**SMALL, head=8), tmp_path / "c")
    weights = {"masked_weight": 0.0, "contrastive_weight": 1.0}
    only, same = losses(HybridEncoder(**SMALL, head=8, **weights), tmp_path / "hc")
    np.testing.assert_allclose(only.loss, contrast.loss, rtol=1e-6)
    np.testing.assert_allclose(same, drawn, atol=1e-6)


def test_s30_each_loss_is_logged_apart_and_they_add_up(tmp_path):
    weights = {"masked_weight": 0.7, "contrastive_weight": 0.2}
    history, _ = losses(HybridEncoder(**SMALL, head=8, **weights), tmp_path)
    parts = history.parts
    total = 0.7 * np.array(parts["masked_loss"]) + 0.2 * np.array(parts["contrastive_loss"])
    np.testing.assert_allclose(history.loss, total, rtol=1e-5)
    validated = 0.7 * np.array(parts["val_masked_loss"]) + 0.2 * np.array(parts["val_contrastive_loss"])
    np.testing.assert_allclose(history.val_loss, validated, rtol=1e-5)


def test_both_weights_zero_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"E2002.*above 0"):
        losses(HybridEncoder(masked_weight=0.0, contrastive_weight=0.0), tmp_path)
