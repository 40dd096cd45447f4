"""`anomaly watch`: score files as they land in a folder."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomaly.config import parse_duration
from anomaly.errors import Fault, UsageError
from pipelines import home, terminal
from pipelines.stopping import Wish, stopping

if TYPE_CHECKING:
    from anomaly.model import AnomalyModel
    from pipelines.watch import Turn, Watch

_EXAMPLE = "Example: `anomaly watch incoming --model press --every 5s --lateness 10min --out scores`"
#: Some files were set aside, the others were scored.
PARTLY = 6


def add_to(app: typer.Typer) -> None:
    """Give ``app`` the command."""
    app.command("watch", epilog=_EXAMPLE)(watch)


def watch(
    folder: Annotated[Path, typer.Argument(help="Folder that log files (CSV or Parquet) land in.")],
    model: Annotated[
        str, typer.Option(help="Bundle folder, models:/NAME@champion, models:/NAME/2, or a name.")
    ] = "anomaly",
    every: Annotated[str, typer.Option(help="Time between two looks at the folder, such as 5s.")] = "5s",
    lateness: Annotated[
        str,
        typer.Option(help="How long rows may come after newer ones of their asset; rows wait that long to be scored."),
    ] = "10min",
    ahead: Annotated[
        str, typer.Option(help="How far times may lie ahead of the clock; a file beyond that is set aside.")
    ] = "1d",
    settle: Annotated[str, typer.Option(help="How long a file must stay as it is before it is read.")] = "1s",
    once: Annotated[bool, typer.Option("--once", help="Take the files that are there and end.")] = False,
    flush: Annotated[
        bool, typer.Option("--flush", help="With --once: no file comes any more, so score the rows that wait too.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the score files (Parquet).")] = Path("scores"),
    no_alerts: Annotated[bool, typer.Option("--no-alerts", help="Write score files only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")] = False,
) -> None:
    """Score files as they land: windows go on from file to file, alerts go into the database, bad files are set aside.

    Stopped or killed at any moment it goes on where it was. With --once the exit status is 6 where files were set aside.
    """
    from pipelines.watch import Watch, WatchOptions, one_watch
    from pipelines.watch_loop import Loop, lines
    from pipelines.watch_loop import once as run_once
    from registry.bundle import load_bundle
    from registry.catalogue import resolve

    if (flush or as_json) and not once:
        raise UsageError(Fault("E2001", "--flush and --json together with --once", "without it"))
    options = WatchOptions(parse_duration(lateness), parse_duration(ahead), parse_duration(settle) / 1e6)
    place = home.home() / "work" / f"watch-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}"
    fitted = load_bundle(resolve(model, home.home()))
    with one_watch(place), stopping() as wish:
        database = None if no_alerts else home.alert_database()
        own = Watch(folder, fitted, fitted.settings.name, out, database, place, options)
        if not once:
            Loop(own, parse_duration(every) / 1e6, terminal.say, _newer(own, model)).run(_heed(own, wish))
        done = run_once(own, flush, _heed(own, wish))
    if as_json:
        typer.echo(json.dumps(_result(own, done), allow_nan=False))
    else:
        for line in [*lines(done), f"{own.state.order.rows} rows wait for others to come before them"]:
            terminal.say(line)
    if done.quarantined or done.not_ready:
        sys.exit(PARTLY)


def _heed(own: Watch, wish: Wish) -> Callable[[], None]:
    def heed() -> None:
        wish.heed(f"{own.state.rows} rows are scored; running the same command again goes on from there")

    return heed


def _newer(own: Watch, reference: str) -> Callable[[], AnomalyModel | None]:
    """Gives the model that ``reference`` stands for now, where it is another one than the watch's."""

    def newer() -> AnomalyModel | None:
        from registry.bundle import load_bundle
        from registry.catalogue import resolve_model

        found = resolve_model(reference, home.home())
        return None if found.digest == own.model.digest else load_bundle(found.path)

    return newer


def _result(own: Watch, done: Turn) -> dict[str, object]:
    drifts = [d.to_dict() for d in own.found]
    return {**done.to_dict(), "waiting": own.state.order.rows, "drifts": drifts}
