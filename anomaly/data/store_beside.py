"""Stores of both forms as what an extraction reads, and what of them is kept beside the features (METHODS S3)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from anomaly.data.contract import LogContract
from anomaly.data.store import SignalsStore, WindowStore
from anomaly.data.store_blocks import RawBlock
from anomaly.data.store_features import Column, FeaturesFile
from anomaly.data.store_files import damaged, open_file, recorded_digest
from anomaly.errors import Fault, InputRefused


class Expecting(Protocol):
    """What a store must fit: a model."""

    contract: LogContract

    @property
    def lookback(self) -> int: ...


class OpenStore:
    """Windows of a store of either form, by number."""

    def __init__(self, store: WindowStore | SignalsStore) -> None:
        self.inner, self.path, self.n_windows = store, store.path, store.n_windows
        self.stride = store.stride if isinstance(store, WindowStore) else None
        self.vocabulary = store.vocabulary if isinstance(store, WindowStore) else ()
        self.notice = store.notice if isinstance(store, SignalsStore) else ""

    def identity(self) -> str:
        """Digest of a file of ours as recorded; size and time of change of another, which would take a reading."""
        own = recorded_digest(self.path, read=False)
        status = self.path.stat()
        return own or f"{status.st_size} bytes, changed {status.st_mtime_ns}"

    def raw_blocks(self, size: int, start: int = 0, trail: int = 0) -> Iterator[RawBlock]:
        """As the store's own."""
        return self.inner.raw_blocks(size, start, trail)

    def asset_blocks(self, size: int) -> Iterator[tuple[int, int, str]]:
        """Window numbers [low, high) and asset, in order, at most ``size`` windows of one asset at a time."""
        spans = [(0, self.n_windows, "")]
        if isinstance(self.inner, WindowStore):
            spans = self.inner.window_spans()
        for low, high, asset in spans:
            for first in range(low, high, size):
                yield first, min(first + size, high), asset

    def learn(self, low: int, high: int) -> NDArray[np.bool_]:
        """Which of the windows [low, high) of one asset may be learned from."""
        return self.inner.learnable(low, high)

    def __enter__(self) -> OpenStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.inner.close()


def open_windows(path: Path, model: Expecting) -> OpenStore:
    """Open a window store or a file of signals for a model, and see to it that a flipped byte is noticed.

    Raises InputRefused: E3001, E3002, E3006, E3007, E3401, E3403 as ``WindowStore.open``; E3402 for another contract, another
    lookback, other tags, or signals where the model needs categories.
    """
    path = Path(path)
    with open_file(path, verify=False) as file:
        is_signals = "signals" in file and "series" not in file
        # Chunks with a checksum are checked as they are read; without one the digest of the file is, here.
        checked = not is_signals or bool(getattr(file["signals"], "fletcher32", False))
    if not is_signals:
        store = WindowStore.open(path, expect=model.contract, verify=False)
        if store.lookback != model.lookback:
            found = store.lookback
            store.close()
            raise InputRefused(Fault("E3402", f"windows of {model.lookback} rows", found, file=str(path)))
        return OpenStore(store)
    signals = SignalsStore.open(path, verify=not checked)
    try:
        _check_signals(signals, model, path)
    except InputRefused:
        signals.close()
        raise
    return OpenStore(signals)


def _check_signals(signals: SignalsStore, model: Expecting, path: Path) -> None:
    rows, tags = signals.signals.shape[1:]
    hint = "build the store again from its log, or use the model it was made for"
    if (rows, tags) != (model.lookback, len(model.contract.tags)):
        expected = f"windows of {model.lookback} rows of {len(model.contract.tags)} tags"
        raise InputRefused(Fault("E3402", expected, f"{rows} rows of {tags}", hint, str(path)))
    named = [str(t) for t in np.atleast_1d(signals.attributes.get("tags", []))]
    if named and tuple(named) != model.contract.tags:
        first = next(i for i, (a, b) in enumerate(zip(named, model.contract.tags, strict=True)) if a != b)
        raise InputRefused(
            Fault("E3402", f"tag {first + 1}: {model.contract.tags[first]}", named[first], hint, str(path))
        )
    if model.contract.categories:
        found = "signals, which have none"
        raise InputRefused(
            Fault("E3402", f"the categories {', '.join(model.contract.categories)}", found, hint, str(path))
        )


class Beside:
    """Labels, metadata and signals kept beside the features: copied block by block, linked, or left out."""

    def __init__(self, store: OpenStore, signals: str) -> None:
        self._store, self._signals = store, signals

    def columns(self) -> dict[str, Column]:
        """Datasets that are copied."""
        inner = self._store.inner
        copied = {}
        if self._signals == "copy":
            shape = (
                inner.signals.shape[1:]
                if isinstance(inner, SignalsStore)
                else (inner.lookback, len(inner.contract.tags))
            )
            copied["signals"] = Column(np.float32, tuple(shape))
        if isinstance(inner, WindowStore):
            width = max((len(asset.encode()) for asset in inner.assets), default=1)
            beside = {"asset": Column(f"S{max(width, 1)}"), "start": Column(np.int64), "time": Column(np.int64)}
            return copied | {"labels": Column(np.int8)} | {f"metadata/{name}": c for name, c in beside.items()}
        return copied | {name: Column(d.dtype, d.shape[1:]) for name, d in inner.beside().items()}

    def start(self, file: FeaturesFile) -> None:
        """Attributes, and the link where one is wanted."""
        inner = self._store.inner
        if isinstance(inner, SignalsStore):
            for name, values in inner.beside_attributes().items():
                file.attributes(name, values)
        else:
            file.attributes("metadata", {"stride": inner.stride, "period_us": inner.period_us})
        if self._signals == "link":
            target = "/signals" if isinstance(inner, SignalsStore) else "/"
            file.link("signals" if isinstance(inner, SignalsStore) else "store", inner.path, target)

    def rows(self, block: RawBlock) -> dict[str, NDArray[Any]]:
        """Rows of the copied datasets for the windows of ``block``."""
        inner = self._store.inner
        low, high = block.first, block.first + len(block)
        copied: dict[str, NDArray[Any]] = {}
        if self._signals == "copy":
            copied["signals"] = block.windows(block.values)
        if isinstance(inner, SignalsStore):
            try:
                return copied | {name: dataset[low:high] for name, dataset in inner.beside().items()}
            except (OSError, RuntimeError) as error:
                raise damaged(inner.path, error) from error
        width = max(len(block.asset.encode()), 1)
        return copied | {
            "labels": block.kind,
            "metadata/asset": np.full(len(block), block.asset.encode(), dtype=f"S{width}"),
            "metadata/start": block.starts,
            "metadata/time": inner.end_times(block.asset, block.starts),
        }


def beside(store: OpenStore, signals: str) -> Beside:
    """What is kept beside the features; ``signals`` is "leave", "link" or "copy"."""
    return Beside(store, signals)
