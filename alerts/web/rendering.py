"""Templates and static files: everything escaped, every text from the catalogue."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from sqlalchemy import Row
from starlette.requests import Request
from starlette.responses import HTMLResponse

from alerts.readable import told_apart
from alerts.states import STATES, VERDICTS
from alerts.web.access import Visitor
from alerts.web.messages import KIND_WORDS, text
from alerts.web.services import services

FOLDER = Path(__file__).parent
TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(us: int | None) -> str:
    """UTC microseconds to the minute.

    >>> moment(1_700_000_000_000_000), moment(None)
    ('2023-11-14 22:13', '–')
    """
    if us is None:
        return "–"
    try:
        return f"{_EPOCH + timedelta(microseconds=us):%Y-%m-%d %H:%M}"
    except OverflowError:
        return str(us)


def clock(us: int) -> str:
    """UTC microseconds to the second, without the day.

    >>> clock(1_700_000_000_000_000)
    '22:13:20'
    """
    return f"{_EPOCH + timedelta(microseconds=us):%H:%M:%S}"


def lasted(us: float | None) -> str:
    """A span of microseconds in its two largest units.

    >>> lasted(0), lasted(59_000_000), lasted(7_500_000_000), lasted(400 * 86_400_000_000)
    ('0 s', '59 s', '2 h 5 min', '400 d')
    """
    if us is None:
        return "–"
    seconds = round(abs(us) / 1e6)
    parts = [(seconds // 86_400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s")]
    first = next((k for k, (n, _) in enumerate(parts) if n), 3)
    most = first + (1 if first == 0 and parts[0][0] > 30 else 2)
    told = [f"{n} {unit}" for k, (n, unit) in enumerate(parts[first:most], first) if n or k == first]
    return " ".join(told)


def number(value: float | None) -> str:
    """Four digits.

    >>> number(3.14159), number(None), number(float("inf"))
    ('3.142', '–', '∞')
    """
    if value is None or math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.4g}"


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return "–" if value is None else f"{100 * value:.0f} %"


@cache
def environment() -> Environment:
    """The one template environment: everything is escaped, an unknown name is an error."""
    made = Environment(
        loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, auto_reload=False, cache_size=-1,
    )  # fmt: skip
    made.filters |= {
        "moment": moment,
        "clock": clock,
        "lasted": lasted,
        "number": number,
        "told_apart": told_apart,
        "percent": percent,
        "query": urlencode,
    }
    suffixes = ("csv", "json", "xlsx") if importlib.util.find_spec("openpyxl") else ("csv", "json")
    made.globals |= {"exports": [(suffix, f"export_{suffix}") for suffix in suffixes]}
    made.globals |= {
        "t": text,
        "STATES": STATES,
        "VERDICTS": VERDICTS,
        "KIND_WORDS": KIND_WORDS,
        "static": static_address,
        "lines": lines,
    }
    return made


def lines(alerts: Sequence[Row[Any]], can_change: bool) -> Markup:
    """The lines of the list for rows with the columns of ``queries.LINE``. Each follows from these columns alone: so those made
    last are kept, and an alert that changed is another row."""
    names = alerts[0]._fields if alerts else ()
    return Markup("").join(_line(names, tuple(alert), can_change) for alert in alerts)


@lru_cache(maxsize=10_000)
def _line(names: tuple[str, ...], values: tuple[Any, ...], can_change: bool) -> Markup:
    told = dict(zip(names, values, strict=True))
    told["top_tags"] = json.loads(told["top_tags"])
    return Markup(_line_macro()(SimpleNamespace(**told), can_change))  # noqa: S704 - escaped by the macro


@cache
def _line_macro() -> Any:
    return environment().get_template("parts/line.html").module.line  # type: ignore[attr-defined]


def render(
    request: Request, template: str, visitor: Visitor | None, status: int = 200,
    headers: Mapping[str, str] | None = None, **values: Any,
) -> HTMLResponse:  # fmt: skip
    """A page. ``visitor``: whose menus and tokens it carries, if anybody is signed in."""
    values |= {"visitor": visitor, "local": services(request).settings.local, "path": request.url.path}
    return HTMLResponse(environment().get_template(template).render(**values), status, headers)


def partial(request: Request) -> bool:
    """Whether a script asks for a part of a page; going back in the browser's past asks for the whole."""
    return "hx-request" in request.headers and "hx-history-restore-request" not in request.headers


@cache
def static_files() -> dict[str, tuple[bytes, str]]:
    """Every static file by name, with its type; read once, so that no address can lead elsewhere."""
    folder = FOLDER / "static"
    return {p.name: (p.read_bytes(), TYPES[p.suffix]) for p in folder.iterdir() if p.suffix in TYPES}


@cache
def static_address(name: str) -> str:
    """The address of a static file; another content has another address, so that it may be kept for ever."""
    return f"/static/{name}?v={hashlib.sha256(static_files()[name][0]).hexdigest()[:12]}"
