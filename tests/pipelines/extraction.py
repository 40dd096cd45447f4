"""A fitted model, its window store and a file of signals, for the tests of extraction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from small_plant import SMALL, chunk_of, contract_of, small_frame

from anomaly.data.store import WindowStore, create_signals, create_store
from anomaly.fitting import fit_model
from anomaly.model import AnomalyModel
from registry.bundle import load_bundle, save_bundle


@dataclass(frozen=True)
class Plant:
    """``store`` and ``signals`` hold the same windows; ``bundle`` is the model's folder."""

    model: AnomalyModel
    bundle: Path
    store: Path
    signals: Path


def make_plant(folder: Path, rows: int = 3000) -> Plant:
    """Fit a model of three detectors on the small plant."""
    settings = SMALL.changed(
        training={"epochs": 2},
        encoder={"name": "conv_ae"},
        detection={"detectors": ("reconstruction", "knn", "iforest")},
    )
    frame = small_frame(rows)
    with create_store(folder / "plant.h5", contract_of(frame), settings.window, settings.split) as writer:
        writer.append(chunk_of(frame))
    with WindowStore.open(folder / "plant.h5") as store:
        model = fit_model(store, settings, folder / "work").model
        store.export_signals(folder / "signals.h5")
    save_bundle(model, folder / "model")
    return Plant(load_bundle(folder / "model"), folder / "model", folder / "plant.h5", folder / "signals.h5")


def datasets(path: Path) -> dict[str, NDArray[np.generic]]:
    """Every dataset of an HDF5 file by its path."""
    found: dict[str, NDArray[np.generic]] = {}

    def keep(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(keep)
    return found


def same(a: Path, b: Path, but: Callable[[str], bool] = lambda name: False) -> None:
    """Both files hold the same datasets, to the last bit."""
    one, other = datasets(a), datasets(b)
    assert one.keys() == other.keys()
    for name, values in one.items():
        if not but(name):
            np.testing.assert_array_equal(values, other[name], err_msg=name)


def write_signals_file(path: Path, windows: NDArray[np.float32], **beside: NDArray[np.generic]) -> Path:
    """A file of signals with tags like the small plant's."""
    with create_signals(path, {"tags": [f"tag{i}" for i in range(windows.shape[2])]}) as writer:
        labels = beside.pop("labels", None)
        writer.append(windows, labels, beside)  # type: ignore[arg-type]
    return path
