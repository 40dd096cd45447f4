"""One turn of a watch: the rows that are released are scored into one file, each asset by its model, and counted."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from anomaly.data.contract import LogChunk
from anomaly.files import atomic_path
from anomaly.model import OUTCOMES, UNSCORABLE, AnomalyModel
from pipelines.score import score_table, score_writer
from pipelines.score_family import unscored_table
from pipelines.shadow import Shadowed
from pipelines.watch_shadow import ShadowPart

if TYPE_CHECKING:
    from pipelines.watch import Watch

#: Rows that are gathered before some are released: a bound of memory.
HELD_ROWS = 65_536


@dataclass
class Turn:
    """What one turn did, or several added up; ``quarantined`` maps file names to reasons."""

    files: int = 0
    repeated: int = 0
    rows: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    episodes: int = 0
    scores: list[Path] = field(default_factory=list)
    quarantined: dict[str, str] = field(default_factory=dict)
    not_ready: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    shadow: Shadowed | None = None

    def add(self, other: Turn) -> None:
        """Count another turn in."""
        for name in ("files", "repeated", "rows", "episodes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.outcomes.update(other.outcomes)
        self.scores += other.scores
        self.notices += other.notices
        self.quarantined |= other.quarantined
        self.not_ready = other.not_ready
        if self.shadow is not None and other.shadow is not None:
            self.shadow.add(other.shadow)
        self.shadow = self.shadow or other.shadow

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        told = {**vars(self), "outcomes": dict(self.outcomes), "scores": [str(p) for p in self.scores]}
        return {**told, "shadow": None if self.shadow is None else self.shadow.to_dict()}


class Part:
    """The score file of one turn, made when the first row is scored; ``outcomes``: rows of each member by outcome."""

    def __init__(self, watch: Watch, path: Path, stack: ExitStack) -> None:
        self.path, self._watch, self._stack = path, watch, stack
        self._writer: pq.ParquetWriter | None = None
        self.outcomes: dict[str, Counter[str]] = {}
        self.shadow: ShadowPart | None = None
        if watch.challenger is not None and watch.state.shadow is not None:
            beside = path.with_name(path.name.replace("scores-", "shadow-", 1))
            reference, model = watch.challenger
            self.shadow = stack.enter_context(
                ShadowPart(reference, model, watch.state.shadow, watch.models.contract, beside)
            )

    def score(self, done: Turn, everything: bool = False) -> None:
        """Score what the order releases."""
        chunk = self._watch.state.order.release(everything)
        if chunk is None:
            return
        if self._writer is None:
            temporary = self._stack.enter_context(atomic_path(self.path))
            self._writer = self._stack.enter_context(score_writer(temporary))
        for name, own in self._watch.models.parts(chunk):
            model = self._watch.models.loaded.get(name)
            if model is not None:
                self._watch.look_at_sensors(name, own)
            for low in range(0, len(own), HELD_ROWS):
                piece = own.take(slice(low, low + HELD_ROWS))
                if model is None:
                    self._unscored(piece, self._watch.models.why_not(name), self._writer, done)
                else:
                    self._scored(piece, name, model, self._writer, done)
                self._watch.beat()

    def _scored(self, chunk: LogChunk, name: str, model: AnomalyModel, writer: pq.ParquetWriter, done: Turn) -> None:
        state = self._watch.state
        rows = state.members[name].stream.score(chunk)
        writer.write_table(score_table(rows, model))
        state.members[name].add(rows)
        state.outages.update(rows)
        told = OUTCOMES[rows.outcome].tolist()
        self.outcomes.setdefault(name, Counter()).update(told)
        done.rows += len(rows.time)
        done.outcomes.update(told)
        if self.shadow is not None:
            self.shadow.score(chunk, rows)

    def _unscored(self, chunk: LogChunk, reason: str, writer: pq.ParquetWriter, done: Turn) -> None:
        writer.write_table(unscored_table(chunk.time, chunk.asset, reason))
        self._watch.state.outages.unscored(chunk.time, chunk.asset, reason)
        done.rows += len(chunk)
        done.outcomes[str(OUTCOMES[UNSCORABLE])] += len(chunk)
        assets = ", ".join(map(str, dict.fromkeys(np.unique(chunk.asset.astype(str)).tolist()[:5])))
        said = f"{assets}: rows are unscorable ({reason})"
        if said not in done.notices:
            done.notices.append(said)
