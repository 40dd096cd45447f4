"""Who asks, and whether they may: sessions, tokens of machines, roles, and the token that every change must carry."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from starlette.datastructures import FormData

from alerts.users import User, csrf_token
from alerts.web.services import services

SAFE = ("GET", "HEAD", "OPTIONS")
SESSION_COOKIE, FORM_COOKIE = "anomaly_session", "anomaly_form"
TOKEN_FIELD, TOKEN_HEADER = "csrf", "x-csrf-token"
MOST_FIELDS = 2100

#: The attribute of a dependency that says which role a route needs; a test walks all routes by it.
ROLE = "needed_role"


class NotSignedIn(HTTPException):
    """401: nobody is signed in here."""

    def __init__(self) -> None:
        super().__init__(401, "sign in first", {"WWW-Authenticate": "Bearer"})


class Forbidden(HTTPException):
    """403: the role is too small, or a change came without its token."""

    def __init__(self, words: str) -> None:
        super().__init__(403, words)


@dataclass(frozen=True)
class Visitor:
    """Who asks: ``csrf`` is what this visitor's forms carry; a ``machine`` came with a bearer token and needs none."""

    user: User
    csrf: str = ""
    machine: bool = False


async def read_form(request: Request) -> FormData:
    """The fields of a posted form; empty for anything else. No files are taken."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.method in SAFE or kind not in ("application/x-www-form-urlencoded", "multipart/form-data"):
        return FormData()
    return await request.form(max_files=0, max_fields=MOST_FIELDS)


Form = Annotated[FormData, Depends(read_form)]


def field(form: FormData, name: str) -> str:
    """One text field of a form, "" where it is missing."""
    value = form.get(name, "")
    return value if isinstance(value, str) else ""


def needs(role: str) -> Callable[..., Visitor]:
    """A dependency that gives the visitor. NotSignedIn where nobody is; Forbidden for a smaller role or, unless the method only
    reads, where the token of this session is missing or wrong (RELIABILITY I2, I3)."""

    def visitor(request: Request, form: Form) -> Visitor:
        found = who(request)
        if found is None:
            raise NotSignedIn
        if request.method not in SAFE and not found.machine:
            check_token(request, form, found.csrf)
        if not found.user.may(role):
            raise Forbidden(f"this needs the role {role}; yours is {found.user.role}")
        return found

    setattr(visitor, ROLE, role)
    return visitor


def who(request: Request) -> Visitor | None:
    """The visitor by bearer token, by session, or the one person of local mode; None where nobody is signed in."""
    own = services(request)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        machine = own.users.token(token.strip())
        return None if machine is None else Visitor(machine, machine=True)
    if own.settings.local:
        return Visitor(own.local_user, csrf_token(own.local_token))
    session = request.cookies.get(SESSION_COOKIE, "")
    user = own.users.session(session) if session else None
    return None if user is None else Visitor(user, csrf_token(session))


def check_token(request: Request, form: FormData, wanted: str) -> None:
    """Forbidden unless the form or the header carries ``wanted``."""
    given = request.headers.get(TOKEN_HEADER) or field(form, TOKEN_FIELD)
    if not wanted or not hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode()):
        raise Forbidden("the form's token is missing or old: open the page again, then repeat")


def form_token(request: Request) -> tuple[str, str]:
    """For the form that signs in, where there is no session yet: the cookie's value and the token that goes with it."""
    kept = request.cookies.get(FORM_COOKIE) or secrets.token_urlsafe(32)
    return kept, csrf_token(kept)


def same_origin(headers: dict[str, str], *, https: bool) -> bool:
    """Whether a change comes from a page of ours: its Origin, if told, names this host; a browser says no other site sent it.

    >>> same_origin({"host": "plant:8000", "origin": "http://plant:8000"}, https=False)
    True
    >>> same_origin({"host": "plant:8000", "origin": "http://evil"}, https=False), same_origin({"origin": "null"}, https=False)
    (False, False)
    """
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    if origin is None:
        return True
    scheme, _, host = origin.partition("://")
    return scheme in (("https",) if https else ("http", "https")) and host != "" and host == headers.get("host")
