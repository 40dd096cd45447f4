"""`anomaly alerts …` and `anomaly users …`: the alert list, what people do with alerts, who may sign in to the page."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomaly.errors import Fault, UsageError
from pipelines import home, terminal

if TYPE_CHECKING:
    from alerts.database import Database
    from alerts.store import AlertEvent
    from alerts.users import Users
    from alerts.workflow import Workflow

alerts = typer.Typer(no_args_is_help=True, help="The alert list, and what people do with alerts.")
users = typer.Typer(no_args_is_help=True, help="Who may sign in to the page. There is no default account.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
Numbers = Annotated[list[int], typer.Argument(help="Alert numbers.")]
Number = Annotated[int, typer.Argument(help="Alert number.")]
By = Annotated[str, typer.Option("--by", help="Who does it; the user of this process if not given.")]
Comment = Annotated[str, typer.Option("--comment", help="A word for the record.")]


@alerts.command("list", epilog="Example: `anomaly alerts list --asset pump-3`")
def alerts_list(
    asset: Annotated[str | None, typer.Option(help="Only this asset.")] = None,
    state: Annotated[
        str | None, typer.Option(help="Only this state: new, acknowledged, in_work, shelved, returned or closed.")
    ] = None,
    limit: Annotated[int, typer.Option(help="At most this many, newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """The newest alerts."""
    from alerts.states import STATES
    from alerts.store import AlertStore

    if state is not None and state not in STATES:
        raise UsageError(Fault("E2001", f"--state {', '.join(STATES)}", state))
    _workflow().tick()
    rows = AlertStore(home.alert_database()).alerts(asset=asset, state=state, limit=limit)
    _finish({"alerts": [r.to_dict() for r in rows]}, as_json, lambda: terminal.show_alerts(rows))


@alerts.command("show", epilog="Example: `anomaly alerts show 12`")
def alerts_show(number: Number, as_json: Json = False) -> None:
    """One alert: when, how sure, which sensors, which model, what was done."""
    from alerts.store import AlertStore

    _workflow().tick()
    store = AlertStore(home.alert_database())
    row, past = store.alert(number), store.events(number)

    def show() -> None:
        terminal.show_alert(row)
        _show_past(past)

    _finish(row.to_dict() | ({"events": [asdict(e) for e in past]} if past else {}), as_json, show)


@alerts.command("export", epilog="Example: `anomaly alerts export --format csv --out alerts.csv`")
def alerts_export(
    out: Annotated[Path | None, typer.Option(help="File to write; standard output if not given.")] = None,
    format: Annotated[str, typer.Option(help="csv or json.")] = "csv",
    asset: Annotated[str | None, typer.Option(help="Only this asset.")] = None,
    limit: Annotated[int, typer.Option(help="At most this many, newest first.")] = 100_000,
) -> None:
    """All alerts as CSV (safe to open in a spreadsheet) or JSON."""
    from alerts.export import export_alerts
    from alerts.store import AlertStore

    if format not in ("csv", "json"):
        raise UsageError(Fault("E2001", "--format csv or json", format))
    _write(export_alerts(AlertStore(home.alert_database()).alerts(asset=asset, limit=limit), format), out)


@alerts.command("labels", epilog="Example: `anomaly alerts labels --out verdicts.csv`")
def alerts_labels(
    out: Annotated[Path | None, typer.Option(help="File to write; standard output if not given.")] = None,
) -> None:
    """Verdicts as labelled intervals (CSV) for `anomaly train`: true faults are events, nuisances and known work were normal."""
    from alerts.feedback import as_csv, read_labels

    _write(as_csv(read_labels(_database())), out)


@alerts.command("ack", epilog="Example: `anomaly alerts ack 12 13`")
def alerts_ack(numbers: Numbers, comment: Comment = "", by: By = "", as_json: Json = False) -> None:
    """Somebody has seen them."""
    _change(numbers, "acknowledge", by, comment, as_json)


@alerts.command("start", epilog="Example: `anomaly alerts start 12`")
def alerts_start(numbers: Numbers, comment: Comment = "", by: By = "", as_json: Json = False) -> None:
    """Somebody works on them."""
    _change(numbers, "start", by, comment, as_json)


@alerts.command("shelve", epilog="Example: `anomaly alerts shelve 12 --for 8h --reason 'waiting for parts'`")
def alerts_shelve(
    numbers: Numbers,
    length: Annotated[str, typer.Option("--for", help="How long, such as 8h or 3d; 30 days at most.")],
    reason: Annotated[str, typer.Option(help="Why.")],
    by: By = "",
    as_json: Json = False,
) -> None:
    """Out of sight for a while."""
    from alerts.workflow import clock_us
    from anomaly.config import parse_duration

    until = clock_us() + parse_duration(length)
    _change(numbers, "shelve", by, reason, as_json, until_us=until)


@alerts.command("unshelve", epilog="Example: `anomaly alerts unshelve 12`")
def alerts_unshelve(numbers: Numbers, comment: Comment = "", by: By = "", as_json: Json = False) -> None:
    """Back in sight before their time."""
    _change(numbers, "unshelve", by, comment, as_json)


@alerts.command("assign", epilog="Example: `anomaly alerts assign 12 --to ann`")
def alerts_assign(
    numbers: Numbers,
    to: Annotated[str, typer.Option(help="Whose they are; nobody's if not given.")] = "",
    comment: Comment = "",
    by: By = "",
    as_json: Json = False,
) -> None:
    """Say whose they are."""
    _change(numbers, "assign", by, comment, as_json, assignee=to or None)


@alerts.command("note", epilog="Example: `anomaly alerts note 12 'felt looks worn'`")
def alerts_note(
    number: Number,
    text: Annotated[str, typer.Argument(help="What to remember.")],
    by: By = "",
    as_json: Json = False,
) -> None:
    """Write a line into the past of an alert."""
    _change([number], "note", by, text, as_json)


@alerts.command("verdict", epilog="Example: `anomaly alerts verdict 12 'true fault' --comment 'felt changed'`")
def alerts_verdict(
    number: Number,
    verdict: Annotated[str, typer.Argument(help="true fault, nuisance, known work, sensor fault or unsure.")],
    comment: Comment = "",
    by: By = "",
    as_json: Json = False,
) -> None:
    """Close an alert and say what it was, or correct that."""
    word = verdict.strip().replace(" ", "_").replace("-", "_")
    _change([number], "verdict", by, comment, as_json, verdict=word)


@alerts.command("reopen", epilog="Example: `anomaly alerts reopen 12`")
def alerts_reopen(numbers: Numbers, comment: Comment = "", by: By = "", as_json: Json = False) -> None:
    """They were not over after all."""
    _change(numbers, "reopen", by, comment, as_json)


@users.command("add", epilog="Example: `anomaly users add ann --role operator`")
def users_add(
    name: Annotated[str, typer.Argument(help="Name to sign in with.")],
    role: Annotated[str, typer.Option(help="viewer, reviewer, operator or admin.")] = "viewer",
    from_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input; asked for otherwise.")
    ] = False,
    by: By = "",
    as_json: Json = False,
) -> None:
    """Add somebody who may sign in."""
    password = _password(from_stdin)
    user = _users().add(name, role, password, by=by or getpass.getuser())
    _finish(asdict(user), as_json, lambda: typer.echo(f"added {user.name}, {user.role}"))


@users.command("list", epilog="Example: `anomaly users list`")
def users_list(as_json: Json = False) -> None:
    """Everybody who may sign in, and who may no longer."""
    found = list(_users().list())

    def show() -> None:
        for user in found:
            typer.echo(f"{user.name}  {user.role}" + ("  disabled" if user.disabled_at is not None else ""))
        if not found:
            typer.echo("nobody yet: anomaly users add NAME --role admin")

    _finish({"users": [asdict(user) for user in found]}, as_json, show)


@users.command("disable", epilog="Example: `anomaly users disable ann`")
def users_disable(
    name: Annotated[str, typer.Argument(help="Whose sign-in ends.")], by: By = "", as_json: Json = False
) -> None:
    """End somebody's sessions and sign-in; the name stays in the past of alerts."""
    _users().disable(name, by=by or getpass.getuser())
    _finish({"disabled": name}, as_json, lambda: typer.echo(f"disabled {name}"))


def _database() -> Database:
    from alerts.database import Database

    return Database(home.alert_database())


def _workflow() -> Workflow:
    from alerts.workflow import Workflow

    return Workflow(_database())


def _users() -> Users:
    from alerts.users import Users

    return Users(_database())


def _change(numbers: list[int], action: str, by: str, comment: str, as_json: bool, **details: Any) -> None:
    """The same change of some alerts: those that can be are changed; the rest is refused with exit status 2."""
    flow = _workflow()
    if not flow.database.exists():  # a change of nothing must not make a database
        raise UsageError(Fault("E2001", "an alert number, but there are no alerts", numbers[0]))
    done = flow.bulk(dict.fromkeys(numbers), action, by or getpass.getuser(), comment=comment, **details)
    changed = [o.alert for o in done if o.alert is not None]
    faults = [fault for o in done if o.error is not None for fault in o.error.faults]

    def show() -> None:
        for alert in changed:
            typer.echo(f"alert {alert.id} is {alert.state}" + (f": {alert.verdict}" if alert.verdict else ""))

    refused = [o.id for o in done if o.error is not None]
    _finish({"alerts": [a.to_dict() for a in changed], "refused": refused}, as_json, show)
    if faults:
        raise UsageError(faults)


def _show_past(past: Sequence[AlertEvent]) -> None:
    from alerts.store import iso_time
    from anomaly.errors import shown

    for event in past:
        more = f": {shown(event.comment)}" if event.comment else ""
        typer.echo(f"  {iso_time(event.at)[:19]}  {shown(event.actor)}  {event.action} → {event.to_state}{more}")


def _password(from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise UsageError(Fault("E2001", "--password-stdin where nobody can be asked", "no terminal"))
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))


def _write(text: str, out: Path | None) -> None:
    from anomaly.files import atomic_path

    if out is None:
        sys.stdout.write(text)
        return
    with atomic_path(out) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
    typer.echo(f"wrote {out}")


def _finish(result: dict[str, Any], as_json: bool, show: Callable[[], None]) -> None:
    if as_json:
        typer.echo(json.dumps(result, default=str, allow_nan=False))
    else:
        show()
