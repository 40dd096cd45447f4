"""What a person sees in the terminal: progress, tables, refusals. Nothing here decides anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from alerts.readable import told_apart
from anomaly.errors import AnomalyError, Fault

if TYPE_CHECKING:
    from typer import TyperException

    from alerts.store import Alert
    from anomaly.data.quality import Finding
    from anomaly.fitting import Progress as Report
    from anomaly.scores.thresholds import Threshold
    from pipelines.demo import Demo
    from pipelines.evaluate import Evaluated
    from pipelines.ingest import Ingested, Repacked
    from pipelines.sample import Sampled
    from pipelines.score import Scored
    from pipelines.train import Trained
    from registry.catalogue import ModelCard, ModelRow

_STAGES = {
    "check": "checking the log",
    "ingest": "writing the window store",
    "repack": "repacking",
    "scaler": "fitting the scaler",
    "encoder": "training (epochs)",
    "detectors": "fitting the detectors",
    "calibration": "calibrating",
    "extract": "extracting windows",
    "space": "finding the modes",
    "modes": "placing windows in modes",
    "measure": "measuring windows",
    "validation": "scoring the validation part",
    "test": "scoring the test part",
    "learning curve": "learning from fewer rows",
    "report": "drawing the report",
    "register": "registering",
    "score": "scoring",
}
#: What figures are called, where their own name says too little.
_FIGURES = {
    "recall_at_fpr": "recall at 6.3 % false pos.",
    "event_recall": "events found",
    "early_recall": "found before they began",
    "median_lead_s": "median lead (-: late)",
}
#: Share of anomalous rows above which the model is more likely wrong than the plant.
_MANY = 0.2
#: Columns of a table that goes to a file or a pipe; a terminal has its own width.
_PIPE_WIDTH = 170
_MOST_LINES = 20
_out, _err = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
if not _out.is_terminal:
    _out = Console(highlight=False, soft_wrap=True, width=_PIPE_WIDTH)


def say(text: str) -> None:
    """A line for a person, on standard error."""
    _err.print(escape(text))


def show_refusal(error: AnomalyError) -> None:
    """Every fault of a refusal, a line each."""
    for fault in error.faults:
        say(fault.line())


def show_usage(error: TyperException) -> None:
    """What is wrong with the command line, as a coded line; a command group without a command has shown its help."""
    context = getattr(error, "ctx", None)
    if error.format_message():
        hint = f"see {context.command_path} --help" if context else "see anomaly --help"
        say(Fault("E2001", "a command with its flags", error.format_message(), hint).line())


class _Rate(ProgressColumn):
    """How many of what is counted are done in a second, where they are many."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed or 0
        return Text(f"{speed:,.0f}/s" if speed >= 100 else "")


@contextmanager
def progress(quiet: bool) -> Iterator[Report]:
    """Bars on a terminal, silence elsewhere; gives the callable that jobs report to."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=_err, transient=True, disable=quiet or not _err.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(_STAGES.get(stage, stage), total=max(total, 1))
            bars.update(tasks[stage], completed=done, total=max(total, 1))

        yield report


def moment(microseconds: int) -> str:
    """UTC microseconds as a person reads them.

    >>> moment(0)
    '1970-01-01 00:00:00'
    """
    return datetime.fromtimestamp(microseconds / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S")


def span(microseconds: float) -> str:
    """A length of time in its natural unit.

    >>> span(240e6), span(5400e6), span(1e6)
    ('4 min', '1.5 h', '1 s')
    """
    seconds = microseconds / 1e6
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _notices(notices: tuple[str, ...]) -> None:
    for notice in notices:
        _out.print(f"[dim]note[/dim] {escape(notice)}")


def show_repacked(done: Repacked) -> None:
    """A copied file of windows."""
    _notices((done.notice,) if done.notice else ("the file was not slow to read; it was copied all the same",))
    _out.print(f"{_counted(done.windows, 'window')} → {escape(str(done.store))}")


def show_ingested(done: Ingested) -> None:
    """The store, the sensors and what was inferred."""
    _notices(done.notices)
    counts = {-1: "unknown", 0: "normal", 1: "event"}
    labels = ", ".join(f"{n} {counts.get(k, k)}" for k, n in sorted(done.label_counts.items()) if n)
    _out.print(f"{done.rows} rows ({labels}), {len(done.contract.tags)} tags → {escape(str(done.store))}")
    table = _table("tag", "grade", "missing", "longest flat", "why")
    for g in done.grades:
        why = escape("; ".join(g.reasons))
        table.add_row(escape(g.tag), g.grade, f"{g.missing_share:.2%}", f"{g.longest_flat_rows} rows", why)
    _out.print(table)


def show_trained(done: Trained) -> None:
    """What was learned, how good it is on rows it never saw, and what to do next."""
    told = tuple(choice.reason for choice in done.choices)
    _notices(tuple(said for said in done.notices if not said.endswith(told)))
    for choice in done.choices:
        setting = f"[dim]({choice.setting})[/dim]"
        _out.print(f"[dim]chosen[/dim] {choice.what}: {escape(choice.chosen)}; {escape(choice.reason)} {setting}")
    _out.print(
        f"[bold]model[/bold] {escape(done.name)} version {done.version}: {', '.join(done.aliases) or 'no alias'}"
    )
    _out.print(f"threshold {_threshold(done.threshold)}")
    show_evaluation(done.evaluation)
    _out.print(f"report  {escape(str(done.report))}")
    if done.bundle:
        _out.print(f"bundle  {escape(str(done.bundle))}")
    # the bare name means the champion, which need not be this model
    registered = done.name if "champion" in done.aliases else f"models:/{done.name}/{done.version}"
    _out.print(f"next    anomaly score LOG --model {escape(str(done.bundle or registered))} --out scores.parquet")


def _threshold(t: Threshold) -> str:
    """The threshold with its past in one line."""
    interval = f" (95 % interval {t.low:.2f} – {t.high:.2f})" if t.low is not None and t.high is not None else ""
    origin = (
        f"rule {t.rule} on {t.rows} {t.part} rows with {_counted(t.events, 'event')}" if t.rows else f"rule {t.rule}"
    )
    said = [f"{t.value:.2f}{interval}", origin, f"fallback: {t.fallback}" if t.fallback else "", t.note]
    return escape("; ".join(part for part in said if part))


def show_evaluation(evaluation: dict[str, Any]) -> None:
    """Figures on the judged part, each with its interval and count, beside the baselines; what is undefined is left
    to the notes."""
    _out.print(
        f"judged on the {evaluation['part']} part: {evaluation['rows']} rows, {evaluation['positives']} positive, "
        f"{_counted(evaluation['events'], 'event')}"
    )
    baselines = evaluation.get("baselines", {})
    table = _table("figure", "ours", "95 % interval", *baselines, "counted")
    for name, figure in evaluation["figures"].items():
        idle = name == "precision" and not evaluation["positives"]  # 0 whatever the model does: nothing could be found
        if figure["value"] is not None and not idle:
            shown = _lead if name == "median_lead_s" else _number
            others = [shown((own.get(name) or {}).get("value")) for own in baselines.values()]
            label = _FIGURES.get(name, name.replace("_", " "))
            table.add_row(label, shown(figure["value"]), _interval(figure, shown), *others, str(figure["count"]))
    _out.print(table)
    for name, own in evaluation.get("detectors", {}).items():
        figure = own["average_precision"]
        if figure["value"] is not None:
            _out.print(
                f"{escape(name)} by itself: average precision {_number(figure['value'])} ({_interval(figure, _number)})"
            )
    for note in evaluation.get("notes", ()):
        _out.print(f"[dim]note[/dim] {escape(note)}")


def _interval(figure: dict[str, Any], shown: Callable[[float | None], str]) -> str:
    low, high = figure.get("low"), figure.get("high")
    return "–" if low is None or high is None else f"{shown(low)} – {shown(high)}"


def _lead(seconds: float | None) -> str:
    """A lead time; negative where the alert came after the event's start.

    >>> _lead(240.0), _lead(-90.0), _lead(None)
    ('4 min', '-1.5 min', '–')
    """
    return "–" if seconds is None else span(seconds * 1e6)


def _counted(n: int, what: str) -> str:
    """
    >>> _counted(1, "event"), _counted(2, "event")
    ('1 event', '2 events')
    """
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def show_sampled(done: Sampled) -> None:
    """How many windows of each mode were drawn, and what to do with them."""
    _notices(done.notices)
    table = _table("mode", "windows", "drawn")
    for row in done.to_dict()["modes"]:
        table.add_row(str(row["mode"]), str(row["windows"]), str(row["drawn"]))
    _out.print(f"{len(done.drawn)} of {_counted(done.windows, 'window')} drawn")
    _out.print(table)
    verdicts = "true fault, nuisance, known work, sensor fault or unsure"
    _out.print(f"sheet   {escape(str(done.sheet))}")
    _out.print(f"table   {escape(str(done.table))}: write {verdicts} into the column verdict")
    _out.print(f"next    anomaly train LOG --verdicts {escape(str(done.table))}")


def show_evaluated(done: Evaluated) -> None:
    """An evaluation on a log of its own."""
    _notices(done.notices)
    show_evaluation(done.evaluation)
    _out.print(f"report  {escape(str(done.report))}")


def show_scored(done: Scored) -> None:
    """Rows by outcome, findings of the rules, and where the alerts are."""
    _notices(done.notices)
    outcomes = ", ".join(f"{n} {name}" for name, n in sorted(done.outcomes.items()))
    _out.print(f"{done.rows} rows: {outcomes} → {escape(str(done.out))}")
    for reason, n in done.reasons.most_common():
        _out.print(f"  {n} rows {escape(reason)}")
    anomalous, scored = done.outcomes["anomalous"], done.outcomes["anomalous"] + done.outcomes["normal"]
    if anomalous > _MANY * scored:
        share = f"{anomalous / scored:.0%} of the scored rows are anomalous"
        _out.print(f"note {share}: if the plant was well, its normal operation has changed; train on newer normal rows")
    _findings(done.findings)
    alerts = "recorded" if done.recorded else "nothing new to record"
    _out.print(f"{_counted(len(done.episodes), 'episode')}, {alerts}; next: anomaly alerts list")


def _findings(findings: list[Finding]) -> None:
    """What the sensor rules found, one line per rule, asset and tag: the first in words, the others counted."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for f in findings:
        groups.setdefault((f.kind, f.asset, f.tag), []).append(f)
    for (kind, asset, tag), own in list(groups.items())[:_MOST_LINES]:
        more = f" and {len(own) - 1} more" if len(own) > 1 else ""
        place = " ".join(p for p in (asset, tag) if p)
        said = f"  sensor rule {kind}: {place} at {moment(own[0].start_us)}, {own[0].detail}{more}"
        _out.print(escape(said.replace("_", " ", kind.count("_"))))
    if len(groups) > _MOST_LINES:
        _out.print(f"  … {len(groups) - _MOST_LINES} more kinds of finding (--json lists all)")


def show_demo(done: Demo) -> None:
    """The demo's end: the alerts, the report, the next command."""
    show_trained(done.trained)
    show_scored(done.scored)
    _out.print()
    show_alerts(done.alerts[:15], done.leads)
    if len(done.alerts) > 15:
        _out.print(f"… {len(done.alerts) - 15} more alerts: anomaly alerts list")
    _out.print()
    _out.print(escape(done.summary))
    _out.print(f"report      {escape(str(done.trained.report))}")
    _out.print(f"one alert   anomaly alerts show {done.alerts[0].id if done.alerts else 1}")


def show_models(rows: list[ModelRow]) -> None:
    """Registered models, newest first."""
    if not rows:
        _out.print("no model is registered yet: anomaly train LOG")
        return
    table = _table("name", "version", "aliases", "created", "digest")
    for r in rows:
        table.add_row(escape(r.name), str(r.version), ", ".join(r.aliases), str(r.created), (r.digest or "")[:12])
    _out.print(table)


def show_model(row: ModelCard) -> None:
    """One registered model."""
    _out.print(f"[bold]{escape(row.name)}[/bold] version {row.version} {', '.join(row.aliases)}")
    _out.print(f"created {row.created}, digest {row.digest}")
    table = _table("figure", "value")
    for name, value in sorted(row.metrics.items()):
        table.add_row(escape(name), _number(value))
    _out.print(table)


def _tags(alert: Alert, most: int = 3) -> str:
    return ", ".join(f"{tag} {share:.0%}" for tag, share in alert.top_tags[:most])


def show_alerts(rows: list[Alert], breaks: dict[int, int] | None = None) -> None:
    """The alert list, newest first; ``breaks`` adds what is known of a planted plant: when the break came."""
    if not rows:
        _out.print("no alerts")
        return
    last = "state" if breaks is None else "break came after"
    table = _table("id", "asset", "start (UTC)", "lasted", "peak", "lead", "top tags", last)
    for a in rows:
        lead = span(a.lead_us) if a.lead_us else "–"
        lasted = span(a.end_us - a.start_us)
        end = a.state if breaks is None else _break(breaks.get(a.id))
        cells = (str(a.id), a.asset, moment(a.start_us), lasted, f"{a.peak_score:.1f}", lead, _tags(a), end)
        table.add_row(*(escape(c) for c in cells))
    _out.print(table)


def _break(after_us: int | None) -> str:
    """When the planted break came, as seen from the alert."""
    if after_us is None:
        return "no break"
    return span(after_us) if after_us else "at the break"


def show_alert(a: Alert) -> None:
    """One alert in words."""
    lead = f"about {span(a.lead_us)} before an event of the kind it was trained on" if a.lead_us else "not known"
    lines = [
        ("asset", a.asset),
        ("from", f"{moment(a.start_us)} UTC"),
        (
            "peak",
            f"{moment(a.peak_us)} UTC, score {a.peak_score:.2f} (1 normal window in {10 ** min(a.peak_score, 30):.3g})",
        ),
        ("to", f"{moment(a.end_us)} UTC, {span(a.end_us - a.start_us)}, {a.rows} rows"),
        ("threshold", f"{a.threshold:.2f}"),
        ("lead", lead),
        ("top tags", _tags(a, most=10)),
        ("model", f"{a.model_name} {a.model[:12]}"),
        ("state", a.state),
    ]
    _out.print(f"[bold]alert {a.id}[/bold]")
    for name, text in lines:
        _out.print(f"  {name:<10} {escape(text)}")
    told = a.told()
    _reasons(told["tags"])
    for alike in told["alike"]:
        what = "past event" if alike["event"] else "normal operation"
        near = f"{alike['distance']:.1f} times as far as normal operation is from itself"
        _out.print(f"  {'looks like':<10} {what} of {moment(alike['time_us'])} UTC, {escape(alike['asset'])}: {near}")


def _reasons(tags: list[dict[str, Any]]) -> None:
    """What the sensors did at the peak."""
    if not tags:
        return
    said = {"high": "above its normal range", "low": "below its normal range", "pattern": "in range, unusual pattern"}
    table = _table("", "tag", "share", "value at the peak", "normal range (98 % of rows)", "")
    for own in tags:
        low, high, value = (told_apart(own[name], own["low"], own["high"]) for name in ("low", "high", "value"))
        cells = (" ", own["tag"], f"{own['share']:.0%}", value, f"{low} to {high}", said[own["direction"]])
        table.add_row(*(escape(c) for c in cells))
    _out.print(table)
