"""A family of models: the log that it is trained on, and what came of the training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from command_line import SHORT, Outcome
from small_plant import small_frame

FAMILY_FLAGS = (*SHORT, "--asset", "asset", "--encoder", "features", "--name", "plant")


def plant_log() -> pd.DataFrame:
    """Rows of four assets, mixed by time: two as usual, one of too few rows, one without a normal row."""
    frames = []
    for seed, (asset, rows) in enumerate({"P-1": 900, "line 2/P:2": 800, "short": 4, "tagged": 300}.items()):
        frame = small_frame(1000, seed=seed).head(rows).assign(asset=asset)
        frames.append(frame.assign(label=1) if asset == "tagged" else frame)
    return pd.concat(frames).sort_values("time", kind="stable", ignore_index=True)


@dataclass(frozen=True)
class Trained:
    """A family that was trained by a run that was killed after its first model, and by the next one."""

    home: Path
    log: Path
    frame: pd.DataFrame
    killed: int
    done: Outcome

    @property
    def result(self) -> dict[str, Any]:
        return dict(json.loads(self.done.out))
