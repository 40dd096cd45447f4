"""`anomaly extract`: the command for all windows of a store at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import home, terminal

if TYPE_CHECKING:
    from pipelines.extract import Extracted

EPILOG = "Example: `anomaly extract plant.h5 --model press --out features.h5`"


def extract(
    store: Annotated[
        Path, typer.Argument(help="Window store (.h5) made by `anomaly ingest`, or a file of signals (N, T, C).")
    ],
    out: Annotated[Path, typer.Option(help="Features file to write (HDF5).")],
    model: Annotated[str, typer.Option(help="Bundle folder, registered name, or models:/NAME@champion.")] = "anomaly",
    features_only: Annotated[
        bool, typer.Option("--features-only", help="Embeddings alone: no scores, no modes.")
    ] = False,
    reduce: Annotated[
        int | None,
        typer.Option(help="Principal components; 0 stays in the full space (default: 32, if there are more)."),
    ] = None,
    clusters: Annotated[int | None, typer.Option(help="Number of modes; found from the data if not given.")] = None,
    space: Annotated[
        Path | None, typer.Option(help="Take reduction and modes of this earlier features file, and learn none.")
    ] = None,
    pca: Annotated[str, typer.Option(help="covariance (exact) or incremental (scikit-learn's).")] = "covariance",
    signals: Annotated[str, typer.Option(help="Raw windows beside the features: leave, link or copy.")] = "leave",
    engine: Annotated[str, typer.Option(help="auto, litert or graph.")] = "auto",
    workers: Annotated[int | None, typer.Option(help="Threads; one per core if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn.")] = 7,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make it again where it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")] = False,
) -> None:
    """Embeddings, modes and scores of every window of a store, in one streamed pass."""
    from pipelines.extract import ExtractOptions
    from pipelines.extract import extract as run
    from registry.bundle import load_bundle
    from registry.catalogue import resolve

    options = ExtractOptions(
        workers=workers, engine=engine, reduce=reduce, clusters=clusters, space=space, pca=pca, features_only=features_only,
        signals=signals, seed=seed, resume=resume, overwrite=overwrite,
    )  # fmt: skip
    with terminal.progress(as_json) as progress:
        done = run(store, load_bundle(resolve(model, home.home())), out, options, progress)
    if as_json:
        typer.echo(json.dumps(done.to_dict(), allow_nan=False))
    else:
        show(done)


def show(done: Extracted) -> None:
    """What an extraction did, for people."""
    rate = f", {done.windows / done.seconds:,.0f} windows/s" if done.seconds else ""
    terminal.say(f"{done.windows:,} windows in {done.seconds:.1f} s{rate}; wrote {done.out}")
    why = f" ({done.why_not_faster})" if done.why_not_faster else ""
    terminal.say(f"embeddings of {done.width} dimensions by the engine {done.engine}{why}")
    if done.modes:
        kept = "" if done.variance_kept is None else f", {done.variance_kept:.1%} of the variance kept"
        angle = "" if done.pca_angle_degrees is None else f", {done.pca_angle_degrees:.2g} degrees from the exact PCA"
        terminal.say(f"{done.modes} modes{kept}{angle}")
    if done.anomalous or done.unscorable:
        terminal.say(f"{done.anomalous:,} windows at or above the threshold, {done.unscorable:,} unscorable")
    for notice in done.notices:
        terminal.say(f"note: {notice}")
