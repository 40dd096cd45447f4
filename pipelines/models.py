"""What `anomaly models promote`, `rollback` and `compare` do: two models answer the same log, and the registry decides."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from alerts.episodes import Episode
from anomaly.config import parse_duration
from anomaly.data.contract import NORMAL, UNKNOWN, LogChunk, LogContract
from anomaly.errors import Fault, InputRefused
from anomaly.fitting import PartScores, Progress, silent
from anomaly.intervals import Intervals, as_intervals
from anomaly.metrics import Evaluation, evaluate
from anomaly.model import OUTCOMES, AnomalyModel
from pipelines.evaluate import _with_leads, scored_part
from pipelines.home import home
from pipelines.ingest import log_files
from pipelines.score import Trackers, open_for, scored_chunks
from registry import promotion
from registry.bundle import load_bundle
from registry.catalogue import resolve
from registry.comparison import Gate, GateRules, Pair, gates_of, latency_gate, schema_gate
from registry.parity import reload_parity

_PARITY_ROWS = 200
_TIMED, _WARM = 64, 16
_STRETCHES = 20


@dataclass(frozen=True)
class Answers:
    """What one model said of a log: row-wise answers, episodes, the last rows as they were logged, and what they came from."""

    model: AnomalyModel
    scored: PartScores
    episodes: list[Episode]
    tail: LogChunk
    fingerprint: str
    labelled: bool


def answer(model: AnomalyModel, logs: Sequence[Path], progress: Progress = silent) -> Answers:
    """Score the logs at ``logs`` with ``model`` and keep the answers; raises InputRefused as ``anomaly score`` does."""
    log = open_for(model, log_files(logs), progress)
    trackers, kept, done = Trackers(model), [], 0
    tail = list[LogChunk]()
    for chunk, rows in scored_chunks(log, model):
        trackers.update(rows)
        kept.append((rows, chunk.label))
        tail = [LogChunk.join([*tail, chunk]).take(slice(-_PARITY_ROWS, None))]
        done += len(chunk)
        progress("score", done, log.rows)
    labelled = model.contract.label is not None and bool(log.label_counts.get(NORMAL))
    return Answers(model, PartScores.collect("evaluation", kept), trackers.finish(), tail[0], log.fingerprint, labelled)


def same_rows(first: Answers, second: Answers) -> tuple[PartScores, PartScores]:
    """The rows (asset and time, repeats once) that both answered, in one order; labels are those of whichever read them."""
    frames = [_keys(a.scored) for a in (first, second)]
    both = frames[0].merge(frames[1], on=["asset", "time"], suffixes=("_a", "_b")).sort_values(["asset", "time"])
    one, two = (_taken(a.scored, both[f"row{end}"].to_numpy()) for a, end in ((first, "_a"), (second, "_b")))
    kind = two.kind if second.labelled else one.kind
    return replace(one, kind=kind), replace(two, kind=kind)


def _keys(scored: PartScores) -> pd.DataFrame:
    frame = pd.DataFrame({"asset": scored.asset, "time": scored.time, "row": np.arange(len(scored.time))})
    return frame.drop_duplicates(["asset", "time"])


def _taken(scored: PartScores, at: NDArray[np.int64]) -> PartScores:
    names = ("time", "asset", "score", "outcome", "kind", "alone")
    return replace(scored, **{n: getattr(scored, n)[at] for n in names if len(getattr(scored, n))})


# Promote ------------------------------------------------------------------------------------------------------------


def promote(
    reference: str,
    logs: Sequence[Path],
    rules: GateRules,
    *,
    accepted: str = "",
    who: str = "",
    why: str = "",
    progress: Progress = silent,
) -> promotion.Promotion:
    """Judge the version that ``reference`` names against the champion on ``logs``, and promote or refuse it.

    Only rows later than everything either model learned from are judged, one window and one lead apart from it. ``accepted``
    is a person's reason to go on with too few events. Raises ModelRefused E4101 (a gate is not passed) or E4102; InputRefused
    E3105 without labels, E3302 when no later normal row is there; nothing changes then.
    """
    wanted = promotion.candidate(reference, home())
    challenger = load_bundle(wanted.model.path, expect_digest=wanted.model.digest)
    champion = load_bundle(wanted.champion.path, expect_digest=wanted.champion.digest) if wanted.champion else None
    schema = schema_gate(champion.contract.difference(challenger.contract) if champion else [])
    gates, evidence = [schema], dict[str, Any]()
    if schema.passed:  # else the two cannot answer the same log
        gates += (judged := judge(challenger, champion, logs, rules, accepted, progress)).gates
        tail = _frame(judged.tail, challenger.contract)
        here = challenger.score_frame(tail)["anomaly_score"].to_numpy(np.float64)
        progress("reload", 0, 1)
        gates.append(reload_parity(wanted.model.path, wanted.model.digest, tail, here))
        gates.append(latency_gate(_seconds(challenger, judged.tail), challenger.contract.period_us, rules))
        progress("reload", 1, 1)
        evidence = judged.evidence
    return promotion.promote(wanted, gates, who=who, why=why or accepted, evidence=evidence, home=home())


@dataclass(frozen=True)
class Judged:
    """Gates that the rows of a log decided, what they were decided on, and the log's last rows."""

    gates: list[Gate]
    evidence: dict[str, Any]
    tail: LogChunk


def judge(
    challenger: AnomalyModel,
    champion: AnomalyModel | None,
    logs: Sequence[Path],
    rules: GateRules,
    accepted: str = "",
    progress: Progress = silent,
) -> Judged:
    """Both models on the later rows of ``logs``; the champion's lead says what an early row is, where there is one.

    Raises InputRefused E3105 where no model reads labels, E3302 where no normal row is later than what the two learned from.
    """
    ours = answer(challenger, logs, progress)
    theirs = answer(champion, logs, progress) if champion else ours
    if not (ours.labelled or theirs.labelled):
        raise InputRefused(Fault("E3105", "a labelled log", "no label column, or no normal row", "train with --label"))
    rows = same_rows(ours, theirs)
    known = [m for m in (challenger, champion) if m is not None]
    kind = later_kinds(rows[0], known)
    by = champion or challenger
    parts, events = list[PartScores](), dict[str, Intervals]()
    for scored in rows:
        marked, events = _with_leads(replace(scored, kind=kind), by)
        parts.append(marked)
    mine, other = (scored_part(p, events, by) for p in parts)
    evaluation = _evaluated(challenger, parts[0], events, by, ours.episodes)
    pair = Pair(mine, other, challenger.threshold.value, champion.threshold.value) if champion else None
    assets, seed = len(set(rows[0].asset.tolist())), by.settings.training.seed
    gates = gates_of(evaluation, pair, challenger.settings.threshold.budget, assets, rules, accepted, seed)
    later = rows[0].time[kind != UNKNOWN]
    evidence = {
        "log": ours.fingerprint,
        "rows": len(later),
        "from": _moment(later.min()),
        "to": _moment(later.max()),
        "events": evaluation.events,
        "rows_id": evaluation.rows_id,
        "rules": asdict(rules),
    }
    return Judged(gates, evidence, ours.tail)


def later_kinds(scored: PartScores, models: Sequence[AnomalyModel]) -> NDArray[np.int8]:
    """Row kinds ``(n,)`` with UNKNOWN wherever a row is not later than all that the models learned from.

    One window and one lead lie between: nothing a judged score was made of was learned from. An asset that a model never saw
    counts from the last time it saw of any. Raises InputRefused E3302 where no normal row is left.
    """
    kind = scored.kind.copy()
    for model in models:
        apart = model.lookback * model.contract.period_us + parse_duration(model.settings.window.lead)
        last = {asset: end for asset, (_, end) in model.seen.items()}
        latest = max(last.values(), default=-(2**62))
        ends = np.array([last.get(str(a), latest) for a in scored.asset], dtype=np.int64)
        kind[scored.time <= ends + apart] = UNKNOWN
    if not (kind == NORMAL).any():
        hint = "give a log from after the training of both models"
        found = "every normal row lies in or before the time they learned from"
        raise InputRefused(Fault("E3302", "normal rows that neither model has seen", found, hint))
    return kind


def _evaluated(
    model: AnomalyModel, scored: PartScores, events: dict[str, Intervals], by: AnomalyModel, episodes: list[Episode]
) -> Evaluation:
    spans: dict[str, list[tuple[int, int]]] = {str(a): [] for a in dict.fromkeys(scored.asset)}
    for e in episodes:
        spans.setdefault(e.asset, []).append((e.start_us, e.end_us + 1))
    found = {asset: as_intervals(own) for asset, own in spans.items()}
    gap = round(model.settings.episodes.merge_gap * model.contract.period_us)
    return evaluate(scored_part(scored, events, by), model.threshold.value, episodes=found, merge_gap_us=gap)


def _frame(chunk: LogChunk, contract: LogContract) -> pd.DataFrame:
    """Rows of a chunk as ``AnomalyModel.score_frame`` takes them."""
    frame = pd.DataFrame(chunk.values, columns=list(contract.tags))
    frame.insert(0, contract.time, pd.to_datetime(chunk.time, unit="us", utc=True))
    if contract.asset:
        frame.insert(1, contract.asset, chunk.asset)
    for k, name in enumerate(contract.categories):
        frame[name] = chunk.categories[:, k]
    return frame


def _seconds(model: AnomalyModel, tail: LogChunk) -> list[float]:
    """Seconds that each of the last rows takes when it comes by itself; the first ones warm up and are not counted."""
    stream, taken = model.stream(), []
    for i in range(max(len(tail) - _TIMED - _WARM, 0), len(tail)):
        started = time.perf_counter()
        stream.score(tail.take(slice(i, i + 1)))
        taken.append(time.perf_counter() - started)
    return taken[_WARM:] or taken


def rollback(name: str, *, who: str = "", why: str = "") -> promotion.Promotion:
    """Make the champion before this one champion again; raises as ``registry.promotion.rollback`` does."""
    return promotion.rollback(name, who=who, why=why, home=home())


# Compare ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stretch:
    """Neighbouring rows on which the outcomes of two models differ in one way; times in UTC, both ends in it."""

    asset: str
    start: str
    end: str
    first: str
    second: str
    rows: int


@dataclass(frozen=True)
class Compared:
    """Where two models disagree: rows by both outcomes, rank correlation of their scores, the longest stretches."""

    first: str
    second: str
    rows: int
    outcomes: dict[str, int]
    differing: int
    correlation: float | None
    stretches: list[Stretch] = field(default_factory=list)
    out: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return {**asdict(self), "out": str(self.out) if self.out else None}


def compare(first: str, second: str, logs: Sequence[Path], out: Path | None, progress: Progress = silent) -> Compared:
    """Both models on all rows of ``logs``, without alerts and without judging either; ``out`` is a picture (PNG).

    Rows that either model learned from count too: this shows how they differ, not which one is better. Raises InputRefused
    where a log does not fit a model, ModelRefused where a reference names none.
    """
    answers = [answer(load_bundle(resolve(ref, home())), logs, progress) for ref in (first, second)]
    a, b = same_rows(*answers)
    names = [f"{OUTCOMES[i]} / {OUTCOMES[j]}" for i in range(3) for j in range(3)]
    counts = np.bincount(3 * a.outcome.astype(int) + b.outcome, minlength=9)
    outcomes = {name: int(n) for name, n in zip(names, counts, strict=True) if n}
    scored = np.isfinite(a.score) & np.isfinite(b.score)
    told = scored.sum() > 2 and np.ptp(a.score[scored]) > 0 and np.ptp(b.score[scored]) > 0
    correlation = float(spearmanr(a.score[scored], b.score[scored]).statistic) if told else None
    gap = max(x.model.max_gap_us for x in answers)
    found = stretches(a, b, gap)
    if out is not None:
        from pipelines.models_picture import draw

        thresholds = [x.model.threshold.value for x in answers]
        draw(out, (first, second), (a, b), thresholds)
    differing = int((a.outcome != b.outcome).sum())
    return Compared(first, second, len(a.time), outcomes, differing, correlation, found[:_STRETCHES], out)


def stretches(a: PartScores, b: PartScores, gap_us: int) -> list[Stretch]:
    """Runs of rows, sorted by asset and time, on which both outcomes stay the same pair and differ; longest first."""
    pair = np.where(a.outcome != b.outcome, 3 * a.outcome.astype(int) + b.outcome, -1)
    if not len(pair):
        return []
    new = np.concatenate(([True], (np.diff(pair) != 0) | (a.asset[1:] != a.asset[:-1]) | (np.diff(a.time) > gap_us)))
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(pair)) - 1
    found = [
        Stretch(
            str(a.asset[i]),
            _moment(a.time[i]),
            _moment(a.time[j]),
            OUTCOMES[a.outcome[i]],
            OUTCOMES[b.outcome[i]],
            int(j - i) + 1,
        )
        for i, j in zip(first.tolist(), last.tolist(), strict=True)
        if pair[i] >= 0
    ]
    return sorted(found, key=lambda s: -s.rows)


def _moment(us: Any) -> str:
    return pd.Timestamp(int(us), unit="us", tz="UTC").isoformat()
