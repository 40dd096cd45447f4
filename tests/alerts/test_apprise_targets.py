"""Apprise targets keep the rules of addresses: own servers, names, redirects, and what else the thread may still do."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from alerts.outbox import Message, SendFailed
from alerts.targets import TargetRules, Watch, only_allowed
from alerts.transports import apprise
from anomaly.errors import UsageError

TOKEN = "AbCdEfGhIjKlMnO"  # noqa: S105 - of the form that the service wants
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
DIGEST = Message("m1", "digest", "", "", 3, {"subject": "2 open", "text": "two alerts"}, 0, 1)


@contextmanager
def answering(answer: bytes, host: str = "127.0.0.1") -> Iterator[tuple[int, list[bytes]]]:
    """A server that answers each connection so; its port and what it was sent."""
    server, got = socket.create_server((host, 0)), list[bytes]()

    def serve() -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            with peer:
                got.append(peer.recv(65536))
                peer.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield server.getsockname()[1], got
    finally:
        server.close()


def refused(url: str, rules: TargetRules) -> SendFailed:
    with pytest.raises(SendFailed) as failed:
        apprise(url, rules)(DIGEST)
    return failed.value


@pytest.mark.parametrize(
    "url",
    [
        "json://example.org/", "xmls://example.org/", "forms://example.org/", "file:///tmp/x", "syslog://", "rsyslog://example.org",
        "mailto://u:p@example.org", "irc://example.org/#plant", "nothing", "ntfys://one, ntfys://two",
    ],
)  # fmt: skip
def test_services_whose_connections_cannot_be_watched_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="E2001") as said:
        apprise(url, TargetRules(http=True))
    assert "u:p" not in str(said.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"gotify://example.org/{TOKEN}", "https"),
        (f"gotifys://127.0.0.1/{TOKEN}", "public"),
        (f"gotifys://169.254.169.254/{TOKEN}", "public"),
        (f"gotifys://[::1]/{TOKEN}", "public"),
    ],
)
def test_an_own_server_without_https_or_inside_is_refused_before_anything_is_sent(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        apprise(url)
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize("url", ["ntfys://topic", "discord://123456789/abcdefghi", f"gotifys://example.org/{TOKEN}"])
def test_services_with_an_address_outside_are_taken(url: str) -> None:
    assert callable(apprise(url))


@pytest.mark.parametrize("host", ["localhost", "2130706433", "0x7f000001"])
def test_a_name_that_leads_inward_gets_nothing(host: str) -> None:
    with answering(OK) as (port, got):
        failed = refused(f"gotify://{host}:{port}/{TOKEN}", TargetRules(http=True))
    assert failed.final and "not allowed" in str(failed) and got == []


def test_an_own_server_in_an_allowed_network_is_told() -> None:
    with answering(OK) as (port, got):
        apprise(f"gotify://127.0.0.1:{port}/{TOKEN}", TargetRules(http=True, networks=("127.0.0.0/8",)))(DIGEST)
    assert len(got) == 1 and b"POST" in got[0]


def test_a_redirect_does_not_lead_to_another_address() -> None:
    with answering(OK, "127.0.0.2") as (inner, canary):
        for status in (b"302 Found", b"307 Temporary Redirect"):
            moved = b"HTTP/1.1 %s\r\nLocation: http://127.0.0.2:%d/\r\nContent-Length: 0\r\n\r\n" % (status, inner)
            with answering(moved) as (port, got):
                rules = TargetRules(http=True, networks=("127.0.0.1/32",))
                assert refused(f"gotify://127.0.0.1:{port}/{TOKEN}", rules).final
                assert len(got) == 1
    assert canary == []


def test_only_the_allowed_hosts_are_asked_for() -> None:
    with answering(OK) as (port, got):
        rules = TargetRules(http=True, networks=("127.0.0.0/8", "::1/128"), hosts=("plant.example.org",))
        assert refused(f"gotify://localhost:{port}/{TOKEN}", rules).final
    assert got == []


def test_only_the_sending_thread_is_watched_and_only_while_it_sends() -> None:
    with answering(OK) as (port, _):
        address, elsewhere = ("127.0.0.1", port), list[bool]()

        def connects() -> bool:
            try:
                with socket.create_connection(address, 5):
                    return True
            except PermissionError:
                return False

        begin = threading.Event()
        thread = threading.Thread(target=lambda: elsewhere.append(begin.wait(10) and connects()))
        thread.start()
        with only_allowed(TargetRules()) as watch:
            begin.set()
            thread.join()
            assert (connects(), elsewhere, watch.refused) == (False, [True], ["127.0.0.1"])
        assert connects()


def test_what_is_watched_starts_no_thread_and_no_process_that_would_not_be() -> None:
    with only_allowed(TargetRules()) as watch, pytest.raises(PermissionError):
        subprocess.run([sys.executable, "-c", ""], check=False)
    with pytest.raises(PermissionError):
        watch.check("_thread.start_new_thread", (print, (), {}))  # by hand: Python 3.11 tells no hook of it
    assert len(watch.refused) == 2


@pytest.mark.parametrize("address", ["/run/secret.sock", b"\0abstract", ("plant", 80), ("fe80::1%eth0", 80, 0, 2)])
def test_sockets_of_the_machine_and_names_that_nobody_looked_up_are_refused(address: object) -> None:
    with pytest.raises(PermissionError):
        Watch(TargetRules()).check("socket.connect", (None, address))
    Watch(TargetRules()).check("socket.connect", (None, ("1.1.1.1", 443)))
