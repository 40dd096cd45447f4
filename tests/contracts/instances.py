"""Every encoder, detector and threshold rule, configured small. Joining a list is how a new one gets tested."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anomaly.detectors.base import Detector
from anomaly.detectors.boundary import IsolationForestDetector, OneClassSvmDetector
from anomaly.detectors.centroid import CentroidDetector
from anomaly.detectors.density import GmmDetector, KdeDetector
from anomaly.detectors.distance import KnnDetector
from anomaly.detectors.labelled import LabelledDetector
from anomaly.detectors.local import LocalDetector
from anomaly.detectors.raw_windows import SubspaceDetector, WindowKnnDetector
from anomaly.detectors.reconstruction import ReconstructionDetector
from anomaly.detectors.supervised import HeadDetector
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
        said = (str(value) for value in self.options.values() if isinstance(value, str))
        return "-".join([self.name, *said, *(name for name, value in self.options.items() if value is True)])


_SMALL = {"embedding": 8, "width": 8, "depth": 1}
_VIEWS = _SMALL | {"head": 8}

ENCODERS: list[Instance] = [
    Instance("dense_ae"),
    Instance("conv_ae", {"width": 8}),
    Instance("conv_ae", {"width": 8, "decoder": "dense"}),
    Instance("lstm_ae", {"units": 8, "embedding": 8}),
    Instance("transformer", _SMALL | {"heads": 2}),
    Instance("transformer", _SMALL | {"heads": 2, "pooling": "mean", "norm": "post", "attention": "probsparse"}),
    Instance("masked_ae", _SMALL),
    Instance("masked_ae", _SMALL | {"backbone": "dilated", "fill": "mean"}),
    Instance("contrastive", _VIEWS),
    Instance("contrastive", _VIEWS | {"backbone": "transformer"}),
    Instance("moco", _VIEWS | {"queue": 64, "backbone": "dense"}),
    Instance("hybrid", _VIEWS),
    Instance("tscc", {"width": 8, "depth": 2, "clusters": 3, "rounds": 2}),
    Instance("pretext", _SMALL),
    Instance("pretext", _SMALL | {"task": "masking"}),
    Instance("features"),
    Instance("features", {"catch22": True, "relation": False}),
]
DETECTORS: list[Detector] = [
    ReconstructionDetector(),
    ReconstructionDetector(half_life=None),
    KnnDetector(k=1),
    KnnDetector(bank=64),
    KnnDetector(bank=64, coreset="greedy"),
    KnnDetector(bank=64, coreset="kmeans"),
    CentroidDetector(),
    CentroidDetector("mahalanobis"),
    GmmDetector(components=2),
    KdeDetector(bank=100),
    IsolationForestDetector(),
    OneClassSvmDetector(),
    OneClassSvmDetector(exact_limit=100),
    WindowKnnDetector(bank=64),
    SubspaceDetector(0.3),
    LocalDetector(),
    LocalDetector(trail=4, half_life=None),
    LocalDetector(over="mean"),
    LabelledDetector(np.zeros((4, 3)), np.ones((4, 3)), np.repeat([[0], [0], [1.0], [0]], 3, axis=1), -12.0),
    HeadDetector(np.tile([0.0, 0.3, 0.1], 4), -1.0),
]
