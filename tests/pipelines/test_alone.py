"""One process at a time: a second watch or run is refused, a killed one holds nothing, the file goes with its holder."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from anomaly.errors import Unavailable
from pipelines.alone import LOCK, alone

HOLD = """
import sys, time
from pathlib import Path
from pipelines.alone import alone
with alone(Path(sys.argv[1]), "one run", "wait"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_one_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    place = tmp_path / "state" / "place"
    with alone(place, "one run of a job", "wait for it"):
        with pytest.raises(Unavailable, match="another one is running") as refused, alone(place, "one", "wait for it"):
            pass
        assert "E5001" in str(refused.value) and "wait for it" in str(refused.value)
    assert not (place / LOCK).exists()
    with alone(place, "one run of a job", "wait for it"):
        pass


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(Unavailable), alone(tmp_path, "one run", "wait"):
        pass
    other.kill()
    other.wait()
    other.stdout.close()
    assert (tmp_path / LOCK).exists()
    with alone(tmp_path, "one run", "wait"):
        pass


def test_of_many_at_once_never_two_are_in(tmp_path: Path) -> None:
    inside, most, entered = [0], [0], [0]

    def go() -> None:
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            try:
                with alone(tmp_path / "place", "one", "wait"):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    entered[0] += 1
                    time.sleep(0.001)
                    inside[0] -= 1
            except Unavailable:
                pass

    threads = [threading.Thread(target=go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1 and entered[0] > 20
