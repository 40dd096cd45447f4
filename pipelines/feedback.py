"""Feedback: what people said of alerts becomes labels, a threshold that a person may set, and the alerts to look at next.

What is set lies in the alert database as a record that only grows. Scoring takes it in place of the threshold of the model with
that digest and says so; bundles, stored scores and past alerts stay as they are.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alerts.alert import Alert, iso_time
from alerts.database import Database
from alerts.feedback import LabelledInterval, as_csv, contradictions, judges, labelled, read_labels, score_files
from alerts.figures import precision
from alerts.overrides import (
    ThresholdChange,
    Wanted,
    active_threshold,
    evidence_mark,
    standing,
    threshold_changes,
    write_change,
    write_undo,
)
from alerts.states import ANOMALY, CLOSED, OPEN, VERDICTS
from alerts.store import AlertStore
from alerts.users import Users
from alerts.workflow import Clock, clock_us
from anomaly.errors import Fault, UsageError, shown
from pipelines.feedback_refit import (
    LEAST_VERDICTS,
    Evidence,
    Proposal,
    WhatIf,
    needs_second,
    propose,
    reaches,
    what_if,
)

if TYPE_CHECKING:
    from anomaly.model import AnomalyModel

_SAME = "the threshold that holds already"


@dataclass(frozen=True)
class Case:
    """All that is known of one model's alerts: ``model`` is its digest, ``own`` its own threshold, ``now`` the one that holds.

    ``floor``: the lowest threshold that raised any of the alerts; below it nothing is known. ``mark``: where the record stood.
    """

    model: str
    name: str
    own: float
    now: float
    floor: float
    alerts: tuple[Alert, ...]
    who: dict[int, str]
    changes: tuple[ThresholdChange, ...]
    mark: int

    @property
    def evidence(self) -> list[Evidence]:
        """The alerts as evidence, oldest first; a verdict counts while the alert is closed."""
        return [
            Evidence(a.id, a.asset, a.peak_score, a.verdict if a.state == CLOSED else None, self.who.get(a.id, ""))
            for a in self.alerts
        ]


def read_case(database: Database, model: str | None = None) -> Case:
    """What is known of ``model``: a name, or the first signs of a digest; None takes the one that raised an alert last.

    Of several models of a name the latest is taken. Raises UsageError E2001 where no alert is of such a model.
    """
    mark = evidence_mark(database)
    every = [a for a in AlertStore(database).alerts(limit=None) if a.kind == ANOMALY]
    found = [a for a in every if model is None or a.model_name == model or a.model.startswith(model)]
    if not found:
        known = ", ".join(sorted({a.model_name for a in every})[:10])
        hint = f"there are alerts of {known}" if known else "there are no alerts yet; anomaly score raises them"
        raise UsageError(Fault("E2001", "a model that raised alerts", model or "none", hint))
    newest = max(found, key=lambda a: a.id)
    own = sorted((a for a in every if a.model == newest.model), key=lambda a: a.id)
    changes = threshold_changes(database, newest.model)
    base = float(changes[0].evidence["before"]) if changes else newest.threshold
    held = standing(changes)
    now = base if not held or held[-1].value is None else held[-1].value
    return Case(newest.model, newest.model_name, base, now, min([base, *(a.threshold for a in own)]), tuple(own),
                judges(database), tuple(changes), mark)  # fmt: skip


def show(database: Database, model: str | None = None) -> dict[str, Any]:
    """The state of feedback on a model as plain values: verdicts by kind and person, precision, contradictions, changes."""
    case = read_case(database, model)
    given = [e for e in case.evidence if e.verdict]
    good = precision(case.alerts)
    return {
        "model": case.model, "name": case.name, "own": case.own, "threshold": case.now, "alerts": len(case.alerts),
        "verdicts": {v: sum(e.verdict == v for e in given) for v in VERDICTS},
        "by": dict(Counter(e.who for e in given).most_common()),
        "precision": good.value, "low": good.low, "high": good.high,
        "contradictions": contradictions(labelled(case.alerts, case.who)),
        "changes": [asdict(c) for c in case.changes],
    }  # fmt: skip


def write_labels(database: Database, out: Path | None) -> tuple[list[LabelledInterval], str]:
    """Verdicts as labelled intervals in ``out``, CSV or Parquet by its name, for ``anomaly train --verdicts``; and as CSV text.

    Raises UsageError E2003 for another kind of file.
    """
    from anomaly.files import atomic_path

    found = read_labels(database)
    text = as_csv(found)
    if out is None:
        return found, text
    if out.suffix not in (".csv", ".parquet"):
        raise UsageError(Fault("E2003", "a name that ends in .csv or .parquet", out.name))
    with atomic_path(out) as temporary:
        if out.suffix == ".csv":
            temporary.write_text(text, encoding="utf-8", newline="")
        else:
            _write_parquet(found, temporary)
    return found, text


def _write_parquet(found: Sequence[LabelledInterval], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    moment = pa.timestamp("us", tz="UTC")
    columns = {
        "asset": pa.array([i.asset for i in found], pa.string()),
        "start": pa.array([i.start_us for i in found], moment),
        "end": pa.array([i.end_us for i in found], moment),
        "verdict": pa.array([VERDICTS[i.verdict] for i in found], pa.string()),
        "label": pa.array([i.label for i in found], pa.int8()),
        "who": pa.array([i.who for i in found], pa.string()),
        "alert": pa.array([i.alert for i in found], pa.int64()),
    }
    pq.write_table(pa.table(columns), path)


def proposal(case: Case, least: int = LEAST_VERDICTS, value: float | None = None) -> Proposal:
    """The threshold that the verdicts ask for, or what a person's ``value`` would do. Raises UsageError E2001 for a ``value``
    below what was ever judged."""
    if value is None:
        return propose(case.evidence, case.now, case.floor, least)
    if not reaches(value, case.floor):
        hint = "below it no alert was raised, so nobody knows what would come"
        raise UsageError(Fault("E2001", f"a threshold of {case.floor:.6g} or more", value, hint))
    judged = sum(e.verdict is not None for e in case.evidence)
    if judged < least:
        raise UsageError(Fault("E2001", f"at least {least} verdicts on alerts of {case.name}", judged))
    return Proposal(value, "chosen by a person", judged, what_if(case.evidence, case.now, value))


def stored_rows(case: Case, database: Database, after: float) -> dict[str, int]:
    """Rows of the model's stored score files that reach the threshold that holds and ``after``; and files that are gone."""
    import pyarrow.parquet as pq

    counts = {"files": 0, "missing": 0, "rows": 0, "before": 0, "after": 0}
    for name in score_files(database, case.model):
        if not Path(name).is_file():
            counts["missing"] += 1
            continue
        score = pq.read_table(name, columns=["anomaly_score"])["anomaly_score"].to_numpy()
        counts["files"] += 1
        counts["rows"] += len(score)
        counts["before"] += int((score >= case.now).sum())
        counts["after"] += int((score >= after).sum())
    return counts


@dataclass(frozen=True)
class Actors:
    """Who wants a change and why; ``second`` who agrees. ``passwords``: of both, asked for where two people are needed."""

    by: str
    why: str
    second: str = ""
    passwords: tuple[str, str] | None = None


def reasons_for_two(case: Case, after: float) -> list[str]:
    """Why a change of the threshold to ``after`` needs two people; nothing where one may make it."""
    return needs_second(case.evidence, case.now, after)


def apply(
    database: Database, case: Case, proposed: Proposal, actors: Actors, clock: Clock = clock_us
) -> ThresholdChange:
    """Set the proposed threshold. Raises UsageError E2001 where there is none, where it holds already, where two people are
    needed and are not there, and where the evidence changed meanwhile."""
    if proposed.value is None or proposed.what_if is None:
        raise UsageError(Fault("E2001", "a proposal to apply", proposed.why, "--value sets one by hand"))
    if reaches(proposed.value, case.now) and reaches(case.now, proposed.value):
        raise UsageError(Fault("E2001", "another threshold", _SAME))
    wanted = _wanted(database, case, proposed.value, proposed.what_if, actors)
    return write_change(database, wanted, case.mark, clock)


def undo(database: Database, case: Case, actors: Actors, clock: Clock = clock_us) -> ThresholdChange:
    """Take the last change back; where that raises the threshold it needs what ``apply`` needs. UsageError E2001 where none
    holds."""
    value = undone(case)
    after = case.own if value is None else value
    wanted = _wanted(database, case, value, what_if(case.evidence, case.now, after), actors)
    return write_undo(database, wanted, case.mark, clock)


def undone(case: Case) -> float | None:
    """What holds once the last change is taken back; None is the model's own."""
    held = standing(list(case.changes))
    if not held:
        raise UsageError(Fault("E2001", "a threshold that was set for this model", "its own holds"))
    return held[-1].before


def _wanted(database: Database, case: Case, value: float | None, told: WhatIf, actors: Actors) -> Wanted:
    reasons = reasons_for_two(case, told.after)
    if reasons:
        _check_two(database, actors, reasons)
    second = actors.second if reasons else ""
    return Wanted(case.model, case.name, value, actors.by, actors.why, second, told.to_dict() | {"reasons": reasons})


def _check_two(database: Database, actors: Actors, reasons: list[str]) -> None:
    """Two different users, operators or more, both with their password; raises UsageError E2001."""
    expected, hint = "two people who agree: --by and --second, two users of role operator or admin", "; ".join(reasons)
    if not actors.second:
        raise UsageError(Fault("E2001", expected, "one", hint))
    if actors.by.strip().casefold() == actors.second.strip().casefold():
        raise UsageError(Fault("E2001", expected, f"{shown(actors.by)} twice", hint))
    users = Users(database)
    known = {user.name: user for user in users.list()}
    for name in (actors.by, actors.second):
        if name not in known or not known[name].may("operator"):
            raise UsageError(Fault("E2001", expected, f"{shown(name)}, who is none", hint))
    if actors.passwords is None:
        raise UsageError(Fault("E2001", expected, "no passwords", hint))
    for name, password in zip((actors.by, actors.second), actors.passwords, strict=True):
        token, _ = users.sign_in(name, password)
        users.sign_out(token)


@dataclass(frozen=True)
class Ask:
    """An alert that a verdict on would say most, and why."""

    alert: Alert
    why: str

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        peak = self.alert.peak_score
        return {"alert": self.alert.id, "asset": self.alert.asset, "start": iso_time(self.alert.start_us),
                "peak": peak if math.isfinite(peak) else None, "why": self.why}  # fmt: skip


def next_to_review(case: Case, count: int = 10) -> list[Ask]:
    """Alerts without a verdict to look at next: those nearest to the threshold, in turn with the newest of each bad actor,
    the pair of asset and first tag with the most such alerts."""
    waiting = [a for a in case.alerts if a.state in OPEN]
    near = sorted(waiting, key=lambda a: (abs(a.peak_score - case.now), a.id))
    actors = defaultdict[tuple[str, str], list[Alert]](list)
    for alert in waiting:
        actors[alert.asset, alert.top_tags[0][0] if alert.top_tags else ""].append(alert)
    worst = sorted(actors.items(), key=lambda item: (-len(item[1]), item[0]))
    asks, chosen = list[Ask](), set[int]()
    first = [Ask(a, f"peak {a.peak_score:.4g}, near the threshold {case.now:.4g}") for a in near]
    second = [
        Ask(own[-1 - turn], f"{len(own)} alerts of {asset} {tag} without a verdict")
        for turn in range(max((len(own) for _, own in worst), default=0))
        for (asset, tag), own in worst
        if turn < len(own)
    ]
    while len(asks) < count and (first or second):
        for queue in (first, second):
            while queue and queue[0].alert.id in chosen:
                queue.pop(0)
            if queue and len(asks) < count:
                asks.append(queue.pop(0))
                chosen.add(asks[-1].alert.id)
    return asks


def with_threshold(model: AnomalyModel, database: Database | str | None) -> tuple[AnomalyModel, str]:
    """The model with the threshold that people set for its digest, and that in words; as it was, and "", where none is set.

    Raises Unavailable where the database is.
    """
    if database is None or model.digest is None:
        return model, ""
    held = active_threshold(database if isinstance(database, Database) else Database(database), model.digest)
    if held is None or held.value is None:
        return model, ""
    who = shown(held.actor) + (f" and {shown(held.second)}" if held.second else "")
    words = (f"threshold {held.value:.6g}, set by {who} on {iso_time(held.at)[:10]}, in place of the model's own "
             f"{model.threshold.value:.6g}")  # fmt: skip
    other = replace(model.threshold, value=held.value, rule="feedback", low=None, high=None, note=words)
    return replace(model, threshold=other), words
