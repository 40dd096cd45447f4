"""Where messages may go and in what form: addresses tried as an enemy would, receivers that misbehave, signatures, mail."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import smtplib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from alert_rows import DAY, T0, Clock, put, row, spaced

from alerts import tables
from alerts.database import Database
from alerts.outbox import Message, Sender, SendFailed, Sent
from alerts.store import AlertStore
from alerts.targets import Target, TargetRules, check_target, post
from alerts.transports import MailServer, alertmanager_entry, digest, enqueue_digest, letter, mail, sign, webhook
from alerts.workflow import Workflow
from anomaly.errors import UsageError

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
LOCAL = TargetRules(http=True, networks=("127.0.0.0/8",), timeout_s=2.0)
ALERT = {
    "id": 7, "asset": "press", "kind": "anomaly", "cause": "", "state": "new", "priority": 1, "start": "2023-11-14T22:13:20Z",
    "end": "2023-11-14T23:13:20Z", "top_tags": [["Flow", 0.8]], "model_name": "demo",
}  # fmt: skip


def message(**changes: object) -> Message:
    payload = {"alert": ALERT | changes, "action": "new"}
    return Message("3b241101-e2bb-4255-8caf-4136c566a962", "alert.new", "press", "Flow", 1, payload, T0, 1)


# -- addresses


PUBLIC = {"hooks.example.com": ["93.184.216.34"], "six.example.com": ["2606:2800:220:1:248:1893:25c8:1946"]}
INWARD = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0",  # noqa: S104
    "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0",
    "fc00::1", "fd12:3456::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1",
    "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1",
]  # fmt: skip


@pytest.mark.parametrize("address", INWARD)
def test_a_name_that_leads_inward_is_refused(address: str) -> None:
    for found in ([address], ["93.184.216.34", address]):
        with pytest.raises(UsageError, match="public address"):
            check_target("https://hooks.example.com/x", resolve=lambda *_, found=found: found)


@pytest.mark.parametrize(
    "url",
    ["http://hooks.example.com/", "ftp://hooks.example.com/", "file:///etc/passwd", "//hooks.example.com/", "hooks.example.com",
     "https://", "https:///x", "https://user@hooks.example.com/", "https://user:pw@hooks.example.com/", "https://@127.0.0.1/",
     "https://hooks.example.com:port/", "https://hooks.example.com:99999/", "https://hooks.example.com/#x", "gopher://x/",
     "https://hooks.example.com/\r\nHost: x", "https://hooks.example.com\\@127.0.0.1/", "https://ho oks.example.com/",
     "https://\u24d4xample.com/", "https://[::1", "https://[fe80::1%25eth0]/", "javascript:alert(1)", ""],
)  # fmt: skip
def test_odd_addresses_are_refused_before_anybody_is_asked(url: str) -> None:
    def never(*_: object) -> list[str]:
        raise AssertionError("resolved")

    with pytest.raises(UsageError, match="target for messages"):
        check_target(url, resolve=never)


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "[::1]", "0"])
def test_odd_spellings_of_this_machine_are_refused(host: str) -> None:
    """The system's resolver reads them as it would when connecting."""
    with pytest.raises((UsageError, SendFailed)):
        check_target(f"https://{host}/")


def test_what_is_allowed_is_pinned() -> None:
    target = check_target("https://hooks.example.com./a/b?c=d", resolve=lambda h, p: PUBLIC[h])
    assert target == Target("https", "hooks.example.com", 443, "/a/b?c=d", "93.184.216.34")
    assert "c=d" not in repr(target)
    assert check_target("https://six.example.com", resolve=lambda h, p: PUBLIC[h]).address.startswith("2606:")
    inner = TargetRules(http=True, networks=("10.1.0.0/16",), hosts=("mes.plant",))
    assert check_target("http://mes.plant:8080/", inner, lambda *_: ["10.1.2.3"]).port == 8080
    with pytest.raises(UsageError, match="public address"):
        check_target("http://mes.plant/", inner, lambda *_: ["10.2.0.1"])
    with pytest.raises(UsageError, match="allowed host"):
        check_target("https://hooks.example.com/", inner, lambda *_: ["10.1.2.3"])


# -- receivers


@contextmanager
def receiver(
    answer: Callable[[BaseHTTPRequestHandler], None],
) -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    got: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((dict(self.headers.items()), body))
            answer(self)

        def do_GET(self) -> None:
            got.append(({}, b"GET"))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", got
    finally:
        server.shutdown()
        server.server_close()


def status(code: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


def test_a_webhook_is_signed_as_the_standard_says() -> None:
    with receiver(status(204)) as (url, got):
        webhook(url, SECRET, lambda: T0 + 999_999, LOCAL)(message())
    ((headers, body),) = got
    own = {k.lower(): v for k, v in headers.items()}
    signed = f"{own['webhook-id']}.{own['webhook-timestamp']}.".encode() + body
    wanted = base64.b64encode(hmac.new(b"k" * 32, signed, hashlib.sha256).digest()).decode()
    assert own["webhook-signature"] == f"v1,{wanted}"
    assert (own["webhook-id"], own["webhook-timestamp"]) == (message().id, "1700000000")
    assert json.loads(body)["data"]["alert"]["asset"] == "press"


def test_the_signature_is_the_published_example() -> None:
    """The example of the Standard Webhooks libraries."""
    body = b'{"test": 2432232314}'
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105
    assert (
        sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
        == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_short", "whsec_!!!", "whsec_" + "A" * 200])
def test_a_weak_secret_is_refused_before_anything_is_sent(secret: str) -> None:
    with pytest.raises(UsageError, match="webhook secret"):
        webhook("https://hooks.example.com", secret, lambda: T0)


@pytest.mark.parametrize(
    ("code", "final"),
    [
        (301, True),
        (307, True),
        (400, True),
        (404, True),
        (410, True),
        (408, False),
        (429, False),
        (500, False),
        (503, False),
    ],
)
def test_answers_that_are_no_yes(code: int, final: bool) -> None:
    with receiver(status(code, Location="http://127.0.0.1:1/")) as (url, got):
        with pytest.raises(SendFailed, match=f"status {code}") as failed:
            webhook(url, SECRET, lambda: T0, LOCAL)(message())
        assert len(got) == 1, "no redirect is followed"
    assert failed.value.final is final


def drip(handler: BaseHTTPRequestHandler) -> None:
    for _ in range(100):
        handler.wfile.write(b"H")
        handler.wfile.flush()
        time.sleep(0.05)


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(400):
        handler.wfile.write(b"x" * 65536)


def test_a_receiver_that_hangs_or_drips_is_left_in_time() -> None:
    for answer in (lambda handler: time.sleep(1.2), drip, lambda handler: handler.connection.close()):
        with receiver(answer) as (url, _):
            target, begun = check_target(url, LOCAL), time.monotonic()
            with pytest.raises(SendFailed, match="no answer"):
                post(target, b"{}", {}, timeout_s=0.4)
            assert time.monotonic() - begun < 1.1


def test_an_endless_answer_is_not_read() -> None:
    with receiver(endless) as (url, _):
        assert post(check_target(url, LOCAL), b"{}", {}, timeout_s=1) == 200


def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with receiver(status(200)) as (url, got):
        post(check_target(url, LOCAL), b"{}", {})
    assert len(got) == 1


def test_the_answer_of_the_name_server_counts_once() -> None:
    """A name that leads outside when asked first and inward when asked again (rebinding)."""
    with receiver(status(200)) as (url, got):
        port = int(url.split(":")[2].split("/")[0])
        answers = [["127.0.0.2"], ["127.0.0.1"]]
        target = check_target(f"http://rebind.example:{port}/", LOCAL, lambda *_: answers.pop(0))
        assert target.address == "127.0.0.2"
        with pytest.raises(SendFailed):
            post(target, b"{}", {}, timeout_s=0.5)
    assert got == []


def test_a_target_that_is_not_allowed_is_dead_and_gets_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "alerts.db")
    put(database, [row()])
    Workflow(database, lambda: T0).verdict(1, "ann", "nuisance")
    with receiver(status(200)) as (url, got):
        sender = Sender(database, "hook", lambda: T0)
        assert sender.run_once(webhook(url, SECRET, lambda: T0)) == Sent(dead=1)
        assert got == []


def test_https_checks_the_certificate(tmp_path: Path) -> None:
    """A plain listener speaks no TLS: the exchange ends as a failure, not as a delivery."""
    with receiver(status(200)) as (url, got):
        with pytest.raises(SendFailed, match="no answer"):
            post(check_target(url.replace("http:", "https:"), LOCAL), b"{}", {}, timeout_s=1)
        assert got == []


# -- Alertmanager


def test_an_alertmanager_entry_ends_when_the_alert_does() -> None:
    new = alertmanager_entry(message())
    assert new["labels"] == {"alertname": "anomaly_anomaly", "asset": "press", "alert_id": "7", "model": "demo"}
    assert new["startsAt"] == "2023-11-14T22:13:20Z"
    assert "endsAt" not in new
    over = alertmanager_entry(message(state="closed", priority=3))
    assert over["labels"] == new["labels"], "the labels are the alert's name: they stay"
    assert over["endsAt"] == "2023-11-14T22:13:20Z"


# -- mail


def test_a_letter_is_one_line_and_plain_text() -> None:
    server = MailServer("mail.plant", "anomaly@plant.example", ("ann@plant.example", "bob@plant.example"))
    made = letter(message(asset="press\r\nBcc: eve@example.com"), server)
    read = message_from_bytes(made.as_bytes(), policy=policy.default)
    assert read["Bcc"] is None
    assert "\\r\\nBcc" in read["Subject"]
    assert read["Message-ID"] == f"<{message().id}@plant.example>"
    assert read["To"] == "ann@plant.example, bob@plant.example"
    assert read.get_content_type() == "text/plain"
    assert "Flow: 80%" in read.get_content()


class FakeSmtp:
    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.sent = error, []

    def __enter__(self) -> FakeSmtp:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def login(self, *given: str) -> None:
        self.given = given

    def send_message(self, made: object) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append(made)


@pytest.mark.parametrize(
    ("error", "final"),
    [(smtplib.SMTPDataError(451, b"later"), False), (smtplib.SMTPDataError(550, b"secret words"), True),
     (smtplib.SMTPServerDisconnected("gone"), False), (TimeoutError("slow"), False)],
)  # fmt: skip
def test_mail_that_fails_says_whether_to_try_again(error: Exception, final: bool) -> None:
    server = MailServer("mail.plant", "a@plant.example", ("b@plant.example",), user="u", password="canary")  # noqa: S106
    with pytest.raises(SendFailed) as failed:
        mail(server, lambda _: FakeSmtp(error))(message())  # type: ignore[arg-type,return-value]
    assert failed.value.final is final
    assert "secret" not in str(failed.value)
    assert "canary" not in repr(server)
    kept = FakeSmtp()
    mail(server, lambda _: kept)(message())  # type: ignore[arg-type,return-value]
    assert (len(kept.sent), kept.given) == (1, ("u", "canary"))


@pytest.mark.parametrize("wrong", [{"to": ()}, {"to": ("x",)}, {"sender": "a@b\nBcc: c@d"}, {"security": "no"}])
def test_wrong_mail_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        MailServer(**{"host": "h", "sender": "a@b", "to": ("c@d",)} | wrong)  # type: ignore[arg-type]


def test_a_digest_is_written_once_a_day_and_says_what_is_open(tmp_path: Path) -> None:
    store, clock = AlertStore(tmp_path / "alerts.db"), Clock()
    put(store.database, [*spaced(3), row(asset="pump\nx", priority=1, state="closed")])
    rows = store.alerts(limit=None)
    own = digest(rows, 5, "2023-11-14")
    assert own["subject"] == "3 open of 4 alerts on 2023-11-14"
    assert "rate limit: 5" in own["text"]
    assert enqueue_digest(store.database, rows, T0) == enqueue_digest(store.database, rows, T0 + 3_600_000_000)
    assert enqueue_digest(store.database, rows, T0) != enqueue_digest(store.database, rows, T0 + DAY)
    assert len(store.dump()[tables.outbox.name]) == 2
    kept = FakeSmtp()
    clock.now += DAY
    server = MailServer("h", "a@b", ("c@d",))
    assert Sender(store.database, "mail", clock).run_once(mail(server, lambda _: kept)).sent == 2  # type: ignore[arg-type,return-value]
    assert kept.sent[0]["Subject"].startswith("3 open of 4")
