"""How near `anomaly ingest` comes to the bare parsers of its files (METHODS S1, S2).

    python benchmarks/ingest.py [--rows 500000] [--tags 12] [--rounds 3] [--memory]

The same generated log as wide CSV, wide Parquet, long CSV and long Parquet (time, tag, value, quality). Ours is what
`anomaly ingest` does: ``check`` (every row of every file, all faults in one report) and ``build`` (the window store).
The bare parsers only read: pyarrow's streaming CSV to typed columns, pyarrow's row groups for Parquet. Rounds are
interleaved; the table gives medians of CPU and wall seconds, million log rows (in long form: samples) per CPU second,
and the ratio to the bare parser. ``--memory`` gives the peak memory of a process of its own at ``rows`` and four times
as many, less what its imports take.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a file run by its path sees only its own folder

from anomaly.config import LogSettings, Settings
from anomaly.data.readers import open_log
from pipelines.ingest import write_store

FORMS = ("wide.csv", "wide.parquet", "long.csv", "long.parquet")
_BLOCK = 50_000
Taken = dict[str, tuple[float, float]]


def generated(first: int, rows: int, tags: int) -> pa.Table:
    """Rows ``first`` to ``first + rows`` of the log: one row each 10 s, slow waves with noise, a label now and then."""
    rng = np.random.default_rng(first)
    at = np.arange(first, first + rows)
    values = np.sin(at[:, None] / (300 + 40 * np.arange(tags))) + rng.normal(0, 0.05, (rows, tags))
    columns = {"time": pa.array((1_767_225_600 + 10 * at) * 10**6).cast(pa.timestamp("us", "UTC"))}
    columns |= {f"tag{i}": pa.array(np.round(values[:, i], 4)) for i in range(tags)}
    columns["label"] = pa.array((at % 10_000 < 20).astype(np.int8))
    return pa.table(columns)


def long_form(table: pa.Table) -> pa.Table:
    """A wide table as samples, in the order of time: time, tag, value, quality."""
    tags = [n for n in table.column_names if n.startswith("tag")]
    values = np.column_stack([table[n].to_numpy() for n in tags]).ravel()
    time_column = table["time"].combine_chunks().take(np.repeat(np.arange(len(table)), len(tags)))
    names = pa.DictionaryArray.from_arrays(np.tile(np.arange(len(tags), dtype=np.int32), len(table)), tags).cast(
        pa.string()
    )
    quality = pa.array(np.full(len(values), 192, np.int16))
    return pa.table({"time": time_column, "tag": names, "value": values, "quality": quality})


def write_logs(folder: Path, rows: int, tags: int, forms: tuple[str, ...] = FORMS) -> dict[str, Path]:
    """The log in each of ``forms``, written in blocks."""
    paths = {form: folder / f"{rows}-{form}" for form in forms}
    writers: dict[str, pc.CSVWriter | pq.ParquetWriter] = {}
    for first in range(0, rows, _BLOCK):
        wide = generated(first, min(_BLOCK, rows - first), tags)
        for form, path in paths.items():
            table = long_form(wide) if form.startswith("long") else wide
            if path.suffix == ".csv":
                table = table.set_column(0, "time", table["time"].cast(pa.string()))
            if form not in writers:
                make = pc.CSVWriter if path.suffix == ".csv" else pq.ParquetWriter
                writers[form] = make(path, table.schema)
            writers[form].write_table(table)
    for writer in writers.values():
        writer.close()
    return paths


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds of this process and wall seconds that ``work`` takes."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def ours(path: Path, store: Path) -> Taken:
    """Both stages of the command on one log."""
    settings, logs = settings_of(path), []
    found = {"check": timed(lambda: logs.append(open_log([path], settings.log)))}
    found["build"] = timed(lambda: write_store(logs[0], settings, store))
    total = np.sum(list(found.values()), axis=0)
    return {**found, "check + build": (float(total[0]), float(total[1]))}


def settings_of(path: Path) -> Settings:
    """Settings of the command; the long form has no label."""
    return Settings(log=LogSettings(label=None if "long" in path.name else "label"))


def bare(path: Path) -> dict[str, Callable[[], object]]:
    """The parsers alone, each giving typed columns block by block."""
    if path.suffix == ".parquet":
        return {"pyarrow": lambda: sum(len(b) for b in pq.ParquetFile(path).iter_batches(65_536))}

    def streamed() -> int:
        options = pc.ReadOptions(use_threads=False, block_size=4 << 20)
        return sum(len(b) for b in pc.open_csv(path, read_options=options))

    return {"pyarrow streaming": streamed}


def measured(paths: dict[str, Path], folder: Path, rounds: int) -> dict[str, dict[str, tuple[float, float]]]:
    """Medians of CPU and wall seconds of every stage and parser, by form."""
    taken: dict[str, dict[str, list[tuple[float, float]]]] = {form: {} for form in paths}
    for counted in [False] + [True] * rounds:
        for form, path in paths.items():
            found = ours(path, folder / "store.h5")
            found |= {name: timed(parser) for name, parser in bare(path).items()}
            for name, seconds in found.items() if counted else ():
                taken[form].setdefault(name, []).append(seconds)
    return {
        form: {n: (median(s[0] for s in v), median(s[1] for s in v)) for n, v in stages.items()}
        for form, stages in taken.items()
    }


def tell(form: str, stages: dict[str, tuple[float, float]], rows: int, size: int) -> None:
    """Print one form's table."""
    best = min(cpu for name, (cpu, _) in stages.items() if name.startswith("pyarrow"))
    print(f"\n{form}: {rows:,} rows, {size / 1e6:.0f} MB")
    print(f"  {'':20}{'CPU s':>8}{'wall s':>8}{'M rows/CPU s':>14}{'ratio':>7}")
    for name, (cpu, wall) in stages.items():
        print(f"  {name:20}{cpu:8.2f}{wall:8.2f}{rows / cpu / 1e6:14.2f}{cpu / best:7.2f}")


def peak(path: Path, store: Path) -> float:
    """Peak memory in MB of a process that takes in ``path``, above its level after the imports."""
    command = [sys.executable, __file__, "--one", str(path), str(store)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def one(path: Path, store: Path) -> None:
    """Take in ``path`` and print by how much the peak memory of this process rose, in MB."""
    before = peak_kilobytes()
    ours(path, store)
    print((peak_kilobytes() - before) / 1024)


def peak_kilobytes() -> int:
    """The highest resident memory of this process (Linux); getrusage would hand down the parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--tags", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS)
    parser.add_argument("--memory", action="store_true", help="peak memory at --rows and four times as many")
    parser.add_argument("--one", nargs=2, metavar=("LOG", "STORE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(Path(given.one[0]), Path(given.one[1]))
        return
    forms = tuple(given.forms)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_logs(folder, given.rows, given.tags, forms)
        print(f"{given.tags} tags, {os.cpu_count()} cores, medians of {given.rounds} rounds")
        for form, stages in measured(paths, folder, given.rounds).items():
            size = paths[form].stat().st_size
            tell(form, stages, given.rows * (given.tags if form.startswith("long") else 1), size)
        for form, path in paths.items() if given.memory else ():
            small = peak(path, folder / "store.h5")
            large_path = write_logs(folder, 4 * given.rows, given.tags, (form,))[form]
            large = peak(large_path, folder / "store.h5")
            large_path.unlink()
            print(f"peak memory, {form}: {small:.0f} MB at {given.rows:,} rows, {large:.0f} MB at {4 * given.rows:,}")


if __name__ == "__main__":
    main()
