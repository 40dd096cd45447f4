"""How many rare windows people find for the labels they spend: our draws against uniform ones (METHODS S20).

    python benchmarks/sampling.py [--seeds 20] [--windows 8000] [--picture curve.png]

Each seed makes a plant of its own: windows of 16 rows and 6 tags in 8 operating modes that follow one another in runs,
one of them rare (0.5 %). Modes are 7 clusters of the common windows only, as normal windows of a train part
would give them; the rare windows fall into the cluster nearest to them. Drawing is in turn from every cluster, so that a
curve is a draw at every k. Intervals are 95 % percentile bootstraps over the seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a file run by its path sees only its own folder

from anomaly.embeddings.space import Space
from anomaly.scores.sampling import StratifiedSample
from anomaly.scores.window_scores import Limits, ModeStability, composite, energy, filled_radius, novelty

TEMPERATURES = (0.1, 1.0, 5.0)
SPENT = (20, 50, 100, 200, 400)
#: Rare windows that have to be found for the comparison of labels spent.
WANTED = 3
_ROWS, _TAGS, _MODES, _RARE, _RUN = 16, 6, 8, 0.005, 40
_BOOTSTRAPS = 2000


@dataclass(frozen=True)
class PlantedWindows:
    """Windows ``(n, T, C)`` in time order and which are of the rare mode ``(n,)``."""

    windows: NDArray[np.float64]
    rare: NDArray[np.bool_]


def planted_windows(seed: int, n: int = 8000) -> PlantedWindows:
    """A plant of seven common modes in runs of about 40 windows and single windows of an eighth.

    A mode has set points of its own. The rare one is a common mode in which two tags ramp away by 1.5 to 4 deviations: it
    is nearer to its mode than modes are to one another.
    """
    rng = np.random.default_rng(seed)
    levels = rng.normal(scale=3, size=(_MODES - 1, _TAGS))
    mode = np.repeat(rng.integers(0, _MODES - 1, n // _RUN + 1), _RUN)[:n]
    spread = rng.uniform(0.6, 1.4, _MODES - 1)[mode][:, None, None]
    wander = spread * rng.normal(scale=0.7, size=(n, 1, _TAGS))
    windows = levels[mode][:, None, :] + wander + spread * rng.normal(scale=0.7, size=(n, _ROWS, _TAGS))
    rare = np.zeros(n, dtype=bool)
    rare[rng.choice(n, max(round(_RARE * n), 1), replace=False)] = True
    sign = rng.choice([-1.0, 1.0], size=2)
    size = rng.uniform(1.5, 4.0, size=(int(rare.sum()), 1, 1)) * sign
    ramp = np.linspace(0, 1, _ROWS)[None, :, None]
    windows[rare, :, :2] += size * ramp
    return PlantedWindows(windows + 20, rare)


def ordered_draws(planted: PlantedWindows, temperature: float, seed: int, per_mode: int) -> NDArray[np.int64]:
    """Windows in the order that people would label them: the first of every cluster, the second of every cluster, …"""
    points = planted.windows.reshape(len(planted.rare), -1).astype(np.float32)
    space = Space.fit([points[~planted.rare]], clusters=_MODES - 1, seed=seed)
    placed = space.place(points)
    ids, radius = placed.ids, filled_radius(space.kmeans.radius_)
    scores = (ModeStability(20).add("plant", ids), novelty(placed.distance, radius[ids]), energy(planted.windows))
    table = np.column_stack(scores)
    sample = StratifiedSample(per_mode, temperature, seed)
    sample.add(ids, composite(Limits().fit([table]).scale(table)).score, np.arange(len(ids)))
    drawn = sample.drawn()
    return drawn.rows[np.lexsort((drawn.ids, drawn.order))]


@dataclass(frozen=True)
class Curve:
    """Rare windows found after 1, 2, … labels, a row per seed, ``(seeds, labels)``."""

    name: str
    found: NDArray[np.int64]

    def labels_for(self, wanted: int) -> NDArray[np.int64]:
        """Labels spent until ``wanted`` rare windows were found, per seed; one more than were spent where they were not."""
        return (self.found < wanted).sum(axis=1) + 1


def curves(seeds: Sequence[int], n: int = 8000, temperatures: Sequence[float] = TEMPERATURES) -> list[Curve]:
    """Curves of the uniform draw, then of ours at every temperature, over as many labels as the longest has."""
    most = n // 2
    found: dict[str, list[NDArray[np.int64]]] = {"uniform": [], **{f"T = {t:g}": [] for t in temperatures}}
    for seed in seeds:
        planted = planted_windows(seed, n)
        uniform = np.random.default_rng((seed, 1)).permutation(n)[:most]
        orders = [uniform, *(ordered_draws(planted, t, seed, most)[:most] for t in temperatures)]
        for own, order in zip(found.values(), orders, strict=True):
            own.append(np.cumsum(planted.rare[order]))
    return [Curve(name, np.stack(rows)) for name, rows in found.items()]


def saving(uniform: Curve, ours: Curve, wanted: int = WANTED, seed: int = 7) -> tuple[float, float, float]:
    """How many times the labels a uniform draw needs for ``wanted`` rare windows: ratio of means over seeds, 95 % interval."""
    theirs, mine = uniform.labels_for(wanted), ours.labels_for(wanted)
    chosen = np.random.default_rng(seed).integers(0, len(mine), size=(_BOOTSTRAPS, len(mine)))
    low, high = np.quantile(theirs[chosen].mean(axis=1) / mine[chosen].mean(axis=1), [0.025, 0.975])
    return float(theirs.mean() / mine.mean()), float(low), float(high)


def markdown(made: Sequence[Curve]) -> str:
    """A line per way of drawing: rare windows found by labels spent, labels until three were found, and what that saves."""
    head = ["draw", *(f"found in {spent}" for spent in SPENT), f"labels for {WANTED}", "uniform needs × (95 %)"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for curve in made:
        cells = [f"{curve.found[:, spent - 1].mean():.1f}" for spent in SPENT]
        ratio, low, high = saving(made[0], curve)
        said = "1" if curve is made[0] else f"{ratio:.1f} ({low:.1f} – {high:.1f})"
        lines.append(f"| {' | '.join([curve.name, *cells, f'{curve.labels_for(WANTED).mean():.0f}', said])} |")
    return "\n".join(lines)


def picture(made: Sequence[Curve], path: Path) -> None:
    """Means over the seeds with their 2.5 and 97.5 % quantiles, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from anomaly.files import atomic_path

    canvas = Figure(figsize=(6.5, 3.8), layout="constrained", dpi=120)
    FigureCanvasAgg(canvas)
    ax = canvas.add_subplot()
    labels = np.arange(1, SPENT[-1] + 1)
    for curve, colour in zip(made, ("#767676", "#D55E00", "#0072B2", "#009E73"), strict=False):
        found = curve.found[:, : len(labels)]
        low, high = np.quantile(found, [0.025, 0.975], axis=0)
        ax.plot(labels, found.mean(axis=0), color=colour, label=curve.name)
        ax.fill_between(labels, low, high, color=colour, alpha=0.15, lw=0)
    ax.set_xlabel("labels spent")
    ax.set_ylabel("rare windows found")
    ax.legend(frameon=False)
    with atomic_path(path) as temporary:
        canvas.savefig(temporary, format="png")


def main() -> None:
    """Print the table, and draw the curves where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--windows", type=int, default=8000)
    parser.add_argument("--picture", type=Path, help="PNG to write")
    given = parser.parse_args()
    made = curves(range(given.seeds), given.windows)
    print(markdown(made))
    if given.picture:
        picture(made, given.picture)


if __name__ == "__main__":
    main()
