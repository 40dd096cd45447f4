"""What the pipeline benchmark runs on: a file of signals of 20 operating regimes, and one model fitted on a log of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anomaly.config import Settings, SplitSettings, WindowSettings
from anomaly.data.contract import LogChunk, LogContract
from anomaly.data.reservoir import Reservoir
from anomaly.data.store import WindowStore, create_signals, create_store
from anomaly.fitting import PreparedWindows, fit_model
from anomaly.model import AnomalyModel
from registry.bundle import save_bundle

ROWS, TAGS, REGIMES = 32, ("current", "voltage", "position"), 20
ANOMALOUS_SHARE, MEMORY = 0.006, 0.7
#: Windows made at once. Each block has a generator of its own, so a longer file begins as a shorter one does.
BLOCK = 8192
PERIOD_US = 1_000_000
EMBEDDING, BANK, NEIGHBOURS = 64, 1000, 5
SETTINGS = Settings().changed(
    window={"lookback": ROWS},
    split={"train": 0.8, "validation": 0.15, "test": 0.05},
    encoder={"name": "conv_ae", "options": {"embedding": EMBEDDING, "decoder": "dense"}},
    training={"epochs": 4, "batch_size": 256},
    detection={
        "detectors": ("reconstruction", "knn", "iforest"),
        "options": {"knn": {"bank": BANK, "k": NEIGHBOURS}},
    },
    threshold={"rule": "quantile", "rate": 0.01},
)
_LOG_ROWS, _STRETCH = 24_000, 400
_FOREST_ROWS = 50_000

Told = Callable[[int, int], None]


def regime_signals(rng: np.random.Generator, regime: NDArray[np.int64], rows: int) -> NDArray[np.float32]:
    """Normal signals ``(n, rows, 3)`` of the ``regime (n,)`` each is in: a level, a wave and AR noise of their own."""
    own = np.random.default_rng(20)
    level, size = own.normal(0, 2, (REGIMES, len(TAGS))), own.uniform(0.2, 1.5, (REGIMES, len(TAGS)))
    pace, loud = own.uniform(0.1, 0.9, REGIMES), own.uniform(0.1, 0.4, (REGIMES, len(TAGS)))
    noise = rng.standard_normal((rows, len(regime), len(TAGS)), dtype=np.float32)
    for step in range(1, rows):
        noise[step] += np.float32(MEMORY) * noise[step - 1]
    phase = rng.uniform(0, 2 * np.pi, len(regime))
    wave = np.sin(pace[regime] * np.arange(rows)[:, None] + phase).astype(np.float32)
    made = noise * loud[regime].astype(np.float32) + wave[:, :, None] * size[regime].astype(np.float32)
    made += level[regime].astype(np.float32)
    return np.ascontiguousarray(made.transpose(1, 0, 2))


def spoil(rng: np.random.Generator, signals: NDArray[np.float32]) -> NDArray[np.int8]:
    """Turn 0.6 % of ``signals (n, T, 3)`` into spikes, level shifts, oscillations or broken couplings; labels ``(n,)``."""
    label = (rng.random(len(signals)) < ANOMALOUS_SHARE).astype(np.int8)
    half, swing = signals.shape[1] // 2, np.sin(2.4 * np.arange(signals.shape[1]))
    for row in np.flatnonzero(label):
        tag, kind, sign = rng.integers(len(TAGS)), rng.integers(4), rng.choice((-1.0, 1.0))
        if kind == 0:
            signals[row, rng.integers(signals.shape[1]), tag] += 5 * sign
        elif kind == 1:
            signals[row, half:, tag] += 2.5 * sign
        elif kind == 2:
            signals[row, :, tag] += 2 * swing
        else:
            signals[row, :, tag] = signals[row, ::-1, (tag + 1) % len(TAGS)]
    return label


def signal_blocks(windows: int, seed: int = 0) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int8]]]:
    """Signals ``(B, 32, 3)`` with labels ``(B,)``, at most 8192 at a time; the same for the same ``seed``.

    >>> [len(signals) for signals, _ in signal_blocks(8200)]
    [8192, 8]
    """
    for number, low in enumerate(range(0, windows, BLOCK)):
        rng = np.random.default_rng([seed, number])
        # Whole blocks are made, so that where a file ends does not change what stands before.
        signals = regime_signals(rng, rng.integers(REGIMES, size=BLOCK), ROWS)
        label, count = spoil(rng, signals), min(BLOCK, windows - low)
        yield signals[:count], label[:count]


def write_signals(path: Path, windows: int, raw: Path | None = None, told: Told | None = None) -> Path:
    """A file of ``windows`` signals at ``path``, and as bare float32 at ``raw`` where that is given."""
    done = 0
    bare = raw.open("wb") if raw is not None else None
    try:
        with create_signals(path, {"tags": list(TAGS)}) as writer:
            for signals, label in signal_blocks(windows):
                writer.append(signals, label)
                if bare is not None:
                    bare.write(signals.data)
                done += len(signals)
                if told is not None:
                    told(done, windows)
    finally:
        if bare is not None:
            bare.close()
    return path


def write_log(path: Path, rows: int = _LOG_ROWS) -> Path:
    """A window store of a normal log of ``rows`` rows that changes its regime every 400."""
    rng = np.random.default_rng(3)
    stretches = regime_signals(rng, rng.permutation(np.arange(-(-rows // _STRETCH)) % REGIMES), _STRETCH)
    values, at = stretches.reshape(-1, len(TAGS))[:rows], np.arange(rows)
    contract = LogContract("time", TAGS, PERIOD_US, zoned=True)
    with create_store(path, contract, WindowSettings(ROWS), SplitSettings(**vars(SETTINGS.split))) as writer:
        asset, none = np.full(rows, "plant", dtype=object), np.empty((rows, 0), object)
        label, bad = np.zeros(rows, np.int8), np.zeros(values.shape, bool)
        writer.append(LogChunk(at, at * PERIOD_US, asset, values, none, label, bad))
    return path


def make_model(folder: Path, rows: int = _LOG_ROWS, settings: Settings = SETTINGS) -> Path:
    """Fit the model once and keep it in ``folder``: ``model/``, and ``forest_rows.npy``, what its forest grew on.

    A folder that has a model is left as it is.
    """
    bundle = folder / "model"
    if (folder / "forest_rows.npy").exists():
        return bundle
    folder.mkdir(parents=True, exist_ok=True)
    path = write_log(folder / "log.h5", rows)
    with WindowStore.open(path, verify=False) as store:
        model = fit_model(store, settings, folder).model
        model.quality = {"benchmark": "pipeline"}
        grown = forest_rows(store, model)
    save_bundle(model, bundle)
    np.save(folder / "forest_rows.npy", grown, allow_pickle=False)
    (folder / "settings.json").write_text(json.dumps(settings.to_dict(), default=str), encoding="utf-8")
    return bundle


def forest_rows(store: WindowStore, model: AnomalyModel) -> NDArray[np.float32]:
    """The embeddings ``(m, d)`` that the model's forest was grown on, so that scikit-learn can grow the same trees."""
    windows = PreparedWindows(store, model.preparer, model.vocabulary, model.settings.training)
    kept = Reservoir(_FOREST_ROWS, model.ensemble.detectors[-1].seed)  # type: ignore[attr-defined]
    for batch in windows.training(0):
        embedding = model.encode(batch.windows, embedding=True).embedding
        assert embedding is not None
        kept.add(embedding)
    return kept.columns[0]
