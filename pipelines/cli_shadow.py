"""`anomaly score --shadow`: a challenger scores beside the champion."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import typer

from anomaly.errors import Fault, UsageError
from pipelines import home, terminal


def score(
    engine: str, logs: Sequence[Path], model: str, shadow: str, out: Path, database: str | None, as_json: bool
) -> None:
    """Score by ``model`` as ever, then by ``shadow``; its scores go beside ``out``, where they differ is told in one line.

    Both models are loaded before anything is written. Raises UsageError E2001 for another engine than local.
    """
    from pipelines import shadow as shadows
    from pipelines.feedback import with_threshold
    from pipelines.score import score as run
    from registry.bundle import load_bundle
    from registry.catalogue import resolve

    if engine != "local":
        raise UsageError(Fault("E2001", "--shadow with --engine local", engine, "score by Spark, then compare"))
    shadows.check_shadow(out, logs)
    with terminal.progress(as_json) as progress:
        fitted = load_bundle(resolve(model, home.home()))
        challenger = load_bundle(resolve(shadow, home.home()))
        done = run(logs, fitted, fitted.settings.name, out, database, progress)
        challenger, _ = with_threshold(challenger, database)
        beside = shadows.shadow(logs, challenger, shadow, out, len(done.episodes), progress)
    if as_json:
        typer.echo(json.dumps({**done.to_dict(), "shadow": beside.to_dict()}, default=str, allow_nan=False))
        return
    terminal.show_scored(done)
    typer.echo(beside.line())
