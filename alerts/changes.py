"""One place that writes what was done to an alert: the line of its past, and the message to the outside."""

from __future__ import annotations

import json
import math
from typing import Any

import sqlalchemy as sa

from alerts import tables
from alerts.alert import Alert, iso_time
from alerts.outbox import enqueue


def log_event(
    connection: sa.Connection,
    before: Alert,
    after: Alert,
    at: int,
    actor: str,
    action: str,
    comment: str = "",
    **detail: Any,
) -> None:
    """Write what was done to an alert, and the message about it, in the caller's transaction."""
    entry = {"alert_id": after.id, "at": at, "actor": actor, "action": action, "from_state": before.state,
             "to_state": after.state, "comment": comment, "detail": json.dumps(detail)}  # fmt: skip
    connection.execute(sa.insert(tables.alert_events).values(**entry))
    enqueue_alert(connection, after, action, at, actor=actor, comment=comment)


def enqueue_alert(connection: sa.Connection, alert: Alert, action: str, at: int, **more: Any) -> None:
    """Put a message about an alert into the outbox; its id follows from the alert, its version and the action."""
    told = {name: getattr(alert, name) for name in _TOLD}
    told |= {"start": iso_time(alert.start_us), "end": iso_time(alert.end_us)}
    told |= {k: None for k, v in told.items() if isinstance(v, float) and not math.isfinite(v)}
    told["top_tags"] = [[tag, share] for tag, share in alert.top_tags]
    key = f"{alert.asset}|{alert.model}|{alert.kind}|{alert.cause}|{alert.id}|{alert.start_us}|{alert.version}|{action}"
    sensor = alert.cause or (alert.top_tags[0][0] if alert.top_tags else "")
    payload = {"alert": told, "action": action} | more
    enqueue(connection, f"alert.{action}", payload, key=key, asset=alert.asset, sensor=sensor,
            priority=alert.priority, at=at)  # fmt: skip


_TOLD = ("id", "asset", "kind", "cause", "state", "priority", "start_us", "end_us", "peak_score", "threshold", "lead_us",
         "model_name", "assignee", "verdict", "reopened", "version")  # fmt: skip
