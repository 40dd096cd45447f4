"""Judge the models of a family, each on the rows of its own assets: figures and a report per model, one table of them all."""

from __future__ import annotations

import csv
import logging
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.data.readers import PlantLog
from anomaly.encoders.memory import release_memory
from anomaly.errors import Fault, InputRefused, ModelRefused
from anomaly.files import atomic_path
from anomaly.fitting import Progress, silent
from anomaly.model import AnomalyModel, ScoredRows
from pipelines.asset_groups import Spool, from_table, to_table
from pipelines.evaluate import judge_log
from pipelines.home import reports
from pipelines.ingest import log_files
from pipelines.score_family import NO_MODEL, Assignment, Known, known_members, readable_log
from registry.bundle import load_bundle
from registry.families import Family

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemberRow:
    """One model's line: its figures with 95 % intervals, None where one is not defined, or why it was not judged."""

    model: str
    assets: str = ""
    rows: int = 0
    events: int = 0
    threshold: float | None = None
    average_precision: float | None = None
    low: float | None = None
    high: float | None = None
    event_recall: float | None = None
    false_episodes_per_day: float | None = None
    code: str = ""
    reason: str = ""
    report: str = ""


@dataclass
class EvaluatedFamily:
    """A family judged on one log; ``set_aside`` maps files that could not be read to why, ``without_model`` names assets."""

    name: str
    table: Path
    rows: list[MemberRow] = field(default_factory=list)
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    set_aside: dict[str, str] = field(default_factory=dict)
    without_model: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def partly(self) -> bool:
        """Whether a model could not be judged or a file not be read."""
        return bool(self.set_aside) or any(r.code for r in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return {**vars(self), "table": str(self.table), "rows": [asdict(r) for r in self.rows],
                "without_model": list(self.without_model), "notices": list(self.notices)}  # fmt: skip


def evaluate_family(
    paths: Sequence[Path], family: Family, report: Path | None, progress: Progress = silent
) -> EvaluatedFamily:
    """Judge every model of ``family`` on the rows of its assets in the labelled logs at ``paths``.

    One pass sorts the rows by model on disk; then one model after the other is loaded and judged. ``report``: where the table
    goes (CSV); the models' pages lie beside it. A model that cannot be judged, for want of a label or of rows that it has not
    seen, has a line that says why. Raises InputRefused: no file can be read, or E3105 where no model has a label.
    """
    refused = dict[str, str]()
    known = known_members(family, refused)
    log, aside = readable_log(log_files(paths), known)
    target = (report or reports() / f"evaluation-{family.name}-{log.fingerprint[:12]}.csv").with_suffix(".csv")
    done = EvaluatedFamily(family.name, target, set_aside=aside, notices=log.notices)
    with tempfile.TemporaryDirectory(prefix="anomaly-family-") as folder, Spool(Path(folder) / "rows") as rows:
        assets = _sorted(log, Assignment(family, next(iter(known.values())).settings), rows, progress)
        done.without_model = tuple(assets.pop(NO_MODEL, ()))
        for name in [m.name for m in family.members if m.name in assets]:
            line = MemberRow(name, ", ".join(assets[name]))
            if name in known:
                done.rows.append(_judged(done, known[name], log, rows, line, progress))
            else:
                done.rows.append(_failed(line, refused[name].partition(" ")[0], refused[name]))
            release_memory()
    if not done.evaluations and {r.code for r in done.rows} == {"E3105"}:
        raise InputRefused(Fault("E3105", "a labelled log", "no label column, or no normal row", "train with --label"))
    _write(done)
    return done


def _sorted(log: PlantLog, of: Assignment, spool: Spool, progress: Progress) -> dict[str, list[str]]:
    """Put the rows of the log into ``spool`` by member; gives each member's assets."""
    member, done = dict[str, str](), 0
    for number, chunk in enumerate(log.chunks()):
        member |= {a: of(a) for a in map(str, dict.fromkeys(chunk.asset)) if a not in member}
        names = np.array([member[str(a)] for a in chunk.asset], dtype=object)
        for name in dict.fromkeys(names):
            if name != NO_MODEL:
                spool.add(number, str(name), to_table(chunk.take(names == name)))
        done += len(chunk)
        progress("sorting by asset", done, log.rows)
    found = dict[str, list[str]]()
    for asset, name in member.items():
        found.setdefault(name, []).append(asset)
    return found


def _judged(
    done: EvaluatedFamily, known: Known, log: PlantLog, spool: Spool, line: MemberRow, progress: Progress
) -> MemberRow:  # fmt: skip
    name = known.member.name
    try:
        model = load_bundle(known.model.path, expect_digest=known.model.digest)
        page = done.table.with_name(f"{done.table.stem}-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.html")
        blocks = _blocks(model, name, log, spool, progress)
        found = judge_log(model, name, log, blocks, page)
    except (InputRefused, ModelRefused) as error:
        fault = error.faults[0]
        return _failed(line, fault.code, fault.line())
    done.evaluations[name] = found.evaluation
    return _line(line, model, found.evaluation, page)


def _blocks(
    model: AnomalyModel, name: str, log: PlantLog, spool: Spool, progress: Progress
) -> Iterator[tuple[ScoredRows, NDArray[np.int8]]]:  # fmt: skip
    stream, done = model.stream(), 0
    for _, piece in spool.pieces(name):
        chunk = from_table(piece, log.contract, model.contract)
        yield stream.score(chunk), chunk.label
        done += len(chunk)
        progress(f"score {name}", done, log.rows)


def _failed(line: MemberRow, code: str, reason: str) -> MemberRow:
    _log.warning("%s is not judged: %s", line.model, reason)
    return MemberRow(line.model, line.assets, code=code, reason=reason)


def _line(line: MemberRow, model: AnomalyModel, evaluation: dict[str, Any], page: Path) -> MemberRow:
    figures, precision = evaluation["figures"], evaluation["figures"]["average_precision"]
    return replace(
        line,
        rows=evaluation["rows"],
        events=evaluation["events"],
        threshold=model.threshold.value,
        average_precision=precision["value"],
        low=precision["low"],
        high=precision["high"],
        event_recall=figures["event_recall"]["value"],
        false_episodes_per_day=figures["false_episodes_per_day"]["value"],
        report=str(page),
    )


def _write(done: EvaluatedFamily) -> None:
    """The table as CSV, every field a column, whole or not at all; a figure that is not defined is empty."""
    with atomic_path(done.table) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, [f.name for f in fields(MemberRow)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(r) for r in done.rows)
