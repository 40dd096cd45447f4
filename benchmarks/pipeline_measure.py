"""Processes of their own for what is timed: CPU and wall seconds, and private memory as the kernel counts it (Linux)."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

#: Seconds between two looks at a process' memory; the looking is done, and paid for, by the parent.
_INTERVAL = 0.1
#: One thread of linear algebra: peers that spin while they wait would otherwise look dearer than they are.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1"
)


class Failed(RuntimeError):
    """A timed process ended with an error; the text is the end of what it said."""


@dataclass(frozen=True)
class Taken:
    """What one process took: CPU seconds of all its threads and wall seconds, both after its imports.

    ``setup_cpu`` of it went into loading the model and making its engine. Private memory in MB: ``base`` after the
    imports, ``peak`` the highest; ``mapped`` the highest with the pages of files that no other process maps.
    """

    variant: str
    windows: int
    cpu: float
    wall: float
    setup_cpu: float
    base: float
    peak: float
    mapped: float
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def work_cpu(self) -> float:
        """CPU seconds without the set-up."""
        return self.cpu - self.setup_cpu

    @property
    def microseconds(self) -> float:
        """CPU microseconds per window, set-up included."""
        return self.cpu / self.windows * 1e6


def cpu_seconds() -> float:
    """CPU seconds of this process and of the children it waited for."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def private_memory(process: int | str = "self") -> tuple[float, float]:
    """MB of a process' private pages that it has written, and of all its private ones; raises OSError where it has ended.

    The second holds the code of libraries too, hundreds of MB of it, unless another process has loaded the same ones: it
    changes with who else runs. So the first is the figure.

    >>> written, private = private_memory()
    >>> 1 < written <= private
    True
    """
    text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in text.splitlines()[1:])
    held = {name: int(value.split()[0]) / 1024 for name, value in fields.items()}
    return held["Private_Dirty"], held["Private_Dirty"] + held["Private_Clean"]


class Watch:
    """Looks at the memory of a process until it ends; ``written`` and ``private`` are the peaks in MB."""

    def __init__(self, process: int) -> None:
        self.written = self.private = 0.0
        self._process, self._stop = process, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                written, private = private_memory(self._process)
            except (OSError, KeyError, IndexError):  # it has ended
                return
            self.written, self.private = max(self.written, written), max(self.private, private)
            self._stop.wait(_INTERVAL)

    def end(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()


def run_process(script: Path, arguments: list[str], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run ``script`` and give the JSON of its last line, with ``peak`` and ``mapped`` MB; raises Failed.

    >>> run_process(Path("no_such_script.py"), [])
    Traceback (most recent call last):
    ...
    benchmarks.pipeline_measure.Failed: no_such_script.py ended with 2: ...
    """
    own = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "1", **(environment or {})}
    command = [sys.executable, str(script), *arguments]
    process = subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watch = Watch(process.pid)
    try:
        said, wrong = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        watch.end()
    if process.returncode:
        raise Failed(f"{script.name} ended with {process.returncode}: {wrong.strip()[-1500:]}")
    told: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return {**told, "peak": max(watch.written, told.get("peak", 0)), "mapped": watch.private}


def run_variant(
    script: Path, variant: str, arguments: list[str], environment: Mapping[str, str] | None = None
) -> Taken:
    """One run of a variant of ``pipeline_peers``."""
    told = run_process(script, [variant, *arguments], environment)
    known = {name: told.pop(name) for name in Taken.__dataclass_fields__ if name in told}
    return Taken(**known, more=told)


class Stopwatch:
    """CPU and wall seconds since it was made or restarted."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin again."""
        self._cpu, self._wall = cpu_seconds(), time.perf_counter()

    def read(self) -> tuple[float, float]:
        """CPU and wall seconds so far."""
        return cpu_seconds() - self._cpu, time.perf_counter() - self._wall


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over the rounds of theirs ÷ ours.

    >>> median_ratio([1.0, 2.0, 1.0], [4.0, 6.0, 9.0])
    4.0
    """
    return median(b / a for a, b in zip(ours, theirs, strict=True))


def load_average() -> float:
    """Processes that wanted a core over the last minute."""
    return os.getloadavg()[0]
