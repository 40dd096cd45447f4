"""The views beside the list: shift hand-over, figures, assets, health."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException, Request
from starlette.responses import Response

from alerts import figures, grouping
from alerts.listing import Filters
from alerts.planning import AssetSettings
from alerts.states import SHELVED, SYSTEM
from alerts.web import queries
from alerts.web.forms import STANDING
from alerts.web.pages import Viewer, budget
from alerts.web.rendering import render
from alerts.web.services import DAY_US, HOUR_US, Services, services
from anomaly.errors import Fault, UsageError

router = APIRouter()
SHIFTS = ("8", "12", "24", "72")


@router.get("/handover")
def handover(request: Request, visitor: Viewer) -> Response:
    """What the next shift needs to know."""
    own, given = services(request), request.query_params.get("hours", "8")
    if given not in SHIFTS:
        raise UsageError(Fault("E2001", f"hours: {', '.join(SHIFTS)}", given))
    hours = int(given)
    return render(request, "handover.html", visitor, hours=hours, **shift(own, hours))


def shift(own: Services, hours: int) -> dict[str, Any]:
    """New alerts, open ones of high or medium priority, shelves, and what people did in the last ``hours``."""
    own.tick()
    until = queries.now_of_data(own)
    fresh = own.store.page(Filters(since_us=until - hours * HOUR_US, until_us=until, top=True), None, 100)
    urgent = own.store.page(Filters(states=STANDING, priorities=(1, 2), top=True), None, 100)
    shelved = own.store.page(Filters(states=(SHELVED,)), None, 100)
    events = queries.recent_events(own.database, own.clock() - hours * HOUR_US)
    return {
        "until": until, "fresh": fresh.alerts, "urgent": sorted(urgent.alerts, key=lambda a: (a.priority, -a.start_us)),
        "shelved": shelved.alerts, "events": [(e, asset) for e, asset in events if e.actor != SYSTEM],
    }  # fmt: skip


@router.get("/figures")
def figure_page(request: Request, visitor: Viewer) -> Response:
    """Load, bad actors, precision, time to acknowledge."""
    own = services(request)
    return render(request, "figures.html", visitor, **own.remembered("figures", 30.0, lambda: watched(own)))


def watched(own: Services) -> dict[str, Any]:
    """The figures of the last thirty days."""
    until = queries.now_of_data(own)
    alerts = queries.light_alerts(own.database, until - 30 * DAY_US, until)
    return {
        "until": until, "cut": len(alerts) if len(alerts) >= queries.MOST_ROWS else 0,
        "actors": figures.bad_actors(alerts), "loads": budget(own)["loads"], "judged": figures.precision(alerts),
        "times": figures.acknowledge_times(alerts), "spread": grouping.spread(a.priority for a in alerts),
        "standing": queries.oldest_open(own.database, until - DAY_US, 20),
    }  # fmt: skip


@router.get("/assets")
def asset_list(request: Request, visitor: Viewer) -> Response:
    """Every asset that is known."""
    own = services(request)
    return render(request, "assets.html", visitor, rows=asset_rows(own))


def asset_rows(own: Services) -> list[dict[str, Any]]:
    """Open alerts, load of seven days, budget, weight and last data of each asset."""
    settings, last = own.planning.assets(), queries.last_answered(own)
    waiting = own.remembered("waiting", 5.0, lambda: own.store.counts("asset", Filters(states=STANDING, top=True)))
    rates = {x.asset: x.per_day for x in budget(own)["loads"]}
    default = AssetSettings()
    return [
        {"asset": asset, "open": waiting.get(asset, 0), "per_day": rates.get(asset, 0.0), "last": last.get(asset),
         "budget": settings.get(asset, default).budget, "weight": settings.get(asset, default).weight}
        for asset in queries.known_assets(own)
    ]  # fmt: skip


@router.get("/asset")
def asset_page(request: Request, visitor: Viewer) -> Response:
    """One asset: its load, its tags, its alerts, planned work."""
    own, asset = services(request), request.query_params.get("name", "")
    if asset not in queries.known_assets(own):
        raise HTTPException(404, "there is no such asset")
    until = queries.now_of_data(own)
    since = until - 30 * DAY_US
    mine = queries.light_alerts(own.database, since, until, asset)
    days = [0] * 30
    for alert in mine:
        days[(alert.start_us - since) // DAY_US] += 1
    return render(
        request, "asset.html", visitor, asset=asset, days=days, actors=figures.bad_actors(mine),
        alerts=own.store.page(Filters(asset=asset, top=True), None, 20).alerts,
        open=sum(own.store.counts("state", Filters(states=STANDING, asset=asset, top=True)).values()),
        settings=own.planning.assets().get(asset, AssetSettings()), last=queries.last_answered(own).get(asset),
        planned=[p for p in own.planning.calendar(until - DAY_US, until + 30 * DAY_US) if p.asset in ("", asset)],
    )  # fmt: skip


@router.get("/health")
def health_page(request: Request, visitor: Viewer) -> Response:
    """Whether data comes, which model answers, whether messages leave."""
    return render(request, "health.html", visitor, **health(services(request)))


def health(own: Services) -> dict[str, Any]:
    """Last data per asset, models and logs last used, messages by target and state."""
    now, expected = own.clock(), own.settings.expected_us
    last = queries.last_answered(own)
    silent = set(figures.silent(last, now, expected))
    assets = [
        {"asset": asset, "last": at, "age": max(now - at, 0), "silent": asset in silent} for asset, at in last.items()
    ]
    logs = queries.last_logs(own.database)
    models = {log.model: log for log in reversed(logs)}
    messages = [(k, n) for k, n in sorted(queries.deliveries(own.database).items()) if k[1] != "sent" and n]
    return {
        "expected": expected, "assets": sorted(assets, key=lambda a: (-int(a["age"]), str(a["asset"]))), "logs": logs,
        "models": sorted(models.values(), key=lambda m: -m.recorded_at), "messages": messages,
        "drifts": own.remembered("drift", 30.0, lambda: queries.drift_reports(own.database)),
    }  # fmt: skip
