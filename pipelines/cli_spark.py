"""`anomaly score --engine spark` and `anomaly extract --engine spark`: the parts of the commands that run on Spark."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from anomaly.errors import Fault, UsageError
from pipelines import home, terminal
from pipelines.cli_watch import PARTLY

if TYPE_CHECKING:
    from anomaly.fitting import Progress
    from pipelines.spark_commit import SparkScored
    from pipelines.spark_extract import SparkExtractOptions

SPARK = "spark"
ENGINES = ("local", SPARK)


def score(
    engine: str, master: str | None, logs: list[Path], model: str, out: Path, database: str | None, as_json: bool
) -> bool:
    """Score on Spark where that was asked for, by one model or by a family's; False where the score command goes on by itself.

    Ends with exit status 6 where files or assets were set aside, or models refused. Raises UsageError E2001 for an unknown
    engine and for a master without Spark.
    """
    if engine not in ENGINES:
        raise UsageError(Fault("E2001", f"--engine {' or '.join(ENGINES)}", engine))
    if engine != SPARK:
        check_master(master)
        return False
    from pipelines.spark_session import LOCAL, check_installed

    check_installed()
    with terminal.progress(as_json) as progress:
        done = _scored(logs, model, out, database, master or LOCAL, progress)
    if as_json:
        typer.echo(json.dumps(done.to_dict(), default=str, allow_nan=False))
    else:
        terminal.show_scored(done)
    for what, why in done.set_aside.items():
        terminal.say(f"{what} is set aside: {why}")
    for asset, why in done.alone.items():
        terminal.say(f"asset {asset} was scored in one stretch: {why}")
    if done.set_aside or getattr(done, "refused", None):
        sys.exit(PARTLY)
    return True


def check_master(master: str | None) -> None:
    """Raise UsageError E2001 for a master where nothing runs on Spark."""
    if master is not None:
        raise UsageError(Fault("E2001", "--master together with --engine spark", master))


def _scored(
    logs: list[Path], model: str, out: Path, database: str | None, master: str, progress: Progress
) -> SparkScored:
    from registry.families import find_family

    family = find_family(model, home.home())
    if family is not None:
        from pipelines.spark_family import score_family_on_spark

        return score_family_on_spark(logs, family, out, database, master=master, progress=progress)
    from pipelines.spark import score_on_spark
    from registry.bundle import load_bundle
    from registry.catalogue import resolve

    bundle = resolve(model, home.home())
    fitted = load_bundle(bundle)
    return score_on_spark(
        logs, fitted, bundle, fitted.settings.name, out, database, master=master, progress=progress
    )  # fmt: skip


def extract(log: Path, model: str, out: Path, options: SparkExtractOptions, master: str | None, as_json: bool) -> None:
    """Embed a folder of Parquet on Spark; ends with exit status 6 where files or assets were set aside."""
    from pipelines.spark_session import LOCAL, check_installed

    check_installed()
    from pipelines.spark_extract import extract_on_spark
    from registry.bundle import load_bundle
    from registry.catalogue import resolve

    with terminal.progress(as_json) as progress:
        bundle = resolve(model, home.home())
        done = extract_on_spark(
            [log], load_bundle(bundle), bundle, out, options, master=master or LOCAL, progress=progress
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(done.to_dict(), allow_nan=False))
    else:
        terminal.say(f"{done.windows:,} windows of {done.assets:,} assets in {done.seconds:.1f} s; wrote {done.out}")
        terminal.say(f"embeddings of {done.width} dimensions by the engine {done.engine}")
        for notice in done.notices:
            terminal.say(f"note: {notice}")
    for what, why in done.set_aside.items():
        terminal.say(f"{what} is set aside: {why}")
    if done.set_aside:
        sys.exit(PARTLY)
