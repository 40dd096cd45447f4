"""Named kill points: tests ask the process to die at one of them, production never notices.

``ANOMALY_KILLPOINT="score.after_parquet"`` kills at the first pass of that point, ``"…:3"`` at the third.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

_passes: Counter[str] = Counter()


def killpoint(name: str) -> None:
    """Die here by SIGKILL if the environment asks for ``name`` (and its pass), else do nothing."""
    wanted = os.environ.get("ANOMALY_KILLPOINT")
    if not wanted:
        return
    point, _, nth = wanted.partition(":")
    if point == name:
        _passes[name] += 1
        if _passes[name] == int(nth or 1):
            os.kill(os.getpid(), signal.SIGKILL)
