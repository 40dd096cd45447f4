"""The list as files: CSV, JSON, Excel, and work orders with the columns that maintenance systems import."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import json
from collections.abc import Iterable

from fastapi import APIRouter, HTTPException, Request
from starlette.responses import Response

from alerts.alert import Alert, iso_time
from alerts.export import COLUMNS, export_alerts, safe_cell
from alerts.listing import LARGEST_PAGE, Filters
from alerts.web.forms import asked
from alerts.web.messages import KIND_WORDS
from alerts.web.pages import Viewer
from alerts.web.services import Services, services

router = APIRouter()

#: Most alerts of one file; the header X-Truncated says where there were more.
MOST = 20_000
ORDER_COLUMNS = ("WONUM", "DESCRIPTION", "LOCATION", "ASSETNUM", "REPORTDATE", "PRIORITY", "LONGDESCRIPTION")
SHEET = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
TYPES = {"csv": "text/csv; charset=utf-8", "json": "application/json", "xlsx": SHEET}


def has_excel() -> bool:
    """Whether openpyxl is installed."""
    return importlib.util.find_spec("openpyxl") is not None


@router.get("/export/alerts.{suffix}")
def export_list(request: Request, visitor: Viewer, suffix: str) -> Response:
    """The alerts of the same filters as the list, newest first."""
    if suffix not in TYPES or (suffix == "xlsx" and not has_excel()):
        raise HTTPException(404)
    alerts, more = wanted(services(request), asked(request.query_params).filters)
    body = as_excel(alerts) if suffix == "xlsx" else export_alerts(alerts, suffix).encode()
    return attached(body, f"alerts.{suffix}", TYPES[suffix], more)


@router.get("/export/work-orders.csv")
def export_orders(request: Request, visitor: Viewer) -> Response:
    """The same alerts as work orders."""
    alerts, more = wanted(services(request), asked(request.query_params).filters)
    return attached(work_orders(alerts).encode(), "work-orders.csv", TYPES["csv"], more)


def wanted(own: Services, filters: Filters, most: int = MOST) -> tuple[list[Alert], bool]:
    """The alerts of ``filters``, at most ``most``, and whether there were more."""
    found: list[Alert] = []
    after: str | None = None
    while True:
        page = own.store.page(filters, after, LARGEST_PAGE)
        found += page.alerts
        after = page.next
        if after is None or len(found) >= most:
            return found[:most], after is not None or len(found) > most


def attached(body: bytes, name: str, kind: str, more: bool) -> Response:
    """A file to save; its name is always ours."""
    headers = {"Content-Disposition": f'attachment; filename="{name}"'} | ({"X-Truncated": "true"} if more else {})
    return Response(body, media_type=kind, headers=headers)


def work_orders(alerts: Iterable[Alert]) -> str:
    """Work orders as CSV with ``ORDER_COLUMNS``; a text that a spreadsheet would run starts with an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(ORDER_COLUMNS)
    for alert in alerts:
        writer.writerow([safe_cell(cell) for cell in _order(alert)])
    return text.getvalue()


def _order(alert: Alert) -> tuple[str | int, ...]:
    first = alert.cause or (alert.top_tags[0][0] if alert.top_tags else "")
    words = f"{KIND_WORDS.get(alert.kind, alert.kind)}: {first}" if first else KIND_WORDS.get(alert.kind, alert.kind)
    tags = ", ".join(f"{tag} {100 * share:.0f} %" for tag, share in alert.top_tags)
    long = f"Alert {alert.id}, {iso_time(alert.start_us)} to {iso_time(alert.end_us)}. "
    long += f"Peak score {alert.peak_score:.4g}, threshold {alert.threshold:.4g}. " if alert.kind == "anomaly" else ""
    long += f"Tags: {tags}." if tags else ""
    report = iso_time(alert.start_us)
    return (f"PA-{alert.id}", words[:100], alert.asset, alert.asset, report, alert.priority, long.strip())


def as_excel(alerts: Iterable[Alert]) -> bytes:
    """One sheet with the columns of the CSV; text stays text, control characters are left out."""
    openpyxl = importlib.import_module("openpyxl")  # optional, and without types
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("alerts")
    sheet.append(COLUMNS)
    for record in json.loads(export_alerts(alerts, "json")):
        record["top_tags"] = ", ".join(f"{t['tag']} {100 * t['share']:.0f} %" for t in record["top_tags"])
        cells = []
        for name in COLUMNS:
            value = safe_cell(record[name])
            printable = "".join(c for c in value if c.isprintable())[:32_000] if isinstance(value, str) else value
            cells.append(openpyxl.cell.WriteOnlyCell(sheet, printable))
        sheet.append(cells)
    made = io.BytesIO()
    book.save(made)
    return made.getvalue()
