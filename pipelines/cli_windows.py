"""`anomaly extract` and `anomaly sample`: the commands for windows of a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomaly.errors import Fault, UsageError
from pipelines import cli_spark, home, terminal

if TYPE_CHECKING:
    from pipelines.extract import Extracted

_EXTRACT = "Example: `anomaly extract plant.h5 --model press --out features.h5`"
_SAMPLE = "Example: `anomaly sample plant.h5 --model model --k 10 --out samples`"


def add_to(app: typer.Typer) -> None:
    """Give ``app`` the commands."""
    app.command("extract", epilog=_EXTRACT)(extract)
    app.command("sample", epilog=_SAMPLE)(sample)


def extract(
    store: Annotated[
        Path,
        typer.Argument(help="Window store (.h5) of `anomaly ingest`, or a file of signals (N, T, C); a log for spark."),
    ],
    out: Annotated[Path, typer.Option(help="Features file to write (HDF5); a folder with --engine spark.")],
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
    engine: Annotated[str, typer.Option(help="auto, litert or graph; spark: Parquet by asset.")] = "auto",
    master: Annotated[str | None, typer.Option(help="Where Spark runs: local[2], spark://HOST:7077 …")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads; one per core if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn.")] = 7,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make it again where it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")] = False,
) -> None:
    """Embeddings, modes and scores of every window of a store, in one streamed pass.

    With --engine spark the first argument is a folder of Parquet by asset, and so is --out; what is refused is set aside and
    the exit status is 6. No modes are learned there: they are the model's, or those of --space.
    """
    if engine == cli_spark.SPARK:
        others = {"workers": workers, "reduce": reduce, "clusters": clusters}
        given = [f"--{name}" for name, value in others.items() if value is not None]
        given += [
            f"--{name}"
            for name, is_given in (("pca", pca != "covariance"), ("signals", signals != "leave"))
            if is_given
        ]
        _on_spark(store, out, model, (features_only, space, seed, resume, overwrite), given, master, as_json)
        return
    cli_spark.check_master(master)
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


def _on_spark(
    log: Path, out: Path, model: str, options: tuple[bool, Path | None, int, bool, bool], given: list[str],
    master: str | None, as_json: bool,
) -> None:  # fmt: skip
    if given:
        raise UsageError(Fault("E2001", "no such option with --engine spark", ", ".join(given), "leave it out"))
    from pipelines.spark_extract import SparkExtractOptions

    cli_spark.extract(log, model, out, SparkExtractOptions(*options), master, as_json)


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


def sample(
    store: Annotated[Path, typer.Argument(help="Window store (.h5), made by `anomaly ingest`.")],
    model: Annotated[
        str, typer.Option(help="Bundle folder, models:/NAME@champion, models:/NAME/2, or a name.")
    ] = "anomaly",
    k: Annotated[int, typer.Option("--k", help="Windows to draw from each mode.")] = 10,
    temperature: Annotated[
        float, typer.Option(help="Near 0 the most unusual windows only, 5 almost any window of a mode.")
    ] = 0.1,
    out: Annotated[Path, typer.Option(help="Folder for samples.csv, contact_sheet.png and limits.json.")] = Path(
        "samples"
    ),
    weights: Annotated[
        str, typer.Option(help="Weights of stability, novelty and energy, comma separated.")
    ] = "0.5,1.0,0.8",
    part: Annotated[str | None, typer.Option(help="train, validation or test; the whole store if not given.")] = None,
    clusters: Annotated[int | None, typer.Option(help="Number of modes; found from the data if not given.")] = None,
    limits: Annotated[Path | None, typer.Option(help="limits.json of an earlier draw, to compare weights.")] = None,
    overlapping: Annotated[bool, typer.Option("--overlapping", help="Windows may share rows.")] = False,
    features: Annotated[
        Path | None,
        typer.Option(help="Features of this store by `anomaly extract`; made for the time being if not given."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")] = False,
) -> None:
    """Draw windows for people to label: novel ones first, from every mode."""
    from pipelines.sample import sample as run
    from registry.bundle import load_bundle
    from registry.catalogue import resolve

    if part not in (None, "train", "validation", "test"):
        raise UsageError(Fault("E2001", "--part train, validation or test", part))
    try:
        shares = [float(share) for share in weights.split(",")]
    except ValueError as error:
        raise UsageError(Fault("E2001", "--weights of three numbers", weights)) from error
    with terminal.progress(as_json) as progress:
        fitted = load_bundle(resolve(model, home.home()))
        done = run(
            store, fitted, k, temperature, out, seed, shares, part, progress,
            clusters=clusters, limits=limits, overlapping=overlapping, features=features,
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(done.to_dict(), default=str, allow_nan=False))
    else:
        terminal.show_sampled(done)
