"""Signing in and out, static files, and whether the service is up."""

from __future__ import annotations

import re

from fastapi import APIRouter, HTTPException, Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from alerts.users import SignInRefused, TooManyAttempts
from alerts.web.access import (
    FORM_COOKIE,
    SESSION_COOKIE,
    Form,
    check_token,
    field,
    form_token,
    who,
)
from alerts.web.messages import text
from alerts.web.pages import Viewer
from alerts.web.rendering import render, static_files
from alerts.web.services import services

router = APIRouter()

#: Addresses that need nobody signed in.
PUBLIC = ("/sign-in", "/healthz", "/readyz", "/static/{name}")


@router.get("/sign-in")
def sign_in_page(request: Request) -> Response:
    """The form; who is signed in goes on to the list."""
    if who(request) is not None:
        return RedirectResponse("/", 303)
    return _form(request, 200, inside(request.query_params.get("next", "")))


@router.post("/sign-in")
def sign_in(request: Request, form: Form) -> Response:
    """A new session, whatever the browser had before; 401 where name and password do not fit, 429 after too many tries."""
    own = services(request)
    check_token(request, form, form_token(request)[1])
    name, next_page = field(form, "name"), inside(field(form, "next"))
    address = request.client.host if request.client else ""
    try:
        token, _ = own.users.sign_in(name, field(form, "password"), address)
    except SignInRefused:
        return _form(request, 401, next_page, name, text("sign_in_refused"))
    except TooManyAttempts as error:
        words = text("sign_in_wait", seconds=error.retry_after_s)
        return _form(request, 429, next_page, name, words, {"Retry-After": str(error.retry_after_s)})
    answer = RedirectResponse(next_page, 303)
    _set(request, answer, SESSION_COOKIE, token)
    answer.delete_cookie(FORM_COOKIE)
    return answer


@router.post("/sign-out")
def sign_out(request: Request, _visitor: Viewer) -> Response:
    """The session ends on the server too."""
    token = request.cookies.get(SESSION_COOKIE)
    if token:
        services(request).users.sign_out(token)
    answer = RedirectResponse("/sign-in", 303)
    answer.delete_cookie(SESSION_COOKIE)
    return answer


def _form(
    request: Request, status: int, next_page: str, name: str = "", refused: str = "", headers: dict[str, str] | None = None
) -> Response:  # fmt: skip
    kept, token = form_token(request)
    answer = render(
        request, "signin.html", None, status, headers, token=token, next=next_page, name=name, refused=refused
    )
    _set(request, answer, FORM_COOKIE, kept)
    return answer


def _set(request: Request, answer: Response, name: str, value: str) -> None:
    answer.set_cookie(name, value, httponly=True, samesite="lax", secure=services(request).settings.https, path="/")


def inside(address: str) -> str:
    """``address`` where it is a page of ours, else the list: nobody is led elsewhere after signing in.

    >>> inside("/alerts/7"), inside("//evil"), inside("https://evil"), inside("/%5cevil")
    ('/alerts/7', '/', '/', '/')
    """
    return address if re.fullmatch(r"/(?:[\w.-][\w./-]*)?(?:\?[\w.%&=+:-]*)?", address, re.ASCII) else "/"


@router.get("/static/{name}")
def static_file(name: str) -> Response:
    """A script, a style sheet or a picture of ours; its address changes with its content."""
    held = static_files().get(name)
    if held is None:
        raise HTTPException(404)
    return Response(held[0], media_type=held[1], headers={"cache-control": "public, max-age=31536000, immutable"})


@router.get("/healthz")
def alive() -> Response:
    """The process answers."""
    return PlainTextResponse("ok\n")


@router.get("/readyz")
def ready(request: Request) -> Response:
    """The database answers too; 503 where it does not (by the handler of Unavailable)."""
    with services(request).database.reading():
        pass
    return JSONResponse({"ready": True})
