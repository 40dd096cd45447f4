"""The summary of a training of many models: one row a model, on the terminal, as CSV and as a page."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anomaly.files import atomic_path

if TYPE_CHECKING:
    from pipelines.train_assets import AssetRow, TrainedAssets

#: Columns of a table that goes to a file or a pipe; a terminal has its own width.
_PIPE_WIDTH = 170
_COLUMNS = ("", "rows", "events", "model", "threshold", "average precision", "false episodes a day", "s", "outcome")


def write_table(path: Path, rows: Sequence[AssetRow]) -> None:
    """The rows as CSV, every field a column, whole or not at all; a cell that is not defined is empty."""
    from pipelines.train_assets import AssetRow

    names = [f.name for f in fields(AssetRow)]
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(r) for r in rows)


def write_page(path: Path, done: TrainedAssets) -> None:
    """The rows as one page without scripts, the intervals drawn beside each other, whole or not at all."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"precision": precision, "number": number, "model": model_text}
    page = environment.get_template("assets.html.j2").render(
        done=done,
        summary=summary(done),
        links={r.group: Path(r.report).name for r in done.rows if r.report},
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def summary(done: TrainedAssets) -> str:
    """How many models there are, in one sentence.

    >>> from pipelines.train_assets import AssetRow, TrainedAssets
    >>> rows = (AssetRow("a"), AssetRow("b", outcome="failed"))
    >>> summary(TrainedAssets("press", "asset", rows, Path("t.csv"), Path("t.html"), 61.0))
    'press: 2 assets, 1 trained, 1 failed; 61 s'
    """
    what = ("asset" if len(done.rows) == 1 else "assets") if done.models == "asset" else "classes"
    counts = ", ".join(f"{n} {name}" for name, n in Counter(r.outcome for r in done.rows).most_common())
    return f"{done.name}: {len(done.rows)} {what}, {counts}; {done.seconds:.0f} s"


def show(done: TrainedAssets) -> None:
    """The table for a person, failures first, each with its reason below."""
    out = Console(highlight=False, soft_wrap=True)
    if not out.is_terminal:
        out = Console(highlight=False, soft_wrap=True, width=_PIPE_WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (done.models, *_COLUMNS[1:]):
        table.add_column(column, overflow="fold")
    for r in done.rows:
        table.add_row(
            escape(r.group), str(r.rows), str(r.events), escape(model_text(r)), number(r.threshold), precision(r),
            number(r.false_episodes_per_day), f"{r.seconds:.1f}", f"{r.outcome} {r.code}".strip(),
        )  # fmt: skip
    for notice in done.notices:
        out.print(f"[dim]note[/dim] {escape(notice)}")
    out.print(table)
    for r in done.rows:
        if r.reason:
            out.print(f"{escape(r.group)}: {escape(r.reason)}")
    out.print(escape(summary(done)))
    out.print(f"table   {escape(str(done.table))}")
    out.print(f"report  {escape(str(done.page))}")
    out.print(f"next    anomaly score LOG --model {escape(done.name)} --out scores.parquet")


def model_text(row: AssetRow) -> str:
    """The registered name and version, or a dash."""
    return f"{row.model}/{row.version}" if row.version else "–"


def number(value: float | None) -> str:
    """Three digits, or a dash where there is none."""
    return "–" if value is None else f"{value:.3g}"


def precision(row: AssetRow) -> str:
    """Average precision with its interval, or why there is none.

    >>> from pipelines.train_assets import AssetRow
    >>> precision(AssetRow("a", test_events=3, average_precision=0.5, low=0.25, high=0.75)), precision(AssetRow("a"))
    ('0.500 (0.250 – 0.750), 3 events', 'no events')
    """
    if row.code:
        return "–"
    if row.average_precision is None:
        return "no events"
    interval = "" if row.low is None or row.high is None else f" ({row.low:.3f} – {row.high:.3f})"
    return f"{row.average_precision:.3f}{interval}, {row.test_events} events"
