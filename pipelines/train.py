"""Train: log → window store → fitted model → honest evaluation → report → bundle → registry, top to bottom."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from anomaly.config import Settings
from anomaly.data.quality import Finding, QualityProfile, QualityWatch
from anomaly.data.store import WindowStore
from anomaly.errors import Fault, UsageError
from anomaly.faults import killpoint
from anomaly.files import atomic_path, sha256
from anomaly.fitting import Fitted, Progress, fit_model, refit, silent
from anomaly.scores.thresholds import Threshold
from pipelines.alone import LOCK, alone
from pipelines.evaluate import Judged, evaluate_store
from pipelines.home import home, reports
from pipelines.ingest import Ingested, ingest, is_store
from pipelines.learning_curve import learning_curve
from pipelines.recipe_choices import Choice
from pipelines.report import LearningPoint, write_report
from registry.bundle import save_bundle
from registry.tracking import Membership, record_run

#: What the report says of a model whose figures were made before its last step.
_REFITTED = {"once judged": "the detectors learned anew from all normal windows, the newest as well (detection.refit)"}

#: What a training goes on from, in the work folder.
_CHECKPOINT = "training"


@dataclass(frozen=True)
class Trained:
    """A registered model, how good it is on the test part, and where its report and bundle are."""

    name: str
    version: int
    aliases: tuple[str, ...]
    run_id: str
    digest: str
    threshold: Threshold
    evaluation: dict[str, Any]
    report: Path
    bundle: Path | None
    notices: tuple[str, ...]
    choices: tuple[Choice, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        paths = {"report": str(self.report), "bundle": str(self.bundle) if self.bundle else None}
        return {
            **self.__dict__,
            **paths,
            "threshold": self.threshold.to_dict(),
            "notices": list(self.notices),
            "choices": [asdict(choice) for choice in self.choices],
        }


def train(paths: Sequence[Path], settings: Settings, out: Path | None, progress: Progress = silent) -> Trained:
    """Train on the logs (or the one window store) at ``paths``, evaluate, register; with ``out`` keep the bundle too.

    Raises UsageError, InputRefused or Unavailable; then no model is registered and ``out`` is as it was. A run that
    was killed is finished by running it again: its half-done work is swept first. Unavailable E5001 where the same job is
    running in another process.
    """
    if not paths:
        raise UsageError(Fault("E2001", "a log, a window store, or log.paths in the settings file", "none"))
    if out is not None:
        check_bundle_target(out)
    with work_folder(paths, settings) as workdir:
        prepared = _prepare(paths, settings, workdir, progress)
        killpoint("train.after_ingest")
        return train_prepared(prepared, settings, workdir, out, progress)


def train_prepared(
    prepared: Ingested,
    settings: Settings,
    workdir: Path,
    out: Path | None,
    progress: Progress = silent,
    member: Callable[[Judged, Fitted], Membership] | None = None,
) -> Trained:
    """Fit, evaluate and register on a window store that is there; ``member`` says what to record of a family's model.

    Raises as ``train``.
    """
    with WindowStore.open(prepared.store, verify=prepared.store.parent != workdir) as store:
        settings = _as_stored(settings, store)
        started = time.perf_counter()
        fitted = fit_model(store, settings, workdir / _CHECKPOINT, progress)
        seconds = time.perf_counter() - started
        keep_curves(workdir / _CHECKPOINT / "logs", settings.name, prepared.fingerprint)
        findings = _watch_quality(store, fitted)
        killpoint("train.after_fit")
        judged = evaluate_store(store, fitted, prepared, findings, progress)
        learned = _learning_curve(store, settings, workdir, judged, seconds, progress)
        refitted = refit(store, fitted.model, progress)
        split, audits = store.split.to_dict(), {k: a.to_dict() for k, a in fitted.model.audits.items()}
    report = reports() / f"{settings.name}-{prepared.fingerprint[:12]}.html"
    progress("report", 0, 1)
    facts = {**judged.report.facts, **(_REFITTED if refitted else {}), **peak_memory()}
    write_report(report, replace(judged.report, learning=learned, facts=facts))
    progress("report", 1, 1)
    bundle = out or workdir / "bundle"
    digest = save_bundle(fitted.model, bundle)
    killpoint("train.after_bundle")
    progress("register", 0, 1)
    registered = record_run(
        fitted.model,
        bundle,
        name=settings.name,
        settings=settings.to_dict(),
        fingerprint=prepared.fingerprint,
        split={"parts": split, "audits": audits},
        metrics=judged.metrics(),
        history={"loss": fitted.history.loss, "val_loss": fitted.history.val_loss, **fitted.history.parts},
        report=report,
        tags={"bundle_digest": digest, "rows": str(prepared.rows)},
        member=member(judged, fitted) if member else None,
    )
    progress("register", 1, 1)
    return Trained(
        registered.name,
        registered.version,
        tuple(registered.aliases),
        registered.run_id,
        digest,
        fitted.model.threshold,
        judged.evaluation.to_dict(),
        report,
        out,
        (*prepared.notices, *fitted.notices),
        tuple(judged.report.choices),
    )


def _learning_curve(
    store: WindowStore, settings: Settings, workdir: Path, judged: Judged, seconds: float, progress: Progress
) -> list[LearningPoint]:
    if not settings.training.learning_curve:
        return []
    whole = judged.evaluation.figures["average_precision"]
    return learning_curve(store, settings, workdir / "learning", whole, seconds, progress)


def peak_memory() -> dict[str, str]:
    """The most memory that this process held so far, in words, where the system tells (Linux)."""
    try:
        # Not ru_maxrss: on Linux a child begins with its parent's peak there.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peak = int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        return {}
    return {"peak memory of the run": f"{peak / 2**20:.2f} GiB"}


def check_bundle_target(out: Path) -> None:
    """Refuse (E2003) an output that is neither new, nor an empty folder, nor a bundle of ours."""
    ours = out.is_dir() and ((out / "manifest.json").is_file() or not any(out.iterdir()))
    if out.exists() and not ours:
        raise UsageError(Fault("E2003", "a new folder, or a model bundle to replace", "something else", file=str(out)))


@contextmanager
def work_folder(paths: Sequence[Path], settings: Settings) -> Iterator[Path]:
    """A folder of this job's own. What a killed run of the same job left there is removed first, but for the checkpoint
    of its training, which this run goes on from; an interrupted one keeps it too."""
    job = json.dumps([sorted(str(p.resolve()) for p in paths), settings.to_dict()], sort_keys=True)
    folder = home() / "work" / hashlib.sha256(job.encode()).hexdigest()[:16]
    keep = False
    with alone(folder, "one run of a job", "the same log is being trained on with the same settings: wait for it"):
        _sweep(folder)
        try:
            yield folder
        except KeyboardInterrupt:
            _sweep(folder)
            keep = (folder / _CHECKPOINT).is_dir()
            raise
        finally:
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove all but the training's own folder and the lock."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name in (_CHECKPOINT, LOCK):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _prepare(paths: Sequence[Path], settings: Settings, workdir: Path, progress: Progress) -> Ingested:
    """The window store to train from: the one given, or one made from the logs."""
    if not (len(paths) == 1 and paths[0].is_file() and is_store(paths[0])):
        return ingest(paths, settings, workdir / "store.h5", progress)
    with WindowStore.open(paths[0]) as store:
        counts, notice = store.label_counts(), f"window store {paths[0].name} used as it is"
        rows = sum(store.n_rows(a) for a in store.assets)
        return Ingested(paths[0], store.contract, sha256(paths[0]), rows, counts, (notice,), ())


def _as_stored(settings: Settings, store: WindowStore) -> Settings:
    """The settings with the window of the store, which decides when a store was given."""
    return replace(settings, window=store.window)


def keep_curves(logs: Path, name: str, fingerprint: str) -> None:
    """TensorBoard logs outlive the work folder: ``tensorboard --logdir .anomaly/tensorboard`` shows every run."""
    if not logs.is_dir():
        return  # an encoder that has nothing to train has no curve
    with atomic_path(home() / "tensorboard" / f"{name}-{fingerprint[:12]}", folder=True) as kept:
        shutil.copytree(logs, kept, dirs_exist_ok=True)


def _watch_quality(store: WindowStore, fitted: Fitted) -> list[Finding]:
    """Learn each sensor's usual behaviour from the normal training rows, then watch the whole log by rule."""
    profile = QualityProfile.fit((block.as_chunk() for block in store.row_blocks("train")), store.contract)
    fitted.model.quality = profile.to_dict()
    watch = QualityWatch(profile, store.contract, max_gap=store.window.max_gap)
    for block in store.row_blocks():
        watch.update(block.as_chunk())
    return watch.finish()
