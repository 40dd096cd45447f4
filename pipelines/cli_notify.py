"""`anomaly notify …`: bring messages about alerts to webhooks, Alertmanager, mail; see what waits and what never arrived."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomaly.errors import Fault, UsageError, shown
from pipelines import home, terminal

if TYPE_CHECKING:
    from alerts.database import Database
    from alerts.notification_settings import NotifySettings

notify = typer.Typer(
    no_args_is_help=True, help="Messages about alerts: send them, see what waits and what never arrived."
)

Config = Annotated[
    Path | None, typer.Option("--config", help="Settings as TOML; notify.toml in the state folder if not given.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]


def add_to(app: typer.Typer) -> None:
    """Give ``app`` the commands."""
    app.add_typer(notify, name="notify")


@notify.command("send", epilog="Example: `anomaly notify send --follow`")
def notify_send(
    once: Annotated[
        bool, typer.Option("--once", help="One round, then end (this is what happens without a flag).")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until stopped.")] = False,
    every: Annotated[str, typer.Option(help="Time between two rounds where nothing waits, such as 5s.")] = "5s",
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Bring waiting messages to their targets, escalate what nobody took, write the daily digest.

    It may be stopped or killed at any moment: no message is lost, and one that is sent twice has the same id.
    """
    from anomaly.config import parse_duration
    from pipelines.notify import Notifier, lines
    from pipelines.stopping import stopping

    if follow and (once or as_json):
        raise UsageError(Fault("E2001", "--follow without --once and --json", "both"))
    settings, pause = _settings(config, needed=True), parse_duration(every) / 1e6
    notifier = Notifier(_database(), settings)
    if follow:
        with stopping() as wish:
            notifier.follow(pause, lambda: wish.heed("what waits is sent by the next run"), terminal.say)
        return
    done = notifier.run_once()
    _finish(done.to_dict(), as_json, lambda: _say(lines(done) or ["nothing was waiting"]))


@notify.command("test", epilog="Example: `anomaly notify test hook`")
def notify_test(
    target: Annotated[str, typer.Argument(help="Name of a target in the settings.")], config: Config = None
) -> None:
    """Send a test message to one target; exit status 5 where it does not take it."""
    from pipelines.notify import try_target

    try_target(_settings(config, needed=True), target)
    typer.echo(f"{target} took the test message")


@notify.command("status", epilog="Example: `anomaly notify status`")
def notify_status(config: Config = None, as_json: Json = False) -> None:
    """Per target what is sent, waiting, held back by the rate limit or given up; and the messages that never arrived."""
    from pipelines.notify import status

    told = status(_database(), _settings(config))
    _finish(told, as_json, lambda: _say(_status_lines(told)))


@notify.command("retry", epilog="Example: `anomaly notify retry hook`")
def notify_retry(
    target: Annotated[str | None, typer.Argument(help="One target; all of the settings if not given.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Try the messages that were given up once more."""
    from pipelines.notify import retry

    count = retry(_database(), _settings(config), target)
    _finish({"retried": count}, as_json, lambda: _say([f"{count} messages are tried again; next: anomaly notify send"]))


def _database() -> Database:
    from alerts.database import Database

    return Database(home.alert_database())


def _settings(config: Path | None, needed: bool = False) -> NotifySettings:
    """The settings that were named, or those of the state folder; with ``needed`` they must have a target."""
    from alerts.notification_settings import NotifySettings

    path = config or home.home() / "notify.toml"
    found = NotifySettings.from_toml(path) if config is not None or path.exists() else NotifySettings()
    if needed and not found.targets:
        hint = "docs/notifications.md shows one"
        raise UsageError(Fault("E2001", "a target in the settings", "none", hint, str(path)))
    return found


def _status_lines(told: dict[str, Any]) -> list[str]:
    from alerts.alert import iso_time

    said = []
    for name, own in told["targets"].items():
        counts = {k: n for k, n in own.items() if k not in ("waiting_since", "configured")}
        words = ", ".join(f"{n} {state}" for state, n in counts.items()) or "nothing yet"
        waits = f", the oldest waits since {iso_time(own['waiting_since'])[:19]}" if own["waiting_since"] else ""
        said.append(f"{name}: {words}{waits}" + ("" if own["configured"] else " (no longer in the settings)"))
    for letter in told["dead"]:
        tried = f"{letter['attempts']} attempts: {shown(letter['error'])}"
        said.append(
            f"  given up {letter['target']} {letter['message_id']} {letter['kind']} {shown(letter['asset'])}, {tried}"
        )
    return said or ["no target in the settings, and nothing was ever sent"]


def _say(lines: list[str]) -> None:
    for line in lines:
        typer.echo(line)


def _finish(result: dict[str, Any], as_json: bool, say: Callable[[], None]) -> None:
    if as_json:
        typer.echo(json.dumps(result, default=str, allow_nan=False))
    else:
        say()
