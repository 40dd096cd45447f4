"""Train groups of assets in processes of their own, one process at a time, each for some models and then replaced."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from anomaly.errors import AnomalyError
from anomaly.faults import killpoint
from anomaly.fitting import Progress
from pipelines.asset_groups import Group
from pipelines.train_assets import AssetRow, Job, failed_row, group_row

_ROW, _PROGRESS, _STOP = "row", "progress", "stop"
_GOODBYE_S = 10


def train_apart(job: Job, groups: list[Group], most: int, progress: Progress) -> Iterator[AssetRow]:
    """The rows of ``groups`` in order, trained by processes of at most ``most`` models each.

    A process that dies (out of memory, a crash of a library) costs the group it was at, and the next process goes on with the
    others. Raises what stops the whole training, such as Unavailable, as the process met it.
    """
    left = list(groups)
    while left:
        done = 0
        for row in _one_process(job, left[:most], progress):
            yield row
            killpoint("train_assets.after_model")
            done += 1
        left = left[done:]


def _one_process(job: Job, groups: list[Group], progress: Progress) -> Iterator[AssetRow]:
    """Rows as a new process sends them; if it dies, the last row says so."""
    context = multiprocessing.get_context("spawn")  # a library with threads of its own must not be forked
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, groups, there), daemon=True)
    process.start()
    there.close()
    got = 0
    try:
        while got < len(groups):
            try:
                kind, *said = here.recv()
            except EOFError:
                process.join(_GOODBYE_S)
                yield failed_row(groups[got], "E7000", f"its process died ({_ending(process.exitcode)})")
                return
            if kind == _PROGRESS:
                progress(*said)
            elif kind == _STOP:
                raise _as_raised(*said)
            else:
                got += 1
                yield said[0]
        process.join(_GOODBYE_S)
    finally:
        if process.is_alive():
            process.terminate()
            process.join(_GOODBYE_S)
        here.close()


def _ending(status: int | None) -> str:
    """How a process ended, in words.

    >>> _ending(-9), _ending(3)
    ('signal SIGKILL', 'exit status 3')
    """
    return f"signal {signal.Signals(-status).name}" if status is not None and status < 0 else f"exit status {status}"


def _as_raised(kind: type[AnomalyError], faults: tuple[Any, ...]) -> AnomalyError:
    return kind(faults)


def _work(job: Job, groups: list[Group], to: Connection) -> None:
    """Train ``groups`` and send their rows; ends with the process that wants them."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        for group in groups:
            to.send((_ROW, group_row(job, group, lambda *said: to.send((_PROGRESS, *said)))))
    except AnomalyError as error:
        to.send((_STOP, type(error), error.faults))
    except (KeyboardInterrupt, BrokenPipeError):
        pass  # the process that wanted the rows ends as well, and says why
    finally:
        to.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)
