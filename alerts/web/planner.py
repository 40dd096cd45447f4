"""The calendar of planned work, and the audit: who did what."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from alerts.web import queries
from alerts.web.access import Form, Visitor, field
from alerts.web.forms import moment_of
from alerts.web.pages import Number, Operator, Viewer
from alerts.web.rendering import render
from alerts.web.services import DAY_US, services
from anomaly.errors import Fault, UsageError

router = APIRouter()


@router.get("/planning")
def planning_page(request: Request, visitor: Viewer) -> Response:
    """Work under way, to come, and over."""
    return _page(request, visitor)


@router.post("/planning/add")
def planning_add(request: Request, visitor: Operator, form: Form) -> Response:
    """Announce work."""
    given = {name: field(form, name).strip() for name in ("asset", "start", "end", "reason")}
    try:
        start, end = moment_of("start", given["start"]), moment_of("end", given["end"])
        if start is None or end is None:
            raise UsageError(Fault("E2001", "a start and an end", "one is missing"))
        services(request).planning.plan(given["asset"], start, end, given["reason"], visitor.user.name)
    except UsageError as error:
        return _page(request, visitor, 400, error.faults[0], given)
    return RedirectResponse("/planning", 303)


@router.post("/planning/{id:int}/end")
def planning_end(request: Request, visitor: Operator, form: Form, id: Number) -> Response:
    """End work now, or take it back."""
    try:
        services(request).planning.end(id, by=visitor.user.name)
    except UsageError as error:
        return _page(request, visitor, 400, error.faults[0])
    return RedirectResponse("/planning", 303)


def _page(
    request: Request, visitor: Visitor, status: int = 200, fault: Fault | None = None, given: dict[str, str] | None = None
) -> Response:  # fmt: skip
    own = services(request)
    now = own.clock()
    held = own.planning.calendar(now - 90 * DAY_US, now + 3660 * DAY_US)
    values: dict[str, Any] = {
        "ahead": [p for p in held if p.end_us > now], "past": [p for p in reversed(held) if p.end_us <= now], "now": now,
        "assets": queries.known_assets(own)[:500], "can_change": visitor.user.may("operator"), "fault": fault,
        "given": given or {},
    }  # fmt: skip
    return render(request, "planning.html", visitor, status, **values)


@router.get("/audit")
def audit_page(request: Request, visitor: Viewer) -> Response:
    """Who changed which alert; for an admin also sign-ins and changes of users, tokens and planned work."""
    own = services(request)
    people = queries.user_events(own.database) if visitor.user.may("admin") else None
    return render(request, "audit.html", visitor, events=queries.recent_events(own.database, 0), people=people)
