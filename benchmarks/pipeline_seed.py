"""What the literal loops cost: 256 rows at a time, ``chunks=True``, gzip (PERFORMANCE §1); sampled, and multiplied.

h5py's guess of chunks halves every axis in turn. A tall dataset gets column chunks of very many rows, and a batch of 256
touches all columns' chunks, which together do not fit HDF5's cache of 1 MiB: each batch reads (and writes) all of them
again. The cost of a batch depends on the chunk shape alone, so it is measured inside a dataset declared at full size.

    python benchmarks/pipeline_seed.py --store S.h5 --model FOLDER --out F.h5 --windows N

prints one line of JSON: CPU and wall microseconds per row of each loop, and their sum.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a file run by its path sees only its own folder

BATCH, SAMPLED, COMPONENTS, CLUSTERS = 256, 48, 32, 20
#: What h5py's guess aims at, between 8 KiB and 1 MiB, by the size of the dataset.
_BASE, _LEAST, _MOST = 16 << 10, 8 << 10, 1 << 20


def guessed_chunk(shape: tuple[int, ...], itemsize: int = 4) -> tuple[int, ...]:
    """The chunk that ``chunks=True`` gives a dataset ``shape``.

    >>> guessed_chunk((20_000_000, 64)), guessed_chunk((100_000, 32, 3))
    ((78125, 1), (6250, 2, 1))
    """
    chunk = [float(n) for n in shape]
    target = _BASE * 2 ** math.log10(math.prod(chunk) * itemsize / (1 << 20))
    target = min(max(target, _LEAST), _MOST)
    axis = 0
    while True:
        held = math.prod(chunk) * itemsize
        if (held < target or abs(held - target) / target < 0.5) and held < _MOST:
            break
        if math.prod(chunk) == 1:
            break
        chunk[axis % len(chunk)] = math.ceil(chunk[axis % len(chunk)] / 2)
        axis += 1
    return tuple(int(n) for n in chunk)


@dataclass(frozen=True)
class Cost:
    """Chunks that a batch touches, their bytes, and how many times the batch's own bytes those are."""

    touched: int
    held: int
    amplification: float

    @property
    def cached(self) -> bool:
        """Whether they fit HDF5's own cache, so that each is decompressed once."""
        return self.held <= _MOST


def batch_cost(shape: tuple[int, ...], itemsize: int = 4) -> Cost:
    """What reading 256 rows of a dataset ``shape`` touches under ``chunks=True``.

    >>> batch_cost((1_000_000, 64)).touched
    32
    """
    chunk = guessed_chunk(shape, itemsize)
    across = math.prod(math.ceil(n / c) for n, c in zip(shape[1:], chunk[1:], strict=True))
    touched = math.ceil(BATCH / chunk[0]) * across
    held = touched * math.prod(chunk) * itemsize
    return Cost(touched, held, held / (BATCH * math.prod(shape[1:]) * itemsize))


def sampled_batches(windows: int, width: int) -> list[slice]:
    """Batches in the middle of the first row of chunks, where chunks are filled as they are on the average."""
    rows = min(guessed_chunk((windows, width))[0], windows)
    count = min(SAMPLED, max(rows // BATCH, 1))
    first = max(rows // 2 - count // 2 * BATCH, 0) // BATCH * BATCH
    return [
        slice(low, min(low + BATCH, windows)) for low in range(first, first + count * BATCH, BATCH) if low < windows
    ]


class Literal:
    """The loops themselves, on sampled batches; every loop gives (CPU, wall) microseconds per row."""

    def __init__(self, signals: Any, model: Any, windows: int) -> None:
        self.signals, self.model, self.windows = signals, model, windows
        self.graph = model.encoder.graph(True, False)
        self.width = int(self.graph.output_shape[-1])
        self.batches = sampled_batches(windows, self.width)
        self.graph.predict_on_batch(self._prepared(self.batches[0]))

    def _prepared(self, rows: slice) -> NDArray[np.float32]:
        """Scaled windows; a file shorter than what is declared is read again from its beginning."""
        low = rows.start % max(len(self.signals) - BATCH, 1)
        raw = self.signals[low : low + rows.stop - rows.start]
        scaled: NDArray[np.float32] = self.model.preparer.transform(raw.reshape(-1, raw.shape[2])).reshape(raw.shape)
        return scaled

    def write(self, path: Path) -> tuple[float, float]:
        """Encode and write; half of the row of chunks is there already, and the other half is added untimed."""
        from anomaly.data.store_files import new_file

        with new_file(path) as file:
            features = file.create_dataset(
                "features", (self.windows, self.width), "float32", chunks=True, compression="gzip"
            )
            expected = guessed_chunk((self.windows, self.width))
            assert features.chunks == expected, f"h5py chose {features.chunks}, expected {expected}"
            rows, first = min(expected[0], self.windows), self.batches[0].start
            self._fill(features, 0, first)
            file.flush()

            def one(batch: slice) -> None:
                features[batch] = self.graph.predict_on_batch(self._prepared(batch))

            taken = timed_batches(one, self.batches)
            self._fill(features, self.batches[-1].stop, rows)
        return taken

    def _fill(self, features: Any, first: int, stop: int) -> None:
        """Embeddings in one write, each chunk compressed once."""
        lows = range(first, stop, 4096)
        if lows:
            parts = []
            for low in lows:
                high = min(low + 4096, stop)
                at = low % max(len(self.signals) - 4096, 1)
                raw = self.signals[at : at + high - low]
                raw = np.resize(raw, (high - low, *raw.shape[1:]))
                scaled = self.model.preparer.transform(raw.reshape(-1, raw.shape[2])).reshape(raw.shape)
                parts.append(self.graph.predict_on_batch(scaled))
            features[first:stop] = np.concatenate(parts)

    def passes(self, path: Path) -> dict[str, tuple[float, float]]:
        """The four passes over the features: fit and apply the reduction, learn and give the clusters."""
        import h5py
        from sklearn.cluster import MiniBatchKMeans
        from sklearn.decomposition import IncrementalPCA

        from anomaly.data.store_files import new_file

        pca = IncrementalPCA(n_components=COMPONENTS, batch_size=BATCH)
        kmeans = MiniBatchKMeans(CLUSTERS, batch_size=BATCH, max_iter=100, random_state=42)
        with h5py.File(path, "r") as file, new_file(path.with_suffix(".out")) as out:
            features = file["features"]
            reduced = out.create_dataset("reduced", (self.windows, COMPONENTS), "float32")
            ids = out.create_dataset("cluster_id", (self.windows,), "int32")
            kmeans.fit(features[self.batches[0]])

            def transformed(batch: slice) -> None:
                reduced[batch] = pca.transform(features[batch])

            def given(batch: slice) -> None:
                ids[batch] = kmeans.predict(features[batch])

            return {
                "fit the reduction": timed_batches(lambda b: pca.partial_fit(features[b]), self.batches),
                "apply the reduction": timed_batches(transformed, self.batches),
                "learn the clusters": timed_batches(lambda b: kmeans.partial_fit(features[b]), self.batches),
                "give the clusters": timed_batches(given, self.batches),
            }


def timed_batches(one: Callable[[slice], object], batches: list[slice]) -> tuple[float, float]:
    """CPU and wall microseconds per row of ``one`` over all ``batches``; the first few only warm up."""
    from benchmarks.pipeline_measure import Stopwatch

    warm = 3 if len(batches) > 45 else 0
    for batch in batches[:warm]:
        one(batch)
    watch = Stopwatch()
    for batch in batches[warm:]:
        one(batch)
    rows = sum(b.stop - b.start for b in batches[warm:])
    cpu, wall = watch.read()
    return cpu / rows * 1e6, wall / rows * 1e6


def main() -> None:
    """Sample all loops and print what a row costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("store", "model", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--windows", type=int, required=True)
    asked = parser.parse_args()
    import h5py

    from registry.bundle import load_bundle

    with h5py.File(asked.store, "r") as store:
        literal = Literal(store["signals"], load_bundle(asked.model), asked.windows)
        loops = {"encode and write": literal.write(asked.out)} | literal.passes(asked.out)
    told = {name: {"cpu": cpu, "wall": wall} for name, (cpu, wall) in loops.items()}
    total = {kind: sum(loop[kind] for loop in told.values()) for kind in ("cpu", "wall")}
    print(json.dumps({"variant": "seed", "windows": asked.windows, "loops": told, "microseconds": total}), flush=True)


if __name__ == "__main__":
    main()
