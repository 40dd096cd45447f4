"""What ``benchmarks/encoders.py`` measured, as Markdown and as a picture.

A mean is a mean over data sets, each the mean of its cases: six cases of one rig must not outvote five other plants.
Its 95 % interval draws data sets again: it says what may come of the next plant, not of the next row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anomaly.metrics import bootstrap_interval
from benchmarks.encoder_cases import RAW, REFERENCES

Record = dict[str, Any]
METRICS = {"auc": "AUC", "ap": "AP", "vus_pr": "VUS-PR"}


@dataclass(frozen=True)
class Mean:
    """A mean over data sets with its interval; ``low`` and ``high`` are None for fewer than three data sets."""

    value: float
    low: float | None
    high: float | None

    def text(self, sign: str = "") -> str:
        """``0.52 (0.31–0.74)``; with sign "+" both ends carry theirs."""
        if not math.isfinite(self.value):
            return "–"
        own = f"{self.value:{sign}.3f}"
        if self.low is None or self.high is None:
            return own
        return f"{own} ({self.low:{sign}.2f} to {self.high:{sign}.2f})"


def over_datasets(values: Mapping[str, float], dataset: Mapping[str, str]) -> Mean:
    """Mean over data sets of figures by case, cases whose figure is not defined left out.

    >>> over_datasets({"a1": 0.0, "a2": 1.0, "b": 1.0}, {"a1": "a", "a2": "a", "b": "b"}).value
    0.75
    """
    groups: dict[str, list[float]] = {}
    for case, value in values.items():
        if math.isfinite(value):
            groups.setdefault(dataset[case], []).append(value)
    if not groups:
        return Mean(math.nan, None, None)
    means = np.array([np.mean(own) for own in groups.values()])
    interval = bootstrap_interval(lambda drawn: drawn @ means / drawn.sum(axis=1), len(means), draws=2000)
    return Mean(float(means.mean()), interval.low, interval.high)


@dataclass(frozen=True)
class Results:
    """The records of one budget that hold figures, by encoder and case."""

    by_encoder: dict[str, dict[str, Record]]
    dataset: dict[str, str]

    @classmethod
    def of(cls, records: Sequence[Record]) -> Results:
        """Failed records are left to ``failures``."""
        found: dict[str, dict[str, Record]] = {}
        for record in records:
            if "knn" in record:
                found.setdefault(record["encoder"], {})[record["case"]] = record
        return cls(found, {r["case"]: r["dataset"] for r in records if "dataset" in r})

    def mean(self, encoder: str, metric: str, score: str = "knn") -> Mean:
        """Mean of a metric of the distance score ("knn") or of the reconstruction error ("reconstruction")."""
        own = self.by_encoder[encoder]
        return over_datasets({c: r[score][metric] for c, r in own.items() if score in r}, self.dataset)

    def gain(self, encoder: str, over: str, metric: str = "vus_pr") -> Mean:
        """Mean of the differences to another encoder, case by case; not defined where they share no case."""
        own, other = self.by_encoder[encoder], self.by_encoder.get(over, {})
        both = {c: own[c]["knn"][metric] - other[c]["knn"][metric] for c in own if c in other}
        return over_datasets(both, self.dataset)

    def median(self, encoder: str, name: str) -> float:
        """Median over cases of a cost; NaN where none was measured."""
        known = [r[name] for r in self.by_encoder[encoder].values() if r.get(name) is not None]
        return float(np.median(known)) if known else math.nan

    def ranked(self) -> list[str]:
        """Encoders by mean VUS-PR, the best first, then what stands beside them for comparison."""
        names = sorted(self.by_encoder, key=lambda n: -self.mean(n, "vus_pr").value)
        return [n for n in names if n not in REFERENCES] + [n for n in names if n in REFERENCES]


def main_table(results: Results) -> list[str]:
    """One line per encoder: how well its embeddings rank test rows, and what that costs."""
    titles = ["encoder", "cases", *METRICS.values(), "VUS-PR less that of raw windows", "VUS-PR by reconstruction",
              "epochs", "fit s", "embed windows/s", "parameters", "peak MB"]  # fmt: skip
    rows = []
    for name in results.ranked():
        peaks = [r["peak_mb"] for r in results.by_encoder[name].values() if r.get("peak_mb")]
        rows.append(
            [
                name,
                str(len(results.by_encoder[name])),
                *(results.mean(name, metric).text() for metric in METRICS),
                "–" if name == RAW else results.gain(name, RAW).text("+"),
                results.mean(name, "vus_pr", "reconstruction").text(),
                _epochs(results, name),
                _number(results.median(name, "fit_seconds"), 1),
                _number(results.median(name, "embed_per_second"), 0),
                _number(results.median(name, "parameters"), 0),
                _number(max(peaks, default=math.nan), 0),
            ]
        )
    return markdown(titles, rows)


def dataset_table(results: Results) -> list[str]:
    """VUS-PR of each encoder's distance score, data set by data set."""
    datasets = sorted(set(results.dataset.values()))
    rows = []
    for name in results.ranked():
        own = results.by_encoder[name]
        cells = []
        for dataset in datasets:
            known = [r["knn"]["vus_pr"] for c, r in own.items() if results.dataset[c] == dataset]
            cells.append(_number(float(np.nanmean(known)) if known else math.nan, 3))
        rows.append([name, *cells])
    return markdown(["VUS-PR", *datasets], rows)


def failures(records: Sequence[Record]) -> list[str]:
    """What could not be measured, and why."""
    return [f"- {r['case']} × {r['encoder']}: {r['error']}" for r in records if "error" in r]


@dataclass(frozen=True)
class Curve:
    """Figures of encoders by share of the training rows, on the cases where every point could be measured."""

    shares: tuple[float, ...]
    cases: tuple[str, ...]
    windows: dict[float, float]  # median training windows
    points: dict[str, dict[float, Mean]]

    @classmethod
    def of(cls, records: Sequence[Record], metric: str = "vus_pr") -> Curve:
        """The curve of measured records of several shares; encoders without a figure are not in it."""
        shares = tuple(sorted({r["budget"]["share"] for r in records}))
        parts = {s: Results.of([r for r in records if r["budget"]["share"] == s]) for s in shares}
        names = [n for n in parts[shares[-1]].by_encoder if all(n in p.by_encoder for p in parts.values())]
        common = [set(p.by_encoder[n]) for p in parts.values() for n in names]
        cases = tuple(sorted(set.intersection(*common))) if common else ()
        kept = {s: Results.of([r for r in records if r["budget"]["share"] == s and r["case"] in cases]) for s in shares}
        names = names if cases else []
        points = {n: {s: kept[s].mean(n, metric) for s in shares} for n in names}
        windows = {s: float(np.median([r["windows"] for r in kept[s].by_encoder[names[0]].values()])) if names else 0.0
                   for s in shares}  # fmt: skip
        return cls(shares, cases, windows, points)

    def table(self) -> list[str]:
        """One line per encoder, one column per share of the training rows."""
        titles = ["VUS-PR", *(f"{share:.0%} ({self.windows[share]:.0f} windows)" for share in self.shares)]
        return markdown(titles, [[n, *(own[s].text() for s in self.shares)] for n, own in self.points.items()])

    def draw(self, path: Path) -> None:
        """The saturation curve as a picture (METHODS S45)."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.5, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for name, own in self.points.items():
            style = "--" if name in REFERENCES or name == RAW else "-"
            axes.plot(
                [100 * s for s in self.shares], [own[s].value for s in self.shares], style, marker="o", label=name
            )
        axes.set_xscale("log")
        axes.set_xticks([100 * s for s in self.shares], [f"{s:.0%}" for s in self.shares], minor=False)
        axes.set_xlabel("newest part of the training rows that was learned from")
        axes.set_ylabel(f"VUS-PR, mean over data sets ({len(self.cases)} cases)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, ncols=2)
        figure.savefig(path, dpi=120, format="png")


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table.

    >>> markdown(["a", "b"], [["1", "2"]])
    ['| a | b |', '|---|---|', '| 1 | 2 |']
    """
    lines = [f"| {' | '.join(cells)} |" for cells in (titles, *rows)]
    return [lines[0], "|" + "---|" * len(titles), *lines[1:]]


def _epochs(results: Results, name: str) -> str:
    own = sorted({r["epochs"] for r in results.by_encoder[name].values() if "epochs" in r})
    if not own or own == [0]:
        return "none"
    return str(own[0]) if len(own) == 1 else f"{own[0]} to {own[-1]}"


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".replace(",", " ") if math.isfinite(value) else "–"
