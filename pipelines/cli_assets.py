"""`anomaly train --per …` and `anomaly score --model FAMILY`: what the commands do where there are many models."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from anomaly.config import Settings
from pipelines import home, terminal

#: Exit status where some models could not be trained or used, and the others did their work.
PARTLY = 6


Per = Annotated[
    str | None,
    typer.Option(help="Models: one over all assets, one per asset, or one per class (status 6: some failed)."),
]
ClassColumn = Annotated[str | None, typer.Option(help="Text column with each asset's class (--per class).")]


def train(logs: Sequence[Path], settings: Settings, out: Path | None, as_json: bool) -> None:
    """Train one model, or one per asset or class, and show what came of it; ends with status 6 where some failed."""
    if settings.assets.models != "one":
        _train_assets(logs, settings, out, as_json)
        return
    from pipelines.train import train as run

    with terminal.progress(as_json) as progress:
        done = run(logs, settings, out, progress)
    if as_json:
        typer.echo(json.dumps(done.to_dict(), default=str, allow_nan=False))
    else:
        terminal.show_trained(done)


def _train_assets(logs: Sequence[Path], settings: Settings, out: Path | None, as_json: bool) -> None:
    from pipelines.assets_summary import show
    from pipelines.train_assets import train_assets

    with terminal.progress(as_json) as progress:
        done = train_assets(logs, settings, out, progress)
    if as_json:
        typer.echo(json.dumps(done.to_dict(), allow_nan=False))
    else:
        show(done)
    if done.failed:
        sys.exit(PARTLY)


def score(logs: Sequence[Path], model: str, out: Path, database: str | None, as_json: bool) -> bool:
    """Score by a family of models, if ``model`` names one; gives whether it did. Status 6 where a model was refused."""
    from registry.families import find_family

    family = find_family(model, home.home())
    if family is None:
        return False
    from pipelines.score_family import score_family

    with terminal.progress(as_json) as progress:
        done = score_family(logs, family, out, database, progress)
    if as_json:
        typer.echo(json.dumps(done.to_dict(), allow_nan=False))
    else:
        terminal.show_scored(done)
    if done.refused or done.set_aside:
        sys.exit(PARTLY)
    return True
