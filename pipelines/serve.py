"""`anomaly serve`: the page and the API, in under two seconds and without the libraries that train models."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Annotated

import typer

from anomaly.errors import Fault, UsageError
from pipelines import home

if TYPE_CHECKING:
    from fastapi import FastAPI

#: Seconds that a page waits for a locked database before it says so.
WAIT_S = 5.0


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65_535)] = 8000,
    local: Annotated[
        bool, typer.Option("--local", help="One user, no sign-in; for this machine alone. Default without any user.")
    ] = False,
    proxy: Annotated[
        str, typer.Option(help="Address of the HTTPS proxy in front; its forwarded headers are believed.")
    ] = "",
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="Listen on the network without HTTPS: passwords can be read there.")
    ] = False,
    expected: Annotated[str, typer.Option(help="How often data of an asset should come, such as 1h.")] = "1h",
) -> None:
    """The alert list as a page, and its API. It only reads logs."""
    import uvicorn

    from alerts.database import Database
    from pipelines import watch_health

    app, is_local = application(host, local=local, proxy=proxy, plain_http=plain_http, expected=expected)
    shown_host = f"[{host}]" if ":" in host else host
    typer.echo(f"http://{shown_host}:{port}" + ("  local mode: one user without sign-in" if is_local else ""))
    with watch_health.looking(Database(home.alert_database(), wait_s=WAIT_S), home.home()):
        uvicorn.run(
            app, host=host, port=port, log_level="warning", server_header=False, timeout_keep_alive=15,
            limit_concurrency=200, proxy_headers=bool(proxy), forwarded_allow_ips=proxy or None,
            timeout_graceful_shutdown=5,
        )  # fmt: skip


def application(
    host: str, *, local: bool = False, proxy: str = "", plain_http: bool = False, expected: str = "1h"
) -> tuple[FastAPI, bool]:
    """The application for ``host``, and whether it is in local mode.

    Raises UsageError E2001 for a start that would not be safe: local mode on the network, a network address without users, or
    without HTTPS unless ``plain_http`` says that this is meant (RELIABILITY I5).
    """
    from alerts.database import Database
    from alerts.users import Users
    from alerts.web.app import create_app
    from alerts.web.services import Services, WebSettings
    from anomaly.config import parse_duration

    inside = loopback(host)
    if local and not inside:
        raise UsageError(Fault("E2001", "--host 127.0.0.1 with --local", host, "add users: anomaly users add"))
    database = Database(home.alert_database(), wait_s=WAIT_S)
    users = Users(database)
    anybody = any(user.disabled_at is None for user in users.list())
    if not anybody and not inside:
        hint = "anomaly users add NAME --role admin"
        raise UsageError(Fault("E2001", f"somebody who may sign in, to listen on {host}", "no user", hint))
    if not inside and not proxy and not plain_http:
        hint = "put an HTTPS proxy in front and name it with --proxy, or say --plain-http"
        raise UsageError(Fault("E2001", f"HTTPS in front of {host}", "neither --proxy nor --plain-http", hint))
    is_local = local or not anybody
    settings = WebSettings(local=is_local, https=bool(proxy), expected_us=parse_duration(expected))
    return create_app(Services(database, settings, users=users)), is_local


def loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``.

    >>> [loopback(h) for h in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "plant")]
    [True, True, True, False, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
