"""Single parts of the pipeline against their peers, interleaved in one process, each result compared first.

    python benchmarks/pipeline_races.py {encode,pca,knn,forest,reads} [--rows N] [--rounds R] --model FOLDER --store S --raw F

prints one line of JSON: ``ours`` and each peer as CPU microseconds per row, one figure a round, and what was compared.
Everything runs on one thread: set OMP_NUM_THREADS and its kin to 1, as the benchmark does.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a file run by its path sees only its own folder

from anomaly.detectors.base import Encoded
from benchmarks.pipeline_measure import Stopwatch

SMALL, LARGE, COMPONENTS, NEIGHBOURS = 256, 2048, 32, 5
BANK, CORESET = 10_000, 1000
_WIDTH, _CLOUDS = 64, 20
Embeddings = NDArray[np.float32]


@dataclass
class Way:
    """One way to do a part: ``work`` on ``rows`` rows."""

    rows: int
    work: Callable[[], object]


@dataclass
class Race:
    """Ways by name, ``ours`` among them, and what was found when they were compared."""

    ways: dict[str, Way]
    compared: dict[str, float] = field(default_factory=dict)


def clouds(rows: int, seed: int) -> Embeddings:
    """Embeddings ``(rows, 64)``: 20 clouds of unlike widths in which later dimensions vary less."""
    rng, own = np.random.default_rng(seed), np.random.default_rng(0)
    spread = (1 / np.sqrt(np.arange(1, _WIDTH + 1))).astype(np.float32)
    centres = own.normal(size=(_CLOUDS, _WIDTH)).astype(np.float32) * 3 * spread
    width = own.uniform(0.5, 1.5, _CLOUDS).astype(np.float32)
    made = np.empty((rows, _WIDTH), np.float32)
    for low in range(0, rows, 1 << 16):
        part = made[low : low + (1 << 16)]
        kind = rng.integers(_CLOUDS, size=len(part))
        part[:] = centres[kind] + rng.standard_normal(part.shape, dtype=np.float32) * width[kind, None] * spread
    return made


def blocks_of(rows: NDArray[Any], size: int) -> list[NDArray[Any]]:
    """Views of at most ``size`` rows."""
    return [rows[low : low + size] for low in range(0, len(rows), size)]


def peer_class(module: str, name: str) -> Any:
    """A class of PyOD; raises SystemExit with a hint where it is not installed."""
    if importlib.util.find_spec("pyod") is None:
        raise SystemExit("this race needs the peer PyOD: install the dependency group `bench` (uv sync --group bench)")
    return getattr(importlib.import_module(module), name)


def encoded(rows: Embeddings) -> Encoded:
    """A block whose windows take no part."""
    return Encoded(rows[:, None, :1], embedding=rows)


def scores_in(detector: Any, rows: Embeddings, size: int) -> NDArray[np.float64]:
    """Scores of ``rows``, ``size`` at a time."""
    return np.concatenate([detector.anomaly_score(encoded(block)) for block in blocks_of(rows, size)])


def encode(asked: argparse.Namespace) -> Race:
    """The inference engine against ``predict_on_batch`` and ``predict`` of 256 windows."""
    from anomaly.encoders.inference import inference_engine
    from benchmarks.pipeline_data import ROWS, TAGS
    from registry.bundle import load_bundle

    model = load_bundle(asked.model)
    engine, graph = inference_engine(model.encoder, True, False), model.encoder.graph(True, False)
    raw = np.memmap(asked.raw, np.float32, "r").reshape(-1, ROWS, len(TAGS))[: asked.rows]
    windows = model.preparer.transform(raw.reshape(-1, len(TAGS))).reshape(raw.shape)
    few, fewest = windows[: max(len(windows) // 4, SMALL)], windows[: min(10 * SMALL, len(windows))]

    def each(call: Callable[[Any], Any], rows: NDArray[np.float32]) -> list[Any]:
        return [call(block) for block in blocks_of(rows, SMALL)]

    def predict(block: NDArray[np.float32]) -> Any:
        return graph.predict(block, verbose=0)

    exact = np.concatenate(each(graph.predict_on_batch, few))
    apart = float(np.abs(engine(few).embedding - exact).max())
    relative = apart / max(float(np.abs(exact).max()), 1)
    each(predict, fewest[:SMALL])
    return Race(
        {
            "ours": Way(len(windows), lambda: [engine(block) for block in blocks_of(windows, LARGE)]),
            "predict_on_batch(256)": Way(len(few), lambda: each(graph.predict_on_batch, few)),
            "predict() per 256": Way(len(fewest), lambda: each(predict, fewest)),
        },
        {"difference": relative, "difference, absolute": apart, "litert": float(engine.name == "litert")},
    )


def pca(asked: argparse.Namespace) -> Race:
    """The streamed covariance against IncrementalPCA in batches of 256; angles to the PCA of all rows in memory."""
    from sklearn.decomposition import IncrementalPCA

    from anomaly.embeddings.reduction import StreamedPCA, subspace_angle

    rows = clouds(asked.rows, seed=1)
    few = rows[: max(asked.rows // 4, 4 * SMALL)]
    exact = rows.astype(np.float64)
    _, vectors = np.linalg.eigh(np.cov(exact, rowvar=False))
    wanted = vectors[:, ::-1].T[:COMPONENTS]

    def ours() -> Any:
        return StreamedPCA(COMPONENTS).fit(blocks_of(rows, 4 * LARGE))

    def theirs(part: Embeddings) -> Any:
        made = IncrementalPCA(COMPONENTS, batch_size=SMALL)
        for block in blocks_of(part, SMALL):
            if len(block) >= COMPONENTS:
                made.partial_fit(block)
        return made

    angles = {
        "angle": float(np.degrees(subspace_angle(ours().components_, wanted))),
        "angle of IncrementalPCA": float(np.degrees(subspace_angle(theirs(rows).components_, wanted))),
    }
    return Race({"ours": Way(len(rows), ours), "IncrementalPCA(256)": Way(len(few), lambda: theirs(few))}, angles)


def knn(asked: argparse.Namespace) -> Race:
    """Distances to a bank of 10 000, and to a core set of 1000 of it, against PyOD's KNN on the same 10 000."""
    from anomaly.detectors.distance import KnnDetector

    bank, rows = clouds(BANK, seed=2), clouds(asked.rows, seed=3)
    detector = KnnDetector(k=NEIGHBOURS, bank=BANK).fit([encoded(bank)])
    coreset = KnnDetector(k=NEIGHBOURS, bank=CORESET, coreset="greedy").fit([encoded(bank)])
    peer = peer_class("pyod.models.knn", "KNN")(n_neighbors=NEIGHBOURS, method="mean").fit(detector.embeddings_)
    few = rows[: max(asked.rows // 10, SMALL)]
    near, far = scores_in(detector, few, LARGE), peer.decision_function(few / detector.scale_)
    apart = float(np.abs(near - far).max() / far.max())

    return Race(
        {
            "ours": Way(len(rows), lambda: scores_in(detector, rows, LARGE)),
            "ours, core set of 1000": Way(len(rows), lambda: scores_in(coreset, rows, LARGE)),
            "PyOD KNN": Way(len(few), lambda: peer.decision_function(few / detector.scale_)),
        },
        {"difference": apart},
    )


def forest(asked: argparse.Namespace) -> Race:
    """100 trees in batches of 256 against scikit-learn, and in the pipeline's blocks against PyOD on the whole array."""
    from sklearn.ensemble import IsolationForest

    from anomaly.detectors.boundary import IsolationForestDetector

    normal, rows = clouds(BANK, seed=2), clouds(asked.rows, seed=3)
    detector = IsolationForestDetector(seed=1).fit([encoded(normal)])
    trees = IsolationForest(n_estimators=100, max_samples=256, random_state=1).fit(normal)
    peer = peer_class("pyod.models.iforest", "IForest")(n_estimators=100, max_samples=256, random_state=1).fit(normal)
    few = rows[: max(asked.rows // 10, SMALL)]

    def batched() -> NDArray[np.float64]:
        return np.concatenate([-trees.score_samples(block) for block in blocks_of(few, SMALL)])

    mine = scores_in(detector, few, SMALL)
    # PyOD shifts its scores by the quantile it would alarm at.
    shifted = mine - peer.decision_function(few)
    compared = {"difference": float(np.abs(mine - batched()).max()), "difference to PyOD": float(np.ptp(shifted))}
    return Race(
        {
            "ours": Way(len(rows), lambda: scores_in(detector, rows, SMALL)),
            "ours, blocks of 2048": Way(len(rows), lambda: scores_in(detector, rows, LARGE)),
            "scikit-learn, batches of 256": Way(len(few), batched),
            "PyOD IForest, whole array": Way(len(rows), lambda: peer.decision_function(rows)),
        },
        compared,
    )


def reads(asked: argparse.Namespace) -> Race:
    """256 windows at a time from the store and from a memory map of the bare numbers."""
    from anomaly.data.store import SignalsStore

    store = SignalsStore.open(asked.store, verify=False)
    shape = store.signals.shape
    bare = np.memmap(asked.raw, np.float32, "r").reshape(shape)
    count = min(asked.rows, len(bare))
    lows = range(0, count, SMALL)
    assert all(np.array_equal(store.signals[low : low + SMALL], bare[low : low + SMALL]) for low in lows)

    def walk(source: Any) -> None:
        for low in lows:
            np.array(source[low : low + SMALL], copy=None if source is store.signals else True)

    return Race({"ours": Way(count, lambda: walk(store.signals)), "memmap": Way(count, lambda: walk(bare))})


RACES: dict[str, Callable[[argparse.Namespace], Race]] = {
    "encode": encode,
    "pca": pca,
    "knn": knn,
    "forest": forest,
    "reads": reads,
}
#: Rows of each race: enough for a second or two a round.
ROWS_OF = {"encode": 200_000, "pca": 400_000, "knn": 40_000, "forest": 100_000, "reads": 1_000_000}


def run(race: Race, rounds: int) -> dict[str, list[float]]:
    """CPU microseconds per row of every way, round by round, after one round that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in race.ways}
    for number in range(rounds + 1):
        for name, way in race.ways.items():
            watch = Stopwatch()
            way.work()
            if number:
                taken[name].append(watch.read()[0] / way.rows * 1e6)
    return taken


def main() -> None:
    """Run one race and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("race", choices=RACES)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    for name in ("model", "store", "raw"):
        parser.add_argument(f"--{name}", type=Path)
    asked = parser.parse_args()
    asked.rows = asked.rows or ROWS_OF[asked.race]
    race = RACES[asked.race](asked)
    print(json.dumps({"race": asked.race, "taken": run(race, asked.rounds), "compared": race.compared}), flush=True)


if __name__ == "__main__":
    main()
