"""Text that people and programs give us, before it meets a database."""

from __future__ import annotations

from collections.abc import Iterable

from anomaly.errors import Fault, UsageError


def checked_text(what: str, text: str, longest: int, *, required: bool = True) -> str:
    """``text``, or UsageError E2001 where it is too long, empty though ``required``, or not text that can be stored.

    Both kinds of database refuse half of a surrogate pair, and PostgreSQL a zero byte; JSON can bring either.

    >>> checked_text("a comment", "=1+1", 10)
    '=1+1'
    """
    if len(text) > longest or (required and not text.strip()):
        found = f"{len(text)} signs" if text.strip() else "nothing"
        raise UsageError(Fault("E2001", f"{what}, 1 to {longest} signs", found))
    if "\x00" in text or any("\ud800" <= sign <= "\udfff" for sign in text):
        raise UsageError(Fault("E2001", f"{what} that is text", text))
    return text


def search_text(asset: str, cause: str, tags: Iterable[str]) -> str:
    """What a search for text looks in, without regard to case; cut to 500 signs, as much as an index entry may hold.

    >>> search_text("Press 3", "", ["Flow", "TEMP"])
    'press 3 flow temp'
    """
    return " ".join(part for part in (asset, cause, *tags) if part).casefold()[:500]
