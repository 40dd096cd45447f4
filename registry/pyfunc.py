"""A bundle as an MLflow model: ``mlflow models serve`` and ``mlflow.pyfunc.load_model`` come in here.

MLflow imports this installed module by the name in the logged model (``loader_module``); the artifact itself holds no
code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from anomaly.data.contract import LogContract
from anomaly.errors import Fault, InputRefused
from registry.bundle import load_bundle

if TYPE_CHECKING:
    from anomaly.model import AnomalyModel

#: Faults of one request that are reported at most.
_MOST_FAULTS = 20


class ServedModel:
    """AnomalyModel behind MLflow's ``predict``; every call is a log of its own, with no memory of earlier calls."""

    def __init__(self, model: AnomalyModel) -> None:
        self.model = model

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row per input row: time (ISO 8601, UTC), asset, anomaly_score, threshold, outcome, reason, top_tags.

        ``anomaly_score`` is None where the row is unscorable (JSON has no NaN), ``top_tags`` is JSON text of
        (tag, share) pairs. A log that cannot be read is refused with MLflow's error for a bad request, which names
        column and row.
        """
        try:
            return plain(self.model.score_frame(read_rows(model_input, self.model.contract)))
        except InputRefused as error:
            from mlflow.exceptions import MlflowException
            from mlflow.protos.databricks_pb2 import BAD_REQUEST

            raise MlflowException(str(error), error_code=BAD_REQUEST) from error


def _load_pyfunc(data_path: str) -> ServedModel:
    """MLflow's entry: the model in the bundle at ``data_path``, after every check of ``load_bundle``."""
    return ServedModel(load_bundle(Path(data_path)))


def read_rows(frame: pd.DataFrame, contract: LogContract) -> pd.DataFrame:
    """The contract's columns of ``frame`` with naive-UTC times and float32 tags; other columns are left out.

    Times are datetimes or ISO 8601 text; without an offset they are UTC. Raises InputRefused: E3101 a column is
    missing, E3204 a time cannot be read, E3107 text in a number column, E3110 an infinite value, E3205 times of an
    asset go backwards.
    """
    asset = [contract.asset] if contract.asset else []
    needed = [contract.time, *contract.tags]
    missing = [c for c in needed if c not in frame.columns]
    if missing:
        hint = f"the model reads {', '.join(needed[:10])}"
        raise InputRefused([Fault("E3101", "the column", "no such column", hint, column=c) for c in missing])
    faults: list[Fault] = []
    columns = {contract.time: _times(frame[contract.time], contract.time, faults)}
    columns |= {c: frame[c].astype(str) for c in asset if c in frame.columns}
    columns |= {tag: _numbers(frame[tag], tag, faults) for tag in contract.tags}
    # A request may leave a category out: it is then unknown, which the model can score.
    columns |= {name: frame.get(name, pd.Series(pd.NA, frame.index)) for name in contract.categories}
    if not faults:
        _check_order(columns[contract.time], columns.get(contract.asset or ""), contract.time, faults)
    if faults:
        raise InputRefused(faults[:_MOST_FAULTS])
    return pd.DataFrame(columns)


def plain(scored: pd.DataFrame) -> pd.DataFrame:
    """A scored frame with columns that JSON can carry."""
    score = scored["anomaly_score"].astype(np.float64).astype(object)
    return pd.DataFrame(
        {
            "time": [t.isoformat() for t in pd.to_datetime(scored["time"], utc=True)],
            "asset": scored["asset"].astype(str).to_numpy(dtype=object),
            "anomaly_score": score.where(scored["anomaly_score"].notna(), None).to_numpy(dtype=object),
            "threshold": scored["threshold"].to_numpy(dtype=np.float64),
            "outcome": scored["outcome"].to_numpy(dtype=object),
            "reason": scored["reason"].to_numpy(dtype=object),
            "top_tags": [json.dumps([[tag, float(share)] for tag, share in pairs]) for pairs in scored["top_tags"]],
        }
    )


def _times(column: pd.Series, name: str, faults: list[Fault]) -> pd.Series:
    """Naive-UTC datetimes of microseconds."""
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        times = pd.to_datetime(column, utc=True)
    else:
        text = column.map(lambda v: v if isinstance(v, str) or hasattr(v, "isoformat") else None)
        times = pd.to_datetime(text, utc=True, format="ISO8601", errors="coerce")
    for row in np.flatnonzero(times.isna())[:_MOST_FAULTS]:
        hint = "write 2026-01-31T12:00:00Z"
        faults.append(Fault("E3204", "an ISO 8601 time", column.iloc[row], hint, column=name, row=int(row) + 1))
    return times.dt.tz_localize(None).astype("datetime64[us]")


def _numbers(column: pd.Series, name: str, faults: list[Fault]) -> pd.Series:
    """float32 with NaN where missing."""
    with np.errstate(over="ignore"):
        numbers = pd.to_numeric(column, errors="coerce").astype(np.float32)
    for row in np.flatnonzero(numbers.isna() & column.notna())[:_MOST_FAULTS]:
        faults.append(Fault("E3107", "a number or null", column.iloc[row], column=name, row=int(row) + 1))
    for row in np.flatnonzero(np.isinf(numbers))[:_MOST_FAULTS]:
        faults.append(Fault("E3110", "a finite number", column.iloc[row], column=name, row=int(row) + 1))
    return numbers


def _check_order(times: pd.Series, asset: pd.Series | None, name: str, faults: list[Fault]) -> None:
    groups = times.groupby(asset.to_numpy(), sort=False) if asset is not None else times.groupby(lambda _: 0)
    step = groups.diff()
    for row in np.flatnonzero((step < pd.Timedelta(0)).to_numpy())[:_MOST_FAULTS]:
        hint = "sort the rows by time"
        faults.append(
            Fault("E3205", "times in order", times.iloc[row].isoformat(), hint, column=name, row=int(row) + 1)
        )
