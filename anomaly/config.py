"""One TOML, or a few flags, become typed, frozen settings; an unknown key is refused with the nearest name.

Every field below is a key of the TOML, in the table named by ``Settings``. ``docs/configuration.md`` lists them.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import types
import typing
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from anomaly.errors import Fault, UsageError

_UNITS = {"us": 1, "ms": 10**3, "s": 10**6, "min": 60 * 10**6, "h": 3600 * 10**6, "d": 86400 * 10**6}


def parse_duration(text: str) -> int:
    """A duration such as ``"4min"`` or ``"1.5 h"`` in microseconds; units us, ms, s, min, h, d.

    >>> parse_duration("4min")
    240000000
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", str(text))
    if not match or match[2] not in _UNITS:
        raise UsageError(Fault("E2001", "a duration such as 4min (units us, ms, s, min, h, d)", text))
    return round(float(match[1]) * _UNITS[match[2]])


@dataclass(frozen=True)
class LogSettings:
    """How to read the log. What is None is inferred, and printed."""

    paths: tuple[str, ...] = ()  # files or folders, when the command names none
    time: str | None = None
    label: str | None = None
    asset: str | None = None
    asset_from_name: str | None = None  # pattern whose first group, found in the file name, is the asset
    tags: tuple[str, ...] | None = None
    categories: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    separator: str | None = None
    decimal: str | None = None
    time_format: str | None = None  # strptime form, or "epoch_s", "epoch_ms", "epoch_us", "epoch_ns"
    timezone: str | None = None  # zone of times that carry none
    form: str = "auto"  # "auto", "wide" or "long"
    tag: str | None = None  # long form: the columns that hold the tag's name, its value and its quality
    value: str | None = None
    quality: str | None = None
    period: str | None = None  # long form: bin to this period; wide form: overrides the inferred one
    label_scheme: str = "auto"  # "auto", "binary" or "fault-code" (0 normal, k fault, 100+k transient)
    unlabelled: str = "unknown"  # rows of files without the label column: "unknown" or "normal"


@dataclass(frozen=True)
class WindowSettings:
    """How the log becomes windows."""

    lookback: int = 16
    stride: int = 1
    lead: str = "0s"
    max_gap: float = 3.5  # in periods: a longer step in time starts a new segment


@dataclass(frozen=True)
class SplitSettings:
    """Shares of the log, in time order."""

    train: float = 0.6
    validation: float = 0.2
    test: float = 0.2


@dataclass(frozen=True)
class EncoderSettings:
    """Which encoder, the local normalisation its windows pass first, and its own options."""

    name: str = "dense_ae"
    front: str = "none"  # "none", "demean", "detrend", "normalise", "trailing" or "differences"
    scaling: str = "robust"  # of each tag: "robust" (median and quartiles) or "standard" (mean and deviation)
    far: str = "log"  # deviations beyond 4: "log" (logarithmic) or "linear" (as they are)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingSettings:
    """How the encoder learns."""

    epochs: int = 60
    batch_size: int = 128
    learning_rate: float = 1e-3
    patience: int = 8
    seed: int = 7
    optimizer: str = "adam"  # "adam", "adamw" or "sgd"
    weight_decay: float = 1e-4  # of adamw
    momentum: float = 0.9  # of sgd
    schedule: str = "constant"  # or "cosine": the rate falls to zero over all epochs
    warmup: float = 0.0  # share of all steps in which the rate rises from zero
    learning_curve: bool = False  # also fit on an eighth, a quarter and half of the rows, for the report
    clip: float = 0.0  # largest norm of a step's gradient; 0 leaves it as it is


@dataclass(frozen=True)
class DetectionSettings:
    """Which detectors score what the encoder gives, and how their scores become one."""

    detectors: tuple[str, ...] = ("auto",)  # names; "auto" takes those that fit the encoder
    options: dict[str, Any] = field(default_factory=dict)  # a table per detector, by its name
    fusion: str = "mean"  # "mean", "max", "fisher" or "weighted"
    weights: tuple[float, ...] = ()  # one per detector, for "weighted"
    modes: int = 0  # operating modes whose scores are scaled apart; 0 knows none, -1 finds their number
    reduce: int = 0  # principal components of the embeddings in which modes are sought; 0: the full space
    half_life: float = 0.0  # rows after which a score counts half in the smoothed one; 0 leaves scores as they are
    labelled: bool = (
        True  # a head that learned from the log's events joins the detectors where it ranks later ones better
    )
    refit: bool = False  # once the model is judged, detectors learn from the newest normal rows as well


@dataclass(frozen=True)
class FineTuningSettings:
    """What is done with the few events that the train part holds, and with verdicts on alerts."""

    enabled: bool = False
    verdicts: str | None = None  # CSV or Parquet: asset, start, end, verdict
    least_events: int = 5
    epochs: int = 10
    learning_rate: float = 3e-4
    strength: float = 0.01  # of the head's weights; smaller holds them nearer to zero


#: How a threshold can be picked.
THRESHOLD_RULES = ("pr_curve", "precision", "recall", "budget", "quantile", "tail", "fixed")


@dataclass(frozen=True)
class ThresholdSettings:
    """How the threshold is picked on the validation part."""

    rule: str = "pr_curve"  # "pr_curve", "precision", "recall", "budget", "quantile", "tail" or "fixed"
    beta: float = 1.0
    floor: float = 0.5  # for "precision" and "recall": the least of it, as a share
    budget: float = 1.0  # false episodes per asset and day of operation
    rate: float = 0.001  # for "quantile" and "tail": share of normal rows that may pass
    value: float | None = None  # for "fixed": a score, -log10 of the tail probability


@dataclass(frozen=True)
class EpisodeSettings:
    """How scores become episodes."""

    off: float = 0.8  # an episode ends below this share of the threshold
    min_rows: int = 1
    merge_gap: float = 10.0  # in periods


@dataclass(frozen=True)
class AssetSettings:
    """How many models the assets of a log get."""

    models: str = "one"  # "one" over all assets, one per "asset", or one per "class"
    class_column: str | None = None  # text column of the log that names each asset's class
    classes: dict[str, Any] = field(default_factory=dict)  # class → patterns of asset names, such as ["P-1*"]


@dataclass(frozen=True)
class Settings:
    """Everything a run needs; each table of the TOML is one field."""

    name: str = "anomaly"
    log: LogSettings = LogSettings()
    window: WindowSettings = WindowSettings()
    split: SplitSettings = SplitSettings()
    encoder: EncoderSettings = EncoderSettings()
    training: TrainingSettings = TrainingSettings()
    detection: DetectionSettings = DetectionSettings()
    fine_tuning: FineTuningSettings = FineTuningSettings()
    threshold: ThresholdSettings = ThresholdSettings()
    episodes: EpisodeSettings = EpisodeSettings()
    assets: AssetSettings = AssetSettings()

    def __post_init__(self) -> None:
        _check(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return asdict(self)

    def changed(self, **tables: dict[str, Any]) -> Settings:
        """The same settings with some fields of some tables changed; a field given as None stays as it is.

        >>> Settings().changed(window={"lookback": 8, "lead": None}).window.lookback
        8
        """
        new = {}
        for name, values in tables.items():
            given = {k: v for k, v in values.items() if v is not None}
            new[name] = replace(getattr(self, name), **given)
        return replace(self, **new)

    def named(self, name: str | None) -> Settings:
        """The same settings under another model name; None keeps the name."""
        return self if name is None else replace(self, name=name)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """Settings from plain values; raises UsageError E2002 for an unknown key or a wrong type."""
        return typing.cast(Settings, _build(cls, values, ""))

    @classmethod
    def from_toml(cls, path: Path) -> Settings:
        """Settings from a TOML file; raises UsageError (E2001 unreadable, E2002 unknown key or type)."""
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(Fault("E2001", "a readable TOML file", error, file=str(path))) from error
        return cls.from_dict(values)


def _build(cls: type, values: object, where: str) -> object:
    if not isinstance(values, dict):
        raise UsageError(Fault("E2002", f"a table [{where}]", values))
    hints = typing.get_type_hints(cls)
    known = [f.name for f in fields(cls)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
            raise UsageError(Fault("E2002", "a known key", f"{where}{key}", hint))
    return cls(**{k: _value(hints[k], v, f"{where}{k}") for k, v in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        return _build(typing.cast(type, hint), value, f"{where}.")
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is tuple and isinstance(value, list | tuple):
            kind = typing.get_args(option)[0]
            numbers = kind is float and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
            if numbers or all(isinstance(v, kind) for v in value):
                return tuple(kind(v) for v in value)
        if origin is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if origin is not tuple and isinstance(value, origin) and not (origin is int and isinstance(value, bool)):
            return value
    names = " or ".join(getattr(o, "__name__", str(o)) for o in options)
    raise UsageError(Fault("E2002", f"{where} as {names}", repr(value)))


def _weigh(weights: tuple[float, ...], names: tuple[str, ...]) -> bool:
    """Whether there is a usable weight for each name; what "auto" stands for is not known here."""
    right = len(weights) == len(names) or "auto" in names
    return right and min(weights, default=0) >= 0 and sum(weights) > 0


def _are_names(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(v, str) and v for v in value)


def _check(s: Settings) -> None:
    """Ranges of single settings; each refusal names the setting, what is allowed and what came."""
    allowed = {
        "log.form": (s.log.form, ("auto", "wide", "long")),
        "log.label_scheme": (s.log.label_scheme, ("auto", "binary", "fault-code")),
        "log.unlabelled": (s.log.unlabelled, ("unknown", "normal")),
        "encoder.scaling": (s.encoder.scaling, ("robust", "standard")),
        "encoder.far": (s.encoder.far, ("log", "linear")),
        "training.optimizer": (s.training.optimizer, ("adam", "adamw", "sgd")),
        "training.schedule": (s.training.schedule, ("constant", "cosine")),
        "detection.fusion": (s.detection.fusion, ("mean", "max", "fisher", "weighted")),
        "threshold.rule": (s.threshold.rule, THRESHOLD_RULES),
        "assets.models": (s.assets.models, ("one", "asset", "class")),
    }
    for name, (value, choices) in allowed.items():
        if value not in choices:
            raise UsageError(Fault("E2002", f"{name} one of {', '.join(choices)}", value))
    shares = (s.split.train, s.split.validation, s.split.test)
    parse_duration(s.window.lead)
    rules = [
        ("name", re.fullmatch(r"[\w.-]{1,80}", s.name) is not None, "letters, digits, . _ - only", s.name),
        ("window.lookback", 1 <= s.window.lookback <= 100_000, "1 to 100000", s.window.lookback),
        ("window.stride", s.window.stride >= 1, "at least 1", s.window.stride),
        ("window.max_gap", s.window.max_gap > 1, "more than 1 period", s.window.max_gap),
        ("split", min(shares[:2]) > 0 and shares[2] >= 0 and abs(sum(shares) - 1) < 1e-6,
         "shares above 0 that add up to 1", shares),
        ("training.epochs", s.training.epochs >= 1, "at least 1", s.training.epochs),
        ("training.batch_size", s.training.batch_size >= 1, "at least 1", s.training.batch_size),
        ("training.learning_rate", 0 < s.training.learning_rate < 1, "between 0 and 1", s.training.learning_rate),
        ("training.weight_decay", s.training.weight_decay >= 0, "at least 0", s.training.weight_decay),
        ("training.momentum", 0 <= s.training.momentum < 1, "at least 0, below 1", s.training.momentum),
        ("training.warmup", 0 <= s.training.warmup < 1, "at least 0, below 1", s.training.warmup),
        ("training.clip", s.training.clip >= 0, "at least 0", s.training.clip),
        ("fine_tuning.least_events", s.fine_tuning.least_events >= 1, "at least 1", s.fine_tuning.least_events),
        ("fine_tuning.epochs", s.fine_tuning.epochs >= 1, "at least 1", s.fine_tuning.epochs),
        ("fine_tuning.learning_rate", 0 < s.fine_tuning.learning_rate < 1, "between 0 and 1",
         s.fine_tuning.learning_rate),
        ("fine_tuning.strength", s.fine_tuning.strength > 0, "above 0", s.fine_tuning.strength),
        ("detection.detectors", len(set(s.detection.detectors)) == len(s.detection.detectors) > 0,
         "at least one name, each once", s.detection.detectors),
        ("detection.weights", s.detection.fusion != "weighted" or _weigh(s.detection.weights, s.detection.detectors),
         "one number of at least 0 per detector, not all 0", s.detection.weights),
        ("detection.modes", -1 <= s.detection.modes <= 100, "-1 to 100", s.detection.modes),
        ("detection.reduce", s.detection.reduce >= 0, "at least 0 components", s.detection.reduce),
        ("detection.half_life", s.detection.half_life >= 0, "at least 0 rows", s.detection.half_life),
        ("threshold.beta", s.threshold.beta > 0, "above 0", s.threshold.beta),
        ("threshold.floor", 0 < s.threshold.floor <= 1, "above 0, at most 1", s.threshold.floor),
        ("threshold.rate", 0 < s.threshold.rate < 1, "between 0 and 1", s.threshold.rate),
        ("threshold.budget", s.threshold.budget > 0, "above 0 episodes per asset and day", s.threshold.budget),
        ("threshold.value", s.threshold.rule != "fixed" or s.threshold.value is not None,
         "a score when the rule is fixed", s.threshold.value),
        ("episodes.off", 0 < s.episodes.off <= 1, "above 0, at most 1", s.episodes.off),
        ("episodes.min_rows", s.episodes.min_rows >= 1, "at least 1", s.episodes.min_rows),
        ("assets.classes", all(_are_names(p) for p in s.assets.classes.values()),
         "a list of asset names or patterns for each class", s.assets.classes),
        ("episodes.merge_gap", s.episodes.merge_gap >= 0, "at least 0 periods", s.episodes.merge_gap),
    ]  # fmt: skip
    for name, holds, expected, found in rules:
        if not holds:
            raise UsageError(Fault("E2002", f"{name}: {expected}", found))
