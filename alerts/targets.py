"""Where messages may go: an operator writes the address, so it is checked as if an enemy had (RELIABILITY H6).

Only https unless allowed, no user name in it, no port of another service by a trick of spelling; every address that the name
resolves to must be a public one, and the connection is made to that address, so that a second answer of the name server changes
nothing. No redirect is followed and no proxy is read from the environment. A library that makes its connections itself is
watched while it does (``only_allowed``).
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from alerts.outbox import SendFailed
from anomaly.errors import Fault, UsageError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Sequence[str]]

#: Answers that another attempt may change; any other 4xx is final.
_PASSING = (408, 409, 421, 423, 425, 429)


@dataclass(frozen=True)
class TargetRules:
    """What is allowed: plain ``http``; ``networks`` (such as ``10.1.0.0/16``) though they are private; only these ``hosts``."""

    http: bool = False
    networks: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    timeout_s: float = 10.0


@dataclass(frozen=True)
class Target:
    """A checked address; ``address`` is what is connected to, ``host`` what its certificate must name."""

    scheme: str
    host: str
    port: int
    path: str = field(repr=False)  # it may hold a secret
    address: str


def check_target(url: str, rules: TargetRules | None = None, resolve: Resolver | None = None) -> Target:
    """The target that ``url`` names. Raises UsageError E2001 for one that is not allowed, SendFailed where its name is not
    known now. ``resolve`` gives the addresses of a host and port."""
    rules = rules or TargetRules()
    scheme, host, port, path = _parts(url, rules)
    found = list(dict.fromkeys((resolve or _resolve)(host, port)))
    if not found:
        raise SendFailed("the host has no address")
    networks = [ipaddress.ip_network(n) for n in rules.networks]
    for text in found:
        if not _allowed(ipaddress.ip_address(text.partition("%")[0]), networks):
            raise _refused("a public address, or one of the allowed networks", host)
    return Target(scheme, host, port, path, found[0])


def _parts(url: str, rules: TargetRules) -> tuple[str, str, int, str]:
    if not url.isascii() or not url.isprintable() or any(sign in url for sign in ' \\"<>`{}|^'):
        raise _refused("an address of plain signs", "other signs")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _refused("an address with a host and a port", "something else") from error
    if parts.scheme not in (("https", "http") if rules.http else ("https",)):
        raise _refused("https", parts.scheme or "no scheme")
    if "@" in parts.netloc or not parts.hostname or parts.fragment:
        raise _refused("a host without a user name, and no #", "something else")
    host = parts.hostname.rstrip(".")
    if not host or "%" in host or (rules.hosts and host not in rules.hosts):
        raise _refused("an allowed host", host)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.scheme, host, port or (443 if parts.scheme == "https" else 80), path


def _refused(expected: str, found: str) -> UsageError:
    hint = "the settings of the target allow more hosts and networks"
    return UsageError(Fault("E2001", f"a target for messages: {expected}", found, hint))


def _allowed(address: Address, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    """Whether the address, and any that is wrapped in it, is public or in an allowed network."""
    if any(address in network for network in networks):
        return True
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address.teredo is not None or address in _NAT64 or address in _COMPATIBLE:
            return False
        if inner is not None:
            return _allowed(inner, networks)
    return address.is_global and not address.is_multicast and not address.is_reserved


_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE = ipaddress.ip_network("::/96")


def _resolve(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SendFailed("the host is not known") from error
    return [str(entry[4][0]) for entry in found]


def post(target: Target, body: bytes, headers: Mapping[str, str], timeout_s: float = 10.0) -> int:
    """POST ``body``; the status, 200 to 299. The answer's body is not read.

    Raises SendFailed: final for a redirect and most 4xx, to be tried again for 5xx, time-outs and anything of the network.
    ``timeout_s`` holds for the whole exchange, however slowly the other side drips.
    """
    connection = _Pinned(target, timeout_s)
    watchdog = threading.Timer(timeout_s, connection.abort)
    watchdog.daemon = True
    watchdog.start()
    try:
        connection.request("POST", target.path, body, {"User-Agent": "anomaly", "Connection": "close", **headers})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise SendFailed(f"no answer: {type(error).__name__}") from error
    finally:
        watchdog.cancel()
        connection.close()
    if not 200 <= status < 300:
        raise SendFailed(f"status {status}", final=300 <= status < 500 and status not in _PASSING)
    return status


class _Pinned(http.client.HTTPConnection):
    """A connection to the address that was checked, under the name that was asked for."""

    def __init__(self, target: Target, timeout_s: float) -> None:
        super().__init__(target.host, target.port, timeout=timeout_s)
        self._target = target
        self._given_up = False

    def connect(self) -> None:
        plain = socket.create_connection((self._target.address, self.port), self.timeout)
        self.sock = plain
        if self._target.scheme == "https":
            self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self._target.host)
        if self._given_up:
            self.abort()

    def abort(self) -> None:
        """End the exchange from another thread."""
        self._given_up = True
        if self.sock is not None:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)


@dataclass
class Watch:
    """What a thread may connect to, and what it tried beside that."""

    rules: TargetRules
    refused: list[str] = field(default_factory=list)

    def check(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Raises PermissionError, which libraries take for a network that does not let them through, where the address is not
        allowed, and for a thread or a process, since what these do is not seen. ``event`` and ``arguments``: those of Python's
        audit hooks."""
        if event in _STARTS:
            name, good = "a thread or a process of its own", False
        elif event == "socket.getaddrinfo":
            name = arguments[0].decode("ascii", "replace") if isinstance(arguments[0], bytes) else str(arguments[0])
            good = not self.rules.hosts or name.rstrip(".").lower() in self.rules.hosts
        else:
            name = str(arguments[1][0]) if isinstance(arguments[1], tuple) else "a socket of this machine"
            good = literal_allowed(name, self.rules) is True
        if not good:
            self.refused.append(name)
            raise PermissionError(f"no connection to {name} is allowed")


def literal_allowed(host: str, rules: TargetRules) -> bool | None:
    """Whether ``host``, an address in digits, is public or in an allowed network; None where it is a name.

    >>> [literal_allowed(host, TargetRules()) for host in ("10.0.0.7", "::1", "1.1.1.1", "plant")]
    [False, False, True, None]
    """
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return _allowed(address, [ipaddress.ip_network(n) for n in rules.networks])


@contextmanager
def only_allowed(rules: TargetRules) -> Iterator[Watch]:
    """Within it this thread connects to allowed addresses alone, whoever makes the connection: a second answer of the name
    server, a redirect or a proxy of the environment does not lead elsewhere. Other threads are not watched."""
    _install()
    before, _WATCHED.now = getattr(_WATCHED, "now", None), Watch(rules)
    try:
        yield _WATCHED.now
    finally:
        _WATCHED.now = before


_WATCHED = threading.local()
#: Starting a thread is told to hooks from Python 3.12 on; before that, one that a library starts is not seen.
_STARTS = frozenset(
    (
        "_thread.start_new_thread",
        "_thread.start_joinable_thread",
        "subprocess.Popen",
        "os.system",
        "os.posix_spawn",
        "os.fork",
    )
)
_EVENTS = _STARTS | {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"}


@cache
def _install() -> None:
    """Python lets nobody take a hook away again: so there is one, and it does nothing for a thread that is not watched."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS:
            watch: Watch | None = getattr(_WATCHED, "now", None)
            if watch is not None:
                watch.check(event, arguments)

    sys.addaudithook(hook)
