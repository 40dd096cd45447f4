"""Every encoder, detector and threshold rule, configured small. Joining a list is how a new one gets tested."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from anomaly.detectors.base import Detector
from anomaly.detectors.distance import KnnDetector
from anomaly.detectors.reconstruction import ReconstructionDetector
from anomaly.encoders import encoder_class
from anomaly.encoders.base import Encoder


@dataclass(frozen=True)
class Instance:
    """An encoder by name with options that make it small."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, front: str = "none") -> Encoder:
        return encoder_class(self.name)(front=front, **self.options)

    def __str__(self) -> str:
        said = (str(value) if isinstance(value, str) else name for name, value in self.options.items() if value)
        return "-".join([self.name, *said])


ENCODERS: list[Instance] = [
    Instance("dense_ae"),
    Instance("conv_ae", {"width": 8}),
    Instance("lstm_ae", {"units": 8, "embedding": 8}),
    Instance("transformer", {"width": 16, "depth": 1, "heads": 2, "embedding": 8}),
    Instance("transformer", {"width": 16, "depth": 1, "heads": 2, "pooling": "mean", "norm": "post", "attention": "probsparse"}),
    Instance("features"),
    Instance("features", {"catch22": True, "relation": False}),
]
DETECTORS: list[Detector] = [
    ReconstructionDetector(),
    ReconstructionDetector(half_life=None),
    KnnDetector(k=1),
    KnnDetector(bank=64),
]
