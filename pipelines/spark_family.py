"""A family of models on Spark: each asset by its own model or its class's, the answers of ``score_family``.

The log is read once under one contract for all models; a worker takes of each row what its asset's model knows. The driver
loads one model at a time: to plan its assets, and again to record what was found in them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anomaly.config import Settings
from anomaly.data.contract import LogContract
from anomaly.drift import Drift
from anomaly.encoders.inference import kind_for
from anomaly.encoders.memory import release_memory
from anomaly.errors import Fault, ModelRefused
from anomaly.files import atomic_path
from anomaly.fitting import Progress, silent
from anomaly.model import AnomalyModel
from pipelines import drift_report
from pipelines.asset_groups import class_of
from pipelines.feedback import with_threshold
from pipelines.home import home
from pipelines.score_family import NO_MODEL, REFUSED, shared_contract
from pipelines.spark import on_workers
from pipelines.spark_commit import Bound, Own, SparkScored, check_target, commit, discard
from pipelines.spark_job import Inspected, Job, Reading, Scorer, parquet_files, planned_by
from pipelines.spark_session import LOCAL
from registry.bundle import load_bundle, read_manifest
from registry.catalogue import ResolvedModel, resolve_model
from registry.families import Family, Member

_log = logging.getLogger(__name__)

_NAMED = 5


@dataclass
class SparkScoredFamily(SparkScored):
    """As ``SparkScored``, by many models; ``refused`` maps a model that could not be used to its refusal."""

    models: int = 0
    without_model: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        own = {"models": self.models, "without_model": list(self.without_model), "refused": self.refused}
        return {**super().to_dict(), **own}


def score_family_on_spark(
    paths: Sequence[Path],
    family: Family,
    out: Path,
    database: str | None,
    *,
    master: str = LOCAL,
    stretch_rows: int | None = None,
    progress: Progress = silent,
) -> SparkScoredFamily:
    """Score Parquet logs at ``paths``, each asset by its model of ``family``; ``out`` and refusals as ``score_on_spark``.

    The rows of an asset that has no model are unscorable (``no_model``), those whose model is refused as well
    (``model_refused: CODE``). Raises ModelRefused where no model can be used; then nothing is written.
    """
    check_target(out, paths)
    run = SparkScoredFamily(out)
    members = _Members(family, run, database)
    settings, contract = members.common()
    reading = Reading(settings.log, contract)
    files = parquet_files(paths, settings.log.asset or contract.asset)

    def plan(good: list[Inspected]) -> Job:
        members.count(good)
        job = planned_by(good, reading, members.scorer, stretch_rows)
        run.without_model = tuple(a for a, why in job.scorers.items() if why == NO_MODEL)
        return job

    good, job = on_workers(files, reading, plan, run, master, progress)
    drifts: dict[str, list[Drift]] = {}

    def whole(bound: Bound, own: Own) -> None:
        drifts[bound.name] = drift_report.drifts(bound.model, own.sample, len(own.run.episodes))

    run.models = len(commit(run, job, members.bound, good, database, whole))
    _report_drift(run, family, drifts)
    run.notices += (*members.told, *_notices(run, drifts))
    discard(Path(job.shards))
    return run


class _Members:
    """The family's models by asset; one is held at a time."""

    def __init__(self, family: Family, run: SparkScoredFamily, database: str | None) -> None:
        self._family, self._run, self._database = family, run, database
        self._by_asset = {a: m for m in family.members for a in m.assets}
        self._by_group = {m.group: m for m in family.members}
        self._places: dict[str, ResolvedModel] = {}
        self._classes: dict[str, Any] = {}
        self._scorers: dict[str, Scorer | str] = {}
        self._rows: dict[str, int] = {}
        self._held: Bound | None = None
        self.told: list[str] = []

    def common(self) -> tuple[Settings, LogContract]:
        """The settings of the first model that is sound, and one contract for all of them, from their manifests alone.

        Raises ModelRefused where none is sound.
        """
        contracts, settings, first = list[LogContract](), list[Settings](), None
        for member in self._family.members:
            try:
                place = resolve_model(f"models:/{member.name}@{self._family.alias}", home())
                parts = read_manifest(place.path)["model"]
                contracts.append(LogContract.from_dict(parts["contract"]))
                settings.append(Settings.from_dict(parts["settings"]))
                self._places[member.name] = place
            except ModelRefused as error:
                first = first or error
                self._refuse(member.name, error)
        if not contracts:
            raise first or ModelRefused(Fault("E4001", f"a model of {self._family.name}", "none"))
        self._classes = settings[0].assets.classes if self._family.kind == "class" else {}
        return settings[0], shared_contract(contracts)

    def _refuse(self, name: str, error: ModelRefused) -> None:
        self._run.refused[name] = error.faults[0].line()
        _log.warning("%s cannot be used: %s", name, error.faults[0].line())

    def _member(self, asset: str) -> Member | None:
        """The model of an asset: the one that learned from it, else its class's."""
        return self._by_asset.get(asset) or self._by_group.get(class_of(asset, self._classes) or "")

    def count(self, good: Sequence[Inspected]) -> None:
        """Count the rows of each model, by which its engine is chosen."""
        for one in good:
            for asset, (rows, _, _) in one.assets.items():
                member = self._member(asset)
                if member is not None:
                    self._rows[member.name] = self._rows.get(member.name, 0) + rows

    def scorer(self, asset: str) -> Scorer | str:
        """The model of an asset as workers load it, or why it has none."""
        member = self._member(asset)
        if member is None:
            return NO_MODEL
        if member.name not in self._scorers:
            self._scorers[member.name] = self._planned(member)
        return self._scorers[member.name]

    def _planned(self, member: Member) -> Scorer | str:
        if member.name in self._places:
            try:
                model = self._load(member.name)
                return Scorer.of(model, str(self._places[member.name].path.resolve()), model.engine_kind)
            except ModelRefused as error:
                self._refuse(member.name, error)
        return f"{REFUSED}: {self._run.refused[member.name].partition(' ')[0]}"

    def bound(self, asset: str) -> Bound | None:
        """The model of an asset, loaded; None where it has none."""
        member = self._member(asset)
        if member is None or isinstance(self.scorer(asset), str):
            return None
        if self._held is None or self._held.name != member.name:
            self._held = None
            self._held = Bound(member.name, self._load(member.name))
        return self._held

    def _load(self, name: str) -> AnomalyModel:
        release_memory()
        place = self._places[name]
        loaded = load_bundle(place.path, expect_digest=place.digest)
        model, told = with_threshold(loaded, self._database)
        model.engine_kind = kind_for(self._rows[name])
        if told and f"{name}: {told}" not in self.told:
            self.told.append(f"{name}: {told}")
        return model


def _report_drift(run: SparkScoredFamily, family: Family, drifts: dict[str, list[Drift]]) -> None:
    """The drift of every model beside the scores, in the form of ``score_family``."""
    run.drifts = [d for own in drifts.values() for d in own]
    held = {name: [d.to_dict() for d in own] for name, own in drifts.items()}
    with atomic_path(drift_report.drift_path(run.out)) as temporary:
        text = json.dumps({"family": family.name, "models": held}, indent=1, allow_nan=False)
        temporary.write_text(text, encoding="utf-8")


def _notices(run: SparkScoredFamily, drifts: dict[str, list[Drift]]) -> list[str]:
    """What a person should know: assets without a model, models that were refused, drift."""
    said = []
    if run.without_model:
        said.append(f"no model for {_some(run.without_model)}: their rows are unscorable ({NO_MODEL})")
    said += [f"{name} was refused: {line}" for name, line in run.refused.items()]
    drifted = [name for name, own in drifts.items() if drift_report.notices(own)]
    if drifted:
        where = drift_report.drift_path(run.out).name
        said.append(f"drift for {len(drifted)} of {len(drifts)} models: {_some(drifted)}; see {where}")
    return said


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
