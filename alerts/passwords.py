"""Passwords as scrypt hashes that carry their own parameters; which passwords are taken at all."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import unicodedata
from base64 import b64decode, b64encode
from dataclasses import dataclass

from anomaly.errors import Fault, UsageError

SHORTEST, LONGEST_BYTES = 8, 1024

#: What guessing starts with; compared without case, spaces and the digits and signs around it.
_WORDS = (
    "password passwort passw0rd p@ssword qwerty qwertz qwertyui qwertyuiop azerty asdfghjk letmein welcome willkommen "
    "admin administrator anomaly iloveyou sunshine princess football baseball superman batman trustno monkey dragon "
    "master shadow michael jordan hallo changeme default secret geheim maintenance instandhaltung operator engineer "
    "abc abcd abcdefgh test testtest guest"
)
_COMMON = frozenset(_WORDS.split())


@dataclass(frozen=True)
class Cost:
    """Parameters of scrypt: memory is ``128 * n * r`` bytes (32 MiB as given here), ``p`` such runs.

    The default is one of the OWASP minimum settings; a test may take a cheaper one.
    """

    n: int = 1 << 15
    r: int = 8
    p: int = 3


def hash_password(password: str, cost: Cost | None = None, salt: bytes | None = None) -> str:
    """``scrypt$n$r$p$salt$hash``, salt and hash in base64. ``salt`` is random, 16 bytes, if not given.

    >>> verify_password("correct horse", hash_password("correct horse", Cost(16, 1, 1)))
    True
    """
    own, salt = cost or Cost(), secrets.token_bytes(16) if salt is None else salt
    parts = (b64encode(salt).decode(), b64encode(_scrypt(password, own, salt)).decode())
    return f"scrypt${own.n}${own.r}${own.p}${parts[0]}${parts[1]}"


def verify_password(password: str, kept: str) -> bool:
    """Whether ``kept`` is the hash of ``password``, in a time that does not depend on where they differ."""
    cost, salt, wanted = _parts(kept)
    return hmac.compare_digest(_scrypt(password, cost, salt), wanted)


def needs_new_hash(kept: str, cost: Cost) -> bool:
    """Whether ``kept`` was made with other parameters than those wanted now."""
    return _parts(kept)[0] != cost


def checked_password(password: str, name: str) -> str:
    """``password``, or UsageError E2001: 8 signs at least, 1,024 bytes at most, not the user's name, not a common one.

    Nothing is asked of its composition; 15 signs and more are advised.
    """
    size = len(_normal(password))
    if len(password) < SHORTEST or size > LONGEST_BYTES:
        found = f"{len(password)} signs, {size} bytes"
        hint = "15 signs or more are better: a few words, for example"
        raise UsageError(Fault("E2001", f"a password of {SHORTEST} signs to {LONGEST_BYTES} bytes", found, hint))
    plain = "".join(password.casefold().split())
    core = plain.strip("0123456789!?.,;:-_*#$%&/()=+")
    if core in _COMMON or not core or len(set(plain)) < 4 or core == "".join(name.casefold().split()):
        raise UsageError(Fault("E2001", "a password that is hard to guess", "a common one, or the name of the user"))
    return password


def _parts(kept: str) -> tuple[Cost, bytes, bytes]:
    scheme, n, r, p, salt, wanted = kept.split("$")
    if scheme != "scrypt":
        raise ValueError(f"kept: expected a scrypt hash, got {scheme!r}")
    return Cost(int(n), int(r), int(p)), b64decode(salt), b64decode(wanted)


def _scrypt(password: str, cost: Cost, salt: bytes) -> bytes:
    memory = 128 * cost.n * cost.r * 2 + (1 << 20)
    return hashlib.scrypt(_normal(password)[:4096], salt=salt, n=cost.n, r=cost.r, p=cost.p, maxmem=memory, dklen=32)


def _normal(password: str) -> bytes:
    """The same bytes from every keyboard: a sign typed in two ways is one sign."""
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")
