"""Ways to deliver a message: signed webhook, Alertmanager, mail. Each gives a function for ``Sender.run_once``."""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib
import json
import smtplib
import ssl
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Any

import sqlalchemy as sa

from alerts import tables
from alerts.alert import Alert, iso_time
from alerts.database import Database
from alerts.outbox import LIMITED, Message, SendFailed, Transport, enqueue
from alerts.states import CLOSED, OPEN, RETURNED, STATES
from alerts.targets import Resolver, TargetRules, check_target, literal_allowed, only_allowed, post
from anomaly.errors import Fault, UsageError, shown

_SECOND, _DAY = 1_000_000, 86_400_000_000
_SEVERITY = {1: "critical", 2: "warning", 3: "info"}


def sign(secret: str, id: str, timestamp: int, body: bytes) -> str:
    """``webhook-signature`` of the Standard Webhooks: HMAC-SHA256 over ``id.timestamp.body``.

    ``secret``: ``whsec_`` and 24 to 64 bytes in base64; ``timestamp`` in UTC seconds. Raises UsageError E2001 for another one.
    """
    mac = hmac.new(_key(secret), f"{id}.{timestamp}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(mac.digest()).decode()


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not 24 <= len(key) <= 64:
        raise UsageError(Fault("E2001", "a webhook secret: whsec_ and 24 to 64 bytes in base64", f"{len(key)} bytes"))
    return key


def webhook(
    url: str, secret: str, clock: Callable[[], int], rules: TargetRules | None = None, resolve: Resolver | None = None
) -> Transport:
    """Deliver as signed JSON: ``webhook-id`` is the message's id, the same at every attempt (RELIABILITY H5)."""
    _key(secret)

    def send(message: Message) -> None:
        own = {"type": message.kind, "timestamp": iso_time(message.created_at), "data": message.payload}
        body, at = json.dumps(own, ensure_ascii=False, allow_nan=False).encode(), clock() // _SECOND
        headers = {"Content-Type": "application/json", "webhook-id": message.id, "webhook-timestamp": str(at),
                   "webhook-signature": sign(secret, message.id, at, body)}  # fmt: skip
        _post(url, body, headers, rules, resolve)

    return send


def alertmanager(url: str, rules: TargetRules | None = None, resolve: Resolver | None = None) -> Transport:
    """Deliver to ``/api/v2/alerts`` of a Prometheus Alertmanager at ``url``; other messages than of alerts are left out."""

    def send(message: Message) -> None:
        if "alert" in message.payload:
            body = json.dumps([alertmanager_entry(message)], ensure_ascii=False, allow_nan=False).encode()
            headers = {"Content-Type": "application/json"}
            _post(url.rstrip("/") + "/api/v2/alerts", body, headers, rules, resolve)

    return send


def alertmanager_entry(message: Message) -> dict[str, Any]:
    """One alert as Alertmanager v2 takes it. Labels name the alert and stay the same; an alert that is over has ``endsAt``."""
    alert = message.payload["alert"]
    labels = {"alertname": f"anomaly_{alert['kind']}", "asset": alert["asset"] or "none", "alert_id": str(alert["id"]),
              "model": alert["model_name"] or "none"}  # fmt: skip
    tags = ", ".join(f"{tag} {share:.0%}" for tag, share in alert["top_tags"])
    annotations = {"summary": headline(message), "top_tags": tags, "message_id": message.id,
                   "severity": _SEVERITY[alert["priority"]]}  # fmt: skip
    over = {"endsAt": iso_time(message.created_at)} if alert["state"] in (CLOSED, RETURNED) else {}
    return {"labels": labels, "annotations": annotations, "startsAt": alert["start"]} | over


def _post(
    url: str, body: bytes, headers: Mapping[str, str], rules: TargetRules | None, resolve: Resolver | None
) -> None:
    rules = rules or TargetRules()
    try:
        target = check_target(url, rules, resolve)  # at each attempt: the name may stand for another address by now
    except UsageError as error:
        raise SendFailed("the target is not allowed", final=True) from error
    post(target, body, headers, rules.timeout_s)


def headline(message: Message) -> str:
    """A message about an alert in one line."""
    alert = message.payload["alert"]
    what = f"{alert['kind'].replace('_', ' ')} on {alert['asset'] or 'no asset'}" + (
        f", {alert['cause']}" if alert["cause"] else ""
    )
    return shown(f"alert {alert['id']}: {what}, {STATES[alert['state']]} ({message.payload['action']})")


@dataclass(frozen=True)
class MailServer:
    """Where mail is handed over. ``security``: starttls, tls, or none (a server on this machine)."""

    host: str
    sender: str
    to: tuple[str, ...]
    port: int = 587
    security: str = "starttls"
    user: str = ""
    password: str = field(default="", repr=False)
    timeout_s: float = 15.0

    def __post_init__(self) -> None:
        if self.security not in ("starttls", "tls", "none"):
            raise UsageError(Fault("E2001", "mail security: starttls, tls or none", self.security))
        if not self.to or any("\n" in a or "\r" in a or "@" not in a for a in (self.sender, *self.to)):
            raise UsageError(Fault("E2001", "mail addresses of a sender and of whom to write to", ", ".join(self.to)))


def mail(server: MailServer, connect: Callable[[MailServer], smtplib.SMTP] | None = None) -> Transport:
    """Deliver by mail; ``Message-ID`` follows from the message's id, so that a second copy can be told."""

    def send(message: Message) -> None:
        try:
            with (connect or _smtp)(server) as session:
                if server.user:
                    session.login(server.user, server.password)
                session.send_message(letter(message, server))
        except smtplib.SMTPResponseException as error:
            raise SendFailed(f"mail refused: {error.smtp_code}", final=500 <= error.smtp_code < 600) from error
        except (smtplib.SMTPException, OSError) as error:
            raise SendFailed(f"no mail server: {type(error).__name__}") from error

    return send


def _smtp(server: MailServer) -> smtplib.SMTP:
    safe = ssl.create_default_context()
    if server.security == "tls":
        return smtplib.SMTP_SSL(server.host, server.port, timeout=server.timeout_s, context=safe)
    session = smtplib.SMTP(server.host, server.port, timeout=server.timeout_s)
    if server.security == "starttls":
        session.starttls(context=safe)
    return session


def letter(message: Message, server: MailServer) -> EmailMessage:
    """The mail of a message: one line as subject, plain text."""
    made = EmailMessage()
    made["From"], made["To"] = server.sender, ", ".join(server.to)
    made["Message-ID"] = f"<{message.id}@{server.sender.partition('@')[2]}>"
    made["Date"] = datetime.fromtimestamp(message.created_at / _SECOND, UTC)
    if "alert" not in message.payload:
        made["Subject"] = shown(message.payload["subject"])
        made.set_content(str(message.payload["text"]))
        return made
    made["Subject"] = headline(message)
    made.set_content("\n".join(_lines(message)) + "\n")
    return made


def _lines(message: Message) -> list[str]:
    """A message about an alert in plain text."""
    alert = message.payload["alert"]
    lines = [headline(message), f"from {alert['start']} to {alert['end']}", f"priority {alert['priority']}"]
    lines += [f"{shown(tag)}: {share:.0%}" for tag, share in alert["top_tags"]]
    return lines + ([f"comment: {shown(message.payload['comment'])}"] if message.payload.get("comment") else [])


#: Services of Apprise that post to any address: the checked webhook is for that.
_ANY_ADDRESS = ("json", "jsons", "xml", "xmls", "form", "forms")


def apprise(url: str, rules: TargetRules | None = None) -> Transport:
    """Deliver through a service that Apprise knows (the extra ``notify``), as a title and plain text.

    The rules of webhooks hold: while the library sends, connections to other than allowed addresses are refused, also where a
    redirect leads to them. Raises UsageError E2001 where the library is not there or the service is unknown, posts to any
    address, is not reached by HTTP, or has a server of its own that is not allowed.
    """
    try:
        library = importlib.import_module("apprise")
    except ModuleNotFoundError as error:
        hint = "install the extra: pip install 'plant-anomaly[notify]'"
        raise UsageError(Fault("E2001", "the library apprise", f"no module {error.name}", hint)) from error
    rules, scheme = rules or TargetRules(), url.partition("://")[0].strip().lower()
    service = library.Apprise()
    if scheme in _ANY_ADDRESS or not service.add(url) or len(service) != 1:
        hint = "for an address of your own take a target of kind webhook"
        raise UsageError(Fault("E2001", "the address of one service that Apprise knows", "another address", hint))
    _check_service(service[0], rules)

    def send(message: Message) -> None:
        about = "alert" in message.payload
        title = headline(message) if about else shown(message.payload["subject"])
        text = "\n".join(_lines(message)) if about else str(message.payload["text"])
        with only_allowed(rules) as watch:
            taken = service[0].notify(
                title=title, body=f"{text}\nmessage {message.id}"
            )  # in this thread, which is watched
        if not taken and watch.refused:
            raise SendFailed("the service leads to an address that is not allowed", final=True)
        if not taken:
            raise SendFailed("the service took nothing")

    return send


def _check_service(plugin: Any, rules: TargetRules) -> None:
    """Raises UsageError E2001 for a service whose connections cannot be watched, and for an own server that is not allowed."""
    modules = (sys.modules.get(kind.__module__) for kind in type(plugin).__mro__)
    if not any(getattr(getattr(module, "requests", None), "__name__", "") == "requests" for module in modules):
        hint = "for mail take a target of kind mail"
        raise UsageError(Fault("E2001", "a service of Apprise that is reached by HTTP", "another one", hint))
    if not any("{host}" in template for template in plugin.templates):
        return  # the service's own address, which the library knows
    hint, host = "the settings of the target allow more hosts and networks", str(plugin.host or "")
    if not plugin.secure and not rules.http:
        raise UsageError(Fault("E2001", "an address of Apprise with https", "one without", hint))
    if literal_allowed(host, rules) is False:
        raise UsageError(Fault("E2001", "a public address, or one of the allowed networks", host, hint))


def digest(alerts: Sequence[Alert], held_back: int, day: str) -> dict[str, str]:
    """The daily digest as a payload: counts by state, then a line for each open alert, most urgent first."""
    waiting = sorted((a for a in alerts if a.state in OPEN), key=lambda a: (a.priority, a.start_us, a.id))
    counts = ", ".join(f"{sum(a.state == s for a in alerts)} {words}" for s, words in STATES.items())
    lines = [f"Alerts on {day} (UTC): {len(alerts)}", counts, f"messages held back by the rate limit: {held_back}", ""]
    lines += [
        f"{a.id}  priority {a.priority}  {shown(a.asset)}  {a.kind}  {iso_time(a.start_us)}  {STATES[a.state]}"
        for a in waiting[:200]
    ]
    lines += [f"and {len(waiting) - 200} more"] if len(waiting) > 200 else []
    return {"subject": f"{len(waiting)} open of {len(alerts)} alerts on {day}", "text": "\n".join(lines) + "\n"}


def enqueue_digest(database: Database, alerts: Sequence[Alert], now_us: int) -> str:
    """Write the digest of the day before ``now_us`` (UTC) into the outbox, once per day; its id.

    ``alerts``: those of that day. What the rate limit held back on that day is counted.
    """
    start = (now_us // _DAY - 1) * _DAY
    day, box, own = iso_time(start)[:10], tables.outbox.c, tables.deliveries.c
    with database.writing() as connection:
        query = sa.select(sa.func.count(sa.distinct(box.id))).join(tables.deliveries, own.message == box.id)
        held = query.where(own.state == LIMITED, box.created_at >= start, box.created_at < start + _DAY)
        payload = digest(alerts, int(connection.execute(held).scalar_one()), day)
        return enqueue(connection, "digest", payload, key=day, at=now_us)
