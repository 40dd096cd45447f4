"""The list of alerts, one alert, and what people do there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from alerts import figures
from alerts.alert import Alert
from alerts.grouping import planned_work
from alerts.listing import Filters
from alerts.states import ACTIONS, KINDS, allowed
from alerts.web import queries
from alerts.web.access import Form, Visitor, field, needs
from alerts.web.forms import NAMES, SHELF_HOURS, Asked, asked, chosen, details_of, version_of
from alerts.web.rendering import partial, render
from alerts.web.services import DAY_US, Services, services
from alerts.web.trend import trend
from alerts.workflow import Conflict, Outcome
from anomaly.errors import UsageError

router = APIRouter()
PAGE = 50

Viewer = Annotated[Visitor, Depends(needs("viewer"))]
Operator = Annotated[Visitor, Depends(needs("operator"))]
Number = Annotated[int, Path(ge=1, le=2_147_483_647)]


def found(own: Services, id: int) -> Alert:
    """The alert, its shelf ended if it is time; HTTPException 404 where there is none."""
    own.tick()
    try:
        return own.store.alert(id)
    except UsageError as error:
        raise HTTPException(404, "there is no alert with this number") from error


def budget(own: Services) -> dict[str, Any]:
    """Load of the last seven days against the budget of all assets; remembered for a minute."""

    def count() -> dict[str, Any]:
        until = queries.now_of_data(own)
        settings = own.planning.assets()
        loads = figures.load(
            queries.light_alerts(own.database, until - 7 * DAY_US, until), until - 7 * DAY_US, until,
            {asset: s.budget for asset, s in settings.items()},
        )  # fmt: skip
        assets = {*queries.last_answered(own), *settings, *(x.asset for x in loads)}
        may = sum(settings[a].budget if a in settings else figures.BUDGET for a in assets)
        total = sum(x.count for x in loads)
        return {"until": until, "loads": loads, "assets": len(assets), "may": may, "total": total, "rate": total / 7}

    return own.remembered("budget", 60.0, count)


@router.get("/")
def alert_list(request: Request, visitor: Viewer) -> Response:
    """The list with its filters; a part of it for the script."""
    own, query = services(request), request.query_params
    own.tick()
    wanted = asked(query)
    page = queries.lines(own.database, wanted.filters, query.get("after") or None, PAGE)
    values: dict[str, Any] = {
        "page": page,
        "asked": wanted,
        "after": query.get("after", ""),
        "can_change": visitor.user.may("operator"),
    }
    if partial(request):
        part = "parts/rows.html" if query.get("after") else "parts/results.html"
        return render(request, part, visitor, **values)
    return render(request, "list.html", visitor, **values | _around(own), done=None)


def _around(own: Services) -> dict[str, Any]:
    """What stands around the list."""
    counts = own.remembered("counts", 5.0, lambda: queries.listed_counts(own.database))
    return {"counts": counts, "budget": budget(own), "assets": queries.known_assets(own)[:500], "kinds": KINDS,
            "hours": SHELF_HOURS}  # fmt: skip


@router.get("/alerts/{id:int}")
def one_alert(request: Request, visitor: Viewer, id: Number) -> Response:
    """One alert: why, what is known of it, what was done."""
    own = services(request)
    own.tick()
    with own.database.view():  # one transaction for all that the page asks for
        return show_alert(request, visitor, found(own, id))


@router.get("/alerts/{id:int}/trend.json")
def score_curve(request: Request, visitor: Viewer, id: Number) -> JSONResponse:
    """The score around an alert, for the curve."""
    own = services(request)
    return JSONResponse(trend(own.database, found(own, id)))


@router.get("/alerts/{id:int}/curves.json")
def tag_curves(request: Request, visitor: Viewer, id: Number) -> JSONResponse:
    """The window behind the peak, for the curves of its tags."""
    own = services(request)
    return JSONResponse(queries.excerpt(own.database, found(own, id)))


def show_alert(
    request: Request, visitor: Visitor, alert: Alert, status: int = 200, **more: Any
) -> Response:  # fmt: skip
    """The page of an alert; ``more``: what went wrong with a change, if it did."""
    own = services(request)
    planned = planned_work([alert], own.planning.calendar(alert.start_us, alert.end_us + 1)).get(alert.id)
    members = own.store.page(Filters(parent=alert.id), None, PAGE).alerts if alert.kind == "flood" else ()
    left = None if alert.lead_us is None else max(alert.lead_us - (alert.end_us - alert.start_us), 0)
    may = [name for name in allowed(alert.state) if visitor.user.may(ACTIONS[name].role)]
    values: dict[str, Any] = {
        "alert": alert, "told": alert.told(), "events": own.store.events(alert.id)[-200:], "members": members,
        "similar": queries.similar_past(own, alert), "curves": queries.excerpt(own.database, alert),
        "planned": planned, "lead_left": left, "actions": may,
        "hours": SHELF_HOURS, "people": _people(own) if "assign" in may else [],
        "conflict": None, "fault": None, "comment": "",
    }  # fmt: skip
    return render(request, "alert.html", visitor, status, **values | more)


def _people(own: Services) -> list[str]:
    return own.remembered("people", 30.0, lambda: [u.name for u in own.users.list() if u.disabled_at is None])


def _action(name: str) -> Callable[..., Response]:
    """The handler of one action on one alert; each has a route of its own, so that each has its own role."""

    def act(request: Request, visitor: Any, form: Form, id: Number) -> Response:
        own, comment = services(request), field(form, "comment")
        found(own, id)
        try:
            details = details_of(name, {k: field(form, k) for k in ("hours", "verdict", "assignee")}, own.clock())
            version = version_of(field(form, "version"))
            own.workflow.apply(id, name, visitor.user.name, version=version, comment=comment, **details)
        except Conflict as error:
            changed = queries.events_after(own.database, id, error.current.version - (version or 0))
            return show_alert(request, visitor, error.current, 409, conflict=changed, comment=comment)
        except UsageError as error:
            return show_alert(request, visitor, found(own, id), 400, fault=error.faults[0], comment=comment)
        own.forget()
        return RedirectResponse(f"/alerts/{id}", 303)

    act.__annotations__["visitor"] = Annotated[Visitor, Depends(needs(ACTIONS[name].role))]
    return act


for _name in ACTIONS:
    router.add_api_route(f"/alerts/{{id:int}}/{_name}", _action(_name), methods=["POST"], response_model=None)


@router.post("/bulk/acknowledge")
def bulk_acknowledge(request: Request, visitor: Operator, form: Form) -> Response:
    """Acknowledge the ticked alerts."""
    return _bulk(request, visitor, form, "acknowledge")


@router.post("/bulk/shelve")
def bulk_shelve(request: Request, visitor: Operator, form: Form) -> Response:
    """Shelve the ticked alerts for the same time and reason."""
    return _bulk(request, visitor, form, "shelve")


def _bulk(request: Request, visitor: Visitor, form: Any, action: str) -> Response:
    own = services(request)
    versions = chosen([v for v in form.getlist("alert") if isinstance(v, str)])
    details = details_of(action, {"hours": field(form, "hours")}, own.clock())
    done = own.workflow.bulk(versions, action, visitor.user.name, comment=field(form, "comment"), **details)
    own.forget()
    wanted = asked({name: field(form, f"back_{name}") for name in NAMES[:-1]})
    refused = [o for o in done if o.error is not None]
    if not refused:
        return RedirectResponse("/?" + wanted.query(), 303)
    return _refused(request, visitor, wanted, done, refused)


def _refused(
    request: Request, visitor: Visitor, wanted: Asked, done: list[Outcome], refused: Iterable[Outcome]
) -> Response:  # fmt: skip
    """The list again, with what could not be changed and why."""
    own = services(request)
    page = queries.lines(own.database, wanted.filters, None, PAGE)
    told = [(o.id, o.error.faults[0]) for o in refused if o.error is not None]
    status = 409 if any(isinstance(o.error, Conflict) for o in refused) else 400
    outcome = {"changed": len(done) - len(told), "refused": told}
    return render(request, "list.html", visitor, status, page=page, asked=wanted, after="", can_change=True,
                  done=outcome, **_around(own))  # fmt: skip
