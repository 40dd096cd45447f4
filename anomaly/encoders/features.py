"""Plan B: hand-made features in place of a trained network (METHODS S46 to S50).

One pass over the normal windows learns what each feature usually is and which pairs of tags to watch; nothing is
trained. Every number has a name that can be looked up on the chart: ``FeaturesEncoder.feature_names``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from anomaly.config import TrainingSettings
from anomaly.data.reservoir import Reservoir
from anomaly.data.scaling import compressed
from anomaly.encoders.base import Encoder, EpochReport, Option, TrainingData, TrainingHistory, WindowShape
from anomaly.encoders.handmade import (
    catch22_features,
    frequency_features,
    rate_features,
    relation_features,
    time_features,
)
from anomaly.encoders.handmade.relation_features import Pairs
from anomaly.errors import Fault, InputRefused, UsageError

#: Windows that center, scale and pairs are learned from: a median of so many is right to 2 % of a deviation.
_SAMPLE_WINDOWS = 4096
_LEAST_SAMPLE = 256
#: Bytes of that sample at most, for wide windows.
_SAMPLE_BYTES = 32 << 20
#: Numbers of a piece of a block: a megabyte as float64, so that its series stay in the processor's cache.
_PIECE = 1 << 17
#: Quartiles of a normal distribution lie this many deviations apart.
_QUARTILES = 1.349
#: A spread below this share of the feature's size, or of 1, is rounding.
_LEAST_SCALE = 1e-6

_GROUPS = ("time", "frequency", "rate", "relation", "catch22")


class FeaturesEncoder(Encoder):
    """Named features of each tag and of pairs of tags, each in deviations from its normal median.

    Deviations beyond 4 count logarithmically, as for rows, so that one wild feature does not drown the rest. Category
    channels are ignored. Center is the median and scale the quartile distance of a uniform sample of normal windows
    (the deviation where half of the windows agree, 1 for a feature that never moved).
    """

    name: ClassVar[str] = "features"
    summary: ClassVar[str] = "hand-made time, frequency, rate and relation features, nothing trained (S46-S50)"
    trained: ClassVar[bool] = False
    option_list: ClassVar[Mapping[str, Option]] = {
        "time": Option(True, "mean, deviation, peak, peak to peak, RMS and slope of each tag"),
        "frequency": Option(True, "strongest bin, its share of the energy, spectral entropy of each tag"),
        "rate": Option(True, "largest change, rise time and overshoot of each tag"),
        "relation": Option(True, "correlation and lag of pairs of tags"),
        "pairs": Option(32, "pairs of tags to watch at most: those that correlate most steadily", least=1, most=1024),
        "catch22": Option(False, "the 22 features of the package pycatch22 too, window by window and so slowly"),
    }

    def __init__(self, front: str = "none", **options: Any) -> None:
        super().__init__(front, **options)
        if not any(self.options[group] for group in _GROUPS):
            expected = f"at least one group of {self.name}: {', '.join(_GROUPS)}"
            raise UsageError(Fault("E2002", expected, "all switched off", "leave one of them true"))
        if self.options["catch22"] and not catch22_features.installed():
            found = "pycatch22 is not installed"
            raise UsageError(Fault("E2002", "the package that catch22=true needs", found, "pip install pycatch22"))
        self.center_, self.scale_ = np.empty(0), np.empty(0)
        self.pairs_ = Pairs(np.empty((0, 2), np.int64), np.empty(0))

    def feature_names(self, tags: Sequence[str]) -> list[str]:
        """What each dimension of the embedding is, given the names of the window's tags; needs a fitted encoder.

        Raises ValueError for another number of tags. Behind a front with several channels per tag the later ones are
        named ``tag (front 2)`` and so on.
        """
        shape = self.fitted_shape()
        if len(tags) != shape.tags:
            raise ValueError(f"tags: expected the {shape.tags} names of the window's tags, got {len(tags)}")
        parts = range(1, self.front.multiple + 1)
        channels = [tag if part == 1 else f"{tag} ({self.front.name} {part})" for part in parts for tag in tags]
        names = [f"{channel} {name}" for group in self._tag_groups() for channel in channels for name in group]
        if self.options["relation"]:
            both = [f"{channels[i]} ~ {channels[j]}" for i, j in self.pairs_.tags.tolist()]
            names += [f"{pair} {name}" for pair in both for name in relation_features.NAMES]
        return names

    def _fit(
        self, data: TrainingData, training: TrainingSettings, workdir: Path, progress: EpochReport | None
    ) -> TrainingHistory:
        started = time.monotonic()
        self._refuse_no_features(data.shape)
        room = _SAMPLE_BYTES // (4 * data.shape.rows * data.shape.tags)
        sample = Reservoir(min(_SAMPLE_WINDOWS, max(_LEAST_SAMPLE, room)), training.seed)
        for batch in data.train(0):
            sample.add(batch.windows[..., : data.shape.tags])
        if not len(sample):
            raise InputRefused(Fault("E3302", "normal windows to learn from", "none", "give a longer log"))
        windows = sample.columns[0]
        if self.options["relation"]:
            self.pairs_ = relation_features.most_correlated(windows, self.options["pairs"])
        self.center_, self.scale_ = center_and_scale(self._features(windows))
        if progress:
            progress(0, {})
        return TrainingHistory(seconds=time.monotonic() - started, windows=sample.seen)

    def _refuse_no_features(self, shape: WindowShape) -> None:
        if not self._width(shape):
            hint = "set time, frequency or rate to true: a relation needs two tags"
            raise UsageError(Fault("E2002", f"{self.name}: a group that one tag has", "relation alone", hint))

    def _embed(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        if not len(self.center_):
            raise ValueError(f"{self.name}: expected an encoder that was fitted or loaded, got one whose fit failed")
        features = self._features(block[..., : self._inner_shape().tags])
        return compressed((features - self.center_) / self.scale_).astype(np.float32)

    def _features(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features of tags alone ``(B, T, C)``, ``(B, d)``, piece by piece so that memory does not grow with B."""
        series = max(windows.shape[2], len(self.pairs_))
        size = max(1, _PIECE // (windows.shape[1] * series))
        features = np.empty((len(windows), self._width(self._inner_shape())), np.float32)
        for start in range(0, len(windows), size):
            features[start : start + size] = self._features_of_piece(windows[start : start + size])
        return features

    def _features_of_piece(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        groups = [
            ("time", time_features.time_features),
            ("frequency", frequency_features.frequency_features),
            ("rate", rate_features.rate_features),
            ("catch22", catch22_features.catch22_features),
        ]
        parts = [compute(windows) for group, compute in groups if self.options[group]]
        if self.options["relation"]:
            parts.append(relation_features.relation_features(windows, self.pairs_))
        return np.concatenate([part.reshape(len(windows), -1) for part in parts], axis=1)

    def _tag_groups(self) -> list[tuple[str, ...]]:
        """Names per chosen group of the features that each tag has, in the order of the embedding."""
        groups = {"time": time_features.NAMES, "frequency": frequency_features.NAMES, "rate": rate_features.NAMES}
        chosen = [names for group, names in groups.items() if self.options[group]]
        return chosen + ([catch22_features.names()] if self.options["catch22"] else [])

    def _n_pairs(self, shape: WindowShape) -> int:
        return min(self.options["pairs"], shape.tags * (shape.tags - 1) // 2) if self.options["relation"] else 0

    def _width(self, shape: WindowShape) -> int:
        own = sum(len(names) for names in self._tag_groups())
        return shape.tags * own + self._n_pairs(shape) * len(relation_features.NAMES)

    def to_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready settings, and the arrays ``center (d,)``, ``scale (d,)``, ``pairs (P, 2)``, ``signs (P,)``."""
        shape = self.fitted_shape()
        settings = {
            "front": self.front.name,
            "options": self.options,
            "shape": {"rows": shape.rows, "tags": shape.tags, "categories": list(shape.categories)},
        }
        arrays = {"center": self.center_, "scale": self.scale_, "pairs": self.pairs_.tags, "signs": self.pairs_.signs}
        return settings, arrays

    @classmethod
    def from_state(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> FeaturesEncoder:
        """The encoder from ``to_state``; raises ValueError where arrays and settings do not fit, E2002 without a package
        that its features need."""
        encoder = cls(front=settings["front"], **settings["options"])
        plain = settings["shape"]
        encoder.shape = WindowShape(int(plain["rows"]), int(plain["tags"]), tuple(int(n) for n in plain["categories"]))
        inner = encoder._inner_shape()
        width, n_pairs = encoder._width(inner), encoder._n_pairs(inner)
        expected = {"center": (width,), "scale": (width,), "pairs": (n_pairs, 2), "signs": (n_pairs,)}
        found = {name: array.shape for name, array in arrays.items()}
        if found != expected:
            raise ValueError(f"arrays: expected {expected}, got {found}: they belong to another architecture")
        if n_pairs and not (arrays["pairs"].min() >= 0 and arrays["pairs"].max() < inner.tags):
            raise ValueError(
                f"arrays: expected pairs of {inner.tags} tags, got others: they belong to another architecture"
            )
        encoder.center_, encoder.scale_ = arrays["center"].astype(np.float64), arrays["scale"].astype(np.float64)
        encoder.pairs_ = Pairs(arrays["pairs"].astype(np.int64), arrays["signs"].astype(np.float64))
        return encoder


def center_and_scale(features: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Median and robust deviation of features ``(n, d)``, ``(d,)`` each.

    The deviation is that of the quartiles; the plain one where the quartiles agree, as for a flag that is rarely up; 1
    where nothing moves.

    >>> center, scale = center_and_scale(np.array([[0, 7, 0], [1, 7, 0], [2, 7, 0], [3, 7, 0], [4, 7, 1]], np.float32))
    >>> center.tolist(), scale.round(2).tolist()
    ([2.0, 7.0, 0.0], [1.48, 1.0, 0.4])
    """
    low, center, high = np.quantile(features, (0.25, 0.5, 0.75), axis=0).astype(np.float64)
    least = _LEAST_SCALE * np.maximum(np.abs(center), 1.0)
    quartile, plain = (high - low) / _QUARTILES, features.std(axis=0, dtype=np.float64)
    scale = np.where(quartile > least, quartile, plain)
    return center, np.where(scale > least, scale, 1.0)
