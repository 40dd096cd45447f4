"""Around every answer: the headers that keep a browser safe, the largest body, and one plain page for what went wrong."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alerts.web.access import SAFE, same_origin
from alerts.web.services import WebSettings
from alerts.web.turns import Turns

log = logging.getLogger(__name__)

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not no-referrer: with that, browsers send "Origin: null" with our own forms.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_WANTED = [(name.encode(), value.encode()) for name, value in (HEADERS | {"cache-control": "no-store"}).items()]
#: Seconds that the next piece of a request may take.
SLOWEST_S = 20.0
#: Names under which one person's own machine is reached; any other may be another site's name for it (DNS rebinding).
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Shell:
    """ASGI middleware: refuses foreign hosts (local mode), foreign origins and large bodies; adds headers; hides tracebacks."""

    def __init__(self, app: ASGIApp, settings: WebSettings) -> None:
        self.app, self.settings, self._turns = app, settings, Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, end_turn = False, _nothing

        async def answered(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                end_turn()  # the page is made; how fast somebody takes it is no concern of the next one
                message["headers"] = _with_headers(message["headers"])
            await send(message)

        refused = self._refused(scope)
        if refused is not None:
            await refused(scope, receive, answered)
            return
        if _is_page(scope):
            end_turn = await self._turns.take()
        try:
            await self.app(scope, _limited(receive, self.settings.largest_body), answered)
        except Exception:
            number = secrets.token_hex(4)
            log.exception("request failed, id %s", number)
            if started:
                raise
            words = f"Something went wrong on our side. The log has the details under id {number}.\n"
            await _plain(scope, 500, words)(scope, receive, answered)
        finally:
            end_turn()

    def _refused(self, scope: Scope) -> Response | None:
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        if self.settings.local and _name(headers.get("host", "")) not in LOOPBACK:
            return _plain(scope, 421, "This page answers to 127.0.0.1 and localhost only.\n")
        if scope["method"] not in SAFE and not same_origin(headers, https=self.settings.https):
            return _plain(scope, 403, "This request came from another site.\n")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 15 or int(length) > self.settings.largest_body:
            return _plain(scope, 413, "The request is too large.\n")
        return None


def _name(host: str) -> str:
    """A Host header without its port."""
    head, colon, port = host.rpartition(":")
    return (head if colon and port.isdecimal() else host).lower()


def _nothing() -> None:
    """Ends no turn."""


def _is_page(scope: Scope) -> bool:
    """The list or an alert: what many ask for at once and what is quick to make."""
    return scope["method"] == "GET" and (scope["path"] == "/" or str(scope["path"]).startswith("/alerts/"))


def _with_headers(given: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """A header of ours unless the answer has its own."""
    held = {name.lower() for name, _ in given}
    return [*given, *(pair for pair in _WANTED if pair[0] not in held)]


def _limited(receive: Receive, most: int) -> Receive:
    seen, whole = 0, False

    async def limited() -> Message:
        nonlocal seen, whole
        try:
            message: dict[str, Any] = dict(await asyncio.wait_for(receive(), None if whole else SLOWEST_S))
        except TimeoutError as error:
            raise HTTPException(408, "the request came too slowly") from error
        seen, whole = seen + len(message.get("body", b"")), not message.get("more_body", False)
        if seen > most:
            raise HTTPException(413, "the request is too large")
        return message

    return limited


def _plain(scope: Scope, status: int, words: str) -> Response:
    if str(scope["path"]).startswith("/api/"):
        return JSONResponse({"detail": words.strip()}, status)
    return PlainTextResponse(words, status)
