"""How fast the space of embeddings is learned, against the usual chain of scikit-learn calls (METHODS S8 to S11).

    python benchmarks/space.py [--rows 200000] [--width 64] [--components 32] [--clusters 6] [--rounds 3]

Both reduce embeddings, cluster them and give each row its cluster. Ours: exact PCA, k-means and ids by ``fit_space_once``
in 8192-row blocks. The usual way: ``IncrementalPCA.partial_fit``, a transform pass, ``MiniBatchKMeans.partial_fit`` and a
predict pass, in 256-row blocks; and, to tell the blocks from the method, the same in 8192-row blocks. Rounds are
interleaved; the table gives medians, ratios to ours, and what each found. Threads are as OMP_NUM_THREADS says.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a file run by its path sees only its own folder

from anomaly.embeddings import StreamedPCA, fit_space_once, subspace_angle

OURS, SMALL = 8192, 256
Found = tuple[NDArray[np.float64], NDArray[np.int32]]


def planted(rows: int, width: int, modes: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Embeddings ``(rows, width)`` in ``modes`` modes of unequal size, with the variance of each dimension falling."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, modes + 1) / np.arange(1, modes + 1).sum()
    mode = rng.choice(modes, rows, p=share)
    spread = 1 / np.sqrt(np.arange(1, width + 1))
    centres = rng.normal(size=(modes, width)) * 3 * spread
    return (centres[mode] + rng.normal(size=(rows, width)) * spread).astype(np.float32), mode


def blocks_of(rows: NDArray[np.float32], size: int) -> list[NDArray[np.float32]]:
    """``rows (n, d)`` as views of at most ``size`` rows."""
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def usual(rows: NDArray[np.float32], size: int, components: int, clusters: int) -> Found:
    """The chain of scikit-learn calls: components ``(m, d)`` and ids ``(n,)``."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import IncrementalPCA

    blocks, pca = blocks_of(rows, size), IncrementalPCA(components)
    for block in blocks:
        if len(block) >= components:
            pca.partial_fit(block)
    reduced = [pca.transform(block) for block in blocks]
    kmeans = MiniBatchKMeans(clusters, random_state=7, n_init=5)
    for block in reduced:
        if len(block) >= clusters:
            kmeans.partial_fit(block)
    return pca.components_, np.concatenate([kmeans.predict(block) for block in reduced])


def ours(rows: NDArray[np.float32], components: int, clusters: int) -> Found:
    """The fused passes: components ``(m, d)`` and ids ``(n,)``."""
    space, ids, _ = fit_space_once(blocks_of(rows, OURS), clusters, components)
    assert space.pca is not None
    return space.pca.components_, ids


def inertia_of(reduced: NDArray[np.float32], ids: NDArray[np.int32]) -> float:
    """Sum of squared distances to the means of the clusters that ``ids`` makes."""
    parts = (reduced[ids == i].astype(np.float64) for i in np.unique(ids))
    return float(sum(((part - part.mean(axis=0)) ** 2).sum() for part in parts))


def interleaved(works: dict[str, Callable[[], Found]], rounds: int) -> tuple[dict[str, list[float]], dict[str, Found]]:
    """Wall seconds of each, round by round, after one round that is not counted; and what each found."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    found = {name: work() for name, work in works.items()}
    for _ in range(rounds):
        for name, work in works.items():
            started = time.perf_counter()
            found[name] = work()
            taken[name].append(time.perf_counter() - started)
    return taken, found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 200_000), ("width", 64), ("components", 32), ("clusters", 6), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    from sklearn.metrics import adjusted_rand_score

    rows, mode = planted(asked.rows, asked.width, asked.clusters)
    works: dict[str, Callable[[], Found]] = {
        "ours, blocks of 8192": lambda: ours(rows, asked.components, asked.clusters),
        "usual, blocks of 256": lambda: usual(rows, SMALL, asked.components, asked.clusters),
        "usual, blocks of 8192": lambda: usual(rows, OURS, asked.components, asked.clusters),
    }
    taken, found = interleaved(works, asked.rounds)
    exact = StreamedPCA(asked.components).fit([rows])
    reduced, first = exact.transform(rows), next(iter(works))
    print(f"{os.cpu_count()} cores, {platform.machine()}, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}; "
          f"{asked.rows} rows of {asked.width} to {asked.components} dimensions, {asked.clusters} clusters, "
          f"medians of {asked.rounds} interleaved rounds\n")  # fmt: skip
    print("| way | seconds | rows/s | time ÷ ours | lowest, highest ratio of a round "
          "| angle to the full PCA, rad | inertia ÷ ours | ARI |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    least = inertia_of(reduced, found[first][1])
    for name, (components, ids) in found.items():
        ratios = [a / b for a, b in zip(taken[name], taken[first], strict=True)]
        spent = median(taken[name])
        print(f"| {name} | {spent:.3f} | {asked.rows / spent:.0f} | {median(ratios):.1f} "
              f"| {min(ratios):.1f}, {max(ratios):.1f} | {subspace_angle(components, exact.components_):.4f} "
              f"| {inertia_of(reduced, ids) / least:.3f} | {adjusted_rand_score(mode, ids):.3f} |")  # fmt: skip


if __name__ == "__main__":
    main()
