"""Where the scores of recent rows stand against where they stood at calibration, and the threshold that would follow them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from alerts.database import Database
from alerts.feedback import read_labels
from anomaly.errors import Fault, InputRefused, UsageError
from anomaly.scores.recalibration import Proposal, propose

#: Gap over which an episode goes on, in periods, as the settings have it by default.
_MERGE_PERIODS = 10
_COLUMNS = ["time", "asset", "anomaly_score", "threshold"]


def score_level(paths: Sequence[Path], database: Database | None = None, budget: float = 1.0) -> Proposal:
    """The threshold that keeps its rarity on the rows of score files, whose newest one says which threshold holds.

    Rows that an alert with the verdict "true fault" covers take no part. Raises InputRefused E3001, E3101 for files that are
    no scores, UsageError E2001 for rows that are too few or files of another threshold each.
    """
    rows = pd.concat([_read(path) for path in paths], ignore_index=True)
    rows = rows.drop_duplicates(["asset", "time"], keep="last").sort_values(["asset", "time"], ignore_index=True)
    time = np.asarray(rows["time"].astype("datetime64[us, UTC]").astype("int64"), np.int64)
    asset = rows["asset"].astype(str).to_numpy(dtype=object)
    held = rows["threshold"].unique()
    if len(held) != 1:
        some = ", ".join(f"{value:.3g}" for value in held[:5])
        raise UsageError(Fault("E2001", "score files of one threshold", some or "none", "give those of one model"))
    period = _period(time, asset)
    known = np.zeros(len(rows), bool)
    for found in read_labels(database) if database is not None else ():
        if found.label == 1:
            known |= (asset == found.asset) & (time >= found.start_us) & (time < found.end_us)
    try:
        return propose(
            rows["anomaly_score"].to_numpy(np.float64),
            time=time,
            asset=asset,
            current=float(held[0]),
            period_us=period,
            merge_gap_us=_MERGE_PERIODS * period,
            budget=budget,
            known=known,
        )
    except ValueError as error:
        raise UsageError(
            Fault("E2001", "enough scored rows to tell a level", error, "give more score files")
        ) from error


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, columns=_COLUMNS)
    except OSError as error:
        raise InputRefused(Fault("E3001", "a readable file of scores", error, file=str(path))) from error
    except (ValueError, KeyError) as error:
        hint = "anomaly score writes such files"
        raise InputRefused(Fault("E3101", f"the columns {', '.join(_COLUMNS)}", error, hint, file=str(path))) from error


def _period(time: NDArray[np.int64], asset: NDArray[np.object_]) -> int:
    """The usual step in time inside an asset, microseconds; a minute where there is none."""
    steps = np.diff(time)[asset[1:] == asset[:-1]]
    return int(np.median(steps)) if len(steps) else 60_000_000
