"""The table of goals: what was measured, what was promised, and whether it was kept; and the page it is written to."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Literal

from anomaly.files import atomic_path
from benchmarks.pipeline_measure import Taken, median_ratio

HEAD = "# Performance of the pipeline"
GOALS_SECTION, LARGE_SECTION = "## Goals", "## Twenty million windows"
_INTRODUCTION = (
    "Written by `benchmarks/pipeline.py`, which says what each variant does. Each variant ran in a process of its own, "
    "turn by turn. CPU seconds are those of all threads after the imports, with loading the model and making the engine "
    "unless said; memory is what the kernel counts as private to the process and written by it; the code of libraries is not."
)
_LIBRARIES = ("numpy", "h5py", "keras", "tensorflow-cpu", "ai-edge-litert", "scikit-learn", "pyod")


@dataclass(frozen=True)
class Line:
    """One promise: ``value`` is to be ``at`` "most" or "least" ``limit``; ``figure`` says it in words.

    >>> Line(2, "pass A", "1.2 s against 1.0 s", 1.2, "most", 1.6).verdict
    'met'
    >>> Line(3, "encoding", "", 1.4, "least", 1.5).verdict
    'MISSED'
    """

    goal: int
    what: str
    figure: str
    value: float
    at: Literal["most", "least"]
    limit: float
    unit: str = "×"

    @property
    def met(self) -> bool:
        """Whether the promise was kept; a figure that is not a number keeps none."""
        return self.value <= self.limit if self.at == "most" else self.value >= self.limit

    @property
    def verdict(self) -> str:
        """The same in a word."""
        return "met" if self.met else "MISSED"

    def row(self) -> str:
        """As a row of Markdown."""
        wanted = f"at {self.at} {spelled(self.limit, self.unit)}"
        return f"| {self.goal} | {self.what} | {self.figure} | {spelled(self.value, self.unit)} | {wanted} | {self.verdict} |"


def spelled(value: float, unit: str = "×") -> str:
    """A ratio below 1 as a fraction, anything else with its unit.

    >>> spelled(0.25), spelled(1.6), spelled(3e-7, ""), spelled(4.2, "%")
    ('1/4', '1.6×', '3e-07', '4.2 %')
    """
    if unit == "×":
        return f"1/{1 / value:.3g}" if 0 < value < 0.995 else f"{value:.3g}×"
    return f"{value:.2g}{unit and ' ' + unit}" if value < 10 else f"{value:.0f} {unit}"


def end_to_end(taken: dict[str, list[Taken]], seed: dict[str, Any]) -> list[Line]:
    """Goal 1 from the runs of ours and batched, and the seed's microseconds per window."""
    mine, theirs = [t.cpu for t in taken["ours"]], [t.cpu for t in taken["batched"]]
    ours = median(t.microseconds for t in taken["ours"])
    peer, literal = median(t.microseconds for t in taken["batched"]), seed["microseconds"]["cpu"]
    walls = {name: median(t.wall for t in taken[name]) for name in ("ours", "batched")}
    return [
        Line(1, "end to end, against the same libraries in batches of 4096",
             f"{ours:.1f} against {peer:.1f} µs CPU a window; wall {walls['ours']:.1f} against {walls['batched']:.1f} s",
             1 / median_ratio(mine, theirs), "most", 1 / 4),
        Line(1, "end to end, against the literal loops (estimate: sampled at full size; no kNN, no forest in them)",
             f"{ours:.1f} against {literal:.0f} µs CPU a window", ours / literal, "most", 1 / 50),
    ]  # fmt: skip


def features_only(taken: dict[str, list[Taken]]) -> list[Line]:
    """Goal 2, without the set-up that both sides share."""
    mine, least = ([t.work_cpu for t in taken[name]] for name in ("ours-features", "bare"))
    figure = f"{median(mine):.2f} against {median(least):.2f} s CPU"
    what = "raw to embeddings on disk, against memory map + bare engine + raw write"
    return [Line(2, what, figure, 1 / median_ratio(mine, least), "most", 1.6)]


def encoding(told: dict[str, Any]) -> list[Line]:
    """Goal 3."""
    taken, compared = told["taken"], told["compared"]
    lines = []
    for name, limit in (("predict_on_batch(256)", 1.5), ("predict() per 256", 50)):
        ratio = median_ratio(taken["ours"], taken[name])
        lines.append(Line(3, f"encoding, against {name}", against(taken, "ours", name), ratio, "least", limit))
    engine = "LiteRT" if compared["litert"] else "no LiteRT, the Keras graph"
    return [*lines, Line(3, "largest difference of embeddings", engine, compared["difference"], "most", 1e-5, "")]


def reduction(told: dict[str, Any]) -> list[Line]:
    """Goal 4."""
    taken, compared, peer = told["taken"], told["compared"], "IncrementalPCA(256)"
    ratio = 1 / median_ratio(taken["ours"], taken[peer])
    angle = f"IncrementalPCA: {compared['angle of IncrementalPCA']:.0f} degrees"
    return [
        Line(4, f"PCA 64 to 32, against {peer}", against(taken, "ours", peer), ratio, "most", 1 / 15),
        Line(4, "angle to the exact PCA", angle, compared["angle"], "most", 1e-3, "degrees"),
    ]


def bank(told: dict[str, Any]) -> list[Line]:
    """Goal 5."""
    taken, peer, small = told["taken"], "PyOD KNN", "ours, core set of 1000"
    return [
        Line(5, "kNN, bank of 10 000, against PyOD KNN", against(taken, "ours", peer),
             1 / median_ratio(taken["ours"], taken[peer]), "most", 1 / 2),
        Line(5, "kNN, core set of 1000, against PyOD KNN on 10 000", against(taken, small, peer),
             1 / median_ratio(taken[small], taken[peer]), "most", 1 / 10),
        Line(5, "largest relative difference of kNN scores", "same bank", told["compared"]["difference"], "most", 1e-5, ""),
    ]  # fmt: skip


def trees(told: dict[str, Any]) -> list[Line]:
    """Goal 6."""
    taken, large = told["taken"], "ours, blocks of 2048"
    small, whole = "scikit-learn, batches of 256", "PyOD IForest, whole array"
    apart = max(told["compared"].values())
    return [
        Line(6, "largest difference of forest scores", "scikit-learn and PyOD, the same trees", apart, "most", 1e-6, ""),
        Line(6, "forest in batches of 256, against scikit-learn", against(taken, "ours", small),
             1 / median_ratio(taken["ours"], taken[small]), "most", 1 / 5),
        Line(6, "forest in blocks of 2048, against PyOD on the whole array", against(taken, large, whole),
             1 / median_ratio(taken[large], taken[whole]), "most", 1),
    ]  # fmt: skip


def memory(small: list[Taken], large: list[Taken]) -> list[Line]:
    """Goal 7 from runs of ours on few and on many windows."""
    above = median(t.peak - t.base for t in large)
    peaks = [median(t.peak for t in runs) for runs in (small, large)]
    base, few, many = median(t.base for t in large), small[0].windows, large[0].windows
    growth = 100 * (peaks[1] / peaks[0] - 1)
    return [
        Line(7, f"peak private memory above the imports, {many:,} windows", f"imports {base:.0f} MB, peak {peaks[1]:.0f} MB",
             above, "most", 128, "MB"),
        Line(7, f"its growth from {few:,} to {many:,} windows", f"{peaks[0]:.0f} to {peaks[1]:.0f} MB",
             growth, "most", 5, "%"),
    ]  # fmt: skip


def linear(small: list[Taken], large: list[Taken], told: dict[str, Any]) -> list[Line]:
    """Goal 8: CPU per window of two sizes without the set-up, which would flatter the larger; and reads."""
    each = [median(t.work_cpu / t.windows * 1e6 for t in runs) for runs in (small, large)]
    taken = told["taken"]
    return [
        Line(8, f"CPU a window at {large[0].windows:,} windows, against {small[0].windows:,}; without set-up",
             f"{each[1]:.2f} against {each[0]:.2f} µs", each[1] / each[0], "most", 1.1),
        Line(8, "reads of 256 windows, against a memory map", against(taken, "ours", "memmap"),
             1 / median_ratio(taken["ours"], taken["memmap"]), "most", 2.5),
    ]  # fmt: skip


def whole_job(run: Taken) -> list[Line]:
    """Goal 9 from one run of ours."""
    return [
        Line(9, f"extract and score {run.windows:,} windows, wall", f"{run.microseconds:.2f} µs CPU a window, "
             f"CPU {run.cpu:.0f} s", run.wall, "most", 360, "s"),
        Line(9, "peak private memory above the imports", f"imports {run.base:.0f} MB, peak {run.peak:.0f} MB",
             run.peak - run.base, "most", 128, "MB"),
    ]  # fmt: skip


def against(taken: dict[str, list[float]], ours: str, peer: str) -> str:
    """Medians of two ways in words."""
    return f"{median(taken[ours]):.3g} against {median(taken[peer]):.3g} µs CPU a row"


def table(lines: list[Line]) -> str:
    """All lines as a Markdown table, and how many promises were kept."""
    head = "| # | what | figure | ratio | goal | verdict |\n|---|---|---|---|---|---|\n"
    kept = sum(line.met for line in lines)
    return head + "\n".join(line.row() for line in lines) + f"\n\n{kept} of {len(lines)} met.\n"


def seed_words(seed: dict[str, Any]) -> str:
    """The estimate for the literal loops in words."""
    windows, each = seed["windows"], seed["microseconds"]
    loops = "; ".join(f"{name} {loop['cpu']:.0f}" for name, loop in seed["loops"].items())
    return (
        f"Estimate for the literal loops (256 rows at a time, `chunks=True`, gzip) on {windows:,} windows: "
        f"**{each['cpu'] * windows / 3.6e9:.2f} CPU hours, {each['wall'] * windows / 3.6e9:.2f} h wall**, sampled inside a "
        f"dataset declared at full size and multiplied. Microseconds of CPU a window: {loops}."
    )


def machine_words(command: str, loads: tuple[float, float]) -> str:
    """Command, date, machine and load, as a list."""
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    today = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"- `{command}`\n- {today}; {os.cpu_count()} cores {platform.machine()}, {memory_gb:.0f} GiB, Python "
        f"{platform.python_version()}; {', '.join(filter(None, map(_versioned, _LIBRARIES)))}\n"
        f"- load average before {loads[0]:.2f}, after {loads[1]:.2f}\n"
    )


def _versioned(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return ""


def write_page(path: Path, heading: str, body: str) -> None:
    """Put ``body`` under ``heading`` of the page, which begins anew where it is missing; other sections stay."""
    held = path.read_text(encoding="utf-8") if path.exists() else f"{HEAD}\n\n{_INTRODUCTION}\n"
    parts = held.split("\n## ")
    sections = {f"## {part.partition(chr(10))[0]}": part.partition("\n")[2].strip() for part in parts[1:]}
    sections[heading] = body.strip()
    order = sorted(sections, key=lambda name: (name != GOALS_SECTION, name))
    text = parts[0].strip() + "\n" + "".join(f"\n{name}\n\n{sections[name]}\n" for name in order)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
