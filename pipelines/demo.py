"""The demo: a synthetic plant → trained model → report → scores → alerts, on embedded defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from alerts.store import Alert, AlertStore
from anomaly.config import Settings, parse_duration
from anomaly.data.synthetic import SyntheticLog, SyntheticPlant, generate
from anomaly.errors import Fault, UsageError
from anomaly.files import atomic_path
from anomaly.fitting import Progress, silent
from pipelines.home import alert_database
from pipelines.score import Scored, score
from pipelines.train import Trained, train
from registry.bundle import load_bundle

LEAD = "10min"


@dataclass(frozen=True)
class Demo:
    """What the demo made."""

    trained: Trained
    scored: Scored
    alerts: list[Alert]
    summary: str

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return {
            "trained": self.trained.to_dict(),
            "scored": self.scored.to_dict(),
            "alerts": [a.to_dict() for a in self.alerts],
            "summary": self.summary,
        }


def demo(folder: Path, *, rows: int = 25_000, seed: int = 7, progress: Progress = silent) -> Demo:
    """Run the main job on a synthetic plant: its first four fifths train, its last fifth is scored as a new log."""
    try:
        plant = generate(SyntheticPlant(rows=rows, seed=seed))
    except ValueError as error:
        raise UsageError(Fault("E2001", "rows and a seed that make a plant", error)) from error
    history, new = _write(plant, folder)
    settings = Settings(name="demo").changed(
        log={"time": "time", "label": "label"},
        window={"lead": LEAD},
        split={"train": 0.6, "validation": 0.25, "test": 0.15},
    )
    trained = train([history], settings, folder / "model", progress)
    model = load_bundle(folder / "model")
    scored = score([new], model, "demo", folder / "scores.parquet", alert_database(), progress)
    alerts = AlertStore(alert_database()).alerts(model=model.digest, limit=1000)
    return Demo(trained, scored, alerts, _leads(plant, scored))


def _write(plant: SyntheticLog, folder: Path) -> tuple[Path, Path]:
    """The log in two files, as a plant would deliver them: the history with labels, the new days without."""
    folder.mkdir(parents=True, exist_ok=True)
    cut = int(len(plant.frame) * 0.8)
    history, new = folder / "history.csv", folder / "new_days.csv"
    for path, frame in ((history, plant.frame[:cut]), (new, plant.frame[cut:].drop(columns="label"))):
        with atomic_path(path) as temporary:
            frame.to_csv(temporary, index=False)
    return history, new


def _leads(plant: SyntheticLog, scored: Scored) -> str:
    """How early the alerts of the new days came, counted against the planted events."""
    cut = plant.frame["time"].iloc[int(len(plant.frame) * 0.8)]
    events = pd.DatetimeIndex(plant.events["time"][plant.events["time"] >= cut]).as_unit("us").asi8
    lead = parse_duration(LEAD)
    spans = np.array([(e.start_us, e.end_us) for e in scored.episodes], dtype=np.int64).reshape(-1, 2)
    leads = []
    for t in events:
        ahead = spans[(spans[:, 0] < t) & (spans[:, 1] >= t - lead)]
        if len(ahead):
            leads.append(int(min(t - ahead[:, 0].min(), lead)))
    if not leads:
        return f"new days: {len(events)} planted breaks, none announced ahead; {len(spans)} alerts"
    return (
        f"new days: {len(leads)} of {len(events)} planted breaks announced ahead, median lead "
        f"{np.median(leads) / 60e6:.0f} min (a quarter of the breaks gives no sign); {len(spans)} alerts in all"
    )
