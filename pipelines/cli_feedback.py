"""`anomaly feedback …`: verdicts become labels, a threshold that a person sets, and the alerts to look at next."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomaly.errors import Fault, UsageError, shown
from pipelines import home

if TYPE_CHECKING:
    from alerts.database import Database
    from alerts.overrides import ThresholdChange
    from pipelines.feedback import Actors, Case
    from pipelines.feedback_refit import Proposal, WhatIf

feedback = typer.Typer(
    no_args_is_help=True, help="What verdicts on alerts change: labels, the threshold, what to look at."
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
Model = Annotated[
    str | None, typer.Option(help="Name or digest of a model; the one that raised an alert last if not given.")
]
Least = Annotated[int, typer.Option(help="Verdicts that a proposal needs.", min=1)]
Value = Annotated[float | None, typer.Option(help="A threshold of your own in place of the proposed one.")]
By = Annotated[str, typer.Option("--by", help="Who does it.")]
Why = Annotated[str, typer.Option("--why", help="The reason, for the record.")]
Second = Annotated[
    str, typer.Option(help="Who agrees, where one person may not decide: another user of role operator or admin.")
]
Stdin = Annotated[
    bool,
    typer.Option("--password-stdin", help="Read the passwords of --by and --second from two lines of standard input."),
]


def add_to(app: typer.Typer) -> None:
    """Give ``app`` the commands."""
    app.add_typer(feedback, name="feedback")


@feedback.command("show", epilog="Example: `anomaly feedback show --model press`")
def feedback_show(model: Model = None, as_json: Json = False) -> None:
    """Verdicts on a model's alerts, who gave them, where they contradict each other, and which threshold holds."""
    from pipelines import feedback as job

    told = job.show(_database(), model)

    def say() -> None:
        typer.echo(f"{shown(told['name'])} {told['model'][:12]}: {told['alerts']} alerts, {_threshold(told)}")
        given = ", ".join(f"{n} {word.replace('_', ' ')}" for word, n in told["verdicts"].items() if n)
        typer.echo(f"  verdicts: {given or 'none yet'}")
        for name, n in told["by"].items():
            typer.echo(f"  {n} by {shown(name) or 'nobody known'}")
        for one, other in told["contradictions"]:
            typer.echo(f"  contradiction: alert {one} was a true fault, alert {other} at the same time was not")
        _show_changes(told["changes"])

    _finish(told, as_json, say)


@feedback.command("labels", epilog="Example: `anomaly feedback labels --out verdicts.parquet`")
def feedback_labels(
    out: Annotated[
        Path | None, typer.Option(help="File to write, .csv or .parquet; CSV on standard output if not given.")
    ] = None,
) -> None:
    """Verdicts as labelled intervals, for `anomaly train --fine-tune --verdicts FILE`."""
    from pipelines.feedback import write_labels

    found, text = write_labels(_database(), out)
    if out is None:
        sys.stdout.write(text)
    else:
        typer.echo(f"wrote {len(found)} intervals to {out}")


@feedback.command("propose", epilog="Example: `anomaly feedback propose --model press`")
def feedback_propose(model: Model = None, least: Least = 10, value: Value = None, as_json: Json = False) -> None:
    """A threshold from the verdicts, and what it would have done to the alerts there are. Nothing is changed."""
    from dataclasses import asdict

    from pipelines import feedback as job

    database = _database()
    case = job.read_case(database, model)
    found = job.proposal(case, least, value)
    rows = {} if found.value is None else job.stored_rows(case, database, found.value)
    two = [] if found.value is None else job.reasons_for_two(case, found.value)
    told = asdict(found) | {"model": case.model, "name": case.name, "now": case.now, "rows": rows, "two_people": two}
    _finish(told, as_json, lambda: _show_proposal(case, found, rows, two))


@feedback.command("apply", epilog="Example: `anomaly feedback apply --model press --by ann --why 'nuisances of June'`")
def feedback_apply(
    by: By,
    why: Why,
    model: Model = None,
    least: Least = 10,
    value: Value = None,
    second: Second = "",
    from_stdin: Stdin = False,
    as_json: Json = False,
) -> None:
    """Set the proposed threshold: `anomaly score` and `anomaly watch` use it from now on for this model.

    Stored scores and past alerts stay. `anomaly feedback undo` takes it back.
    """
    from pipelines import feedback as job

    database = _database()
    case = job.read_case(database, model)
    found = job.proposal(case, least, value)
    two = [] if found.value is None else job.reasons_for_two(case, found.value)
    done = job.apply(database, case, found, _actors(by, why, second, bool(two), from_stdin))
    _finish(_plain(done), as_json, lambda: _say_done(done))


@feedback.command("undo", epilog="Example: `anomaly feedback undo --model press --by ann --why 'missed a fault'`")
def feedback_undo(
    by: By, why: Why, model: Model = None, second: Second = "", from_stdin: Stdin = False, as_json: Json = False
) -> None:
    """Take the last change of the threshold back; what held before it holds again."""
    from pipelines import feedback as job

    database = _database()
    case = job.read_case(database, model)
    before = job.undone(case)
    two = job.reasons_for_two(case, case.own if before is None else before)
    done = job.undo(database, case, _actors(by, why, second, bool(two), from_stdin))
    _finish(_plain(done), as_json, lambda: _say_done(done))


@feedback.command("level", epilog="Example: `anomaly feedback level scores.parquet --budget 0.5`")
def feedback_level(
    scores: Annotated[list[Path], typer.Argument(help="Score files of recent operation, of one model.")],
    budget: Annotated[float, typer.Option(help="False episodes per asset and day that are bearable.", min=0)] = 1.0,
    as_json: Json = False,
) -> None:
    """Whether the score level of normal rows has moved, and the threshold that would follow it. Nothing is changed."""
    from pipelines.score_level import score_level

    found = score_level(scores, _database(), budget)

    def say() -> None:
        typer.echo(found.words)
        typer.echo(
            f"  level {found.level:+.2f}, spread {found.spread:.2f} (0 and 1 at calibration), {found.rows} rows; "
            f"{found.after_low:.2g} to {found.after_high:.2g} episodes a day at {found.proposed:.2f}"
        )
        if found.needed:
            typer.echo(f"next: anomaly feedback apply --value {found.proposed:.2f} --by NAME --why REASON")

    _finish(found.to_dict(), as_json, say)


@feedback.command("next", epilog="Example: `anomaly feedback next --count 5`")
def feedback_next(
    model: Model = None,
    count: Annotated[int, typer.Option(help="How many at most.", min=1)] = 10,
    as_json: Json = False,
) -> None:
    """The alerts on which a verdict would say most: near the threshold, and of what alarms most."""
    from pipelines import feedback as job

    asks = [ask.to_dict() for ask in job.next_to_review(job.read_case(_database(), model), count)]

    def say() -> None:
        for ask in asks:
            typer.echo(f"{ask['alert']}  {ask['start'][:19]}  {shown(ask['asset'])}  {shown(ask['why'])}")
        typer.echo("next: anomaly alerts verdict NUMBER VERDICT" if asks else "every alert has its verdict")

    _finish({"next": asks}, as_json, say)


def _database() -> Database:
    from alerts.database import Database

    return Database(home.alert_database())


def _actors(by: str, why: str, second: str, two: bool, from_stdin: bool) -> Actors:
    """Who decides; the passwords of both are asked for where two people are needed and named."""
    from pipelines.feedback import Actors

    passwords = None
    if two and second:
        if from_stdin:
            passwords = (sys.stdin.readline().rstrip("\r\n"), sys.stdin.readline().rstrip("\r\n"))
        elif sys.stdin.isatty():
            asked = [typer.prompt(f"Password of {shown(name)}", hide_input=True) for name in (by, second)]
            passwords = (str(asked[0]), str(asked[1]))
        else:
            raise UsageError(Fault("E2001", "--password-stdin where nobody can be asked", "no terminal"))
    return Actors(by, why, second, passwords)


def _threshold(told: dict[str, Any]) -> str:
    same = told["threshold"] == told["own"]
    return f"threshold {told['threshold']:.6g}" + ("" if same else f" in place of the model's own {told['own']:.6g}")


def _show_changes(changes: list[dict[str, Any]]) -> None:
    from alerts.alert import iso_time

    for c in changes:
        to = "the model's own" if c["value"] is None else f"{c['value']:.6g}"
        what = f"change {c['undoes']} taken back, threshold is {to}" if c["undoes"] else f"threshold set to {to}"
        who = shown(c["actor"]) + (f" and {shown(c['second'])}" if c["second"] else "")
        typer.echo(f"  {iso_time(c['at'])[:19]}  {who}: {what}: {shown(c['why'])}")


def _show_proposal(case: Case, found: Proposal, rows: dict[str, int], two: list[str]) -> None:
    typer.echo(f"{shown(case.name)} {case.model[:12]}: threshold {case.now:.6g} holds")
    if found.value is None or found.what_if is None:
        typer.echo(f"no proposal: {found.why}")
        return
    typer.echo(f"proposed {found.value:.6g}: {found.why}")
    _show_what_if(found.what_if)
    if rows["files"]:
        typer.echo(f"  of {rows['rows']} stored rows {rows['before']} reach the one, {rows['after']} the other")
    if rows["missing"]:
        typer.echo(f"  {rows['missing']} score files are gone and not counted")
    for reason in two:
        typer.echo(f"  needs --second: {shown(reason)}")


def _show_what_if(told: WhatIf) -> None:
    typer.echo(f"  {told.alerts} alerts: {told.kept} stay, {told.dropped} go, {told.regained} come back")
    typer.echo(f"  {told.nuisance_removed} nuisances go, {told.unjudged_dropped} without a verdict go")
    lost = f"alerts {', '.join(map(str, told.true_lost[:10]))}" if told.true_lost else "none"
    typer.echo(f"  {told.true_kept} true faults stay; lost: {lost}")
    if told.precision_after is not None and told.precision_before is not None:
        low, high = told.interval_after
        typer.echo(
            f"  precision {told.precision_before:.2f} → {told.precision_after:.2f} (95 % from {low:.2f} to {high:.2f})"
        )


def _plain(done: ThresholdChange) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(done)


def _say_done(done: ThresholdChange) -> None:
    to = "the model's own threshold" if done.value is None else f"threshold {done.value:.6g}"
    typer.echo(f"{shown(done.model_name)} {done.model[:12]} is scored with {to} from now on")


def _finish(result: dict[str, Any], as_json: bool, say: Callable[[], None]) -> None:
    if as_json:
        typer.echo(json.dumps(result, default=str, allow_nan=False))
    else:
        say()
