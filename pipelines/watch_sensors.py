"""The sensor rules of a watch: what they see of the rows that come, told turn by turn.

They live as long as the process. After a restart a fault that goes on is found anew and extends the alert that it has.
"""

from __future__ import annotations

import copy

from anomaly.data.contract import LogChunk
from anomaly.data.quality import Finding, QualityProfile, QualityWatch
from anomaly.model import AnomalyModel


class SensorWatch:
    """Follows rows of all assets; ``fresh``: rows came since it was last told."""

    def __init__(self, watch: QualityWatch | None) -> None:
        self._watch, self.fresh = watch, False

    def update(self, chunk: LogChunk) -> None:
        """Look at the next rows, by asset and time."""
        if self._watch is not None:
            self._watch.update(chunk)
            self.fresh = True

    def findings(self) -> list[Finding]:
        """All findings so far, those that go on included; nothing ends by asking."""
        return [] if self._watch is None else copy.deepcopy(self._watch).finish()


def sensor_watch(model: AnomalyModel) -> SensorWatch:
    """The rules by what the model knows of its sensors; rules that see nothing where it knows nothing."""
    if not model.quality:
        return SensorWatch(None)
    profile = QualityProfile.from_dict(model.quality)
    return SensorWatch(QualityWatch(profile, model.contract, max_gap=model.settings.window.max_gap))
