"""Puts the page and the API together."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response

from alerts.web import admin, api, exports, metrics, pages, planner, signing, views
from alerts.web.access import SAFE, Visitor, who
from alerts.web.messages import text
from alerts.web.rendering import render
from alerts.web.services import Services
from alerts.web.shell import Shell
from alerts.workflow import Conflict
from anomaly.errors import AnomalyError, Fault, Unavailable, UsageError, shown

_KNOWN = (400, 401, 403, 404, 405, 408, 409, 413, 429, 503)


def create_app(services: Services) -> FastAPI:
    """The application: every route but ``signing.PUBLIC`` asks who is there; every answer carries the headers of ``Shell``."""
    app = FastAPI(
        title="Plant alerts", version="1", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    app.state.services = services
    for part in (signing, pages, views, planner, admin, exports, metrics):
        for route in part.router.routes:
            route.include_in_schema = False  # the API alone has a schema
    for part in (signing, pages, views, planner, admin, exports, metrics, api):
        app.router.routes.extend(part.router.routes)  # flat, so that a test can walk every route
    app.add_middleware(Shell, settings=services.settings)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_form)
    app.add_exception_handler(AnomalyError, _on_ours)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, description=text("footer"), routes=app.routes)
        made.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"token": []}]
        app.openapi_schema = made
    return app.openapi_schema


def _for_machines(request: Request) -> bool:
    path = request.url.path
    return path.startswith(("/api/", "/metrics", "/readyz", "/static/")) or path.endswith(".json")


def _visitor(request: Request) -> Visitor | None:
    """Who asks, for the menus of an error page; None where not even that can be told."""
    try:
        return who(request)
    except Unavailable:
        return None


def _answer(
    request: Request, status: int, detail: Any, faults: tuple[Fault, ...] = (), headers: Any = None
) -> Response:  # fmt: skip
    if _for_machines(request):
        return JSONResponse({"detail": detail}, status, headers)
    words = text(f"error_{status}" if status in _KNOWN else "error_400")
    more = detail if status == 403 and not faults else ""
    return render(request, "error.html", _visitor(request), status, headers, words=words, faults=faults, detail=more)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it alone
    if error.status_code == 401 and not _for_machines(request):
        back = quote(request.url.path + (f"?{request.url.query}" if request.url.query else ""), safe="/")
        address = f"/sign-in?next={back}" if request.method in SAFE else "/sign-in"
        if "hx-request" in request.headers:  # a script follows no redirect to a whole page
            return Response(status_code=401, headers={"HX-Redirect": "/sign-in"})
        if request.method in SAFE:
            return RedirectResponse(address, 303)
    return _answer(request, error.status_code, error.detail, headers=error.headers)


async def _on_form(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it alone
    if not _for_machines(request):
        return _answer(request, 404, "")
    told = [{"where": [str(p) for p in e["loc"]], "what": shown(e["msg"])} for e in error.errors()]
    return JSONResponse({"detail": told}, 422)


def _on_ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, AnomalyError)  # noqa: S101 - registered for it alone
    if isinstance(error, Conflict):
        fault = error.faults[0]
        told = {"expected": fault.expected, "found": fault.found, "current": error.current.to_dict()}
        return _answer(request, 409, told, error.faults)
    if isinstance(error, Unavailable):  # where the database lies is for the log, not for the page
        return _answer(request, 503, text("error_503"), headers={"Retry-After": "5"})
    if isinstance(error, UsageError):
        return _answer(
            request, 400, [{"expected": f.expected, "found": shown(f.found)} for f in error.faults], error.faults
        )
    raise error
