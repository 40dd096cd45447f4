"""The streamed pass over a large file of windows, against the same libraries and the literal loops (PERFORMANCE §8, §10).

    python benchmarks/pipeline.py [--windows 1000000] [--rounds 3] [--goals 1,2,3] [--work FOLDER]
    python benchmarks/pipeline.py --windows 20000000

The first prints goals 1 to 8 and, where all of them were measured, writes docs/performance.md; sizes of goals 7 and 8 are a
quarter of the windows and four times as many. The second (10 million windows and more) generates, extracts once, prints the
estimate for the literal loops beside it and adds its own section. About 0.9 kB of disk a window is needed in ``--work``
(default: a temporary folder, removed afterwards; a folder that is given keeps the model and the signals for the next run).
Peers of goals 5 and 6 need PyOD (dependency group ``bench``). Reads /proc: Linux only.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a file run by its path sees only its own folder

from benchmarks import pipeline_table as tables
from benchmarks.pipeline_measure import ONE_THREAD, Taken, load_average, run_process, run_variant

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"
ALL_GOALS = tuple(range(1, 9))
LARGE = 10_000_000
#: Bytes of a window in the signals, in the bare copy, and in what two variants write.
_SIGNAL_BYTES, _FEATURE_BYTES = 400, 520
_RACE_OF = {3: "encode", 4: "pca", 5: "knn", 6: "forest", 8: "reads"}
_LINES_OF = {3: tables.encoding, 4: tables.reduction, 5: tables.bank, 6: tables.trees}


def say(text: str) -> None:
    """Progress, on the error stream; it stands on one line in a terminal."""
    end = "\r" if sys.stderr.isatty() else "\n"
    print(f"{time.strftime('%H:%M:%S')}  {text:<78}", end=end, file=sys.stderr, flush=True)


class Bench:
    """One run in the folder ``work``: what was made for it and what was measured."""

    def __init__(self, work: Path, rounds: int) -> None:
        self.work, self.rounds = work, rounds
        self.taken: dict[tuple[str, int], list[Taken]] = {}
        self.model = work / "model-cache" / "model"

    def prepare(self, windows: int, raw: bool) -> Path:
        """The model, and signals of ``windows`` windows; made where they are missing."""
        from benchmarks.pipeline_data import make_model, write_signals

        if not self.model.exists():
            say("fitting the model")
            make_model(self.model.parent)
        store, bare = self.paths(windows)
        if not store.exists() or (raw and not bare.exists()):

            def told(done: int, total: int) -> None:
                if sys.stderr.isatty() or done == total:
                    say(f"generating signals: {done:,} of {total:,}")

            write_signals(store, windows, bare if raw else None, told)
        return store

    def paths(self, windows: int) -> tuple[Path, Path]:
        """Signals of ``windows`` windows, and the same as bare numbers."""
        return self.work / f"signals-{windows}.h5", self.work / f"signals-{windows}.f32"

    def arguments(self, windows: int) -> list[str]:
        """What every script is told."""
        store, raw = self.paths(windows)
        return ["--model", str(self.model), "--store", str(store), "--raw", str(raw)]

    def out(self, variant: str) -> Path:
        """What a variant writes; written over by its next run."""
        return self.work / f"{variant}.out"

    def variants(self, names: tuple[str, ...], windows: int) -> None:
        """Run variants turn by turn, ``rounds`` times."""
        for number in range(self.rounds):
            for name in names:
                say(f"{name}, {windows:,} windows, round {number + 1} of {self.rounds}")
                own = [*self.arguments(windows), "--out", str(self.out(name)), "--windows", str(windows)]
                # Peers do best with one thread: theirs would spin while they wait. Ours brings its own threads.
                environment = ONE_THREAD if name in ("batched", "bare") else None
                run = run_variant(HERE / "pipeline_peers.py", name, own, environment)
                self.taken.setdefault((name, windows), []).append(run)
                say(f"{name}: CPU {run.cpu:.1f} s, wall {run.wall:.1f} s, peak {run.peak:.0f} MB")
                if sys.stderr.isatty():
                    print(file=sys.stderr)  # this line stays

    def compared(self) -> dict[str, Any]:
        """Ours and batched, value by value; raises Failed where they differ."""
        say("comparing what ours and batched wrote")
        own = [
            "compare",
            "--model",
            str(self.model),
            "--out",
            str(self.out("ours")),
            "--peer",
            str(self.out("batched")),
        ]
        return run_process(HERE / "pipeline_peers.py", own)

    def seed(self, windows: int, source: int) -> dict[str, Any]:
        """The literal loops, sampled in a dataset declared at ``windows`` rows."""
        say(f"sampling the literal loops, declared at {windows:,} windows")
        store, _ = self.paths(source)
        own = ["--model", str(self.model), "--store", str(store), "--out", str(self.work / "seed.h5")]
        told = run_process(HERE / "pipeline_seed.py", [*own, "--windows", str(windows)], ONE_THREAD)
        for path in self.work.glob("seed.*"):
            path.unlink()
        return told

    def race(self, name: str, windows: int) -> dict[str, Any]:
        """One race of single parts."""
        say(f"race: {name}")
        own = [name, *self.arguments(windows), "--rounds", str(self.rounds)]
        return run_process(HERE / "pipeline_races.py", own, ONE_THREAD)

    def by_name(self, windows: int) -> dict[str, list[Taken]]:
        """What was taken at one size."""
        return {name: runs for (name, size), runs in self.taken.items() if size == windows}

    def forget(self, windows: int) -> None:
        """Remove signals of a size that is done with."""
        for path in self.paths(windows):
            path.unlink(missing_ok=True)


def measure(bench: Bench, windows: int, goals: tuple[int, ...]) -> tuple[list[tables.Line], list[str]]:
    """All lines of ``goals``, and what is to be said below the table."""
    bench.prepare(windows, raw=True)
    lines: list[tables.Line] = []
    notes: list[str] = []
    names = [
        n
        for goal, several in ((1, ("ours", "batched")), (2, ("ours-features", "bare")))
        if goal in goals
        for n in several
    ]
    if 8 in goals and "ours" not in names:
        names.insert(0, "ours")
    bench.variants(tuple(names), windows)
    taken = bench.by_name(windows)
    if 1 in goals:
        apart = bench.compared()
        seed = bench.seed(windows, windows)
        lines += tables.end_to_end(taken, seed)
        notes += [tables.seed_words(seed), compared_words(apart)]
    if 2 in goals:
        lines += tables.features_only(taken)
    races = {goal: bench.race(name, windows) for goal, name in _RACE_OF.items() if goal in goals}
    lines += [line for goal, made in _LINES_OF.items() if goal in goals for line in made(races[goal])]
    if {7, 8} & set(goals):
        lines += of_sizes(bench, windows, goals, races.get(8))
    notes.append(variant_words(bench))
    return sorted(lines, key=lambda line: line.goal), notes


def of_sizes(bench: Bench, windows: int, goals: tuple[int, ...], reads: dict[str, Any] | None) -> list[tables.Line]:
    """Goals 7 and 8: a quarter of the windows, and four times as many."""
    few, many = max(windows // 4, 1), 4 * windows
    for size in (few, many) if 7 in goals else (many,):
        bench.prepare(size, raw=False)
        bench.variants(("ours",), size)
        bench.forget(size)
    large = bench.by_name(many)["ours"]
    lines = tables.memory(bench.by_name(few)["ours"], large) if 7 in goals else []
    if reads is not None:
        lines += tables.linear(bench.by_name(windows)["ours"], large, reads)
    return lines


def compared_words(apart: dict[str, Any]) -> str:
    """How near ours and batched came to each other."""
    named = {k: v for k, v in apart.items() if k not in ("peak", "mapped")}
    figures = ", ".join(f"{name} {gap:.1e}" for name, gap in named.items())
    return f"Largest relative differences of ours and batched (all but 5 in 1000 windows of a sample): {figures}."


def variant_words(bench: Bench) -> str:
    """A table of every run: medians would hide how far the rounds lay apart."""
    rows = [
        f"| {name} | {size:,} | {', '.join(f'{t.cpu:.2f}' for t in runs)} | {', '.join(f'{t.wall:.2f}' for t in runs)} "
        f"| {runs[0].setup_cpu:.2f} | {runs[0].base:.0f} | {max(t.peak for t in runs):.0f} | {runs[0].more.get('engine', '')} |"
        for (name, size), runs in bench.taken.items()
    ]
    head = "| variant | windows | CPU s, each round | wall s | of it set-up, CPU s | imports MB | peak MB | engine |"
    return "\n".join([head, "|---|---|---|---|---|---|---|---|", *rows]) if rows else ""


def large_run(bench: Bench, windows: int) -> tuple[list[tables.Line], list[str]]:
    """Goal 9: generate, extract once, and the estimate for the literal loops."""
    bench.prepare(windows, raw=False)
    bench.rounds = 1
    bench.variants(("ours",), windows)
    run = bench.taken["ours", windows][0]
    written = bench.out("ours").stat().st_size / 1e9
    seed = bench.seed(windows, windows)
    ratio = seed["microseconds"]["cpu"] / run.microseconds
    note = f"{written:.1f} GB were written. The literal loops would take {ratio:.0f} times the CPU time of ours."
    return tables.whole_job(run), [tables.seed_words(seed), note, variant_words(bench)]


def check_room(work: Path, windows: int, goals: tuple[int, ...]) -> None:
    """Raises SystemExit where the disk cannot hold what the run writes."""
    if windows >= LARGE:
        needed = windows * (_SIGNAL_BYTES + _FEATURE_BYTES)
    else:
        most = 4 * windows if {7, 8} & set(goals) else 0
        needed = (windows + most) * (_SIGNAL_BYTES + _FEATURE_BYTES) + windows * (_SIGNAL_BYTES + 2 * _FEATURE_BYTES)
    free = shutil.disk_usage(work).free
    if free < needed:
        raise SystemExit(f"--work: expected {needed / 1e9:.1f} GB of room, found {free / 1e9:.1f} GB")


@contextmanager
def work_folder(given: Path | None) -> Iterator[Path]:
    """The folder that was given, or a temporary one."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="anomaly-pipeline-") as folder:
        yield Path(folder)


def goals_of(text: str) -> tuple[int, ...]:
    """Numbers of a comma separated list.

    >>> goals_of("3,1")
    (1, 3)
    """
    found = tuple(sorted({int(part) for part in text.split(",")}))
    if not set(found) <= set(ALL_GOALS):
        raise argparse.ArgumentTypeError(f"--goals: expected numbers from 1 to 8, got {text}")
    return found


def arguments(given: list[str] | None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--goals", type=goals_of, default=ALL_GOALS, help="numbers from 1 to 8, comma separated")
    parser.add_argument("--work", type=Path, help="folder for temporary files, kept")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the table is written")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    """Measure, print the table, write the page; 0 whatever the verdicts, which are for a reader to judge."""
    asked = arguments(given)
    large, before = asked.windows >= LARGE, load_average()
    with work_folder(asked.work) as work:
        check_room(work, asked.windows, asked.goals)
        bench = Bench(work, asked.rounds)
        lines, notes = large_run(bench, asked.windows) if large else measure(bench, asked.windows, asked.goals)
        for path in work.glob("*.out"):
            path.unlink()
    command = f"python benchmarks/pipeline.py --windows {asked.windows}" + (
        "" if large else f" --rounds {asked.rounds}"
    )
    head = tables.machine_words(command, (before, load_average()))
    sizes = f"Windows of (32, 3), conv_ae with 64 dimensions, medians of {asked.rounds} interleaved rounds.\n\n"
    body = "\n".join([head, ("" if large else sizes) + tables.table(lines), "\n\n".join(filter(None, notes))])
    print(f"\n{body}")
    if large or asked.goals == ALL_GOALS:
        tables.write_page(asked.page, tables.LARGE_SECTION if large else tables.GOALS_SECTION, body)
    else:
        print("\nNot written to the page: not all goals were measured.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
