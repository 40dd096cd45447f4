"""Commands in processes of their own, which a test may kill: forked from a server that has imported the heavy libraries,
so that each costs its work and not its imports."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.forkserver import set_forkserver_preload
from pathlib import Path

#: Libraries only, nothing of ours: a child reads our code anew.
_PRELOADED = [
    "pandas",
    "pyarrow.parquet",
    "sklearn.linear_model",
    "h5py",
    "matplotlib.pyplot",
    "keras",
    "mlflow.pyfunc",
]
_LONGEST_S = 180


def _child(argv: list[str], environment: dict[str, str], said: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with Path(said).open("w") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
    sys.argv = ["anomaly", *argv]
    from pipelines.cli import main

    main()


def run_apart(folder: Path, *args: object, killpoint: str = "") -> tuple[int, str]:
    """Exit status (-9 if it was killed) and output of ``anomaly ARGS`` in a process of its own."""
    set_forkserver_preload(_PRELOADED)
    said = folder / "said.txt"
    environment = {**os.environ, "ANOMALY_KILLPOINT": killpoint, "TF_CPP_MIN_LOG_LEVEL": "3"}
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_child, args=([str(a) for a in args], environment, str(said)))
    process.start()
    process.join(_LONGEST_S)
    if process.exitcode is None:
        process.kill()
        process.join()
    text = said.read_text() if said.exists() else ""
    said.unlink(missing_ok=True)
    assert process.exitcode is not None
    return process.exitcode, text
