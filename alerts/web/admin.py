"""Users and the tokens of machines, for admins. A token is shown once, in the answer that made it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from alerts.users import ROLES, Users
from alerts.web import queries
from alerts.web.access import Form, Visitor, field, needs
from alerts.web.rendering import render
from alerts.web.services import DAY_US, services
from anomaly.errors import Fault, UsageError

router = APIRouter()
Admin = Annotated[Visitor, Depends(needs("admin"))]
#: Longest life of a token that ends by itself, in days.
LONGEST_DAYS = 3650


@router.get("/users")
def users_page(request: Request, visitor: Admin) -> Response:
    """Everybody who may sign in, and every token."""
    return _page(request, visitor)


def _change(change: Callable[[Users, Any, str, str], object]) -> Callable[..., Response]:
    """The handler of one change: ``change(users, form, name, by)``, then the page again."""

    def handler(request: Request, visitor: Admin, form: Form) -> Response:
        own = services(request)
        try:
            change(own.users, form, field(form, "name"), visitor.user.name)
        except UsageError as error:
            return _page(request, visitor, 400, error.faults[0])
        return RedirectResponse("/users", 303)

    return handler


_CHANGES: dict[str, Callable[[Users, Any, str, str], object]] = {
    "/users/add": lambda u, form, name, by: u.add(name, field(form, "role"), field(form, "password"), by=by),
    "/users/role": lambda u, form, name, by: u.set_role(name, field(form, "role"), by=by),
    "/users/password": lambda u, form, name, by: u.set_password(name, field(form, "password"), by=by),
    "/users/disable": lambda u, form, name, by: u.disable(name, by=by),
    "/users/enable": lambda u, form, name, by: u.enable(name, by=by),
    "/tokens/revoke": lambda u, form, name, by: u.disable_token(name, by=by),
}
for _path, _made in _CHANGES.items():
    router.add_api_route(_path, _change(_made), methods=["POST"], response_model=None)


@router.post("/tokens/add")
def token_add(request: Request, visitor: Admin, form: Form) -> Response:
    """A token for a machine, shown in this answer alone."""
    own, name = services(request), field(form, "name").strip()
    try:
        ends = _end(field(form, "days").strip(), own.clock())
        token = own.users.add_token(name, field(form, "role"), by=visitor.user.name, expires_at=ends)
    except UsageError as error:
        return _page(request, visitor, 400, error.faults[0])
    return _page(request, visitor, made=(name, token))


def _end(days: str, now_us: int) -> int | None:
    """When a token ends that is valid for so many days; None for ""."""
    if not days:
        return None
    if not re.fullmatch(r"\d{1,4}", days, re.ASCII) or not 1 <= int(days) <= LONGEST_DAYS:
        raise UsageError(Fault("E2001", f"days: 1 to {LONGEST_DAYS}, or nothing", days))
    return now_us + int(days) * DAY_US


def _page(
    request: Request, visitor: Visitor, status: int = 200, fault: Fault | None = None, made: tuple[str, str] | None = None
) -> Response:  # fmt: skip
    own = services(request)
    return render(
        request, "users.html", visitor, status, users=own.users.list(), tokens=queries.machine_tokens(own.database),
        roles=ROLES, now=own.clock(), fault=fault, made=made,
    )  # fmt: skip
