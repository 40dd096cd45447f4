"""Ctrl-C and SIGTERM as a wish to stop at the next safe place, for jobs that can go on later."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_WATCHED = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A job stopped at a safe place because of a signal; ``number`` is the signal's. No error of ours: nothing is wrong.

    The command line leaves with 128 + ``number``, as a shell does.
    """

    def __init__(self, number: int, told: str = "") -> None:
        self.number, self.told = number, told
        super().__init__(told)


class Wish:
    """Whether somebody wants the job to stop."""

    def __init__(self) -> None:
        self.number = 0

    def heed(self, told: str = "") -> None:
        """Raise ``Stopped`` where a signal came."""
        if self.number:
            raise Stopped(self.number, told)


@contextmanager
def stopping() -> Iterator[Wish]:
    """Signals become a wish while this lasts; a second one of the same kind acts at once, as it did before.

    Outside of the main thread signals cannot be caught, and the wish never comes.
    """
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before = {number: signal.getsignal(number) for number in _WATCHED}

    def note(number: int, frame: FrameType | None) -> None:
        wish.number = number
        signal.signal(number, before[signal.Signals(number)] or signal.SIG_DFL)

    for number in _WATCHED:
        signal.signal(number, note)
    try:
        yield wish
    finally:
        for number in _WATCHED:
            signal.signal(number, before[number] or signal.SIG_DFL)
