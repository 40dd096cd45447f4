"""How fast detectors score embeddings, as ratios to scikit-learn in one interleaved run (PERFORMANCE §4).

    python benchmarks/detectors.py [--rows 200000] [--rounds 3] [--only iforest,knn]

Both sides get the same float32 embeddings in blocks of 256 windows, as scoring a log hands them over, and are fitted on
the same normal rows. Scores of the two are compared first: a faster wrong answer would count for nothing. Peers take a
tenth of the rows, because a rate does not depend on them. The number of threads is the machine's; set OMP_NUM_THREADS to
compare on one.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a file run by its path sees only its own folder

from anomaly.detectors.base import Detector, Encoded
from anomaly.detectors.boundary import IsolationForestDetector
from anomaly.detectors.distance import KnnDetector

DIMENSIONS, BLOCK, BANK, PEER_SHARE = 64, 256, 10_000, 10

Score = Callable[[NDArray[np.float32]], NDArray[np.float64]]


@dataclass(frozen=True)
class Race:
    """Two ways to the same scores ``(n,)`` of embeddings ``(n, d)``; ``goal`` is the least ratio of their rates."""

    name: str
    peer: str
    goal: float
    ours: Score
    theirs: Score


def embeddings(rows: int, seed: int) -> NDArray[np.float32]:
    """Eight clouds of unlike widths in 64 dimensions, float32."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(8, DIMENSIONS)) * 3
    made = np.empty((rows, DIMENSIONS), np.float32)
    for low in range(0, rows, 1 << 17):
        part = made[low : low + (1 << 17)]
        kind = rng.integers(8, size=len(part))
        part[:] = centres[kind] + rng.standard_normal(part.shape, dtype=np.float32) * (0.5 + 0.2 * kind[:, None])
    return made


def blocks(rows: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Views of 256 rows."""
    return [rows[low : low + BLOCK] for low in range(0, len(rows), BLOCK)]


def encoded(rows: NDArray[np.float32]) -> Encoded:
    """A block whose windows take no part."""
    return Encoded(rows[:, None, :1], embedding=rows)


def by_detector(detector: Detector) -> Score:
    """Scores block by block."""
    return lambda rows: np.concatenate([detector.anomaly_score(encoded(block)) for block in blocks(rows)])


def iforest(normal: NDArray[np.float32]) -> Race:
    """Our walk of 100 trees against scikit-learn's, the same trees."""
    from sklearn.ensemble import IsolationForest

    detector = IsolationForestDetector(seed=1).fit([encoded(normal)])
    forest = IsolationForest(n_estimators=100, max_samples=256, random_state=1).fit(normal)

    def theirs(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.concatenate([-forest.score_samples(block) for block in blocks(rows)])

    return Race("isolation forest, 100 trees of 256", "scikit-learn score_samples", 3, by_detector(detector), theirs)


def knn(normal: NDArray[np.float32]) -> Race:
    """Mean distance to the 3 nearest of 10 000, the same bank."""
    from sklearn.neighbors import NearestNeighbors

    bank = normal[:BANK]
    detector = KnnDetector(k=3, bank=len(bank)).fit([encoded(bank)])
    search = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(detector.embeddings_)

    def theirs(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        found = [search.kneighbors(block / detector.scale_)[0].mean(axis=1) for block in blocks(rows)]
        return np.concatenate(found).astype(np.float64)

    return Race(f"kNN, 3 of {len(bank)}", "scikit-learn NearestNeighbors, brute", 2, by_detector(detector), theirs)


#: Every comparison by name. A further one joins here: normal embeddings in, a Race out.
RACES: dict[str, Callable[[NDArray[np.float32]], Race]] = {"iforest": iforest, "knn": knn}


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def rates(race: Race, rows: NDArray[np.float32], rounds: int) -> tuple[list[float], list[float]]:
    """Rows per second of ours and theirs, one after another, round by round, after one round that is not counted."""
    fewer = rows[: max(len(rows) // PEER_SHARE, BLOCK)]
    np.testing.assert_allclose(race.ours(fewer), race.theirs(fewer), rtol=1e-4)
    ours, theirs = [], []
    for number in range(rounds + 1):
        mine, peer = seconds(lambda: race.ours(rows)), seconds(lambda: race.theirs(fewer))
        if number:
            ours.append(len(rows) / mine)
            theirs.append(len(fewer) / peer)
    return ours, theirs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(RACES), help="comparisons by name")
    asked = parser.parse_args()
    rows, normal = embeddings(asked.rows, seed=1), embeddings(BANK, seed=2)
    print(f"{os.cpu_count()} cores, {platform.machine()}, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'unset')}; "
          f"{asked.rows} rows of {DIMENSIONS}, blocks of {BLOCK}, medians of {asked.rounds} interleaved rounds\n")  # fmt: skip
    print("| detector | peer | ours, rows/s | peer, rows/s | ratio (lowest to highest) | goal |")
    print("|---|---|---|---|---|---|")
    for name in asked.only.split(","):
        race = RACES[name](normal)
        ours, theirs = rates(race, rows, asked.rounds)
        each = sorted(a / b for a, b in zip(ours, theirs, strict=True))
        print(f"| {race.name} | {race.peer} | {median(ours):.0f} | {median(theirs):.0f} "
              f"| {median(each):.2f} ({each[0]:.2f} to {each[-1]:.2f}) | {race.goal:g} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
