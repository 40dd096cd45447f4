"""Figures of the scoring service in Prometheus' text format; counted under a lock, from any thread."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping

#: Upper ends of the latency histogram, in seconds.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_Sample = tuple[str, Mapping[str, str], float]


class Figures:
    """What was asked and answered since the start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests, self._rows, self._buckets = Counter[tuple[str, int]](), Counter[str](), Counter[float]()
        self._seconds, self._last, self._failures = 0.0, 0.0, 0

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request; the seconds count for ``/score`` alone."""
        with self._lock:
            self._requests[path, status] += 1
            if path == "/score":
                self._seconds += seconds
                self._buckets[next((b for b in BUCKETS if seconds <= b), float("inf"))] += 1

    def scored(self, outcomes: Iterable[str]) -> None:
        """Count scored rows by outcome."""
        counted = Counter(outcomes)
        with self._lock:
            self._rows.update(counted)
            self._last = time.time()

    def reload_failed(self) -> None:
        """Count a try to load a model that failed."""
        with self._lock:
            self._failures += 1

    def text(self, model: tuple[str, str, str, float] | None) -> str:
        """All families; ``model`` is name, version, digest and the time it was loaded at, None where there is none."""
        with self._lock:
            requests = [("", {"path": p, "status": str(s)}, float(n)) for (p, s), n in sorted(self._requests.items())]
            rows = [("", {"outcome": o}, float(n)) for o, n in sorted(self._rows.items())]
            latency = self._latency()
            last, failures = self._last, float(self._failures)
        info: list[_Sample] = []
        if model is not None:
            info = [("", dict(zip(("name", "version", "digest"), model[:3], strict=True)), 1.0)]
        loaded = [] if model is None else [("", dict[str, str](), model[3])]
        return "".join([
            family("anomaly_scoring_requests_total", "counter", "Requests by path and status.", requests),
            family("anomaly_scoring_rows_total", "counter", "Scored rows by outcome.", rows),
            family("anomaly_scoring_seconds", "histogram", "Time to answer POST /score.", latency),
            family("anomaly_scoring_ready", "gauge", "1 where a model is at work.", [("", {}, float(bool(info)))]),
            family("anomaly_scoring_model_info", "gauge", "The model at work.", info),
            family("anomaly_scoring_model_loaded_timestamp_seconds", "gauge", "When it was loaded.", loaded),
            family("anomaly_scoring_reload_failures_total", "counter", "Tries to load a model that failed.",
                   [("", {}, failures)]),
            family("anomaly_scoring_last_score_timestamp_seconds", "gauge", "When rows were scored last.",
                   [("", {}, last)] if last else []),
        ])  # fmt: skip

    def _latency(self) -> list[_Sample]:
        samples: list[_Sample] = []
        below = 0
        for bound in (*BUCKETS, float("inf")):
            below += self._buckets[bound]
            samples.append(("_bucket", {"le": "+Inf" if bound == float("inf") else f"{bound:g}"}, float(below)))
        return [*samples, ("_sum", {}, self._seconds), ("_count", {}, float(below))]


def family(name: str, kind: str, told: str, samples: Iterable[_Sample]) -> str:
    r"""One family: suffix, labels and value of each sample.

    >>> print(family("a", "gauge", "Things.", [("", {"asset": 'x"y'}, 2.0)]), end="")
    # HELP a Things.
    # TYPE a gauge
    a{asset="x\"y"} 2.0
    """
    lines = [f"# HELP {name} {told}", f"# TYPE {name} {kind}"]
    for suffix, labels, value in samples:
        inside = ",".join(f'{key}="{_label(text)}"' for key, text in labels.items())
        lines.append(f"{name}{suffix}{{{inside}}} {value!r}" if inside else f"{name}{suffix} {value!r}")
    return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
