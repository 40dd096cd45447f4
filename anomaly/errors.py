"""What can go wrong, as a tree: each leaf ends the command line with its own exit status.

    AnomalyError                 70  our bug, when nothing below fits
    ├── UsageError                2  a flag, a setting or a path is wrong
    ├── InputRefused              3  a log, store or label file is refused; carries every fault found
    ├── ModelRefused              4  a model bundle or registry entry is refused
    └── Unavailable               5  a database, registry or disk is not available; a retry is safe

A ``Fault`` is one line of a refusal: a stable code, where it is, what was expected, what was found, and the cure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: Every stable code and its meaning; ``docs/errors.md`` prints this table and a test holds the two together.
CODES: dict[str, str] = {
    "E2001": "a flag or argument is wrong",
    "E2002": "a setting is unknown or has the wrong type",
    "E2003": "the output exists already or cannot be written there",
    "E2004": "the window or the batch is too small for this encoder",
    "E3001": "the file cannot be opened",
    "E3002": "the file is empty",
    "E3003": "the file has a header and no rows",
    "E3004": "a line is cut or has another number of fields than the header",
    "E3005": "the text encoding is not UTF-8",
    "E3006": "the container is truncated or damaged",
    "E3007": "the file format is not one we read",
    "E3008": "the file changed while it was read",
    "E3101": "a column is missing",
    "E3102": "a column is extra",
    "E3103": "a column appears twice",
    "E3104": "a column name holds control characters or is too long",
    "E3105": "the label column is missing",
    "E3106": "a quality code is not known",
    "E3107": "text in a number column",
    "E3108": "no numeric tag is left",
    "E3109": "a tag has no value at all",
    "E3110": "an infinite value",
    "E3111": "a value of impossible size",
    "E3112": "a label other than 0 or 1",
    "E3113": "the asset is missing",
    "E3201": "times with and without a zone are mixed, or differ from the model",
    "E3202": "the order of day and month cannot be told",
    "E3203": "a local time that exists twice or not at all",
    "E3204": "a time that cannot be read",
    "E3205": "times go backwards",
    "E3206": "the same time twice with different values",
    "E3207": "a time outside 1970 to 2100: probably the wrong unit",
    "E3301": "the log is shorter than one window",
    "E3302": "no normal rows are left to learn from",
    "E3303": "the sampling period differs from the model's",
    "E3304": "training stopped on a non-finite number",
    "E3305": "the encoder collapsed: it embeds different windows alike",
    "E3401": "the store is incomplete",
    "E3402": "the store was made for another contract",
    "E3403": "the store holds something we do not follow: links, external or virtual data",
    "E4001": "the model cannot be found",
    "E4002": "a digest differs from the manifest",
    "E4003": "the manifest is not one we read",
    "E4004": "the model does not give its recorded scores",
    "E4005": "the bundle holds a file it should not hold",
    "E4101": "the model did not earn its promotion: a gate is not passed",
    "E4102": "the champion changed while the promotion was judged",
    "E4103": "there is no earlier champion to go back to",
    "E5001": "the alert database is locked or cannot be reached",
    "E5002": "the disk is full or read-only",
    "E5003": "the model registry cannot be reached",
    "E5004": "the alert database has another schema version",
    "E5005": "a target of notifications did not take a message",
    "E7000": "our bug",
}

_LONGEST = 160


def shown(value: object) -> str:
    """``value`` as one short printable piece: control characters escaped, at most 160 characters.

    >>> shown("a\\nb")
    'a\\\\nb'
    """
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


@dataclass(frozen=True)
class Fault:
    """One thing wrong in one place. ``row`` counts data rows from 1 (a CSV file's header is not a row)."""

    code: str
    expected: str
    found: object
    hint: str = ""
    file: str | None = None
    column: str | None = None
    row: int | None = None

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"code: expected one of errors.CODES, got {self.code!r}")

    def line(self) -> str:
        """The fault as printed.

        >>> print(Fault("E3107", "a number", "Bad", file="a.csv", column="Pressure", row=7).line())
        E3107 file=a.csv column=Pressure row=7 expected=a number found=Bad
        """
        places = {"file": self.file, "column": self.column, "row": self.row}
        parts = [self.code, *(f"{k}={shown(v)}" for k, v in places.items() if v is not None)]
        parts += [f"expected={shown(self.expected)}", f"found={shown(self.found)}"]
        return " ".join(parts + ([f"hint={self.hint}"] if self.hint else []))


class AnomalyError(Exception):
    """Base of all our errors; ``faults`` are its printed lines."""

    exit_code = 70
    default_code = "E7000"

    def __init__(self, faults: Iterable[Fault] | Fault | str) -> None:
        if isinstance(faults, str):
            faults = Fault(self.default_code, "", faults)
        self.faults: tuple[Fault, ...] = (faults,) if isinstance(faults, Fault) else tuple(faults)
        super().__init__("\n".join(f.line() for f in self.faults))


class UsageError(AnomalyError):
    """A flag, a setting or a path is wrong."""

    exit_code = 2
    default_code = "E2001"


class InputRefused(AnomalyError):
    """A log, store or label file is refused, with every fault found in it."""

    exit_code = 3
    default_code = "E3001"


class ModelRefused(AnomalyError):
    """A model bundle or registry entry is refused."""

    exit_code = 4
    default_code = "E4001"


class Unavailable(AnomalyError):
    """A database, registry or disk is not available; trying again later is safe."""

    exit_code = 5
    default_code = "E5001"


class TooFewWindows(ValueError):
    """What is to learn got fewer normal windows than it needs; a fit refuses the log for it (E3302)."""
