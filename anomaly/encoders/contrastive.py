"""The contrastive encoder: two views of a window should embed alike, and unlike every other (METHODS S26, S27, S29).

A projection head stands between embedding and loss while training. It is dropped afterwards: the head forgets what the
views differ in, the embedding before it does not have to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np
from numpy.typing import NDArray

from anomaly.encoders.augmentations import AUGMENTATIONS, view
from anomaly.encoders.backbones import BACKBONES, build_embedder
from anomaly.encoders.base import Option, WindowShape
from anomaly.encoders.layers import gelu
from anomaly.encoders.losses import nt_xent
from anomaly.encoders.neural import Networks, NeuralEncoder
from anomaly.encoders.training import Task
from anomaly.errors import Fault, UsageError

Windows = NDArray[np.float32]

#: Heads of attention where the backbone is a transformer.
HEADS = 4
#: Options of every encoder that learns from views.
VIEW_OPTIONS: dict[str, Option] = {
    "backbone": Option("cnn", "what reads the window", choices=BACKBONES),
    "embedding": Option(64, "length of the embedding", least=1),
    "width": Option(32, "length of a row's vector inside; four heads divide it", least=4),
    "depth": Option(2, "blocks of the backbone", least=1),
    "head": Option(64, "units of the projection head", least=2),
    "head_layers": Option(2, "layers of the projection head", least=1, most=4),
    "temperature": Option(0.2, "how sharply the nearest others are told apart", least=0.005, most=10),
    "crop": Option(0.3, "view: a stretch of the rows, drawn out; largest share left out", least=0, most=0.9),
    "time_warp": Option(0.0, "view: a pace that wanders", least=0, most=1),
    "scale": Option(0.1, "view: each tag times about 1", least=0, most=1),
    "magnitude_warp": Option(0.0, "view: times a smooth curve around 1", least=0, most=1),
    "time_mask": Option(0.1, "view: share of rows held at the mean", least=0, most=0.9),
    "sensor_dropout": Option(0.1, "view: chance of a tag to be held at its mean", least=0, most=0.9),
    "jitter": Option(0.1, "view: noise in deviations", least=0, most=2),
}


class ContrastiveEncoder(NeuralEncoder):
    """SimCLR for windows: NT-Xent over the two views of every window of a batch."""

    name: ClassVar[str] = "contrastive"
    summary: ClassVar[str] = "contrastive encoder: NT-Xent over augmented views (S26, S27, S29)"
    option_list: ClassVar[Mapping[str, Option]] = VIEW_OPTIONS

    def networks(self, shape: WindowShape, seed: int) -> Networks:
        """Backbone and, while training, the head on its embedding."""
        embedder = embedder_of(self.options, shape)
        model = keras.Model(embedder.input, projected(embedder.output, self.options), name=self.name)
        strengths = strengths_of(self.options)

        def prepare(batch: Windows, rng: np.random.Generator) -> tuple[Windows, Windows]:
            both = np.concatenate([view(rng, batch, shape.tags, strengths) for _ in range(2)])
            return both, np.zeros((len(both), 1), np.float32)

        return Networks(embedder, Task(model, nt_xent(self.options["temperature"]), prepare, smallest_batch=2))


def embedder_of(options: Mapping[str, Any], shape: WindowShape) -> keras.Model:
    """The backbone that the options name; refuses (UsageError E2002) a width that attention's heads do not divide."""
    if options["backbone"] == "transformer" and options["width"] % HEADS:
        expected = f"width: a multiple of {HEADS}, the heads of the backbone transformer"
        raise UsageError(Fault("E2002", expected, options["width"]))
    own: dict[str, Any] = {"heads": HEADS} if options["backbone"] == "transformer" else {}
    sizes: dict[str, Any] = {name: options[name] for name in ("embedding", "width", "depth")}
    return build_embedder(options["backbone"], shape, **sizes, **own)


def projected(embedding: Any, options: Mapping[str, Any]) -> Any:
    """The projection head: ``head_layers`` dense layers of ``head`` units, the last one linear."""
    for _ in range(options["head_layers"] - 1):
        embedding = keras.layers.Dense(options["head"], activation=gelu)(embedding)
    return keras.layers.Dense(options["head"], name="projection")(embedding)


def strengths_of(options: Mapping[str, Any]) -> dict[str, float]:
    """How strong each augmentation is."""
    return {name: float(options[name]) for name in AUGMENTATIONS}
