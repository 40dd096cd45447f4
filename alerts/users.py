"""Who may sign in and what for: named users, sessions kept on the server, tokens for machines, a brake on guessing.

Passwords are kept as scrypt hashes with their parameters, sessions and tokens as SHA-256 of a random value that only their owner
has. There is no default account. Every sign-in, refused or not, and every change of a user is a row of ``user_events``, which
the database never changes. Times are int UTC microseconds (RELIABILITY I3 to I5).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from alerts import tables
from alerts.database import Database
from alerts.passwords import Cost, checked_password, hash_password, needs_new_hash, verify_password
from alerts.states import SYSTEM
from alerts.workflow import Clock, clock_us
from anomaly.errors import Fault, UsageError, shown

#: From the least to the most; each may do what those before it may.
ROLES = ("viewer", "reviewer", "operator", "admin")

_MINUTE, _HOUR, _DAY = 60_000_000, 3_600_000_000, 86_400_000_000


class SignInRefused(UsageError):
    """The name or the password is wrong, or the user is disabled: which of them is not said. The page answers 401."""

    def __init__(self) -> None:
        super().__init__(Fault("E2001", "a user name and its password", "a pair that does not fit"))


class TooManyAttempts(UsageError):
    """Too many wrong sign-ins for the name or from the address; wait ``retry_after_s``. The page answers 429."""

    def __init__(self, wait_us: int) -> None:
        self.retry_after_s = -(-wait_us // 1_000_000)
        super().__init__(Fault("E2001", "fewer wrong sign-ins", "too many", f"wait {self.retry_after_s} s"))


@dataclass(frozen=True)
class User:
    """A person, or a machine with a token (``id`` 0)."""

    id: int
    name: str
    role: str
    created_at: int
    disabled_at: int | None = None

    def may(self, role: str) -> bool:
        """Whether this user's role is ``role`` or more, and the user is not disabled.

        >>> User(1, "ann", "reviewer", 0).may("viewer"), User(1, "ann", "reviewer", 0).may("operator")
        (True, False)
        """
        return self.disabled_at is None and ROLES.index(self.role) >= ROLES.index(role)


@dataclass(frozen=True)
class SignInRules:
    """How long sessions live and how guessing is braked; times in microseconds.

    A session ends ``idle_us`` after it was last used, and ``longest_us`` after sign-in whatever happens. After ``free`` wrong
    sign-ins in a row for a name the next ones wait: 1 s, 2 s, 4 s … up to ``longest_wait_us``; from one address
    ``per_address`` are allowed within ``window_us``.
    """

    idle_us: int = 2 * _HOUR
    longest_us: int = 12 * _HOUR
    free: int = 5
    per_address: int = 20
    window_us: int = 15 * _MINUTE
    longest_wait_us: int = 15 * _MINUTE


class Users:
    """Users, sessions and tokens in the alert database; ``clock`` gives UTC microseconds.

    Every method may raise Unavailable as ``AlertStore`` does.
    """

    def __init__(
        self, database: Database, clock: Clock = clock_us, rules: SignInRules | None = None, cost: Cost | None = None
    ) -> None:
        self.database, self._clock, self.rules, self.cost = database, clock, rules or SignInRules(), cost or Cost()
        self._nobody = hash_password(secrets.token_hex(8), self.cost)  # to take as long for an unknown name

    # -- users

    def add(self, name: str, role: str, password: str, *, by: str) -> User:
        """A new user. Raises UsageError E2001 for a name that is taken or not one, an unknown role, or a weak password."""
        name = _name(name)
        _known_role(role)
        kept, now = hash_password(checked_password(password, name), self.cost), self._clock()
        with self.database.writing() as connection:
            if _user(connection, name) is not None:
                raise UsageError(Fault("E2001", "a name that no user has", name))
            entry = {"name": name, "role": role, "password": kept, "created_at": now}
            key = connection.execute(sa.insert(tables.users).values(**entry)).inserted_primary_key
            _log(connection, now, name, "add", by, comment=role)
        return User(int((key or (0,))[0]), name, role, now)

    def list(self) -> Sequence[User]:
        """All users by name, disabled ones too."""
        with self.database.reading() as connection:
            rows = [] if connection is None else connection.execute(sa.select(*_USER)).all()
        return sorted((User(**row._mapping) for row in rows), key=lambda user: user.name)

    def set_password(self, name: str, password: str, *, by: str) -> None:
        """Another password; every session of the user ends."""
        kept = hash_password(checked_password(password, name), self.cost)
        self._change(name, "password", by, password=kept)

    def set_role(self, name: str, role: str, *, by: str) -> None:
        """Another role; every session of the user ends."""
        _known_role(role)
        self._change(name, "role", by, comment=role, role=role)

    def disable(self, name: str, *, by: str) -> None:
        """No sign-in any more; every session of the user ends at once. The user's name stays in the past of alerts."""
        self._change(name, "disable", by, disabled_at=self._clock())

    def enable(self, name: str, *, by: str) -> None:
        """Sign-in is possible again."""
        self._change(name, "enable", by, disabled_at=None)

    def _change(self, name: str, action: str, by: str, *, comment: str = "", **changed: object) -> None:
        with self.database.writing() as connection:
            user = _user(connection, name)
            if user is None:
                raise UsageError(Fault("E2001", "the name of a user", name, "anomaly users list shows them"))
            own = tables.users.c
            last_admin = user.role == "admin" and user.disabled_at is None and _admins(connection) == 1
            if last_admin and (action == "disable" or changed.get("role", "admin") != "admin"):
                raise UsageError(Fault("E2001", "another admin first", f"{name} is the only one"))
            connection.execute(sa.update(tables.users).where(own.id == user.id).values(**changed))
            connection.execute(sa.delete(tables.sessions).where(tables.sessions.c.user_id == user.id))
            _log(connection, self._clock(), name, action, by, comment=comment)

    # -- signing in

    def sign_in(self, name: str, password: str, address: str = "") -> tuple[str, User]:
        """A new session: its token, for the browser alone, and the user.

        Raises SignInRefused, in the same time and words whether the name or the password is wrong, or TooManyAttempts.
        """
        name, address = shown(name.strip()), shown(address)
        with (
            self.database.writing() as connection
        ):  # the attempt counts before it is answered, so that none runs beside it
            now = self._clock()
            wait = self._wait(connection, name, address, now)
            if wait <= 0:
                _log(connection, now, name, "try", name, address=address)
                user, kept = _user(connection, name), _password(connection, name)
        if wait > 0:
            raise TooManyAttempts(wait)
        fits = verify_password(password, kept or self._nobody)
        if not fits or user is None or user.disabled_at is not None:
            reason = "unknown" if user is None else "disabled" if user.disabled_at is not None else "wrong password"
            with self.database.writing() as connection:
                _log(connection, self._clock(), name, "refused", name, address=address, comment=reason)
            raise SignInRefused
        fresh = hash_password(password, self.cost) if kept and needs_new_hash(kept, self.cost) else None
        return self._opened(user, kept or "", address, fresh), user

    def _opened(self, user: User, kept: str, address: str, fresh: str | None) -> str:
        with self.database.writing() as connection:
            own, now = tables.users.c, self._clock()
            still = connection.execute(sa.select(own.password, own.disabled_at).where(own.id == user.id)).one()
            if still.password != kept or still.disabled_at is not None:
                raise SignInRefused  # changed while the password was checked
            if fresh:
                connection.execute(sa.update(tables.users).where(own.id == user.id).values(password=fresh))
            connection.execute(sa.delete(tables.sessions).where(tables.sessions.c.expires_at <= now))
            token = _new_session(connection, user.id, now, now + self.rules.longest_us)
            _log(connection, now, user.name, "sign_in", user.name, address=address)
        return token

    def _wait(self, connection: sa.Connection, name: str, address: str, now: int) -> int:
        """Microseconds until the next attempt is allowed; 0 or less: now."""
        own, rules = tables.user_events.c, self.rules
        lasts = sa.select(sa.func.max(own.id)).where(
            own.name == name, own.action.in_(("sign_in", "password", "enable"))
        )
        since = connection.execute(lasts).scalar() or 0
        tries = sa.select(sa.func.count(), sa.func.max(own.at)).where(
            own.name == name, own.action == "try", own.id > since, own.at > now - _DAY
        )
        count, last = connection.execute(tries).one()
        wait = 0
        if count >= rules.free:
            wait = last + min(1_000_000 << min(count - rules.free, 20), rules.longest_wait_us) - now
        if address:
            wrong = sa.select(own.at).where(
                own.address == address, own.action == "refused", own.at > now - rules.window_us
            )
            times = list(connection.execute(wrong.order_by(own.at.desc()).limit(rules.per_address)).scalars())
            if len(times) == rules.per_address:
                wait = max(wait, times[-1] + rules.window_us - now)
        return int(wait)

    # -- sessions

    def session(self, token: str) -> User | None:
        """Who the token stands for; None where the session ended, never was, or its user is disabled. Counts as use."""
        now = self._clock()
        values = {"key": _digest(token), "now": now, "idle": now - self.rules.idle_us}
        with self.database.reading() as connection:
            row = None if connection is None else connection.execute(_SESSION, values).first()
        if row is None or row.disabled_at is not None:
            return None
        if now - row.seen_at > min(_MINUTE, self.rules.idle_us // 4):  # one write a minute, not one a click
            self.database.note(_SEEN, values)
        return User(*row[:-1])

    def rotate(self, token: str) -> str:
        """Another token for the same session, which keeps its end; the old one is worth nothing. SignInRefused if it ended."""
        own, now = tables.sessions.c, self._clock()
        if self.session(token) is None:
            raise SignInRefused
        with self.database.writing() as connection:
            query = (
                sa.delete(tables.sessions)
                .where(own.token_hash == _digest(token))
                .returning(own.user_id, own.expires_at)
            )
            held = connection.execute(query).first()
            if held is None:
                raise SignInRefused
            return _new_session(connection, held.user_id, now, held.expires_at)

    def sign_out(self, token: str) -> None:
        """End the session of the token; nothing happens where there is none."""
        user = self.session(token)
        with self.database.writing() as connection:
            connection.execute(sa.delete(tables.sessions).where(tables.sessions.c.token_hash == _digest(token)))
            if user is not None:
                _log(connection, self._clock(), user.name, "sign_out", user.name)

    # -- tokens of machines

    def add_token(self, name: str, role: str, *, by: str, expires_at: int | None = None) -> str:
        """A token for a machine, shown this once; of role operator at most."""
        name = _name(name)
        _known_role(role)
        if role == "admin":
            raise UsageError(Fault("E2001", "a role below admin for a machine", role))
        token, now = "pa_" + secrets.token_urlsafe(32), self._clock()
        with self.database.writing() as connection:
            if connection.execute(sa.select(tables.tokens.c.id).where(tables.tokens.c.name == name)).first():
                raise UsageError(Fault("E2001", "a name that no token has", name))
            entry = {
                "token_hash": _digest(token),
                "name": name,
                "role": role,
                "created_at": now,
                "expires_at": expires_at,
            }
            connection.execute(sa.insert(tables.tokens).values(**entry))
            _log(connection, now, name, "add_token", by, comment=role)
        return token

    def token(self, token: str) -> User | None:
        """Which machine the token stands for, as a user named ``token:NAME``; None where it ended or never was."""
        own, now = tables.tokens.c, self._clock()
        query = sa.select(tables.tokens).where(own.token_hash == _digest(token), own.disabled_at.is_(None))
        with self.database.reading() as connection:
            row = None if connection is None else connection.execute(query).first()
        if row is None or (row.expires_at is not None and row.expires_at <= now):
            return None
        return User(0, f"token:{row.name}", row.role, row.created_at)

    def disable_token(self, name: str, *, by: str) -> None:
        """The token is worth nothing from now on."""
        own, now = tables.tokens.c, self._clock()
        with self.database.writing() as connection:
            query = sa.update(tables.tokens).where(own.name == name, own.disabled_at.is_(None)).values(disabled_at=now)
            if connection.execute(query).rowcount != 1:
                raise UsageError(Fault("E2001", "the name of a token in use", name))
            _log(connection, now, name, "disable_token", by)


_USER = tuple(tables.users.c[name] for name in ("id", "name", "role", "created_at", "disabled_at"))
#: Whose session is alive; made once, as every request asks it.
_SESSION = (
    sa.select(*_USER, tables.sessions.c.seen_at)
    .join(tables.sessions, tables.sessions.c.user_id == tables.users.c.id)
    .where(
        tables.sessions.c.token_hash == sa.bindparam("key"),
        tables.sessions.c.expires_at > sa.bindparam("now"),
        tables.sessions.c.seen_at > sa.bindparam("idle"),
    )
)

_SEEN = (
    sa.update(tables.sessions)
    .where(tables.sessions.c.token_hash == sa.bindparam("key"))
    .values(seen_at=sa.bindparam("now"))
)


def csrf_token(session_token: str) -> str:
    """What a form of this session carries: it follows from the session's token and tells nothing of it."""
    return hashlib.sha256(f"csrf|{session_token}".encode()).hexdigest()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _new_session(connection: sa.Connection, user_id: int, now: int, expires_at: int) -> str:
    token = secrets.token_urlsafe(32)
    entry = {
        "token_hash": _digest(token),
        "user_id": user_id,
        "created_at": now,
        "seen_at": now,
        "expires_at": expires_at,
    }
    connection.execute(sa.insert(tables.sessions).values(**entry))
    return token


def _user(connection: sa.Connection, name: str) -> User | None:
    row = connection.execute(sa.select(*_USER).where(tables.users.c.name == name)).first()
    return None if row is None else User(**row._mapping)


def _password(connection: sa.Connection, name: str) -> str | None:
    return connection.execute(sa.select(tables.users.c.password).where(tables.users.c.name == name)).scalar()


def _admins(connection: sa.Connection) -> int:
    own = tables.users.c
    query = sa.select(sa.func.count()).where(own.role == "admin", own.disabled_at.is_(None))
    return int(connection.execute(query).scalar_one())


def _log(
    connection: sa.Connection, at: int, name: str, action: str, actor: str, *, address: str = "", comment: str = ""
) -> None:
    entry = {
        "at": at,
        "name": name,
        "address": address,
        "action": action,
        "actor": shown(actor),
        "comment": comment,
    }
    connection.execute(sa.insert(tables.user_events).values(**entry))


def _name(name: str) -> str:
    """A name that can be written in one line and is not one of ours."""
    name = name.strip()
    if not name or len(name) > 64 or not name.isprintable() or name == SYSTEM or name.startswith("token:"):
        raise UsageError(Fault("E2001", "a name of 1 to 64 printable signs, not system or token:…", name))
    return name


def _known_role(role: str) -> None:
    if role not in ROLES:
        raise UsageError(Fault("E2001", f"a role: {', '.join(ROLES)}", role))
