"""Masked reconstruction and contrast on one embedding, weighed (METHODS S30).

Drawing hidden rows keeps detail, contrast keeps windows apart. A weight of 0 leaves the other task exactly as it is
alone; the losses are logged apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np
from numpy.typing import NDArray

from anomaly.encoders.augmentations import view
from anomaly.encoders.base import Option, WindowShape
from anomaly.encoders.contrastive import VIEW_OPTIONS, embedder_of, projected, strengths_of
from anomaly.encoders.losses import nt_xent
from anomaly.encoders.masked_ae import decoded, masked_batch, shown
from anomaly.encoders.masking import FILLS, masked_mse
from anomaly.encoders.neural import Networks, NeuralEncoder
from anomaly.encoders.training import Task
from anomaly.errors import Fault, UsageError

Windows = NDArray[np.float32]


class HybridEncoder(NeuralEncoder):
    """One backbone, a decoder and a projection head on its embedding, both dropped after training."""

    name: ClassVar[str] = "hybrid"
    summary: ClassVar[str] = "masked reconstruction and contrast with weights (S30)"
    option_list: ClassVar[Mapping[str, Option]] = VIEW_OPTIONS | {
        "masked_weight": Option(1.0, "weight of the masked reconstruction", least=0),
        "contrastive_weight": Option(0.1, "weight of the contrast", least=0),
        "mask_share": Option(0.75, "share of rows that are hidden", least=0.05, most=0.95),
        "fill": Option("token", "what stands in their place", choices=FILLS),
    }

    def networks(self, shape: WindowShape, seed: int) -> Networks:
        """Both tasks on one embedder, or the one whose weight is not 0."""
        weights = {"masked": self.options["masked_weight"], "contrastive": self.options["contrastive_weight"]}
        used = {name: float(weight) for name, weight in weights.items() if weight}
        if not used:
            raise UsageError(Fault("E2002", "masked_weight or contrastive_weight of hybrid above 0", "both 0"))
        embedder = embedder_of(self.options, shape)
        inputs, ends = {}, {}
        if "masked" in used:
            inputs["filled"] = keras.Input((shape.rows, shape.channels), name="filled")
            inputs["mask"] = keras.Input((shape.rows,), name="mask")
            whole = shown(inputs["filled"], inputs["mask"], shape, self.options["fill"])
            ends["masked"] = decoded(embedder(whole), shape)
        if "contrastive" in used:
            inputs["views"] = keras.Input((shape.rows, shape.channels), name="views")
            ends["contrastive"] = projected(embedder(inputs["views"]), self.options)
        model = keras.Model(inputs, ends, name=self.name)
        losses = {"masked": masked_mse, "contrastive": nt_xent(self.options["temperature"])}
        task = Task(
            model,
            {name: losses[name] for name in used},
            self._prepare(shape, tuple(used)),
            loss_weights=used,
            smallest_batch=2 if "contrastive" in used else 1,
        )
        return Networks(embedder, task)

    def _prepare(self, shape: WindowShape, used: tuple[str, ...]) -> Any:
        """Each task draws from the generator as it would alone."""
        strengths, share, fill = strengths_of(self.options), self.options["mask_share"], self.options["fill"]

        def prepare(batch: Windows, rng: np.random.Generator) -> tuple[dict[str, Windows], dict[str, Windows]]:
            inputs: dict[str, Windows] = {}
            targets: dict[str, Windows] = {}
            if "masked" in used:
                inputs, targets["masked"] = masked_batch(batch, rng, shape, share, fill)
            if "contrastive" in used:
                inputs["views"] = np.concatenate([view(rng, batch, shape.tags, strengths) for _ in range(2)])
                targets["contrastive"] = np.zeros((2 * len(batch), 1), np.float32)
            return inputs, targets

        return prepare
