"""A bundle as an MLflow model: ``mlflow models serve`` and ``mlflow.pyfunc.load_model`` come in here.

MLflow imports this installed module by the name in the logged model (``loader_module``); the artifact itself holds no
code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from anomaly.data.contract import LogContract
from anomaly.errors import Fault, InputRefused
from registry.bundle import load_bundle, refused
from registry.tracking import BUNDLE_PATH, NEEDS

if TYPE_CHECKING:
    from anomaly.model import AnomalyModel

#: Faults of one request that are reported at most.
_MOST_FAULTS = 20

#: Files that describe a logged model to MLflow: what it would import, and what it would install.
DESCRIPTION = ("MLmodel", "requirements.txt", "conda.yaml", "python_env.yaml")
_LONGEST_DESCRIPTION = 1 << 20
_FLAVOR_KEYS = {"code", "data", "env", "loader_module", "python_version", "streamable"}
_PINNED = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)==[A-Za-z0-9_.+!-]+")
#: What MLflow writes beside them: tools to install with, pinned to a release or kept below one.
_PLAIN = re.compile(r"pip|python=[0-9.]+|-r requirements\.txt|(?:setuptools|wheel|pip)(?:==|<=|<)[0-9.]+")


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


def check_description(folder: Path) -> None:
    """Refuse the ``DESCRIPTION`` of a logged model that is not as ``registry.tracking`` writes it.

    MLflow imports the module that ``MLmodel`` names and installs what the requirements name, before any code of ours is asked.
    Raises ModelRefused E4002 where ``MLmodel`` is missing, E4003 for another loader, a code folder, another flavor, or a
    requirement that is no pinned package of ours.
    """
    texts = {name: _described(folder / name) for name in DESCRIPTION if (folder / name).is_file()}
    if "MLmodel" not in texts:
        raise refused("E4002", "the file of the registered model", "no such file", "register it again", "MLmodel")
    flavors = _yaml(folder, "MLmodel").get("flavors")
    own = flavors.get("python_function") if isinstance(flavors, dict) and set(flavors) == {"python_function"} else None
    if not isinstance(own, dict) or not set(own) <= _FLAVOR_KEYS or own.get("code") is not None:
        raise refused("E4003", "the flavor python_function without code", flavors, _CHANGED, "MLmodel")
    if (own.get("loader_module"), own.get("data")) != (__name__, BUNDLE_PATH):
        found = (own.get("loader_module"), own.get("data"))
        raise refused("E4003", f"the loader {__name__} of {BUNDLE_PATH}", found, _CHANGED, "MLmodel")
    wanted = [(name, line) for name in texts if name == "requirements.txt" for line in texts[name].split("\n")]
    for name in ("conda.yaml", "python_env.yaml"):
        if name in texts:
            table = _yaml(folder, name)
            parts = [table.get("dependencies"), table.get("build_dependencies")]
            wanted += [(name, line) for line in _strings(parts)]
    for name, line in wanted:
        pinned = _PINNED.fullmatch(line.strip())
        if line.strip() and not _PLAIN.fullmatch(line.strip()) and (pinned is None or pinned["name"] not in NEEDS):
            raise refused("E4003", f"pinned packages of {', '.join(NEEDS)}", line, _CHANGED, name)


_CHANGED = "the registry was changed after training: do not use the version; train or register it again"


def _described(path: Path) -> str:
    """A file of the description as text."""
    try:
        with path.open("rb") as stream:
            blob = stream.read(_LONGEST_DESCRIPTION + 1)
        if len(blob) > _LONGEST_DESCRIPTION:
            raise ValueError(f"more than {_LONGEST_DESCRIPTION} bytes")
        return blob.decode("utf-8")
    except (OSError, ValueError) as error:
        raise refused("E4003", "a description of the model as text", error, _CHANGED, path.name) from error


def _yaml(folder: Path, name: str) -> dict[str, Any]:
    """A table of plain YAML: tags that would make objects are refused."""
    from mlflow.utils.yaml_utils import read_yaml

    try:
        table = read_yaml(str(folder), name)
    except Exception as error:  # the YAML library has its own errors, which are not imported here
        raise refused("E4003", "plain YAML", type(error).__name__, _CHANGED, name) from error
    if not isinstance(table, dict):
        raise refused("E4003", "a table", type(table).__name__, _CHANGED, name)
    return table


def _strings(value: object) -> Iterator[str]:
    """The leaves of nested lists and tables, as text."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
    elif value is not None:
        yield str(value)


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
