"""A small model with AnomalyModel's interface, so that the registry is tested apart from the science."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from anomaly.config import Settings
from anomaly.data.contract import LogContract
from registry.bundle import save_bundle
from registry.state import State, connection, find_state
from registry.tracking import RegisteredModel, record_run

TAGS = ("Pressure", "Flow rate")
CONTRACT = LogContract("time", TAGS, 60_000_000, asset="pump")


@dataclass(frozen=True)
class FakeThreshold:
    """A threshold with a past."""

    value: float
    rule: str = "fixed"
    interval: tuple[float, float] = (float("nan"), 2.0)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def canary_frame(rows: int = 12) -> pd.DataFrame:
    """Rows with one missing value, so that one canary score is unscorable."""
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(rng.normal(size=(rows, 2)).astype(np.float32), columns=list(TAGS))
    frame.loc[4, "Flow rate"] = np.nan
    frame.insert(0, "time", pd.date_range("2026-01-01", periods=rows, freq="1min", tz="UTC"))
    frame.insert(1, "pump", "P-1")
    return frame


@dataclass
class FakeModel:
    """Score of a row = weighted distance from the centre; a row with a missing value is unscorable."""

    center: np.ndarray = field(default_factory=lambda: np.array([0.5, -0.5], np.float32))
    weights: np.ndarray = field(default_factory=lambda: np.array([1.0, 2.0]))
    threshold: FakeThreshold = FakeThreshold(1.5)
    contract: LogContract = CONTRACT
    settings: Settings = field(default_factory=Settings)
    canary: pd.DataFrame = field(default_factory=canary_frame)
    digest: str | None = None

    def to_parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        parts = {
            "contract": self.contract.to_dict(),
            "settings": self.settings.to_dict(),
            "threshold": self.threshold.to_dict(),
        }
        return parts, {"scale/center": self.center, "weights": self.weights}

    @classmethod
    def from_parts(cls, parts: dict[str, Any], arrays: dict[str, np.ndarray]) -> FakeModel:
        past = dict(parts["threshold"])
        past["interval"] = tuple(past["interval"])
        return cls(
            arrays["scale/center"],
            arrays["weights"],
            FakeThreshold(**past),
            LogContract.from_dict(parts["contract"]),
            Settings.from_dict(parts["settings"]),
        )

    def score_frame(self, frame: pd.DataFrame) -> pd.DataFrame:
        values = frame[list(self.contract.tags)].to_numpy(np.float64)
        shares = self.weights * np.abs(values - self.center)
        score = shares.sum(axis=1).astype(np.float32)
        outcome = np.where(
            np.isnan(score), "unscorable", np.where(score >= self.threshold.value, "anomalous", "normal")
        )
        return pd.DataFrame(
            {
                "time": pd.to_datetime(frame["time"], utc=True),
                "asset": frame.get("pump", "plant"),
                "anomaly_score": score,
                "threshold": np.float32(self.threshold.value),
                "outcome": outcome,
                "reason": np.where(np.isnan(score), "missing: Flow rate", ""),
                "top_tags": [
                    [] if np.isnan(s).any() else [(t, float(v)) for t, v in zip(TAGS, s, strict=True)] for s in shares
                ],
            }
        )


@pytest.fixture
def model() -> FakeModel:
    """A fresh small model."""
    return FakeModel()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables made, to be copied: making them takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with connection(find_state(folder)) as client:
            client.search_registered_models()
            client.search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def state(home: Path, migrated: Path) -> State:
    """An empty registry in a home of its own."""
    home.mkdir()
    shutil.copyfile(migrated, home / "mlflow.db")
    return find_state()


@pytest.fixture
def register(state: State, tmp_path: Path) -> Callable[..., RegisteredModel]:
    """Bundle a model and register it, with ordinary records unless others are given."""

    def call(model: Any, name: str = "press", **records: Any) -> RegisteredModel:
        save_bundle(model, tmp_path / "bundle")
        ordinary = {
            "settings": model.settings.to_dict(),
            "fingerprint": "f" * 64,
            "split": {"train": ["2026-01-01", "2026-01-02"]},
            "metrics": {"average_precision": 0.5, "average_precision_low": 0.4, "roc_auc": float("nan")},
            "history": {"loss": [2.0, 1.0], "val_loss": [2.5, 1.5]},
        }
        return record_run(model, tmp_path / "bundle", name=name, **{**ordinary, **records})

    return call


@pytest.fixture(scope="session")
def model_class() -> type[FakeModel]:
    """The class that builds it from parts."""
    return FakeModel


@pytest.fixture(scope="session")
def real_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A real AnomalyModel with a briefly trained encoder, on two tags that move together."""
    from anomaly.config import EncoderSettings, TrainingSettings, WindowSettings
    from anomaly.data.scaling import RowPreparer
    from anomaly.data.vocabulary import Vocabulary
    from anomaly.detectors import build_detector
    from anomaly.encoders import build_encoder
    from anomaly.encoders.base import TrainingBatch, TrainingData, WindowShape
    from anomaly.ensemble import Ensemble
    from anomaly.model import AnomalyModel
    from anomaly.scores.thresholds import fixed_threshold

    settings = Settings(
        window=WindowSettings(lookback=4), encoder=EncoderSettings(), training=TrainingSettings(epochs=3, batch_size=64)
    )
    wave = np.sin(np.arange(600) / 9)
    rows = np.column_stack([wave, 10 * wave + 3]).astype(np.float32)
    preparer = RowPreparer().partial_fit(rows, np.zeros(rows.shape, np.uint8), np.ones(600, bool), "P-1", 0).finish()
    prepared = preparer.transform(rows)
    windows = np.stack([prepared[i : i + 4] for i in range(597)])
    encoder = build_encoder(settings.encoder)
    encoder.fit(
        TrainingData(
            WindowShape(4, 2), lambda _: iter([TrainingBatch(windows)]), lambda _: iter([TrainingBatch(windows)]), 597
        ),
        training=settings.training,
        workdir=tmp_path_factory.mktemp("fit"),
    )
    made = AnomalyModel(
        contract=CONTRACT,
        settings=settings,
        preparer=preparer,
        encoder=encoder,
        ensemble=Ensemble([build_detector("reconstruction")]),
        calibrator=None,
        threshold=fixed_threshold(2.0),
        max_gap_us=210_000_000,
        vocabulary=Vocabulary(),
        reference=prepared[:50],
    )
    made.ensemble.fit([made.encode(windows)])
    made.ensemble.calibrate([made.encode(windows)])
    made.canary = canary_frame()
    return made
