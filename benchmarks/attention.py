"""What full and ProbSparse attention cost as windows grow: measured time, and memory (METHODS S24).

    python benchmarks/attention.py [--lengths 64,128,256,512,1024,2048] [--rounds 15] [--resident]

One forward pass of ``SelfAttention`` (4 heads, 64 wide) on windows of T rows, both kinds in turn, fastest of the rounds.
Backends hide what they allocate, so memory is counted from the shapes of the layer's own graph: the largest of its
intermediate arrays, in floats per window. ``--resident`` (Linux) measures it as well, as the rise of the peak resident
memory of a fresh process. The last lines give the growth exponents p of T^p: 2 for full attention, towards 1 for T log T.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a file run by its path sees only its own folder

import keras

from anomaly.encoders.layers import SelfAttention, full_attention, sparse_attention, sparse_count

LENGTHS = (64, 128, 256, 512, 1024, 2048)
KINDS = ("full", "probsparse")
HEADS, WIDTH, WINDOWS = 4, 64, 4


@dataclass(frozen=True)
class Cost:
    """One kind of attention at one length: seconds of a pass over ``WINDOWS`` windows, floats of its largest array."""

    kind: str
    rows: int
    seconds: float
    floats: int


def attention_cost(lengths: Sequence[int], rounds: int = 15) -> list[Cost]:
    """Time and memory of both kinds at every length; the kinds take turns, so that a busy machine slows both."""
    costs = []
    for rows in lengths:
        models = {kind: _model(kind, rows) for kind in KINDS}
        windows = np.random.default_rng(0).normal(size=(WINDOWS, rows, WIDTH)).astype(np.float32)
        best = dict.fromkeys(KINDS, math.inf)
        for turn in range(rounds + 1):
            for kind, model in models.items():
                started = time.perf_counter()
                model.predict_on_batch(windows)
                taken = time.perf_counter() - started
                best[kind] = min(best[kind], taken) if turn else math.inf  # the first turn compiles
        costs += [Cost(kind, rows, best[kind], largest_intermediate(kind, rows)) for kind in KINDS]
    return costs


def largest_intermediate(kind: str, rows: int) -> int:
    """Floats of the largest array between the projections of a window and the attention's answer, read off the graph."""
    query, key, value = (keras.Input((HEADS, rows, WIDTH // HEADS)) for _ in range(3))
    if kind == "full":
        out = full_attention(query, key, value)
    else:
        count = sparse_count(rows)
        out = sparse_attention(query, key, value, count, np.arange(count))
    graph = keras.Model([query, key, value], out)
    made = [tensor for operation in graph.operations for tensor in _outputs(operation)]
    return max(math.prod(int(n) for n in tensor.shape[1:]) for tensor in made)


def _outputs(operation: keras.Operation) -> list[keras.KerasTensor]:
    output = operation.output
    return list(output) if isinstance(output, list | tuple) else [output]


def growth(costs: Sequence[Cost], kind: str, figure: str, shortest: int = 0) -> float:
    """The exponent p of T^p that ``figure`` (seconds or floats) of ``kind`` follows from ``shortest`` rows on."""
    own = [cost for cost in costs if cost.kind == kind and cost.rows >= shortest]
    values = [getattr(cost, figure) for cost in own]
    return float(np.polyfit(np.log([cost.rows for cost in own]), np.log(values), 1)[0])


def resident_rise(kind: str, rows: int) -> int:
    """Bytes by which one pass lifts the peak resident memory of a fresh process, after a pass over 8 rows."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", f"{kind},{rows}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return int(done.stdout.split()[-1])


def _measure_here(kind: str, rows: int) -> int:
    _model(kind, 8).predict_on_batch(np.zeros((WINDOWS, 8, WIDTH), np.float32))
    model, windows = _model(kind, rows), np.ones((WINDOWS, rows, WIDTH), np.float32)
    before = _peak_resident()
    model.predict_on_batch(windows)
    return _peak_resident() - before


def _peak_resident() -> int:
    """Bytes this program held at its peak. Not ``ru_maxrss``: a child starts with its parent's there (Linux), and a
    parent that was larger hides every rise."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _model(kind: str, rows: int) -> keras.Model:
    inputs = keras.Input((rows, WIDTH))
    model = keras.Model(inputs, SelfAttention(HEADS, kind)(inputs))
    # The plain graph: compiling with XLA would fuse arrays away on one backend and not on the other.
    model.compile(jit_compile=False if keras.backend.backend() == "tensorflow" else "auto")
    return model


def table(costs: Sequence[Cost], resident: bool) -> str:
    """One line per length, then the growth exponents from 256 rows on."""
    head = f"{'rows':>5} {'full ms':>9} {'sparse ms':>10} {'ratio':>6} {'full floats':>12} {'sparse floats':>14} {'ratio':>6}"
    lines = [head + (f" {'full MB':>9} {'sparse MB':>10}" if resident else "")]
    for full, sparse in zip(costs[::2], costs[1::2], strict=True):
        line = f"{full.rows:>5} {full.seconds * 1e3:>9.2f} {sparse.seconds * 1e3:>10.2f}"
        line += f" {sparse.seconds / full.seconds:>6.2f} {full.floats:>12,} {sparse.floats:>14,}"
        line += f" {sparse.floats / full.floats:>6.2f}"
        if resident:
            rises = [resident_rise(kind, full.rows) / 2**20 for kind in KINDS]
            line += f" {rises[0]:>9.1f} {rises[1]:>10.1f}"
        lines.append(line)
    if sum(cost.rows >= 256 for cost in costs) > len(KINDS):
        for figure in ("seconds", "floats"):
            found = ", ".join(f"{kind} T^{growth(costs, kind, figure, 256):.2f}" for kind in KINDS)
            lines.append(f"growth of {figure} from 256 rows on: {found}")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--resident", action="store_true", help="measure resident memory too, a process per figure")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        kind, rows = given.child.split(",")
        print(_measure_here(kind, int(rows)))
        return
    print(f"{keras.backend.backend()} backend, {WINDOWS} windows, {HEADS} heads, {WIDTH} wide; memory per window")
    costs = attention_cost([int(n) for n in given.lengths.split(",")], given.rounds)
    print(table(costs, given.resident))


if __name__ == "__main__":
    main()
