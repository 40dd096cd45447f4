"""The demo: a synthetic plant → trained model → report → scores → alerts, on embedded defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

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
    """What the demo made; ``leads``: by alert id, how long after the alert its planted break came, in microseconds."""

    trained: Trained
    scored: Scored
    alerts: list[Alert]
    leads: dict[int, int]
    summary: str

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return {
            "trained": self.trained.to_dict(),
            "scored": self.scored.to_dict(),
            "alerts": [a.to_dict() | {"break_after_us": self.leads.get(a.id)} for a in self.alerts],
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
    cut = plant.frame["time"].iloc[int(len(plant.frame) * 0.8)]
    events = pd.DatetimeIndex(plant.events["time"][plant.events["time"] >= cut]).as_unit("us").asi8
    leads = leads_of(events, alerts, parse_duration(LEAD))
    return Demo(trained, scored, alerts, leads, _summary(events, alerts, leads))


def _write(plant: SyntheticLog, folder: Path) -> tuple[Path, Path]:
    """The log in two files, as a plant would deliver them: the history with labels, the new days without."""
    folder.mkdir(parents=True, exist_ok=True)
    cut = int(len(plant.frame) * 0.8)
    history, new = folder / "history.csv", folder / "new_days.csv"
    for path, frame in ((history, plant.frame[:cut]), (new, plant.frame[cut:].drop(columns="label"))):
        with atomic_path(path) as temporary:
            frame.to_csv(temporary, index=False)
    return history, new


def leads_of(events: NDArray[np.int64], alerts: list[Alert], lead_us: int) -> dict[int, int]:
    """How long after each alert began its event came, in microseconds, by alert id; alerts without one are left out.

    ``events (k,)`` are event times. An alert belongs to the first event at or after its start, if it was still on
    ``lead_us`` before it; 0 is an alert that came with the event.
    """
    found = {}
    for alert in alerts:
        later = events[events >= alert.start_us]
        if len(later) and alert.end_us >= later[0] - lead_us:
            found[alert.id] = int(later[0] - alert.start_us)
    return found


def _summary(events: NDArray[np.int64], alerts: list[Alert], leads: dict[int, int]) -> str:
    """The new days in one sentence."""
    starts = {a.id: a.start_us for a in alerts}
    announced: dict[int, int] = {}
    for number, lead in leads.items():
        if lead:
            event = starts[number] + lead
            announced[event] = max(announced.get(event, 0), lead)
    if not announced:
        return f"new days: {len(events)} planted breaks, none announced ahead; {len(alerts)} alerts"
    return (
        f"new days: {len(announced)} of {len(events)} planted breaks announced ahead, median lead "
        f"{np.median(list(announced.values())) / 60e6:.0f} min (a quarter of the breaks gives no sign); "
        f"{len(alerts)} alerts in all, {len(alerts) - len(leads)} without a break"
    )
