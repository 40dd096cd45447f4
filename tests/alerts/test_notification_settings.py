"""The settings of notifications: what is wrong is refused with words, and no secret stands in them or in a message."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from alerts.notification_settings import NotifySettings, TargetSettings, transport
from alerts.outbox import Message, SendFailed
from alerts.targets import TargetRules
from alerts.transports import webhook
from anomaly.errors import UsageError

SECRET = "whsec_" + "A" * 40
HOOK = {"kind": "webhook", "url": "https://example.org/hook", "secret_env": "HOOK"}
MAIL = {"kind": "mail", "host": "mail.example.org", "sender": "a@example.org", "to": ["b@example.org"]}


def one_target(**changes: Any) -> NotifySettings:
    return NotifySettings.from_dict({"targets": {"hook": HOOK | changes}})


def message() -> Message:
    alert = {"id": 1, "asset": "press", "kind": "anomaly", "cause": "", "state": "new", "priority": 1, "top_tags": [],
             "start": "2026-01-01T00:00:00Z", "end": "2026-01-01T00:00:00Z", "model_name": "m"}  # fmt: skip
    return Message("id-1", "alert.new", "press", "", 1, {"alert": alert, "action": "new"}, 10**15, 1)


def test_a_file_becomes_rules_per_target(tmp_path: Path) -> None:
    path = tmp_path / "notify.toml"
    path.write_text(
        '[notify]\nmin_priority = 2\nper_sensor = 3\nwindow_hours = 12\nquiet = "22:00-06:30"\nzone = "Europe/Berlin"\n'
        'escalate_minutes = 30\ndigest_hour = -1\n[notify.targets.hook]\nurl = "https://example.org"\n'
        'secret_file = "s"\n[notify.targets.board]\nkind = "alertmanager"\nurl = "https://example.org"\nmin_priority = 1\n'
    )
    settings = NotifySettings.from_toml(path)
    hook, board = settings.rules("hook"), settings.rules("board")
    assert (hook.least_priority, board.least_priority) == (2, 1)
    assert (hook.per_sensor, hook.limit_window_us) == (3, 12 * 3_600_000_000)
    assert hook.quiet is not None and (hook.quiet.start, hook.quiet.end, hook.quiet.zone) == (
        1320,
        390,
        "Europe/Berlin",
    )
    assert (settings.escalate_us, settings.return_us) == (1_800_000_000, None)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"min_prioritty": 1}, "did you mean min_priority?"),
        ({"min_priority": 4}, "1, 2 or 3"),
        ({"min_priority": "1"}, "int"),
        ({"min_priority": True}, "int"),
        ({"quiet": "22-6"}, "22:00-06:00"),
        ({"quiet": "24:00-06:00"}, "22:00-06:00"),
        ({"zone": "Mars/Base"}, "time zone"),
        ({"digest_hour": 24}, "hour from 0 to 23"),
        ({"per_sensor": 0}, "at least 1"),
        ({"escalate_minutes": -1}, "at least 0"),
        ({"escalate_minutes": float("nan")}, "at least 0"),
        ({"window_hours": 0}, "above 0"),
        ({"attempts": 0}, "at least 1"),
        ({"targets": []}, "a table per target"),
        ({"targets": {"hook": 1}}, "a table per target"),
        ({"targets": {"Hook!": HOOK}}, "target's name"),
        ({"targets": {"hook": HOOK | {"kind": "fax"}}}, "webhook, alertmanager, mail, apprise"),
        ({"targets": {"hook": HOOK | {"urll": "x"}}}, "did you mean url?"),
        ({"targets": {"hook": HOOK | {"secret": SECRET}}}, "secret_env or secret_file"),
        ({"targets": {"hook": HOOK | {"secret_file": "x"}}}, "neither, or both"),
        ({"targets": {"hook": HOOK | {"url_env": "X"}}}, "one of"),
        ({"targets": {"hook": HOOK | {"timeout_s": 600}}}, "timeout_s"),
        ({"targets": {"hook": {"kind": "apprise", "url": "ntfy://canary"}}}, "url_env, url_file"),
        ({"targets": {"post": MAIL | {"host": ""}}}, "mail server"),
        ({"targets": {"post": MAIL | {"to": []}}}, "mail addresses"),
        ({"targets": {"post": MAIL | {"to": "b@example.org"}}}, "list of text"),
        ({"targets": {"post": MAIL | {"password": "canary"}}}, "password_env or password_file"),
    ],
)
def test_what_is_wrong_is_refused_with_words(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        NotifySettings.from_dict(values)
    assert said in str(refused.value)
    assert "canary" not in str(refused.value) and SECRET not in str(refused.value)


@pytest.mark.parametrize("text", ["", "notify = 1", "[other]\n", "[notify]\n[more]\n", "[notify\n"])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "notify.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match="table"):
        NotifySettings.from_toml(path)
    with pytest.raises(UsageError, match="E2001"):
        NotifySettings.from_toml(tmp_path / "none.toml")


def test_a_secret_comes_from_the_environment_or_a_file_and_is_in_no_message(tmp_path: Path) -> None:
    own = one_target().target("hook")
    assert callable(transport("hook", own, lambda: 0, {"HOOK": SECRET}))
    for environment in ({}, {"HOOK": "canary-too-short"}):
        with pytest.raises(UsageError) as refused:
            transport("hook", own, lambda: 0, environment)
        assert "canary" not in str(refused.value)
    file = tmp_path / "secret"
    by_file = one_target(secret_env="", secret_file=str(file)).target("hook")
    for content in (None, "", "canary-too-short"):
        if content is not None:
            file.write_text(content)
        with pytest.raises(UsageError) as refused:
            transport("hook", by_file, lambda: 0, {})
        assert "canary" not in str(refused.value)
    file.write_text(SECRET + "\n")
    assert callable(transport("hook", by_file, lambda: 0, {}))


def test_a_target_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="of the settings: hook"):
        one_target().target("hok")


def test_mail_and_apprise_are_made_from_the_settings(tmp_path: Path) -> None:
    post = NotifySettings.from_dict({"targets": {"post": MAIL | {"user": "u", "password_env": "P"}}}).target("post")
    assert callable(transport("post", post, lambda: 0, {"P": "x"}))
    with pytest.raises(UsageError, match="variable P"):
        transport("post", post, lambda: 0, {})
    pytest.importorskip("apprise", reason="the extra notify is not installed")
    for url, good in (("ntfys://topic", True), ("json://127.0.0.1/canary", False), ("nothing", False)):
        own = TargetSettings(kind="apprise", url_env="U")
        if good:
            assert callable(transport("chat", own, lambda: 0, {"U": url}))
            continue
        with pytest.raises(UsageError) as refused:
            transport("chat", own, lambda: 0, {"U": url})
        assert "canary" not in str(refused.value)


# -- targets that misbehave ------------------------------------------------------------------------------------------


@contextmanager
def answering(answer: bytes | None) -> Iterator[tuple[int, list[bytes]]]:
    """A server that answers each connection so, or never (None); its port and what it was sent."""
    server, got = socket.create_server(("127.0.0.1", 0)), list[bytes]()

    def serve() -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            got.append(peer.recv(65536))
            if answer is not None:
                peer.sendall(answer)
                peer.close()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield server.getsockname()[1], got
    finally:
        server.close()


def test_a_redirect_is_not_followed() -> None:
    with answering(b"HTTP/1.1 204 No Content\r\n\r\n") as (inner, canary):
        moved = f"HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:{inner}/\r\nContent-Length: 0\r\n\r\n".encode()
        with answering(moved) as (port, got):
            own = one_target(url=f"http://127.0.0.1:{port}/", http=True, networks=["127.0.0.0/8"]).target("hook")
            with pytest.raises(SendFailed) as failed:
                transport("hook", own, lambda: 10**15, {"HOOK": SECRET})(message())
    assert failed.value.final and "307" in str(failed.value)
    assert len(got) == 1 and canary == []


def test_a_target_that_hangs_is_given_up_in_time() -> None:
    with answering(None) as (port, _):
        own = one_target(url=f"http://127.0.0.1:{port}/", http=True, networks=["127.0.0.0/8"], timeout_s=0.3)
        started = time.monotonic()
        with pytest.raises(SendFailed) as failed:
            transport("hook", own.target("hook"), lambda: 10**15, {"HOOK": SECRET})(message())
    assert not failed.value.final, "tried again later"
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.7", "169.254.169.254", "192.168.1.1", "::1", "fd00::1", "::ffff:10.0.0.1"],
)
def test_a_name_that_resolves_inward_is_refused(address: str) -> None:
    own = TargetRules(timeout_s=0.5)
    way = webhook("https://hooks.example.org/x", SECRET, lambda: 10**15, own, lambda host, port: [address])
    with pytest.raises(SendFailed, match="not allowed") as failed:
        way(message())
    assert failed.value.final


@pytest.mark.parametrize(
    "url", ["http://example.org/", "https://127.0.0.1/", "https://a@example.org/", "https://[::1]/"]
)
def test_addresses_that_are_not_allowed_by_themselves_get_nothing(url: str) -> None:
    with pytest.raises(SendFailed, match="not allowed"):
        transport("hook", one_target(url=url).target("hook"), lambda: 10**15, {"HOOK": SECRET})(message())
