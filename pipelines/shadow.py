"""Shadow scoring: a challenger scores the rows that the champion has scored, and raises no alerts.

Its scores are kept beside the champion's, and what differs is told in one line. A challenger that cannot score the log never
harms the champion's scoring: why not is what is told then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anomaly.encoders.inference import kind_for
from anomaly.errors import Fault, InputRefused, UsageError
from anomaly.files import atomic_path
from anomaly.fitting import Progress, silent
from anomaly.model import ANOMALOUS, OUTCOMES, UNSCORABLE, AnomalyModel, ScoredRows
from pipelines.ingest import log_files
from pipelines.score import Trackers, open_for, score_table, score_writer, scored_chunks


@dataclass
class Shadowed:
    """What a challenger said beside the champion; counts of rows unless they say otherwise.

    ``refused`` holds why it could not score the log; ``aligned`` is False where its rows are not the champion's, so that
    only the episodes can be compared.
    """

    reference: str
    out: Path
    rows: int = 0
    both: int = 0
    champion_only: int = 0
    challenger_only: int = 0
    one_unscorable: int = 0
    champion_episodes: int = 0
    challenger_episodes: int = 0
    aligned: bool = True
    refused: str = ""

    def add(self, other: Shadowed) -> None:
        """Count what it said of later rows in."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.out, self.aligned = other.out, self.aligned and other.aligned
        self.refused = other.refused

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return {**asdict(self), "out": str(self.out)}

    def line(self) -> str:
        """The difference in one line.

        >>> Shadowed("new", Path("s.parquet"), 900, 7, 2, 11, 0, 3, 4).line()
        'shadow new: 7 rows anomalous in both, 2 in the champion only, 11 in the challenger only; episodes 3 and 4 → s.parquet'
        """
        if self.refused:
            return f"shadow {self.reference} did not score: {self.refused}"
        episodes = f"episodes {self.champion_episodes} and {self.challenger_episodes} → {self.out}"
        if not self.aligned:
            return f"shadow {self.reference}: its rows are not those of the champion; {episodes}"
        said = f"{self.both} rows anomalous in both, {self.champion_only} in the champion only"
        said += f", {self.challenger_only} in the challenger only"
        if self.one_unscorable:
            said += f", {self.one_unscorable} scorable by one only"
        return f"shadow {self.reference}: {said}; {episodes}"


_COUNTS = ("rows", "both", "champion_only", "challenger_only", "one_unscorable", "champion_episodes",
           "challenger_episodes")  # fmt: skip


def shadow_path(out: Path) -> Path:
    """Where the challenger's scores are kept.

    >>> shadow_path(Path("a/scores.parquet")).name
    'scores.shadow.parquet'
    """
    return out.with_name(f"{out.stem}.shadow{out.suffix}")


def check_shadow(out: Path, paths: Sequence[Path]) -> None:
    """Refuse (UsageError E2003) to write the challenger's scores over one of the logs."""
    if shadow_path(out).resolve() in {f.resolve() for f in log_files(paths)}:
        raise UsageError(
            Fault("E2003", "an output that is not the input", "the log itself", file=str(shadow_path(out)))
        )


def shadow(
    paths: Sequence[Path],
    challenger: AnomalyModel,
    reference: str,
    champion_scores: Path,
    champion_episodes: int,
    progress: Progress = silent,
) -> Shadowed:
    """Score the logs at ``paths`` with ``challenger`` and compare with the champion's score file, row by row as they stream.

    Writes the scores beside ``champion_scores`` and nothing else: no alert, no ledger, no drift. A log that does not fit the
    challenger is told in ``refused``, and an earlier file of such scores is removed then, as it would be of another run.
    """
    done = Shadowed(reference, shadow_path(champion_scores), champion_episodes=champion_episodes)
    trackers = Trackers(challenger)
    try:
        log = open_for(challenger, log_files(paths), progress)
        challenger.engine_kind = kind_for(log.rows)
        champion = _Champion(champion_scores)
        with atomic_path(done.out) as temporary, score_writer(temporary) as writer:
            for _, rows in scored_chunks(log, challenger):
                writer.write_table(score_table(rows, challenger))
                trackers.update(rows)
                compare(done, rows, *champion.take(len(rows.time)))
                progress("shadow", done.rows, log.rows)
        done.aligned = done.aligned and champion.ended
    except InputRefused as error:
        done.refused = str(error)
        done.out.unlink(missing_ok=True)
        return done
    done.challenger_episodes = len(trackers.finish())
    return done


class _Champion:
    """The champion's score file, read as far as it is asked for."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path)
        self._batches = self._read()
        self._held: list[tuple[NDArray[Any], ...]] = []

    def _read(self) -> Iterator[tuple[NDArray[Any], ...]]:
        with self._file:
            for batch in self._file.iter_batches(columns=["time", "asset", "outcome"]):
                time = batch.column("time").cast("int64").to_numpy(zero_copy_only=False)
                yield (time, *(batch.column(c).to_numpy(zero_copy_only=False) for c in ("asset", "outcome")))

    def take(self, count: int) -> tuple[NDArray[Any], ...]:
        """Time, asset and outcome of the next ``count`` rows; fewer at the end."""
        while sum(len(piece[0]) for piece in self._held) < count:
            piece = next(self._batches, None)
            if piece is None:
                break
            self._held.append(piece)
        if not self._held:
            return np.empty(0, np.int64), np.empty(0, object), np.empty(0, object)
        whole = [np.concatenate(columns) for columns in zip(*self._held, strict=True)]
        self._held = [tuple(column[count:] for column in whole)]
        return tuple(column[:count] for column in whole)

    @property
    def ended(self) -> bool:
        """Whether every row was taken."""
        return not len(self.take(1)[0])


def compare(
    done: Shadowed, rows: ScoredRows, time: NDArray[np.int64], asset: NDArray[np.object_], outcome: NDArray[np.object_]
) -> None:
    """Count in ``done`` where the challenger's ``rows`` and the champion's ``outcome (n,)``, as words, differ.

    Rows of other times or assets end the comparison.
    """
    done.rows += len(rows.time)
    if not np.array_equal(time, rows.time) or not np.array_equal(asset, rows.asset):
        done.aligned = False
        return
    theirs, ours = outcome == OUTCOMES[ANOMALOUS], rows.outcome == ANOMALOUS
    done.both += int((theirs & ours).sum())
    done.champion_only += int((theirs & ~ours).sum())
    done.challenger_only += int((ours & ~theirs).sum())
    done.one_unscorable += int(((outcome == OUTCOMES[UNSCORABLE]) != (rows.outcome == UNSCORABLE)).sum())
