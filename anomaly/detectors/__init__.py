"""Detectors: residuals or embeddings in, ``anomaly_score (n,)`` out, higher = more anomalous."""

from __future__ import annotations

import difflib
import importlib
from typing import Any, cast

from anomaly.detectors.base import Detector
from anomaly.errors import Fault, UsageError

#: Every detector by name; the class is imported when it is asked for.
DETECTORS: dict[str, str] = {
    "reconstruction": "anomaly.detectors.reconstruction:ReconstructionDetector",
    "knn": "anomaly.detectors.distance:KnnDetector",
    "centroid": "anomaly.detectors.centroid:CentroidDetector",
    "gmm": "anomaly.detectors.density:GmmDetector",
    "kde": "anomaly.detectors.density:KdeDetector",
    "iforest": "anomaly.detectors.boundary:IsolationForestDetector",
    "ocsvm": "anomaly.detectors.boundary:OneClassSvmDetector",
    "window_knn": "anomaly.detectors.raw_windows:WindowKnnDetector",
    "subspace": "anomaly.detectors.raw_windows:SubspaceDetector",
    "local": "anomaly.detectors.local:LocalDetector",
    "labelled": "anomaly.detectors.labelled:LabelledDetector",
    "head": "anomaly.detectors.supervised:HeadDetector",
}


def detector_class(name: str) -> type[Detector]:
    """The class of detector ``name``; raises UsageError E2002 for an unknown one, with the nearest name."""
    if name not in DETECTORS:
        near = difflib.get_close_matches(name, DETECTORS, n=1) or list(DETECTORS)
        raise UsageError(Fault("E2002", f"a detector of {', '.join(DETECTORS)}", name, f"did you mean {near[0]}?"))
    module, _, attribute = DETECTORS[name].partition(":")
    return cast(type[Detector], getattr(importlib.import_module(module), attribute))


def build_detector(name: str, **options: Any) -> Detector:
    """The detector called ``name``; raises UsageError E2002 for an option it does not take, or a value it refuses."""
    try:
        return detector_class(name)(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(Fault("E2002", f"options of the detector {name}", error)) from error
