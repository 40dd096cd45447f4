"""`anomaly serve-model`: score rows over HTTP."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomaly.config import parse_duration
from anomaly.errors import Fault, UsageError
from pipelines import home
from pipelines.serve import loopback

if TYPE_CHECKING:
    import uvicorn

    from pipelines.scoring_service import Holder

_EXAMPLE = "Example: `anomaly serve-model --model press@champion --port 8100`"
TOKEN = "ANOMALY_SCORING_TOKEN"  # noqa: S105 - the name of a variable
_SHORTEST_TOKEN = 16


def add_to(app: typer.Typer) -> None:
    """Give ``app`` the command."""
    app.command("serve-model", epilog=_EXAMPLE)(serve_model)


def serve_model(
    model: Annotated[
        str, typer.Option(help="Bundle folder, models:/NAME@champion, models:/NAME/2, or a name.")
    ] = "anomaly",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65_535)] = 8100,
    token_file: Annotated[
        Path | None, typer.Option(help=f"File with the token that requests must carry; or set {TOKEN}.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on the network without a token: anybody there may ask.")
    ] = False,
    refresh: Annotated[
        str, typer.Option(help="How often to look whether the model's name means another one.")
    ] = "1min",
    record: Annotated[
        bool, typer.Option("--record", help="Enter every request and its alerts into the alert database.")
    ] = False,
    max_rows: Annotated[int, typer.Option(help="Most rows of a request.", min=1)] = 50_000,
    max_body: Annotated[int, typer.Option(help="Most bytes of a request.", min=1)] = 16 << 20,
) -> None:
    """Score rows that are posted as JSON, CSV or Parquet, with the outcomes and reasons of `anomaly score`."""
    token = read_token(token_file)
    check_start(host, token, insecure)
    every_s = parse_duration(refresh) / 1e6
    if every_s <= 0:
        raise UsageError(Fault("E2001", "--refresh above zero, such as 1min", refresh))

    import uvicorn

    from pipelines.scoring_service import Holder, Service, ServiceLimits, create_app, loader

    holder = Holder(loader(model, home.home(), home.alert_database()))
    database = home.alert_database() if record else None
    app = create_app(Service(holder, token, ServiceLimits(body=max_body, rows=max_rows), insecure, database))
    server = uvicorn.Server(uvicorn.Config(
        app, host=host, port=port, log_level="warning", server_header=False, timeout_keep_alive=15,
        limit_concurrency=200, proxy_headers=False, timeout_graceful_shutdown=10,
    ))  # fmt: skip
    typer.echo(f"http://{f'[{host}]' if ':' in host else host}:{port}/score")
    run(server, holder, every_s)


def run(server: uvicorn.Server, holder: Holder, every_s: float) -> None:
    """Serve until a signal comes; raises the ModelRefused of a first model, UsageError E2001 for a port in use."""
    stop = threading.Event()

    def follow() -> None:
        holder.follow(every_s, stop)
        server.should_exit = server.should_exit or holder.refused is not None

    thread = threading.Thread(target=follow, name="model", daemon=True)
    thread.start()
    try:
        server.run()
    except SystemExit as error:  # uvicorn logged why it cannot listen
        found = f"{server.config.host}:{server.config.port}"
        raise UsageError(Fault("E2001", "an address and port that are free", found, "choose another --port")) from error
    finally:
        stop.set()
    if holder.refused is not None:
        raise holder.refused


def read_token(file: Path | None) -> str:
    """The token of ``file``, else of the environment, else nothing; raises UsageError E2001 for a short or unreadable one."""
    try:
        token = (os.environ.get(TOKEN, "") if file is None else file.read_text(encoding="utf-8")).strip()
    except (OSError, ValueError) as error:
        raise UsageError(Fault("E2001", "a readable --token-file", type(error).__name__, file=str(file))) from error
    if (token or file is not None) and (len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        hint = "python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one"
        raise UsageError(Fault("E2001", f"a token of {_SHORTEST_TOKEN} or more plain letters", "another", hint))
    return token


def check_start(host: str, token: str, insecure: bool) -> None:
    """Refuse (UsageError E2001) to listen on the network without a token, unless that is meant (RELIABILITY I5)."""
    if not loopback(host) and not token and not insecure:
        hint = f"give --token-file or {TOKEN}, with HTTPS in front; or say --insecure"
        raise UsageError(Fault("E2001", f"a token, to listen on {host}", "none", hint))
