"""Does a process of its own, which loads the bundle anew, give the same scores? ``python -m registry.parity`` is that process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from registry.bundle import load_bundle
from registry.comparison import Gate, parity_gate
from registry.members import MOST_CANARY_ROWS, pack_canary, unpack_canary

_LONGEST_S = 300


def reload_parity(folder: Path, digest: str, frame: pd.DataFrame, here: NDArray[Any]) -> Gate:
    """The gate ``parity``: scores ``here (n,)`` of the log rows ``frame`` against those of a fresh process.

    ``folder`` is a verified bundle with that ``digest``. At most 1000 rows travel. A process that dies, hangs for five minutes
    or refuses the bundle closes the gate, with the last line it said.
    """
    rows = frame.iloc[:MOST_CANARY_ROWS]
    with tempfile.TemporaryDirectory() as place:
        given, told = Path(place) / "rows.json", Path(place) / "scores.json"
        given.write_bytes(pack_canary(rows))
        command = [sys.executable, "-m", "registry.parity", str(folder), digest, str(given), str(told)]
        root = str(Path(__file__).resolve().parents[1])
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": paths}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=_LONGEST_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return parity_gate(here, None, str(error))
        if done.returncode or not told.exists():
            last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            return parity_gate(here, None, last)
        fresh = np.array(json.loads(told.read_text(encoding="utf-8")), dtype=np.float64)  # null becomes NaN
    return parity_gate(np.asarray(here)[: len(rows)], fresh)


def main(folder: str, digest: str, given: str, told: str) -> None:
    """Load the bundle, score the rows in ``given``, write the scores to ``told`` as JSON; null where unscorable."""
    model = load_bundle(Path(folder), expect_digest=digest)
    scores = model.score_frame(unpack_canary(Path(given).read_bytes()))["anomaly_score"].to_numpy(np.float64)
    Path(told).write_text(json.dumps([float(s) if np.isfinite(s) else None for s in scores]), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
