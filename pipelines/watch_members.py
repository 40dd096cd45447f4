"""The models of a watch, one for all assets or each asset's own, and how the scoring by each of them goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alerts.database import Database
from alerts.episodes import Episode, episode_from
from anomaly.config import LogSettings
from anomaly.data.contract import LogChunk, LogContract
from anomaly.errors import Fault, ModelRefused, Unavailable
from anomaly.model import AnomalyModel, ScoredRows, StreamScorer
from pipelines.drift_report import DriftSample
from pipelines.feedback import with_threshold
from pipelines.score import Coverage, Trackers
from pipelines.score_family import NO_MODEL, REFUSED, Assignment, Known, known_members, shared_contract
from registry.bundle import load_bundle
from registry.families import Family

Arrays = dict[str, NDArray[Any]]
#: A sample of drift begins anew after so long, so that what is told is of late.
_DRIFT_SPAN_US = 7 * 86_400_000_000
_HELD = ("stream", "trackers", "sample")


@dataclass(frozen=True)
class WatchModels:
    """Which model scores which asset.

    ``name``: of the model, or of the family. ``loaded``: models by member, "" where there is only one; a member's name is what
    the ledger calls its model. ``refused``: members that cannot be used, and why. ``contract``: what the log is read by.
    ``resolved``: the digests that the members' aliases meant when they were loaded, by which a newer model is noticed.
    """

    name: str
    loaded: Mapping[str, AnomalyModel]
    contract: LogContract
    log: LogSettings
    of: Callable[[str], str] = field(default=lambda asset: "")
    refused: Mapping[str, str] = field(default_factory=dict)
    family: Family | None = None
    resolved: Mapping[str, str | None] = field(default_factory=dict)

    @classmethod
    def one(cls, model: AnomalyModel, name: str) -> WatchModels:
        """One model for every asset."""
        return cls(name, {"": model}, model.contract, model.settings.log, resolved={"": model.digest})

    @property
    def first(self) -> AnomalyModel:
        """The one model, or the first of a family: what is equal in all of them."""
        return next(iter(self.loaded.values()))

    @property
    def max_gap_us(self) -> int:
        """The longest step between rows without a break."""
        return max(model.max_gap_us for model in self.loaded.values())

    def ledger_name(self, member: str) -> str:
        """What the ledger calls the model of a member."""
        return member or self.name

    def why_not(self, member: str) -> str:
        """Why the rows of a member have no score."""
        told = self.refused.get(member)
        return NO_MODEL if told is None else f"{REFUSED}: {told.partition(' ')[0]}"

    def parts(self, chunk: LogChunk) -> Iterator[tuple[str, LogChunk]]:
        """The rows of each member, with the tags of its model."""
        if self.family is None:
            yield "", chunk
            return
        of = {asset: self.of(str(asset)) for asset in dict.fromkeys(chunk.asset)}
        names = np.array([of[asset] for asset in chunk.asset], dtype=object)
        for name in dict.fromkeys(names):
            own, model = chunk.take(names == name), self.loaded.get(name)
            yield str(name), own if model is None else narrowed(own, self.contract, model.contract)

    def with_thresholds(self, database: Database | None, before: WatchModels) -> tuple[WatchModels, list[str]]:
        """The models with the thresholds that people set, and in words those that are others than in ``before``.

        Raises Unavailable where the database does not answer.
        """
        found, told = dict[str, AnomalyModel](), list[str]()
        for name, model in self.loaded.items():
            found[name], said = with_threshold(model, database)
            known = before.loaded.get(name)
            if known is not None and known.threshold.value != found[name].threshold.value:
                own = f"the model's own threshold {model.threshold.value:.6g} holds again"
                told.append((f"{name}: " if name else "") + (said or own))
        return replace(self, loaded=found), told


def family_models(family: Family) -> WatchModels:
    """All models of a family, loaded; those that are refused are noted. Raises ModelRefused where none can be used."""
    refused = dict[str, str]()
    known, loaded = known_members(family, refused), dict[str, AnomalyModel]()
    for name, own in known.items():
        try:
            loaded[name] = load_bundle(own.model.path, expect_digest=own.model.digest)
        except ModelRefused as error:
            refused[name] = error.faults[0].line()
    if not loaded:
        raise ModelRefused(Fault("E4001", f"a model of {family.name} that can be used", "; ".join(refused.values())))
    contract = shared_contract([known[name].contract for name in loaded])
    settings = next(iter(loaded.values())).settings
    return WatchModels(
        family.name, loaded, contract, settings.log, Assignment(family, settings), refused, family, digests_of(known)
    )  # fmt: skip


def digests_of(known: Mapping[str, Known]) -> dict[str, str | None]:
    """The digests of a family's members as they are resolved now."""
    return {name: own.model.digest for name, own in known.items()}


def narrowed(chunk: LogChunk, contract: LogContract, wanted: LogContract) -> LogChunk:
    """The rows of ``chunk``, read under ``contract``, with the tags and categories of ``wanted`` only.

    Raises KeyError for one that ``contract`` does not have.
    """
    if contract.tags == wanted.tags and contract.categories == wanted.categories:
        return chunk
    tag, word = ({n: k for k, n in enumerate(own)} for own in (contract.tags, contract.categories))
    columns, words = [tag[t] for t in wanted.tags], [word[c] for c in wanted.categories]
    return replace(chunk, values=chunk.values[:, columns], bad=chunk.bad[:, columns],
                   categories=chunk.categories[:, words])  # fmt: skip


def model_key(model: AnomalyModel) -> str:
    """What the ledger calls a model: its digest, or its contract's where it was never bundled."""
    return model.digest or model.contract.fingerprint()


@dataclass
class Member:
    """How the scoring by one model goes on; ``told``: the episodes that were recorded last and may still grow."""

    key: str
    stream: StreamScorer
    trackers: Trackers
    covered: Coverage
    sample: DriftSample
    alerts: int = 0  # episodes since the drift sample began
    told: list[Episode] = field(default_factory=list)

    @classmethod
    def new(cls, model: AnomalyModel) -> Member:
        """Nothing seen yet."""
        sample = DriftSample(len(model.contract.tags))
        return cls(model_key(model), model.stream(), Trackers(model), Coverage(model.max_gap_us), sample)

    def add(self, rows: ScoredRows) -> None:
        """Follow the next scored rows; a drift sample of more than a week begins anew."""
        self.trackers.update(rows)
        self.covered.add(rows)
        span = self.sample.span
        if span is not None and int(rows.time.max()) - span[0] > _DRIFT_SPAN_US:
            self.sample, self.alerts = DriftSample(self.sample.tags, self.sample.size), 0
        self.sample.add(rows)

    def close(self, model: AnomalyModel) -> tuple[list[Episode], int]:
        """The episodes that are new or changed since the last turn, and how many are new."""
        now = self.trackers.finish()
        known = {(e.asset, e.start_us): e for e in self.told}
        changed = [e for e in now if known.get((e.asset, e.start_us)) != e]
        new = sum((e.asset, e.start_us) not in known for e in now)
        self.alerts, self.told = self.alerts + new, now
        self.trackers = Trackers.from_state(model, *self.trackers.to_state())
        return changed, new

    def to_state(self) -> tuple[dict[str, Any], Arrays]:
        """JSON-ready values and arrays."""
        plain: dict[str, Any] = {"key": self.key, "alerts": self.alerts, "covered": self.covered.spans}
        plain["told"], arrays = [asdict(e) for e in self.told], Arrays()
        for name in _HELD:
            plain[name], own = getattr(self, name).to_state()
            arrays |= {f"{name}/{key}": array for key, array in own.items()}
        return plain, arrays

    @classmethod
    def from_state(cls, model: AnomalyModel, plain: dict[str, Any], arrays: Arrays) -> Member:
        """What goes on with ``model``; its windows begin anew where it is another model than before."""
        made = cls.new(model)
        if plain["key"] != made.key:
            return made
        held = {name: below(arrays, name) for name in _HELD}
        made.stream = StreamScorer.from_state(model, plain["stream"], held["stream"])
        made.trackers = Trackers.from_state(model, plain["trackers"], held["trackers"])
        made.sample, made.alerts = DriftSample.from_state(plain["sample"], held["sample"]), plain["alerts"]
        made.covered.spans = {asset: [(a, b) for a, b in s] for asset, s in plain["covered"].items()}
        made.told = [episode_from(e) for e in plain["told"]]
        return made


def below(arrays: Arrays, name: str) -> Arrays:
    """The arrays whose names begin with ``name`` and a slash, without it."""
    return {k.removeprefix(f"{name}/"): v for k, v in arrays.items() if k.startswith(f"{name}/")}


def thresholds_or(
    models: WatchModels, database: Database | None, before: WatchModels
) -> tuple[WatchModels, list[str], str]:
    """As ``with_thresholds``; where the database does not answer, what held before, and why in the last place."""
    try:
        return *models.with_thresholds(database, before), ""
    except Unavailable as error:
        known = before.loaded
        kept = {n: known[n] if n in known and known[n].digest == m.digest else m for n, m in models.loaded.items()}
        return replace(models, loaded=kept), [], str(error)
