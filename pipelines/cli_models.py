"""`anomaly models promote`, `rollback` and `compare`, and the history that `show` prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomaly.errors import Fault, UsageError
from pipelines import terminal

if TYPE_CHECKING:
    from pipelines.models import Compared
    from registry.promotion import Promotion
    from registry.promotion_table import Entry

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
By = Annotated[str, typer.Option("--by", help="Who decides; the user of this process if not given.")]


def add_to(models: typer.Typer) -> None:
    """Add the commands to ``anomaly models``."""
    models.command("promote", epilog="Example: `anomaly models promote press --on august.csv --yes`")(promote)
    models.command("rollback", epilog="Example: `anomaly models rollback press --why 'too many alerts'`")(rollback)
    models.command("compare", epilog="Example: `anomaly models compare press press@challenger august.csv`")(compare)


def promote(
    reference: Annotated[str, typer.Argument(help="NAME (its challenger), NAME/version, NAME@alias or models:/…")],
    on: Annotated[list[Path], typer.Option("--on", help="Labelled log, later than both trainings; may be repeated.")],
    accept: Annotated[
        str, typer.Option("--accept-without-events", help="Your reason to go on where events are too few to judge by.")
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    why: Annotated[str, typer.Option(help="Reason, for the record.")] = "",
    by: By = "",
    margin: Annotated[float, typer.Option(help="How far below zero the upper end of a difference may lie.")] = 0.0,
    floor: Annotated[float, typer.Option("--recall-floor", help="Least share of events found.")] = 0.5,
    events: Annotated[int, typer.Option("--min-events", help="Fewest events to judge by.")] = 5,
    budget: Annotated[
        float | None, typer.Option(help="False episodes per asset and day; the model's own setting if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a version champion, if it earns it: judged against the champion on the same later rows."""
    from pipelines.models import promote as run
    from registry.comparison import GateRules

    try:
        rules = GateRules(margin=margin, floor=floor, events=events, budget=budget)
    except ValueError as error:
        raise UsageError(Fault("E2001", "gates within their range", error)) from error
    if not yes:
        _confirm(f"Promote {reference} if every gate is passed?")
    with terminal.progress(as_json) as progress:
        done = run(reference, on, rules, accepted=accept, who=by, why=why, progress=progress)
    _finish(done.to_dict(), as_json, lambda: show_promotion(done))


def rollback(
    name: Annotated[str, typer.Argument(help="Registered name.")],
    why: Annotated[str, typer.Option(help="Reason, for the record.")] = "",
    by: By = "",
    as_json: Json = False,
) -> None:
    """Make the champion before this one champion again."""
    from pipelines.models import rollback as run

    done = run(name, who=by, why=why)
    _finish(done.to_dict(), as_json, lambda: show_promotion(done))


def compare(
    first: Annotated[str, typer.Argument(help="Bundle folder, NAME, NAME@alias or models:/NAME/version.")],
    second: Annotated[str, typer.Argument(help="The other model.")],
    logs: Annotated[list[Path], typer.Argument(help="Log files (CSV or Parquet) or folders of them.")],
    out: Annotated[Path, typer.Option(help="Picture to write (PNG).")] = Path("comparison.png"),
    as_json: Json = False,
) -> None:
    """Where two models disagree on a log; raises no alerts."""
    from pipelines.models import compare as run

    with terminal.progress(as_json) as progress:
        done = run(first, second, logs, out, progress)
    _finish(done.to_dict(), as_json, lambda: show_compared(done))


def show_promotion(done: Promotion) -> None:
    """What was decided, and why, gate by gate."""
    for gate in done.gates:
        mark = "waived" if gate.waived else "passed"
        typer.echo(f"  {mark}  {gate.name}: {gate.words}")
    before = f" in place of version {done.before}" if done.before else ""
    typer.echo(f"champion of {done.name} is now version {done.version}{before} (by {done.who})")
    if done.before:
        typer.echo(f"to undo: anomaly models rollback {done.name}")


def show_compared(done: Compared) -> None:
    """Counts and the longest stretches of disagreement."""
    typer.echo(f"{done.rows} rows; outcomes differ on {done.differing}")
    for name, n in done.outcomes.items():
        typer.echo(f"  {name}: {n}")
    if done.correlation is not None:
        typer.echo(f"rank correlation of the scores: {done.correlation:.3f}")
    for s in done.stretches:
        typer.echo(f"  {s.asset} {s.start} to {s.end}: {s.first} / {s.second}, {s.rows} rows")
    typer.echo(f"wrote {done.out}")


def show_history(history: Sequence[Entry]) -> None:
    """Who promoted what of a name, oldest first; nothing where nothing was decided."""
    for number, entry in enumerate(history):
        if not number:
            typer.echo("history:")
        typer.echo(f"  {entry.line()}")


def _confirm(question: str) -> None:
    """Ask a person; where there is none to ask, want --yes."""
    if not sys.stdin.isatty():
        raise UsageError(Fault("E2001", "--yes where nobody can be asked", "no terminal", "add --yes"))
    if not typer.confirm(question):
        raise UsageError(Fault("E2001", "a yes", "no", "nothing was changed"))


def _finish(result: dict[str, Any], as_json: bool, show: Callable[[], None]) -> None:
    if as_json:
        typer.echo(json.dumps(result, default=str, allow_nan=False))
    else:
        show()
