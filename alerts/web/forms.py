"""What stands in an address or a form, as filters and details of actions; a wrong value is refused with words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from alerts.listing import Filters
from alerts.states import ACKNOWLEDGED, IN_WORK, NEW, RETURNED, STATES
from alerts.web.services import HOUR_US
from anomaly.errors import Fault, UsageError

#: What the list shows if nothing else is asked for: what wants something of somebody now.
STANDING = (NEW, ACKNOWLEDGED, IN_WORK, RETURNED)
#: For how long one can shelve, in hours.
SHELF_HOURS = (1, 4, 8, 24, 72, 168, 720)
NAMES = ("state", "asset", "priority", "kind", "since", "until", "text", "assignee", "parent")


@dataclass(frozen=True)
class Asked:
    """The filters of the list as given, to show them again, and as meant."""

    given: Mapping[str, str]
    filters: Filters

    def query(self, **changed: str) -> str:
        """As they stand in an address."""
        return urlencode({k: v for k, v in (dict(self.given) | changed).items() if v})


def asked(query: Mapping[str, str], *, top: bool = True) -> Asked:
    """The filters in an address. Raises UsageError E2001 for a value that is not one."""
    given = {name: query.get(name, "").strip() for name in NAMES}
    state = given["state"] or "open"
    if state not in ("open", "all", *STATES):
        raise UsageError(Fault("E2001", f"state: open, all, {', '.join(STATES)}", state))
    parent = _number("parent", given["parent"])
    states = STANDING if state == "open" else () if state == "all" else (state,)
    filters = Filters(
        states=states if state != "open" or parent is None else (),
        asset=given["asset"] or None,
        priorities=tuple(n for n in (_number("priority", given["priority"]),) if n is not None),
        kinds=(given["kind"],) if given["kind"] else (),
        assignee=given["assignee"] or None,
        since_us=moment_of("since", given["since"]),
        until_us=moment_of("until", given["until"]),
        text=given["text"],
        parent=parent,
        top=top,
    )
    return Asked(given, filters)


def _number(name: str, text: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise UsageError(Fault("E2001", f"{name}: a number", text))
    return int(text)


def moment_of(name: str, text: str) -> int | None:
    """UTC microseconds of an ISO 8601 time; without a zone it is UTC. None for "".

    >>> moment_of("since", "1970-01-01T00:01"), moment_of("since", "1970-01-01T01:01+01:00")
    (60000000, 60000000)
    """
    if not text:
        return None
    try:
        told = datetime.fromisoformat(text)
        return round((told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp() * 1_000_000)
    except (ValueError, OverflowError) as error:
        raise UsageError(Fault("E2001", f"{name}: a time such as 2026-01-31T06:00", text)) from error


def version_of(text: str) -> int | None:
    """The version of an alert that a form was made of."""
    return _number("version", text)


def hours_of(text: str) -> float:
    """Hours above 0, at most 720. Raises UsageError E2001 for anything else."""
    if not re.fullmatch(r"\d{1,3}(\.\d{1,4})?", text, re.ASCII) or not 0 < float(text) <= SHELF_HOURS[-1]:
        raise UsageError(Fault("E2001", "hours: above 0, at most 720", text))
    return float(text)


def details_of(action: str, fields: Mapping[str, str], now_us: int) -> dict[str, Any]:
    """What ``Workflow.apply`` takes for an action beside a comment."""
    if action == "shelve":
        return {"until_us": now_us + round(hours_of(fields.get("hours", "")) * HOUR_US)}
    if action == "verdict":
        return {"verdict": fields.get("verdict", "")}
    if action == "assign":
        return {"assignee": fields.get("assignee", "").strip() or None}
    return {}


def chosen(values: list[str]) -> dict[int, int | None]:
    """The alerts ticked in the list, ``NUMBER:VERSION`` each. Raises UsageError E2001 where one is not, or none is ticked."""
    found: dict[int, int | None] = {}
    for text in values:
        match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text, re.ASCII)
        if match is None:
            raise UsageError(Fault("E2001", "alert: NUMBER:VERSION", text))
        found[int(match[1])] = int(match[2])
    if not found:
        raise UsageError(Fault("E2001", "at least one alert", "none is ticked"))
    return found
