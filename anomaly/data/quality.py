"""Rules that look for sensor faults beside the model: a model of normal operation misses many of them.

A finding says what a sensor did and never touches the score. RELIABILITY fact 9 is the reason: sensors frozen at their
means look perfectly normal to a reconstruction model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from anomaly.data.contract import LogChunk, LogContract
from anomaly.data.sensor_rules import (
    KINDS,
    CorrelationSwapRule,
    Finding,
    GapRule,
    LevelSwapRule,
    RangeRule,
    Rule,
    RunRule,
)
from anomaly.data.sensor_statistics import QualityProfile, SensorGrade, SensorStatistics, TagProfile
from anomaly.data.stretches import by_asset

__all__ = ["KINDS", "Finding", "QualityProfile", "QualityWatch", "SensorGrade", "SensorStatistics", "TagProfile"]

_MOST_FINDINGS = 500  # of one kind, asset and tag


class QualityWatch:
    """Looks for sensor faults in a log, chunk by chunk; any chunking gives the same findings.

    flat_line: one value for at least 20 rows and five times the longest usual run, in a tag that usually moves.
    missing: the same for rows without a value. gap: a time step over ``max_gap`` periods. out_of_range: at least 3 rows
    more than 3 usual ranges away. unit_jump: at least 20 rows that a change of unit explains. swapped_pair: two tags
    that hold each other's levels and not their own for at least 20 rows, or each other's correlations in at least 3
    blocks of 256 rows. A fault that explains another is told alone: a unit change is not also out of range.

    Of one kind, asset and tag the first 500 findings are kept; ``left_out`` counts the others.
    """

    def __init__(self, profile: QualityProfile, contract: LogContract, *, max_gap: float = 3.5) -> None:
        known = tuple(t.tag for t in profile.tags)
        if known != contract.tags:
            raise ValueError(f"profile: expected the contract's tags {contract.tags}, got {known}")
        self._profile, self._period, self._max_gap = profile, contract.period_us, max_gap
        self._assets: dict[str, _AssetWatch] = {}

    @property
    def left_out(self) -> int:
        """Findings beyond the first 500 of their kind, asset and tag."""
        return sum(a.left_out for a in self._assets.values())

    def update(self, chunk: LogChunk) -> None:
        """Look at the next rows."""
        for asset, part in by_asset(chunk) if len(chunk) else ():
            if asset not in self._assets:
                self._assets[asset] = _AssetWatch(asset, self._profile, self._period, self._max_gap)
            self._assets[asset].update(part)

    def finish(self) -> list[Finding]:
        """End every stretch still open and give all findings, by asset, start, kind and tag."""
        found = [f for a in self._assets.values() for f in a.finish()]
        return sorted(found, key=lambda f: (f.asset, f.start_us, f.kind, f.tag, f.end_us))


class _AssetWatch:
    """The rules and the findings of one asset."""

    def __init__(self, asset: str, profile: QualityProfile, period_us: int, max_gap: float) -> None:
        self._rules: list[Rule] = [GapRule(asset, period_us, max_gap)]
        for c, usual in enumerate(profile.tags):
            self._rules += [RunRule(asset, c, usual), RangeRule(asset, c, usual)]
        self._rules += [LevelSwapRule(asset, profile.tags), CorrelationSwapRule(asset, profile)]
        self._rows = 0
        self._found: list[Finding] = []
        self._count: Counter[tuple[str, str]] = Counter()
        self.left_out = 0

    def update(self, part: LogChunk) -> None:
        at = np.arange(self._rows, self._rows + len(part), dtype=np.int64)
        self._rows += len(part)
        for rule in self._rules:
            self._note(rule.update(part, at))

    def finish(self) -> list[Finding]:
        for rule in self._rules:
            self._note(rule.finish())
        return told_once(self._found)

    def _note(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self._count[finding.kind, finding.tag] += 1
            if self._count[finding.kind, finding.tag] <= _MOST_FINDINGS:
                self._found.append(finding)
            else:
                self.left_out += 1


def told_once(findings: list[Finding]) -> list[Finding]:
    """``findings`` of one asset without those that another one explains over the same time.

    A swap explains values out of range and unit changes of its two tags, and a swap of them seen by correlation after
    one seen by level; a unit change explains values out of range.
    """
    kept: list[Finding] = []
    for finding in sorted(findings, key=lambda f: _EXPLAINS.get(f.kind, 2)):
        if not any(_explains(k, finding) for k in kept if k.kind in _EXPLAINS):
            kept.append(finding)
    return kept


_EXPLAINS = {"swapped_pair": 0, "unit_jump": 1}


def _explains(known: Finding, finding: Finding) -> bool:
    if finding.kind not in ("swapped_pair", "unit_jump", "out_of_range"):
        return False
    if known.kind == finding.kind == "swapped_pair":
        same = {known.tag, known.other} == {finding.tag, finding.other}
    else:
        same = known.kind != finding.kind and finding.tag in (known.tag, known.other)
    return same and known.start_us <= finding.end_us and finding.start_us <= known.end_us
