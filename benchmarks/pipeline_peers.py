"""The variants that the pipeline benchmark times, one process each: ours, and the same work by the usual calls.

    python benchmarks/pipeline_peers.py VARIANT --store S.h5 --model FOLDER --out F.h5 --windows N [--raw S.f32]

``ours`` is `anomaly extract`; ``ours-features`` its pass A alone; ``batched`` the calls of Keras and scikit-learn, each
over the whole file in batches of 4096 on aligned chunks without a filter; ``bare`` a memory map, the engine and a raw file.
Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a file run by its path sees only its own folder

from benchmarks.pipeline_measure import Stopwatch, private_memory

BATCH, COMPONENTS, CLUSTERS = 4096, 32, 20
_BARE_BLOCK, _ROUND = 8192, 1e-4
Asked = argparse.Namespace


def import_all() -> None:
    """Everything that any variant imports, so that the level after the imports is the same for all."""
    import ai_edge_litert.interpreter
    import h5py
    import keras
    import scipy.linalg
    import sklearn.cluster
    import sklearn.decomposition
    import sklearn.ensemble
    import sklearn.neighbors

    import anomaly.compiled
    import pipelines.extract
    import registry.bundle

    if anomaly.compiled.available():
        import numba

        assert numba

    assert all((ai_edge_litert, h5py, keras, scipy, sklearn, pipelines, registry))


def load_model(folder: Path) -> Any:
    """The fitted model in ``folder``."""
    from registry.bundle import load_bundle

    return load_bundle(folder)


def ours(asked: Asked, features_only: bool = False) -> tuple[Callable[[], None], dict[str, Any]]:
    """`anomaly extract` of the whole file."""
    from pipelines.extract import ExtractOptions, extract

    model = load_model(asked.model)
    model.engine_kind = "auto"
    engine = model.engine(embedding=True)
    clusters = None if features_only else CLUSTERS
    reduce = None if features_only else COMPONENTS
    options = ExtractOptions(
        reduce=reduce, clusters=clusters, features_only=features_only, workers=asked.workers, overwrite=True
    )

    def work() -> None:
        extract(asked.store, model, asked.out, options)

    return work, {"engine": engine.name}


def bare(asked: Asked) -> tuple[Callable[[], None], dict[str, Any]]:
    """The least that can be done: windows from a memory map through the same engine, embeddings to a raw file."""
    model = load_model(asked.model)
    model.engine_kind = "auto"
    engine = model.engine(embedding=True)

    def work() -> None:
        from anomaly.parallel import one_blas_thread

        shape = (-1, model.lookback, len(model.contract.tags))
        windows = np.memmap(asked.raw, np.float32, "r").reshape(shape)
        with asked.out.open("wb") as out, one_blas_thread():
            for low in range(0, len(windows), _BARE_BLOCK):
                out.write(engine(windows[low : low + _BARE_BLOCK]).embedding.data)

    return work, {"engine": engine.name}


def batched(asked: Asked) -> tuple[Callable[[], None], dict[str, Any]]:
    """What one writes with the libraries at hand, batch by batch, a pass for each of them."""
    model = load_model(asked.model)
    graph = model.encoder.graph(True, True)
    graph.predict_on_batch(np.zeros((BATCH, model.lookback, len(model.contract.tags)), np.float32))
    job = Batched(model, graph, np.load(asked.model.parent / "forest_rows.npy", allow_pickle=False))
    return lambda: job.run(asked.store, asked.out), {"engine": "predict_on_batch"}


class Batched:
    """Keras ``predict_on_batch``, IncrementalPCA, MiniBatchKMeans, NearestNeighbors and IsolationForest, 4096 at a time.

    The bank is the model's, and the forest has the model's trees, so its scores are to be those of ``ours``.
    """

    def __init__(self, model: Any, graph: Any, forest_rows: NDArray[np.float32]) -> None:
        from sklearn.cluster import MiniBatchKMeans
        from sklearn.decomposition import IncrementalPCA
        from sklearn.ensemble import IsolationForest
        from sklearn.neighbors import NearestNeighbors

        self.model, self.graph = model, graph
        _, self.knn, self.forest = model.ensemble.detectors
        self.search = NearestNeighbors(n_neighbors=self.knn.k, algorithm="brute").fit(self.knn.embeddings_)
        sample = min(self.forest.sample, len(forest_rows))
        grown = IsolationForest(n_estimators=self.forest.trees, max_samples=sample, random_state=self.forest.seed)
        self.trees = grown.fit(forest_rows)
        self.pca = IncrementalPCA(COMPONENTS)
        self.kmeans = MiniBatchKMeans(CLUSTERS, random_state=7, n_init=1)

    def run(self, store: Path, out: Path) -> None:
        """All passes over ``store``, everything into ``out``."""
        import h5py

        from anomaly.data.store_features import making

        with h5py.File(store, "r") as source:
            signals = source["signals"]
            with making(out, len(signals), {"variant": "batched"}, overwrite=True) as made:
                file = made.file
                for name, column in self.layout().items():
                    file.add(name, column)
                self._encode(signals, file)
                features = [(low, min(low + BATCH, file.n)) for low in range(0, file.n, BATCH)]
                for low, high in features:
                    if high - low >= COMPONENTS:
                        self.pca.partial_fit(file.read("features", low, high))
                for low, high in features:
                    file.write(low, {"reduced": self.pca.transform(file.read("features", low, high))})
                for low, high in features:
                    if high - low >= CLUSTERS:
                        self.kmeans.partial_fit(file.read("reduced", low, high))
                for low, high in features:
                    file.write(low, self._placed(file.read("reduced", low, high)))
                for low, high in features:
                    rows = file.read("features", low, high)
                    near = self.search.kneighbors(rows / self.knn.scale_)[0].mean(axis=1)
                    alone = np.column_stack((near, -self.trees.score_samples(rows)))
                    file.write(low, {"raw_scores": alone.astype(np.float32)})

    def layout(self) -> dict[str, Any]:
        """What is written of every window."""
        from anomaly.data.store_features import Column

        names = ("reconstruction_error", "energy", "novelty", "stability")
        floats = {name: Column(np.float32) for name in names}
        wide = {"features": self.knn.embeddings_.shape[1], "reduced": COMPONENTS, "raw_scores": 2}
        return floats | {n: Column(np.float32, (d,)) for n, d in wide.items()} | {"cluster_id": Column(np.int32)}

    def _encode(self, signals: Any, file: Any) -> None:
        for low in range(0, len(signals), BATCH):
            raw = signals[low : low + BATCH]
            flat = raw.reshape(-1, raw.shape[2])
            windows = self.model.preparer.transform(flat).reshape(raw.shape)
            padded = windows
            if len(windows) < BATCH:  # another shape would be traced anew
                padded = np.zeros((BATCH, *windows.shape[1:]), np.float32)
                padded[: len(windows)] = windows
            features, drawn = (np.asarray(part)[: len(windows)] for part in self.graph.predict_on_batch(padded))
            error = ((windows - drawn) ** 2).mean(axis=(1, 2))
            energy = np.sqrt((raw**2).mean(axis=(1, 2)))
            file.write(low, {"features": features, "reconstruction_error": error, "energy": energy})

    def _placed(self, reduced: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Cluster, distance and cosine to its centre."""
        apart = self.kmeans.transform(reduced)
        ids = apart.argmin(axis=1)
        centre = self.kmeans.cluster_centers_[ids]
        lengths = np.linalg.norm(centre, axis=1) * np.linalg.norm(reduced, axis=1)
        cosine = (reduced * centre).sum(axis=1) / np.maximum(lengths, 1e-12)
        return {"cluster_id": ids.astype(np.int32), "novelty": apart.min(axis=1), "stability": cosine}


def sample_blocks(windows: int, parts: int = 8, size: int = 2048) -> Iterator[slice]:
    """Slices spread over all windows."""
    for low in np.unique(np.linspace(0, max(windows - size, 0), parts).astype(int)):
        yield slice(int(low), min(int(low) + size, windows))


def compare(found: Path, peer: Path, model_folder: Path) -> dict[str, float]:
    """Largest differences of ours and batched on a sample; raises AssertionError where they do not agree.

    Embeddings and reconstruction errors, the scores of bank and forest after the model's own calibration, and the spaces
    of the reduction (in degrees, a figure only: truncated IncrementalPCA is not exact).
    """
    from anomaly.data.store_features import Features

    model = load_model(model_folder)
    apart: dict[str, float] = {}
    with Features.open(found) as mine:
        import h5py

        with h5py.File(peer, "r") as other:
            for rows in sample_blocks(mine.n):
                own = {n: mine.column(n)[rows] for n in ("features", "reconstruction_error", "detector_scores")}
                raw = other["raw_scores"][rows]
                calibrators = model.ensemble.calibrators[1:]
                scores = np.column_stack([c.transform(raw[:, k]) for k, c in enumerate(calibrators)])
                pairs = {
                    "features": (own["features"], other["features"][rows]),
                    "reconstruction error": (own["reconstruction_error"], other["reconstruction_error"][rows]),
                    "kNN": (own["detector_scores"][:, 1], scores[:, 0]),
                    "forest": (own["detector_scores"][:, 2], scores[:, 1]),
                }
                for name, (a, b) in pairs.items():
                    # Forest limits lie between embeddings: a last bit may send a window to the other side of one.
                    gap = np.abs(a - b) / np.maximum(np.abs(b), 1)
                    apart[name] = max(apart.get(name, 0.0), float(np.quantile(gap, 0.995)))
    wrong = {name: gap for name, gap in apart.items() if gap > (1e-2 if name in ("kNN", "forest") else _ROUND)}
    assert not wrong, f"ours and batched differ: {wrong}"
    return apart


VARIANTS: dict[str, Callable[[Asked], tuple[Callable[[], None], dict[str, Any]]]] = {
    "ours": ours,
    "ours-features": lambda asked: ours(asked, features_only=True),
    "bare": bare,
    "batched": batched,
}


def main() -> None:
    """Run one variant and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=[*VARIANTS, "compare"])
    for name in ("store", "model", "out", "raw", "peer"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--windows", type=int, default=0)
    parser.add_argument("--workers", type=int)
    asked = parser.parse_args()
    if asked.variant == "compare":
        print(json.dumps(compare(asked.out, asked.peer, asked.model)))
        return
    import_all()
    base, _ = private_memory()
    watch = Stopwatch()
    work, more = VARIANTS[asked.variant](asked)
    setup, _ = watch.read()
    work()
    cpu, wall = watch.read()
    told = {"variant": asked.variant, "windows": asked.windows, "cpu": cpu, "wall": wall, "setup_cpu": setup}
    print(json.dumps(told | {"base": base, "peak": private_memory()[0]} | more), flush=True)


if __name__ == "__main__":
    main()
