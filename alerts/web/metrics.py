"""Figures for Prometheus, in its text format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fastapi import APIRouter, Request
from starlette.responses import Response

from alerts.web import queries
from alerts.web.pages import Viewer
from alerts.web.services import Services, services

router = APIRouter()


@router.get("/metrics")
def metrics(request: Request, visitor: Viewer) -> Response:
    """Alerts by state and kind, messages by state, age of the last data. A scraper signs in with a bearer token."""
    return Response(exposition(services(request)), media_type="text/plain; version=0.0.4; charset=utf-8")


def exposition(own: Services) -> str:
    """The text, one family after the other."""
    now, last = own.clock(), queries.last_answered(own)
    counts = own.remembered("by kind", 10.0, lambda: queries.state_kind_counts(own.database))
    waiting: dict[str, int] = {"pending": 0, "dead": 0}
    for (_, state), n in queries.deliveries(own.database).items():
        kind = {"new": "pending", "pending": "pending", "sending": "pending", "dead": "dead"}.get(state)
        if kind:
            waiting[kind] += n
    by_kind = (({"state": state, "kind": kind}, n) for (state, kind), n in sorted(counts.items()))
    ages = (({"asset": asset}, max(now - at, 0) / 1e6) for asset, at in sorted(last.items()))
    logs = queries.last_logs(own.database, 1)
    return "".join([
        family("anomaly_alerts", "Alerts by state and kind.", by_kind),
        family("anomaly_outbox_messages", "Messages on their way, and dead ones.",
               (({"state": state}, n) for state, n in waiting.items())),
        family("anomaly_last_data_age_seconds", "Time since the last answered row of an asset.", ages),
        family("anomaly_scorer_age_seconds", "Time since a scored log was last recorded.",
               (({}, max(now - log.recorded_at, 0) / 1e6) for log in logs)),
    ])  # fmt: skip


def family(name: str, help: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> str:
    r"""One family of gauges.

    >>> print(family("a", "Things.", [({"asset": 'x"y'}, 2)]), end="")
    # HELP a Things.
    # TYPE a gauge
    a{asset="x\"y"} 2
    """
    lines = [f"# HELP {name} {help}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        inside = ",".join(f'{key}="{_label(text)}"' for key, text in labels.items())
        lines.append(f"{name}{{{inside}}} {value:g}" if inside else f"{name} {value:g}")
    return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
