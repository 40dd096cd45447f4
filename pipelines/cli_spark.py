"""`anomaly score --engine spark`: the part of the score command that runs on Spark."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

from anomaly.errors import Fault, UsageError
from pipelines import home, terminal
from pipelines.cli_watch import PARTLY

ENGINES = ("local", "spark")


def score(
    engine: str, master: str | None, logs: list[Path], model: str, out: Path, database: str | None, as_json: bool
) -> bool:
    """Score on Spark where that was asked for; False where the score command goes on by itself.

    Ends with exit status 6 where files or assets were set aside. Raises UsageError E2001 for an unknown engine and for a
    master without Spark.
    """
    if engine not in ENGINES:
        raise UsageError(Fault("E2001", f"--engine {' or '.join(ENGINES)}", engine))
    if engine == "local":
        if master is not None:
            raise UsageError(Fault("E2001", "--master together with --engine spark", master))
        return False
    from pipelines.spark import LOCAL, check_installed, score_on_spark
    from registry.bundle import load_bundle
    from registry.catalogue import resolve

    check_installed()
    with terminal.progress(as_json) as progress:
        bundle = resolve(model, home.home())
        fitted = load_bundle(bundle)
        name = fitted.settings.name
        done = score_on_spark(logs, fitted, bundle, name, out, database, master=master or LOCAL, progress=progress)
    if as_json:
        typer.echo(json.dumps(done.to_dict(), default=str, allow_nan=False))
    else:
        terminal.show_scored(done)
    for what, why in done.set_aside.items():
        terminal.say(f"{what} is set aside: {why}")
    for asset, why in done.alone.items():
        terminal.say(f"asset {asset} was scored in one stretch: {why}")
    if done.set_aside:
        sys.exit(PARTLY)
    return True
