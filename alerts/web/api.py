"""The same over JSON, under ``/api/v1``: for machines with a bearer token, or for a signed-in browser with its token header."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from alerts.alert import Alert, AlertEvent, iso_time
from alerts.states import ACTIONS, KINDS, STATES, VERDICTS
from alerts.web import queries, views
from alerts.web.access import needs
from alerts.web.exports import attached, wanted, work_orders
from alerts.web.forms import NAMES, asked, details_of
from alerts.web.pages import Number, Operator, Viewer, budget, found
from alerts.web.services import services
from alerts.web.trend import trend


class Problem(BaseModel):
    """What every refusal says."""

    detail: Any


_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": words}
    for status, words in {
        400: "a value cannot be used", 401: "no valid token or session", 403: "the role is too small",
        404: "no such alert",
        408: "the request came too slowly", 409: "changed by somebody else; detail.current is how it is now",
        413: "the request is too large", 422: "a value has the wrong form", 503: "the database is not available",
    }.items()
}  # fmt: skip
router = APIRouter(prefix="/api/v1", responses=_REFUSALS)

Text = Annotated[str, Query(max_length=200)]
State = Literal["open", "all", *STATES]  # type: ignore[valid-type]


class Change(BaseModel):
    """The body of an action. ``version``: the version that was seen; without it the change is made to whatever is there."""

    model_config = ConfigDict(extra="forbid")

    version: int | None = Field(None, ge=1, le=2_147_483_647)
    comment: str = Field("", max_length=4000)
    hours: float | None = Field(None, gt=0, le=720, description="for shelve: how long")
    verdict: Literal["", *VERDICTS] = ""  # type: ignore[valid-type]
    assignee: str = Field("", max_length=200, description="for assign: a name; empty for nobody")

    def details(self, action: str, now_us: int) -> dict[str, Any]:
        """What the workflow takes."""
        hours = "" if self.hours is None else f"{self.hours:.4f}"
        return details_of(action, {"hours": hours, "verdict": self.verdict, "assignee": self.assignee}, now_us)


class Bulk(Change):
    """The same change of many alerts."""

    action: Literal["acknowledge", "shelve"]
    alerts: dict[Annotated[int, Field(ge=1, le=2_147_483_647)], int | None] = Field(
        min_length=1, max_length=1000, description="version seen by alert number; null for whatever is there"
    )


def _listed(alert: Alert) -> dict[str, Any]:
    return {k: v for k, v in alert.to_dict().items() if k != "reasons"}


def _event(event: AlertEvent) -> dict[str, Any]:
    return asdict(event) | {"time": iso_time(event.at)}


@router.get("/openapi.json", include_in_schema=False)
def schema(request: Request, visitor: Viewer) -> Response:
    """What this API takes and gives."""
    return JSONResponse(request.app.openapi())


@router.get("/alerts")
def alerts(
    request: Request, visitor: Viewer, state: State = "open", asset: Text = "", priority: Literal["", "1", "2", "3"] = "",
    kind: Literal["", *KINDS] = "", since: Text = "", until: Text = "", text: Text = "", assignee: Text = "",  # type: ignore[valid-type]
    parent: Annotated[int | None, Query(ge=1, le=999_999_999)] = None, after: Annotated[str, Query(max_length=40)] = "",
    size: Annotated[int, Query(ge=1, le=500)] = 50,
) -> dict[str, Any]:  # fmt: skip
    """A page of alerts, newest first; ``next`` goes into ``after`` for the page that follows, null at the end."""
    own = services(request)
    own.tick()
    given = dict(
        zip(NAMES, (state, asset, priority, kind, since, until, text, assignee, str(parent or "")), strict=True)
    )
    page = own.store.page(asked(given).filters, after or None, size)
    return {"alerts": [_listed(a) for a in page.alerts], "next": page.next}


@router.get("/alerts/{id}")
def alert(request: Request, visitor: Viewer, id: Number) -> dict[str, Any]:
    """One alert with its reasons, what was done to it, and earlier ones like it."""
    own = services(request)
    one = found(own, id)
    similar = [{"likeness": rate, "alert": _listed(other)} for rate, other in queries.similar_past(own, one)]
    return {"alert": one.to_dict(), "events": [_event(e) for e in own.store.events(id)], "similar": similar}


@router.get("/alerts/{id}/trend")
def alert_trend(request: Request, visitor: Viewer, id: Number) -> dict[str, Any]:
    """The score around an alert; ``time`` is empty where the score file is gone."""
    own = services(request)
    return trend(own.database, found(own, id))


@router.get("/alerts/{id}/curves")
def alert_curves(request: Request, visitor: Viewer, id: Number) -> dict[str, Any]:
    """The window behind the peak: actual and expected values of the tags with the largest share; empty where none was kept."""
    own = services(request)
    return queries.excerpt(own.database, found(own, id))


def _action(name: str) -> Callable[..., dict[str, Any]]:
    def act(request: Request, visitor: Any, id: Number, change: Change) -> dict[str, Any]:
        own = services(request)
        found(own, id)
        done = own.workflow.apply(id, name, visitor.user.name, version=change.version, comment=change.comment,
                                  **change.details(name, own.clock()))  # fmt: skip
        own.forget()
        return {"alert": done.to_dict()}

    act.__annotations__["visitor"] = Annotated[Any, Depends(needs(ACTIONS[name].role))]
    act.__doc__ = f"{name.capitalize()} an alert; 409 where it is not at the version that was seen."
    return act


for _name in ACTIONS:
    router.add_api_route(f"/alerts/{{id}}/{_name}", _action(_name), methods=["POST"], name=f"alert_{_name}")


@router.post("/bulk")
def bulk(request: Request, visitor: Operator, change: Bulk) -> dict[str, Any]:
    """The same change of up to 1,000 alerts; those that cannot be changed say why."""
    own = services(request)
    done = own.workflow.bulk(change.alerts, change.action, visitor.user.name, comment=change.comment,
                             **change.details(change.action, own.clock()))  # fmt: skip
    own.forget()
    return {
        "changed": [_listed(o.alert) for o in done if o.alert is not None],
        "refused": [{"id": o.id, "why": str(o.error)} for o in done if o.error is not None],
    }


@router.get("/counts")
def counts(
    request: Request, visitor: Viewer, by: Literal["state", "priority", "kind", "asset"] = "state"
) -> dict[str, int]:  # fmt: skip
    """How many alerts there are of each state, priority, kind or asset."""
    return {str(k): n for k, n in services(request).store.counts(by).items()}


@router.get("/figures")
def figure_list(request: Request, visitor: Viewer) -> dict[str, Any]:
    """Load against budget, bad actors, precision, time to acknowledge."""
    own = services(request)
    told, load = views.watched(own), budget(own)
    return {
        "until": iso_time(told["until"]), "per_day": load["rate"], "budget": load["may"],
        "loads": [asdict(x) | {"over": x.over} for x in load["loads"]],
        "bad_actors": [asdict(a) for a in told["actors"]], "precision": asdict(told["judged"]),
        "acknowledge_us": told["times"], "priorities": [asdict(s) for s in told["spread"]],
    }  # fmt: skip


@router.get("/assets")
def asset_list(request: Request, visitor: Viewer) -> dict[str, Any]:
    """Every asset that is known, with its open alerts, load, budget and last data."""
    return {"assets": views.asset_rows(services(request))}


@router.get("/health")
def health(request: Request, visitor: Viewer) -> dict[str, Any]:
    """Last data per asset, logs and models last used, messages on their way."""
    told = views.health(services(request))
    return {
        "assets": told["assets"], "logs": [asdict(x) for x in told["logs"]], "models": [asdict(m) for m in told["models"]],
        "messages": [{"target": target, "state": state, "count": n} for (target, state), n in told["messages"]],
        "drifts": [asdict(d) for d in told["drifts"]],
    }  # fmt: skip


@router.get("/work-orders.csv", response_class=Response)
def orders(request: Request, visitor: Viewer, state: State = "open", asset: Text = "") -> Response:
    """Alerts as work orders."""
    rows, more = wanted(services(request), asked({"state": state, "asset": asset}).filters)
    return attached(work_orders(rows).encode(), "work-orders.csv", "text/csv; charset=utf-8", more)
