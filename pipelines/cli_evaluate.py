"""`anomaly evaluate FAMILY`: what the command does where there are many models."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pipelines import home, terminal
from pipelines.cli_assets import PARTLY

if TYPE_CHECKING:
    from pipelines.evaluate_family import EvaluatedFamily

#: Columns of a table that goes to a file or a pipe; a terminal has its own width.
_PIPE_WIDTH = 170
_COLUMNS = ("model", "rows", "events", "threshold", "average precision", "events found", "false episodes a day", "")


def evaluate(model: str, logs: Sequence[Path], report: Path | None, as_json: bool) -> bool:
    """Judge a family of models, if ``model`` names one; gives whether it did. Status 6 where one was not judged."""
    from registry.families import find_family

    family = find_family(model, home.home())
    if family is None:
        return False
    from pipelines.evaluate_family import evaluate_family

    with terminal.progress(as_json) as progress:
        done = evaluate_family(logs, family, report, progress)
    if as_json:
        typer.echo(json.dumps(done.to_dict(), allow_nan=False))
    else:
        show(done)
    if done.partly:
        sys.exit(PARTLY)
    return True


def show(done: EvaluatedFamily) -> None:
    """One table of all models, those that were not judged with the reason below."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from pipelines.assets_summary import number

    out = Console(highlight=False, soft_wrap=True)
    if not out.is_terminal:
        out = Console(highlight=False, soft_wrap=True, width=_PIPE_WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in _COLUMNS:
        table.add_column(column, overflow="fold")
    for r in done.rows:
        interval = "" if r.low is None or r.high is None else f" ({r.low:.3f} – {r.high:.3f})"
        table.add_row(
            escape(r.model), str(r.rows), str(r.events), number(r.threshold), number(r.average_precision) + interval,
            number(r.event_recall), number(r.false_episodes_per_day), r.code,
        )  # fmt: skip
    for notice in done.notices:
        out.print(f"[dim]note[/dim] {escape(notice)}")
    out.print(table)
    for line in [f"{r.model}: {r.reason}" for r in done.rows if r.reason]:
        out.print(escape(line))
    for path, why in done.set_aside.items():
        out.print(escape(f"{path} is set aside: {why}"))
    if done.without_model:
        out.print(escape(f"no model for {', '.join(done.without_model[:5])}: not judged"))
    out.print(f"table   {escape(str(done.table))}")
