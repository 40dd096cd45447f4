"""Every encoder, detector and threshold rule, configured small. Joining a list is how a new one gets tested."""

from __future__ import annotations

from anomaly.detectors.base import Detector
from anomaly.detectors.reconstruction import ReconstructionDetector
from anomaly.encoders.base import Encoder
from anomaly.encoders.dense_ae import DenseAutoencoder

ENCODERS: list[type[Encoder]] = [DenseAutoencoder]
DETECTORS: list[Detector] = [ReconstructionDetector(), ReconstructionDetector(half_life=None)]
