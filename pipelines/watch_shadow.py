"""A challenger beside the champion of a watch: it scores the same rows, turn by turn, and raises no alerts.

Whatever goes wrong with it is told, and never harms the champion's turn.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow.parquet as pq

from anomaly.data.contract import LogChunk, LogContract
from anomaly.errors import Fault, UsageError
from anomaly.files import atomic_path
from anomaly.model import OUTCOMES, AnomalyModel, ScoredRows
from pipelines.score import score_table, score_writer
from pipelines.shadow import Shadowed, compare
from pipelines.watch_members import Member, narrowed

_log = logging.getLogger(__name__)


def check_challenger(champion: LogContract, challenger: LogContract) -> None:
    """Refuse (UsageError E2001) a challenger that needs other columns than the champion's log has, or another period."""
    lacking = [n for n in challenger.tags if n not in champion.tags]
    lacking += [n for n in challenger.categories if n not in champion.categories]
    if lacking:
        raise UsageError(Fault("E2001", "a challenger of sensors that the model reads", ", ".join(lacking[:5])))
    if challenger.period_us != champion.period_us:
        found = f"{challenger.period_us / 1e6:g} s"
        raise UsageError(Fault("E2001", f"a challenger for {champion.period_us / 1e6:g} s", found))


class ShadowPart:
    """What the challenger says in one turn: a file of scores beside the champion's, and counts. A context manager.

    ``told`` counts where the two differ; ``told.refused`` says why the challenger did not score.
    """

    def __init__(self, reference: str, model: AnomalyModel, member: Member, contract: LogContract, path: Path) -> None:
        self.told, self.member = Shadowed(reference, path), member
        self._model, self._contract, self._stack = model, contract, ExitStack()
        self._writer: pq.ParquetWriter | None = None

    def score(self, chunk: LogChunk, champion: ScoredRows) -> None:
        """Score the rows that the champion has scored."""
        if self.told.refused:
            return
        try:
            rows = self.member.stream.score(narrowed(chunk, self._contract, self._model.contract))
            if self._writer is None:
                temporary = self._stack.enter_context(atomic_path(self.told.out))
                self._writer = self._stack.enter_context(score_writer(temporary))
            self._writer.write_table(score_table(rows, self._model))
            self.member.add(rows)
            compare(self.told, rows, champion.time, champion.asset, OUTCOMES[champion.outcome])
        except Exception as error:  # noqa: BLE001  whatever a challenger does must not harm the champion
            self._failed(error)

    def close(self) -> None:
        """The turn is over: count the challenger's new episodes."""
        if not self.told.refused:
            _, self.told.challenger_episodes = self.member.close(self._model)

    def _failed(self, error: Exception) -> None:
        _log.warning("the shadow %s did not score: %s", self.told.reference, error)
        self.told.refused = f"{type(error).__name__}: {error}"
        self.member = Member.new(self._model)
        self._stack.__exit__(type(error), error, error.__traceback__)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stack.__exit__(kind, error, trace)
        except Exception as failed:  # noqa: BLE001  as above; its file is not there then
            if error is None:
                self.told.refused = f"{type(failed).__name__}: {failed}"
