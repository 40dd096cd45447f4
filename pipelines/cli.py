"""The command line: a thin shell over the jobs. Heavy libraries are imported inside the command that uses them."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from anomaly.config import Settings
from anomaly.errors import AnomalyError, Fault, UsageError
from pipelines import (
    cli_alerts,
    cli_assets,
    cli_evaluate,
    cli_feedback,
    cli_models,
    cli_notify,
    cli_scoring,
    cli_shadow,
    cli_spark,
    cli_watch,
    cli_windows,
    home,
    terminal,
)
from pipelines.serve import serve
from pipelines.stopping import Stopped

app = typer.Typer(
    name="anomaly",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Learns from the normal part of a plant log, scores new logs, lists alerts. It only reads logs.",
    rich_markup_mode="markdown",
)
models = typer.Typer(no_args_is_help=True, help="Registered models.")
cli_models.add_to(models)
cli_windows.add_to(app)
cli_watch.add_to(app)
cli_scoring.add_to(app)
app.add_typer(models, name="models")
app.add_typer(cli_alerts.alerts, name="alerts")
app.add_typer(cli_alerts.users, name="users")
cli_feedback.add_to(app)
cli_notify.add_to(app)
app.command(epilog="Example: `anomaly serve --port 8000`")(serve)

INTERRUPTED = 130

Logs = Annotated[list[Path], typer.Argument(help="Log files (CSV or Parquet) or folders of them.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]


def _log_flags(
    config: Annotated[Path | None, typer.Option("--config", help="Settings as TOML; flags override it.")] = None,
    time: Annotated[str | None, typer.Option(help="Time column.")] = None,
    label: Annotated[
        str | None, typer.Option(help="Label column: 1 where the event is, 0 where all was normal.")
    ] = None,
    asset: Annotated[str | None, typer.Option(help="Asset column.")] = None,
    asset_from_name: Annotated[
        str | None, typer.Option(help="Pattern whose first group, found in the file name, is the asset.")
    ] = None,
    tags: Annotated[
        str | None, typer.Option(help="Sensor columns, comma separated (default: the numeric ones).")
    ] = None,
    categories: Annotated[str | None, typer.Option("--category", help="Category columns, comma separated.")] = None,
    drop: Annotated[str | None, typer.Option(help="Columns to leave out, comma separated.")] = None,
    separator: Annotated[str | None, typer.Option(help="CSV separator.")] = None,
    decimal: Annotated[str | None, typer.Option(help="Decimal mark of a CSV.")] = None,
    time_format: Annotated[
        str | None, typer.Option(help="strptime form, or epoch_s, epoch_ms, epoch_us, epoch_ns.")
    ] = None,
    timezone: Annotated[str | None, typer.Option(help="Zone of times that carry none, such as Europe/Berlin.")] = None,
    form: Annotated[str | None, typer.Option(help="wide (a column per tag) or long (a row per value).")] = None,
    tag: Annotated[str | None, typer.Option("--tag-column", help="Long form: column of the tag names.")] = None,
    value: Annotated[str | None, typer.Option("--value-column", help="Long form: column of the values.")] = None,
    quality: Annotated[str | None, typer.Option("--quality-column", help="Long form: column of quality codes.")] = None,
    period: Annotated[
        str | None, typer.Option(help="Sampling period such as 1min; long logs are binned to it.")
    ] = None,
    label_scheme: Annotated[
        str | None, typer.Option(help="binary, or fault-code (0 normal, k fault, 100+k transient).")
    ] = None,
    unlabelled: Annotated[
        str | None, typer.Option(help="Rows of files without the label column: unknown (default) or normal.")
    ] = None,
    lookback: Annotated[int | None, typer.Option(help="Rows of one window.")] = None,
    stride: Annotated[int | None, typer.Option(help="Rows between window starts.")] = None,
    lead: Annotated[
        str | None, typer.Option(help="How long before an event an alert should come, such as 4min.")
    ] = None,
) -> None:
    """The flags shared by every command that reads a raw log; ``with_log_flags`` gives them to a command."""


_WINDOW = ("lookback", "stride", "lead")
_LISTS = ("tags", "categories", "drop")


def with_log_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the shared flags; it receives them as one ``settings``."""
    shared, own = inspect.signature(_log_flags, eval_str=True), inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def run(**flags: Any) -> None:
        log = {name: flags.pop(name) for name in shared.parameters}
        config, source = log.pop("config"), flags.get("source") or []
        if config is None and len(source) == 1 and source[0].suffix == ".toml":
            config, flags["source"] = source[0], []
        command(settings=_settings(config, log), **flags)

    parameters = [p for p in own.parameters.values() if p.name != "settings"] + list(shared.parameters.values())
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    del run.__wrapped__  # typer would read the flags of the bare command
    return run


def _settings(config: Path | None, flags: dict[str, Any]) -> Settings:
    window = {name: flags.pop(name) for name in _WINDOW}
    for name in _LISTS:
        flags[name] = _listed(flags[name])
    return (Settings.from_toml(config) if config else Settings()).changed(log=flags, window=window)


def _listed(text: str | None) -> tuple[str, ...] | None:
    """The names of a comma separated flag; None where it was not given."""
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _finish(result: dict[str, Any], as_json: bool, show: Callable[[], None]) -> None:
    """One JSON object for machines, or words for people."""
    if as_json:
        typer.echo(json.dumps(result, default=str, allow_nan=False))
    else:
        show()


@app.command(epilog="Example: `anomaly demo`")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the log, the model, the scores and the report.")] = Path("demo"),
    rows: Annotated[int, typer.Option(help="Rows of the synthetic plant.")] = 25_000,
    seed: Annotated[int, typer.Option(help="Seed of the synthetic plant.")] = 7,
    as_json: Json = False,
) -> None:
    """Synthetic plant → train → evaluate → score → alerts."""
    from pipelines.demo import demo as run

    with terminal.progress(as_json) as progress:
        done = run(out, rows=rows, seed=seed, progress=progress)
    _finish(done.to_dict(), as_json, lambda: terminal.show_demo(done))


@app.command(epilog="Example: `anomaly ingest plant.csv --time time --label label --store plant.h5`")
@with_log_flags
def ingest(
    logs: Logs,
    settings: Settings,
    store: Annotated[Path, typer.Option(help="Window store to write (HDF5).")],
    repacked: Annotated[
        bool, typer.Option("--repack", help="Copy one HDF5 file of signals (N, T, C) into chunks that read fast.")
    ] = False,
    compress: Annotated[str, typer.Option(help="Filter of the store: none, gzip, or zstd (extra zstd).")] = "none",
    as_json: Json = False,
) -> None:
    """Check logs, grade sensors, build the window store."""
    from pipelines.ingest import ingest as run
    from pipelines.ingest import repack

    if repacked:
        with terminal.progress(as_json) as progress:
            copied = repack(logs, store, progress, compress=compress)
        _finish(asdict(copied), as_json, lambda: terminal.show_repacked(copied))
        return
    with terminal.progress(as_json) as progress:
        done = run(logs, settings, store, progress, compress=compress)
    _finish(asdict(done), as_json, lambda: terminal.show_ingested(done))


@app.command(epilog="Example: `anomaly train plant.csv --time time --label label --lead 4min --out model`")
@with_log_flags
def train(
    settings: Settings,
    source: Annotated[
        list[Path] | None, typer.Argument(help="Logs, one window store (.h5), or one settings file (.toml).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the model bundle to this folder.")] = None,
    name: Annotated[str | None, typer.Option(help="Name in the registry.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Encoder name; docs/encoders.md lists them.")] = None,
    front: Annotated[
        str | None,
        typer.Option(help="Local normalisation: none, demean, detrend, normalise, trailing or differences."),
    ] = None,
    detectors: Annotated[
        str | None,
        typer.Option(help="Detectors, comma separated, or auto (by the encoder); docs/detectors.md lists them."),
    ] = None,
    fusion: Annotated[
        str | None, typer.Option(help="How their scores become one: mean, max, fisher or weighted.")
    ] = None,
    fine_tune: Annotated[
        bool | None,
        typer.Option("--fine-tune", help="Learn from the labelled events of the train part too, if validation gains."),
    ] = None,
    verdicts: Annotated[
        str | None, typer.Option(help="Verdicts on alerts to learn from: CSV or Parquet of asset, start, end, verdict.")
    ] = None,
    learning_curve: Annotated[
        bool | None,
        typer.Option("--learning-curve", help="Also fit on an eighth, a quarter and half of the rows, for the report."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Most epochs to train.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    rule: Annotated[
        str | None, typer.Option(help="Threshold rule: pr_curve, precision, recall, budget, quantile, tail or fixed.")
    ] = None,
    budget: Annotated[float | None, typer.Option(help="False episodes per asset and day (rule budget).")] = None,
    floor: Annotated[float | None, typer.Option(help="Least precision or recall (rules precision, recall).")] = None,
    rate: Annotated[
        float | None, typer.Option(help="Share of normal rows that may pass (rules quantile, tail).")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Score that raises an alert (rule fixed).")] = None,
    per: cli_assets.Per = None,
    class_column: cli_assets.ClassColumn = None,
    as_json: Json = False,
) -> None:
    """Train on the normal part of a log, evaluate on its last part, register the model (or many: --per asset, --per class)."""
    settings = settings.changed(
        encoder={"name": encoder, "front": front},
        detection={"detectors": _listed(detectors), "fusion": fusion},
        fine_tuning={"enabled": fine_tune, "verdicts": verdicts},
        training={"epochs": epochs, "seed": seed, "learning_curve": learning_curve},
        threshold={"rule": rule, "budget": budget, "floor": floor, "rate": rate, "value": threshold},
        assets={"models": per, "class_column": class_column},
    ).named(name)
    cli_assets.train(source or [Path(p) for p in settings.log.paths], settings, out, as_json)


Model = Annotated[str, typer.Option(help="Bundle folder, models:/NAME@champion, models:/NAME/2, or a name.")]


@app.command(epilog="Example: `anomaly evaluate model test.parquet --report report.html`")
def evaluate(
    model: Annotated[str, typer.Argument(help="Bundle folder, models:/NAME@champion, or a registered name.")],
    logs: Logs,
    report: Annotated[Path | None, typer.Option(help="Where to write the report (HTML).")] = None,
    as_json: Json = False,
) -> None:
    """Metrics with intervals and baselines on a labelled log that the model never saw."""
    if cli_evaluate.evaluate(model, logs, report, as_json):
        return
    from pipelines.evaluate import evaluate_log
    from registry.bundle import load_bundle
    from registry.catalogue import resolve

    with terminal.progress(as_json) as progress:
        done = evaluate_log(load_bundle(resolve(model, home.home())), model, logs, report, progress)
    _finish(done.to_dict(), as_json, lambda: terminal.show_evaluated(done))


@app.command(epilog="Example: `anomaly score test.parquet --model model --out scores.parquet`")
def score(
    logs: Logs,
    model: Model = "anomaly",
    out: Annotated[Path, typer.Option(help="Score file to write (Parquet).")] = Path("scores.parquet"),
    no_alerts: Annotated[bool, typer.Option("--no-alerts", help="Write the score file only.")] = False,
    engine: Annotated[str, typer.Option(help="local, or spark: Parquet by asset, on many processes.")] = "local",
    master: Annotated[str | None, typer.Option(help="Where Spark runs: local[2], spark://HOST:7077 …")] = None,
    shadow: Annotated[
        str | None,
        typer.Option(help="A challenger that scores beside the model and raises no alerts: NAME@challenger."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score logs: one row per log row, and alerts into the database.

    With --engine spark, files and assets that are refused are set aside and the exit status is 6.
    """
    from pipelines.score import score as run
    from registry.bundle import load_bundle
    from registry.catalogue import resolve

    database = None if no_alerts else home.alert_database()
    if shadow is not None:
        cli_shadow.score(engine, logs, model, shadow, out, database, as_json)
        return
    if cli_spark.score(engine, master, logs, model, out, database, as_json):
        return
    if cli_assets.score(logs, model, out, database, as_json):
        return
    with terminal.progress(as_json) as progress:
        fitted = load_bundle(resolve(model, home.home()))
        done = run(logs, fitted, fitted.settings.name, out, database, progress)
    _finish(done.to_dict(), as_json, lambda: terminal.show_scored(done))


@models.command("list", epilog="Example: `anomaly models list`")
def models_list(as_json: Json = False) -> None:
    """Registered models, newest first, with their aliases."""
    from registry.catalogue import list_models

    rows = list_models(home.home())
    _finish({"models": [asdict(r) for r in rows]}, as_json, lambda: terminal.show_models(rows))


@models.command("show", epilog="Example: `anomaly models show anomaly@champion`")
def models_show(
    reference: Annotated[str, typer.Argument(help="NAME, NAME@alias, NAME/version or models:/…")],
    as_json: Json = False,
) -> None:
    """One registered model: what it learned from, its threshold, its figures."""
    from registry.catalogue import show_model

    row = show_model(reference, home.home())

    def show() -> None:
        terminal.show_model(row)
        cli_models.show_history(row.history)

    _finish(asdict(row), as_json, show)


def main() -> None:
    """Run the command line; refusals become coded lines and an exit status, never a traceback."""
    logging.basicConfig(
        level=os.environ.get("ANOMALY_LOG_LEVEL", "WARNING"), format="%(levelname)s %(name)s: %(message)s"
    )
    try:
        if app(standalone_mode=False) == INTERRUPTED:  # typer turns Ctrl-C into this status
            terminal.say("stopped; running the same command again is safe")
            sys.exit(INTERRUPTED)
    except Stopped as stopped:
        terminal.say(f"stopped: {stopped.told}")
        sys.exit(128 + stopped.number)
    except typer.TyperException as error:
        terminal.show_usage(error)
        sys.exit(UsageError.exit_code)
    except AnomalyError as error:
        terminal.show_refusal(error)
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get("ANOMALY_TRACEBACK"):
            raise
        hint = "this is our bug; set ANOMALY_TRACEBACK=1 and run again to see where"
        terminal.say(Fault("E7000", "no internal error", f"{type(error).__name__}: {error}", hint).line())
        sys.exit(70)


if __name__ == "__main__":
    main()
