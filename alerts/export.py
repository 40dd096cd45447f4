"""Alerts as CSV, safe to open in a spreadsheet, or as JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from anomaly.errors import Fault, UsageError

if TYPE_CHECKING:
    from alerts.store import Alert

COLUMNS = (
    "id",
    "asset",
    "start",
    "peak",
    "end",
    "duration_s",
    "peak_score",
    "threshold",
    "lead_s",
    "top_tags",
    "model",
    "state",
)

#: A text cell that starts with one of these may run as a formula (RELIABILITY §2.12).
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export_alerts(alerts: Iterable[Alert], format: str) -> str:
    """The alerts in their given order, as ``csv`` or ``json`` text with the columns ``COLUMNS``.

    Times are ISO 8601 in UTC, durations and leads in seconds. In CSV a missing or infinite number is an empty cell and a
    text cell that could run as a formula starts with an apostrophe; in JSON ``top_tags`` is a list of tag and share.
    Raises UsageError E2001 for another format.
    """
    rows = [_record(alert) for alert in alerts]
    if format == "json":
        return json.dumps(rows, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    if format != "csv":
        raise UsageError(Fault("E2001", "a format: csv or json", format))
    for row in rows:
        row["top_tags"] = ", ".join(f"{t['tag']} {100 * t['share']:.0f} %" for t in row["top_tags"])
    return "".join(_line(cells) for cells in (COLUMNS, *([row[name] for name in COLUMNS] for row in rows)))


def _line(cells: Iterable[Any]) -> str:
    """One CSV line. The writer quotes what its own line end holds: CR and LF, though ours is LF alone."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow([safe_cell(cell) for cell in cells])
    return text.getvalue()[:-2] + "\n"


def safe_cell(value: Any) -> Any:
    """Text with an apostrophe in front where a spreadsheet would run it, leading spaces or not; numbers stay numbers.

    >>> safe_cell("=1+1"), safe_cell(-1.5), safe_cell("P-1")
    ("'=1+1", -1.5, 'P-1')
    """
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA):
        return "'" + value
    return value


def _record(alert: Alert) -> dict[str, Any]:
    own = alert.to_dict()
    own |= {
        "duration_s": _number((alert.end_us - alert.start_us) / 1e6),
        "peak_score": _number(alert.peak_score),
        "threshold": _number(alert.threshold),
        "lead_s": None if alert.lead_us is None else _number(alert.lead_us / 1e6),
        "model": f"{alert.model_name} {alert.model[:12]}",
    }
    return {name: own[name] for name in COLUMNS}


def _number(value: float) -> float | int | None:
    """Ten digits at most, whole numbers without a point, None where it is not finite."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.10g}")
    return int(short) if short.is_integer() else short
