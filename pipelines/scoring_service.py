"""`anomaly serve-model`: rows in over HTTP, scored rows out, by the code that `anomaly score` uses.

A request is a log of its own, with no memory of earlier ones. The model at work is one object that is exchanged whole; a new
champion is loaded and proven beside it, and the old one stays where that fails (RELIABILITY F1, F8).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import threading
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from anomaly.errors import AnomalyError, Fault, InputRefused, ModelRefused, Unavailable, UsageError, shown
from pipelines.scoring_figures import Figures

if TYPE_CHECKING:
    from anomaly.model import AnomalyModel

_log = logging.getLogger(__name__)

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
PATHS = ("/score", "/healthz", "/readyz", "/metrics", "/model")
#: Asked by supervisors, which hold no token; neither says anything about the plant.
_OPEN = ("/healthz", "/readyz")
_PROBLEM = "application/problem+json"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServiceLimits:
    """Bounds of one request and of all that wait: bytes, rows, seconds to send the body, requests at once."""

    body: int = 16 << 20
    rows: int = 50_000
    body_s: float = 30.0
    waiting: int = 16


@dataclass(frozen=True)
class Loaded:
    """A model that passed its canary; ``reference`` as given, ``since`` in seconds of the clock.

    ``model`` has the threshold that people set for it, ``bundled`` its own.
    """

    model: AnomalyModel
    bundled: AnomalyModel
    reference: str
    name: str
    version: int | None
    digest: str
    since: float


Load = Callable[[Loaded | None], Loaded | None]


@dataclass
class Holder:
    """The model at work and how a newer one takes its place; ``load`` is given the one at work and gives None where it stays.

    ``refused`` is what the first loading was refused with, ``trouble`` what stands against the newest try.
    """

    load: Load
    figures: Figures = field(default_factory=Figures)
    now: Loaded | None = None
    trouble: str = "loading"
    refused: ModelRefused | None = None

    def refresh(self) -> bool:
        """Load what the reference stands for now; True where a model took its place. Trouble is noted, never raised."""
        try:
            found = self.load(self.now)
        except Exception as error:  # noqa: BLE001  whatever is wrong with the new model, the one at work goes on
            if self.now is None and isinstance(error, ModelRefused):
                self.refused = error
            self.trouble = str(error) if isinstance(error, AnomalyError) else f"E7000 {type(error).__name__}"
            self.figures.reload_failed()
            stays = "no model yet" if self.now is None else "the model at work stays"
            _log.warning("%s: %s", stays, error, exc_info=not isinstance(error, AnomalyError))
            return False
        self.trouble = ""
        if found is None:
            return False
        self.now = found  # one assignment: a request sees the old model or the new one
        _log.warning("%s version %s is at work, threshold %g", found.name, found.version, found.model.threshold.value)
        return True

    def follow(self, every_s: float, stop: threading.Event) -> None:
        """Refresh until ``stop``; returns early where the first model was refused for good."""
        while not stop.is_set():
            self.refresh()
            if self.refused is not None or stop.wait(every_s):
                return


def loader(reference: str, home: Path, database: str | None = None) -> Load:
    """Gives the verified model that ``reference`` stands for, unless it and its threshold are at work already.

    MLflow down, slow or silly: the last verified copy, as ``registry.catalogue.resolve_model`` has it. The threshold is the
    one that people set in the alert ``database``, as ``anomaly score`` takes it.
    """

    def load(now: Loaded | None) -> Loaded | None:
        from anomaly.encoders.inference import kind_for
        from pipelines.feedback import with_threshold
        from registry.bundle import load_bundle
        from registry.catalogue import resolve_model

        found = resolve_model(reference, home)
        same = now is not None and now.digest == found.digest
        bundled = now.bundled if now is not None and same else load_bundle(found.path, expect_digest=found.digest)
        bundled.engine_kind = kind_for(ServiceLimits.rows)
        model, _ = with_threshold(bundled, database if database and _is_there(database) else None)
        if now is not None and same and now.model.threshold == model.threshold:
            return None
        name = found.name or bundled.settings.name
        return Loaded(model, bundled, reference, name, found.version, found.digest, time.time())

    return load


def _is_there(database: str) -> bool:
    """Whether the alert database is a URL, or a file that exists: none is made by asking."""
    return "://" in database or Path(database).exists()


@dataclass
class Service:
    """What the routes need. ``token`` empty: no token is asked for, and only this machine's names may be in ``Host``.

    ``database``: the alert database that requests are recorded in as ``anomaly score`` records a log; None: in none.
    """

    holder: Holder
    token: str = ""
    limits: ServiceLimits = ServiceLimits()
    insecure: bool = False
    database: str | None = None
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _places: threading.BoundedSemaphore = field(init=False)

    def __post_init__(self) -> None:
        self._places = threading.BoundedSemaphore(self.limits.waiting)

    def answer(self, kind: str, body: bytes, name: str) -> bytes:
        """Score ``body`` of content type ``kind`` with the model at work; rows and findings on sensors as JSON.

        Raises InputRefused, UsageError as ``anomaly score`` does; ``_Problem`` where there is no model or no place.
        """
        from pipelines.scoring_record import Seen, plain_findings
        from pipelines.scoring_request import scored_rows

        loaded = self.holder.now
        if loaded is None:
            raise _Problem(503, "no model is loaded yet", retry=True)
        if not self._places.acquire(blocking=False):
            raise _Problem(503, "too many requests wait", retry=True)
        told = dict[str, Any]()
        try:
            with self._turn:  # one model scores one log at a time; more would only share the processor
                seen = Seen(loaded.model)
                rows = scored_rows(loaded.model, kind, body, name, self.limits.rows, seen)
                if self.database is not None and rows:
                    digest = hashlib.sha256(body).hexdigest()
                    told["recorded"] = seen.record(self.database, loaded.name, digest, name or "request")
        finally:
            self._places.release()
        self.holder.figures.scored(r["outcome"] for r in rows)
        known = {"name": loaded.name, "version": loaded.version, "digest": loaded.digest}
        told |= {"model": known, "rows": rows, "findings": plain_findings(seen.findings())}
        return json.dumps(told, allow_nan=False).encode()


class _Problem(Exception):
    """An answer that is no success: status, words for people, faults with our codes."""

    def __init__(self, status: int, title: str, *faults: Fault, retry: bool = False) -> None:
        super().__init__(title)
        self.status, self.title, self.faults, self.retry = status, title, faults, retry

    def response(self) -> Response:
        """The problem as JSON (RFC 9457) with a list of faults; places on this machine's disk are left out."""
        told: list[dict[str, Any]] = [
            {"code": f.code, "expected": shown(f.expected), "found": shown(f.found), "hint": f.hint}
            | {k: v for k, v in (("column", f.column), ("row", f.row)) if v is not None}
            for f in self.faults
        ]
        body = {"type": "about:blank", "title": self.title, "status": self.status, "faults": told}
        headers = {"Retry-After": "5"} if self.retry else {}
        headers |= {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        return JSONResponse(body, self.status, headers, _PROBLEM)


def problem_of(error: Exception) -> _Problem:
    """How an error is answered: 422 a log that is refused, 400 a wrong request, 503 ours to repair, 500 our bug."""
    match error:
        case _Problem():
            return error
        case InputRefused():
            return _Problem(422, "the rows are refused", *error.faults)
        case UsageError():
            return _Problem(413 if _too_large(error) else 400, "the request is refused", *error.faults)
        case Unavailable() | ModelRefused() | OSError():
            _log.error("a request failed: %s", error)
            return _Problem(503, "the service cannot score now", retry=True)
    number = uuid.uuid4().hex[:12]
    _log.error("request %s failed", number, exc_info=error)
    return _Problem(500, f"internal error {number}", Fault("E7000", "no internal error", f"see the log for {number}"))


def _too_large(error: UsageError) -> bool:
    return any(f.expected.startswith("at most") for f in error.faults)


def create_app(service: Service) -> FastAPI:
    """The application: ``POST /score``, ``GET /healthz /readyz /metrics /model``."""
    app = FastAPI(
        title="Plant anomaly scoring", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    app.middleware("http")(_shell(service))
    holder = service.holder

    @app.post("/score")
    async def score(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (JSON, CSV, PARQUET) or request.headers.get("content-encoding", "identity") != "identity":
            expected = f"a body of {JSON}, {CSV} or {PARQUET}, not compressed"
            raise _Problem(415, "the request is refused", Fault("E2001", expected, kind or "no content type"))
        body = await _body(request, service.limits)
        name = request.query_params.get("name", "")
        return Response(await run_in_threadpool(service.answer, kind, body, name), media_type=JSON)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> Response:
        ready = holder.now is not None
        why = {} if ready else {"code": holder.trouble.partition(" ")[0]}
        return JSONResponse({"status": "ready" if ready else "not ready", **why}, 200 if ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        own = holder.now
        known = None if own is None else (own.name, str(own.version or ""), own.digest, own.since)
        return Response(holder.figures.text(known), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/model")
    async def model() -> Response:
        if holder.now is None:
            raise _Problem(503, "no model is loaded yet", retry=True)
        return JSONResponse(model_card(holder.now, holder.trouble))

    return app


def _shell(service: Service) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    """Around every request: who may ask, the figures, and errors as problems."""

    async def shell(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        start = time.perf_counter()
        path = request.url.path if request.url.path in PATHS else "other"
        try:
            _check_access(service, request)
            response = await go_on(request)
            if response.status_code in (404, 405):
                response = _Problem(response.status_code, "no such page or method").response()
        except Exception as error:  # noqa: BLE001  every failure is an answer
            response = problem_of(error).response()
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        service.holder.figures.answered(path, response.status_code, time.perf_counter() - start)
        return response

    return shell


def _check_access(service: Service, request: Request) -> None:
    if service.token:
        given = request.headers.get("authorization", "").encode()
        if request.url.path not in _OPEN and not hmac.compare_digest(given, f"Bearer {service.token}".encode()):
            raise _Problem(
                401, "a token is asked for", Fault("E2001", "Authorization: Bearer TOKEN", "none or another")
            )
    elif not service.insecure and request.url.hostname not in _LOOPBACK:
        # A web page can make a browser send requests here under a name of its own.
        raise _Problem(400, "the request is refused", Fault("E2001", "Host: 127.0.0.1 or localhost", "another name"))


async def _body(request: Request, limits: ServiceLimits) -> bytes:
    """The body, no larger than allowed and in time, however it is announced."""
    too_large = Fault("E2001", f"at most {limits.body} bytes", "a larger body", "send fewer rows at once")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limits.body:
        raise _Problem(413, "the request is refused", too_large)
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_s):
            async for part in request.stream():
                size += len(part)
                if size > limits.body:
                    raise _Problem(413, "the request is refused", too_large)
                parts.append(part)
    except TimeoutError:
        fault = Fault("E2001", f"a body within {limits.body_s:g} s", "a slower one")
        raise _Problem(408, "the request is refused", fault) from None
    return b"".join(parts)


def model_card(loaded: Loaded, trouble: str = "") -> dict[str, Any]:
    """What is loaded, JSON-ready: name, version, digest, columns it reads, period, window, threshold with its past."""
    from anomaly.metrics.figures import number

    model, contract = loaded.model, loaded.model.contract
    past = model.threshold.to_dict()
    return {
        "reference": loaded.reference,
        "name": loaded.name,
        "version": loaded.version,
        "digest": loaded.digest,
        "loaded_at": loaded.since,
        "trouble": trouble.partition(" ")[0],
        "time": contract.time,
        "asset": contract.asset,
        "tags": list(contract.tags),
        "categories": list(contract.categories),
        "period_s": contract.period_us / 1e6,
        "lookback": model.lookback,
        "threshold": {k: number(v) if isinstance(v, float) else v for k, v in past.items()},
    }
