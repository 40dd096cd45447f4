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
    from pipelines.watch_members import WatchModels

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
    shadow: Annotated[
        str | None,
        typer.Option(help="A challenger that scores beside the model and raises no alerts: NAME@challenger."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")] = False,
) -> None:
    """Score files as they land: windows go on from file to file, alerts go into the database, bad files are set aside.

    Stopped or killed at any moment it goes on where it was. With a family of models each asset is scored by its own. With
    --once the exit status is 6 where files were set aside or a model of a family was refused.
    """
    from pipelines.alone import alone
    from pipelines.watch import Watch, WatchOptions
    from pipelines.watch_loop import Loop, lines
    from pipelines.watch_loop import once as run_once

    if (flush or as_json) and not once:
        raise UsageError(Fault("E2001", "--flush and --json together with --once", "without it"))
    every_s = parse_duration(every) / 1e6
    options = WatchOptions(
        parse_duration(lateness), parse_duration(ahead), parse_duration(settle) / 1e6, None if once else every_s
    )
    place = home.home() / "work" / f"watch-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}"
    database = None if no_alerts else home.alert_database()
    models = _models(model)
    challenger = _challenger(shadow, models, database)
    with alone(place, "one watch of a folder", "stop it first"), stopping() as wish:
        own = Watch(folder, models, models.name, out, database, place, options, challenger)
        if not once:
            Loop(own, every_s, terminal.say, _newer(own, model)).run(_heed(own, wish))
        done = run_once(own, flush, _heed(own, wish))
    if as_json:
        typer.echo(json.dumps(_result(own, done), allow_nan=False))
    else:
        for name, why in own.models.refused.items():
            terminal.say(f"{name} was refused: {why}")
        for line in [*lines(done), f"{own.state.order.rows} rows wait for others to come before them"]:
            terminal.say(line)
    if done.quarantined or done.not_ready or own.models.refused:
        sys.exit(PARTLY)


def _heed(own: Watch, wish: Wish) -> Callable[[], None]:
    def heed() -> None:
        wish.heed(f"{own.state.rows} rows are scored; running the same command again goes on from there")

    return heed


def _models(reference: str) -> WatchModels:
    """The models that ``reference`` stands for: one, or those of a family."""
    from pipelines.watch_members import WatchModels, family_models
    from registry.bundle import load_bundle
    from registry.catalogue import resolve
    from registry.families import find_family

    family = find_family(reference, home.home())
    if family is not None:
        return family_models(family)
    fitted = load_bundle(resolve(reference, home.home()))
    return WatchModels.one(fitted, fitted.settings.name)


def _challenger(
    reference: str | None, models: WatchModels, database: str | None
) -> tuple[str, AnomalyModel] | None:  # fmt: skip
    """The model that ``--shadow`` names, by the threshold that people set for it; raises UsageError E2001 beside a family."""
    if reference is None:
        return None
    if models.family is not None:
        hint = "watch the assets of one member, with --model FAMILY--ASSET"
        raise UsageError(Fault("E2001", "--shadow beside one model", f"the family {models.name}", hint))
    from pipelines.feedback import with_threshold
    from registry.bundle import load_bundle
    from registry.catalogue import resolve

    return reference, with_threshold(load_bundle(resolve(reference, home.home())), database)[0]


def _newer(own: Watch, reference: str) -> Callable[[], AnomalyModel | WatchModels | None]:
    """Gives the models that ``reference`` stands for now, where they are others than the watch's."""

    def newer() -> AnomalyModel | WatchModels | None:
        from pipelines.score_family import known_members
        from pipelines.watch_members import digests_of, family_models
        from registry.bundle import load_bundle
        from registry.catalogue import resolve_model
        from registry.families import find_family

        if own.models.family is None:
            found = resolve_model(reference, home.home())
            return None if found.digest == own.model.digest else load_bundle(found.path)
        family = find_family(reference, home.home())
        if family is None or digests_of(known_members(family, {})) == own.models.resolved:
            return None
        return family_models(family)

    return newer


def _result(own: Watch, done: Turn) -> dict[str, object]:
    drifts = [d.to_dict() for d in own.found]
    refused = dict(own.models.refused)
    return {**done.to_dict(), "waiting": own.state.order.rows, "drifts": drifts, "refused": refused}
