"""The space of embeddings, streamed: fewer dimensions, operating modes, and how good both are (METHODS S8 to S14)."""

from __future__ import annotations

from anomaly.embeddings.clusters import Prototypes, StreamedKMeans
from anomaly.embeddings.comparison import compare_spaces
from anomaly.embeddings.reduction import StreamedPCA, subspace_angle
from anomaly.embeddings.space import Placed, Space, fit_space_once

__all__ = [
    "Placed",
    "Prototypes",
    "Space",
    "StreamedKMeans",
    "StreamedPCA",
    "compare_spaces",
    "fit_space_once",
    "subspace_angle",
]
