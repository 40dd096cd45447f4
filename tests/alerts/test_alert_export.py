"""Alerts as CSV and JSON: columns, units, and text that no spreadsheet runs."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from alerts.export import COLUMNS, export_alerts, safe_cell
from alerts.store import Alert
from anomaly.errors import UsageError

START = 1_767_225_600_000_000  # 2026-01-01 00:00 UTC
ALERT = Alert(
    id=3,
    asset="pump-3",
    model="0123456789abcdef",
    model_name="demo",
    start_us=START,
    peak_us=START + 500_000,
    end_us=START + 90_000_000,
    peak_score=4.25,
    threshold=3.0,
    rows=10,
    lead_us=240_000_000,
    top_tags=(("Pressure", 0.414), ("Flow", 0.216)),
    state="new",
    first_batch=1,
    created_at=START,
)

HOSTILE = [
    "=1+1", "=cmd|' /C calc'!A0", '=HYPERLINK("http://x","y")', "+1+1", "+cmd|x", "-1+1", "-2+3+cmd|' /C calc'!A0", "@SUM(1,1)",
    "@x", "\t=1", "\tx", "\r=1", "\rx", " =1+1", "   -x", "=", "+", "-", "@", '="a,b"\n=c',
]  # fmt: skip


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv_has_the_columns_units_and_times():
    (row,) = read(export_alerts([ALERT], "csv"))
    assert tuple(row) == COLUMNS
    assert row == {
        "id": "3",
        "asset": "pump-3",
        "start": "2026-01-01T00:00:00Z",
        "peak": "2026-01-01T00:00:00.500000Z",
        "end": "2026-01-01T00:01:30Z",
        "duration_s": "90",
        "peak_score": "4.25",
        "threshold": "3",
        "lead_s": "240",
        "top_tags": "Pressure 41 %, Flow 22 %",
        "model": "demo 0123456789ab",
        "state": "new",
    }


def test_json_has_the_same_columns_with_numbers_and_tags():
    (row,) = json.loads(export_alerts([ALERT], "json"))
    assert tuple(row) == COLUMNS
    assert row["top_tags"] == [{"tag": "Pressure", "share": 0.414}, {"tag": "Flow", "share": 0.216}]
    assert (row["id"], row["duration_s"], row["peak_score"], row["lead_s"]) == (3, 90, 4.25, 240)


def test_what_is_not_known_or_not_finite_stays_empty():
    alert = replace(ALERT, lead_us=None, peak_score=float("inf"))
    (row,) = read(export_alerts([alert], "csv"))
    assert (row["lead_s"], row["peak_score"]) == ("", "")
    (plain,) = json.loads(export_alerts([alert], "json"))
    assert (plain["lead_s"], plain["peak_score"]) == (None, None)


def test_no_alerts_give_a_header_or_an_empty_list():
    assert export_alerts([], "csv") == ",".join(COLUMNS) + "\n"
    assert json.loads(export_alerts([], "json")) == []


def test_order_is_kept():
    rows = [replace(ALERT, id=i) for i in (5, 2, 9)]
    assert [r["id"] for r in read(export_alerts(rows, "csv"))] == ["5", "2", "9"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_and_not_run(text):
    alert = replace(ALERT, asset=text, model_name=text, state=text, top_tags=((text, 1.0),))
    (row,) = read(export_alerts([alert], "csv"))
    for column, shown in (
        ("asset", text),
        ("model", f"{text} 0123456789ab"),
        ("state", text),
        ("top_tags", f"{text} 100 %"),
    ):
        assert row[column] == "'" + shown
    (plain,) = json.loads(export_alerts([alert], "json"))
    assert plain["asset"] == text


def test_hostile_corpus_is_twenty_different_strings():
    assert len(set(HOSTILE)) == 20


def test_plain_text_and_numbers_are_left_alone():
    for value in ("pump-3", "a=b", "x@y", "Ärger", "", -1.5, 7, None):
        assert safe_cell(value) == value


def test_another_format_is_refused():
    with pytest.raises(UsageError, match=r"E2001.*csv or json.*xlsx"):
        export_alerts([ALERT], "xlsx")
