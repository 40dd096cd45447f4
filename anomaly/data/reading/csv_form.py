"""The form of a CSV file, told from its first megabyte: header, separator, decimal mark."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass

from anomaly.errors import Fault, InputRefused, UsageError

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_COMMA_NUMBER = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?", re.ASCII)
_POINT_NUMBER = re.compile(r"[+-]?\d+\.\d+(?:[eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class CsvForm:
    """Header cells as written, separator, decimal mark, and what of it was inferred."""

    header: tuple[str, ...]
    separator: str
    decimal: str
    notices: tuple[str, ...]


def infer(head: bytes, separator: str | None, decimal: str | None, name: str) -> CsvForm:
    """The form of the file ``name`` that begins with ``head``; declared marks win.

    Raises InputRefused E3003 (no row under the header), E3004 (no line at all)
    or E3005 (not UTF-8), UsageError for an impossible mark.
    """
    separator = "\t" if separator in ("tab", "\\t") else separator
    _check_marks(separator, decimal)
    lines = _lines(head, name)
    if not lines:
        raise InputRefused(Fault("E3004", "a header line", "no line end in the first megabyte", "", name))
    if len(lines) < 2 and len(head) < 1 << 20:
        raise InputRefused(Fault("E3003", "at least one row under the header", "none", "", name))
    notices = []
    mark = separator or _separator(lines)
    if separator is None and mark != ",":
        notices.append(f"the separator is a {SEPARATORS[mark]} (inferred)")
    rows = csv.reader(lines, delimiter=mark)
    header = next(rows)
    point = decimal or _decimal(rows, mark)
    if decimal is None and point != ".":
        notices.append("the decimal mark is a comma (inferred)")
    return CsvForm(tuple(header), mark, point, tuple(notices))


def _check_marks(separator: str | None, decimal: str | None) -> None:
    if separator is not None and (len(separator) != 1 or not separator.isascii() or separator in '"\r\n'):
        raise UsageError(Fault("E2001", "a separator of one ASCII character", separator))
    if decimal is not None and decimal not in (".", ","):
        raise UsageError(Fault("E2001", "a decimal mark . or ,", decimal))
    if decimal is not None and decimal == separator:
        raise UsageError(Fault("E2001", "a decimal mark other than the separator", decimal))


def _lines(head: bytes, name: str) -> list[str]:
    """The whole lines of ``head``, without a byte order mark; a line cut by the sample's end is left out."""
    whole = len(head) < 1 << 20
    try:
        text = head.decode("utf-8-sig", errors="strict" if whole else "ignore")
    except UnicodeDecodeError as error:
        row = re.sub(b"\r\n?", b"\n", head[: error.start]).count(b"\n")
        fault = Fault("E3005", "UTF-8 text", "other bytes", "save the file as UTF-8", name, row=row or None)
        raise InputRefused(fault) from error
    lines = re.split(r"\r\n|\n|\r", text)
    if not whole:
        lines.pop()
    return [line for line in lines if line]


def _separator(lines: list[str]) -> str:
    """The mark that gives the most lines as many fields as the header, of these the one with the most fields."""

    def fit(mark: str) -> tuple[float, int]:
        counts = [len(row) for row in csv.reader(lines[:50], delimiter=mark)]
        alike = sum(c == counts[0] for c in counts) / len(counts)
        return (alike, counts[0]) if counts[0] > 1 else (0.0, 0)

    return max(SEPARATORS, key=fit)


def _decimal(rows: Iterable[list[str]], separator: str) -> str:
    """A comma, if no other reading of the numbers is possible: some have one, none has a point."""
    if separator == ",":
        return "."
    cells = [cell.strip() for row in rows for cell in row]
    if any(_POINT_NUMBER.fullmatch(c) for c in cells):
        return "."
    return "," if any(_COMMA_NUMBER.fullmatch(c) for c in cells) else "."
