"""Users, sessions, tokens: who gets in, for how long, and how guessing is braked (RELIABILITY I3 to I5)."""

from __future__ import annotations

import base64
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alert_rows import DAY, HOUR, T0, Clock, all_rows

from alerts import tables
from alerts.database import Database
from alerts.passwords import Cost, checked_password, hash_password, verify_password
from alerts.store import AlertStore
from alerts.users import ROLES, SignInRefused, SignInRules, TooManyAttempts, User, Users, csrf_token
from anomaly.errors import UsageError

CHEAP, SECOND = Cost(16, 1, 1), 1_000_000
GOOD = "seven felt rolls"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def users(tmp_path: Path, clock: Clock) -> Users:
    made = Users(Database(tmp_path / "alerts.db"), clock, cost=CHEAP)
    made.add("ann", "operator", GOOD, by="setup")
    return made


def actions(users: Users) -> list[tuple[str, str, str]]:
    return [(e["name"], e["action"], e["comment"]) for e in all_rows(users.database, tables.user_events)]


# -- passwords


def test_the_hash_is_scrypt_with_its_own_parameters() -> None:
    kept = hash_password(GOOD, Cost(64, 2, 3), b"salt" * 4)
    wanted = hashlib.scrypt(GOOD.encode(), salt=b"salt" * 4, n=64, r=2, p=3, dklen=32)
    assert kept == f"scrypt$64$2$3${base64.b64encode(b'salt' * 4).decode()}${base64.b64encode(wanted).decode()}"
    assert verify_password(GOOD, kept)
    assert not verify_password(GOOD + " ", kept)
    assert hash_password(GOOD, CHEAP) != hash_password(GOOD, CHEAP), "the salt is random"


def test_the_default_cost_takes_memory_and_works() -> None:
    kept = hash_password(GOOD)
    assert kept.startswith("scrypt$32768$8$3$")
    assert verify_password(GOOD, kept)


def test_a_sign_typed_in_two_ways_is_one_sign() -> None:
    assert verify_password("caf\u00e9 at seven", hash_password("cafe\u0301 at seven", CHEAP))


@pytest.mark.parametrize(
    "password",
    ["", "short", "1234567", "12345678", "password", "Password123!", "pass word 1", "aaaaaaaaaaaa", "ann-marie", "ANN-MARIE",
     "x" * 1025, "é" * 513],
)  # fmt: skip
def test_weak_and_endless_passwords_are_refused(password: str) -> None:
    with pytest.raises(UsageError, match="password"):
        checked_password(password, "ann-marie")


@pytest.mark.parametrize("password", [GOOD, "Tr0ub4dor", "日本語のパスワード", "abcdefghijklm", "x1y2" * 256])
def test_other_passwords_are_taken(password: str) -> None:
    assert checked_password(password, "ann") == password


# -- users


def test_there_is_no_default_account(tmp_path: Path) -> None:
    users = Users(Database(tmp_path / "alerts.db"), cost=CHEAP)
    assert users.list() == []
    assert not (tmp_path / "alerts.db").exists()
    for name in ("admin", "root", "anomaly", ""):
        with pytest.raises(SignInRefused):
            users.sign_in(name, name)


def test_roles_are_ordered() -> None:
    for k, role in enumerate(ROLES):
        assert [User(1, "a", role, 0).may(r) for r in ROLES] == [j <= k for j in range(4)]
        assert not any(User(1, "a", role, 0, disabled_at=5).may(r) for r in ROLES)


def test_names_and_roles_that_cannot_be(users: Users) -> None:
    for name in ("", "  ", "a\nb", "system", "token:x", "x" * 65, "ann", " ann "):
        with pytest.raises(UsageError):
            users.add(name, "viewer", GOOD, by="x")
    with pytest.raises(UsageError, match="viewer, reviewer"):
        users.add("bob", "god", GOOD, by="x")
    with pytest.raises(UsageError, match="name of a user"):
        users.disable("nobody", by="x")
    assert [u.name for u in users.list()] == ["ann"]


def test_no_password_and_no_token_is_kept_or_shown(users: Users) -> None:
    session, _ = users.sign_in("ann", GOOD)
    machine = users.add_token("scada", "viewer", by="ann")
    path = users.database.path  # of a server we see the rows alone
    raw = (
        b"".join(p.read_bytes() for p in path.parent.iterdir())
        if path
        else repr(AlertStore(users.database).dump()).encode()
    )
    assert b"scada" in raw
    for secret in (GOOD, session, machine):
        assert secret.encode() not in raw
    assert GOOD not in repr(users.list())


def test_the_only_admin_stays(users: Users) -> None:
    users.add("root", "admin", GOOD, by="setup")
    for attempt in (lambda: users.disable("root", by="root"), lambda: users.set_role("root", "viewer", by="root")):
        with pytest.raises(UsageError, match="another admin"):
            attempt()
    users.add("bob", "admin", GOOD, by="root")
    users.disable("root", by="bob")
    assert [u.name for u in users.list() if u.may("admin")] == ["bob"]


# -- sessions


def test_a_session_lives_while_it_is_used_and_not_longer_than_a_shift(users: Users, clock: Clock) -> None:
    token, user = users.sign_in("ann", GOOD, "10.0.0.7")
    assert (user.name, user.role) == ("ann", "operator")
    assert len(token) >= 43
    for _ in range(11):
        clock.now += HOUR
        assert users.session(token) == user
    clock.now += HOUR - 1
    assert users.session(token) == user
    clock.now += 1
    assert users.session(token) is None, "12 hours after sign-in, though in use"


def test_an_idle_session_ends(users: Users, clock: Clock) -> None:
    token, _ = users.sign_in("ann", GOOD)
    clock.now += 2 * HOUR
    assert users.session(token) is None


@pytest.mark.parametrize("token", ["", "x", "a" * 43, "\x00", "\ud800", "' OR 1=1 --"])
def test_a_forged_token_is_nobody(users: Users, token: str) -> None:
    users.sign_in("ann", GOOD)
    assert users.session(token) is None
    assert users.token(token) is None


def test_the_digest_in_the_database_is_no_token(users: Users) -> None:
    users.sign_in("ann", GOOD)
    (held,) = all_rows(users.database, tables.sessions)
    assert users.session(held["token_hash"]) is None


def test_rotation_gives_another_token_and_ends_the_old_one(users: Users, clock: Clock) -> None:
    old, user = users.sign_in("ann", GOOD)
    clock.now += HOUR
    new = users.rotate(old)
    assert new != old
    assert (users.session(old), users.session(new)) == (None, user)
    with pytest.raises(SignInRefused):
        users.rotate(old)
    for _ in range(11):
        clock.now += HOUR
        users.session(new)
    assert users.session(new) is None, "rotation does not lengthen a session"


@pytest.mark.parametrize("end", ["sign_out", "disable", "set_password", "set_role"])
def test_what_ends_sessions_ends_all_of_them(users: Users, end: str) -> None:
    tokens = [users.sign_in("ann", GOOD)[0] for _ in range(2)]
    if end == "sign_out":
        users.sign_out(tokens[0])
        assert [users.session(t) is None for t in tokens] == [True, False]
        return
    more = {"set_password": ("another good one",), "set_role": ("viewer",)}.get(end, ())
    getattr(users, end)("ann", *more, by="root")
    assert [users.session(t) for t in tokens] == [None, None]


def test_a_disabled_user_is_out_until_enabled(users: Users) -> None:
    users.disable("ann", by="root")
    with pytest.raises(SignInRefused):
        users.sign_in("ann", GOOD)
    users.enable("ann", by="root")
    assert users.sign_in("ann", GOOD)[1].name == "ann"


def test_the_token_of_a_form_belongs_to_its_session(users: Users) -> None:
    one, two = (users.sign_in("ann", GOOD)[0] for _ in range(2))
    assert csrf_token(one) == csrf_token(one) != csrf_token(two)
    assert csrf_token(one) != hashlib.sha256(one.encode()).hexdigest(), "not what the database holds"


# -- guessing


def wrong(users: Users, name: str = "ann", address: str = "", times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(SignInRefused):
            users.sign_in(name, "not the password", address)


@pytest.mark.parametrize("name", ["ann", "nobody"])
def test_guessing_one_name_waits_longer_and_longer(users: Users, clock: Clock, name: str) -> None:
    """The same for a name that does not exist: its answers must not tell."""
    wrong(users, name, times=5)
    for wait in (1, 2, 4, 8, 16):
        with pytest.raises(TooManyAttempts) as told:
            users.sign_in(name, GOOD)
        assert told.value.retry_after_s == wait
        clock.now += wait * SECOND
        wrong(users, name)
    for _ in range(20):
        clock.now += 15 * 60 * SECOND
        wrong(users, name)
    with pytest.raises(TooManyAttempts) as told:
        users.sign_in(name, GOOD)
    assert told.value.retry_after_s == 900


def test_the_right_password_ends_the_wait(users: Users, clock: Clock) -> None:
    wrong(users, times=5)
    clock.now += SECOND
    users.sign_in("ann", GOOD)
    wrong(users, times=5)


def test_one_address_cannot_try_many_names(users: Users, clock: Clock) -> None:
    for k in range(20):
        wrong(users, f"user {k}", "10.0.0.9")
    with pytest.raises(TooManyAttempts) as told:
        users.sign_in("ann", GOOD, "10.0.0.9")
    assert told.value.retry_after_s == 900
    assert users.sign_in("ann", GOOD, "10.0.0.8")
    clock.now += 900 * SECOND
    assert users.sign_in("ann", GOOD, "10.0.0.9")


def test_guesses_at_once_count_before_they_are_answered(users: Users) -> None:
    def guess(_: int) -> type[Exception]:
        with pytest.raises(UsageError) as refused:
            users.sign_in("ann", "not the password")
        return type(refused.value)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(guess, range(16)))
    assert answers.count(SignInRefused) == SignInRules().free


def test_the_answer_does_not_say_what_was_wrong(users: Users) -> None:
    users.add("bob", "viewer", GOOD, by="ann")
    users.disable("bob", by="ann")
    said = set()
    for name, password in (("ann", "wrong one"), ("nobody", GOOD), ("bob", GOOD), ("a\x00\ud800", GOOD)):
        with pytest.raises(SignInRefused) as refused:
            users.sign_in(name, password)
        said.add(str(refused.value))
    assert len(said) == 1


def test_an_unknown_name_is_hashed_too(users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    monkeypatch.setattr("alerts.users.verify_password", lambda password, kept: done.append(kept) or False)
    wrong(users)
    wrong(users, "nobody")
    assert [kept.split("$")[:4] for kept in done] == [["scrypt", "16", "1", "1"]] * 2


def test_an_old_hash_is_renewed_at_sign_in(users: Users, tmp_path: Path) -> None:
    stronger = Users(users.database, cost=Cost(32, 1, 1))
    stronger.sign_in("ann", GOOD)
    (kept,) = (row["password"] for row in all_rows(users.database, tables.users))
    assert kept.startswith("scrypt$32$1$1$")
    assert stronger.sign_in("ann", GOOD)


def test_every_sign_in_is_on_record(users: Users) -> None:
    wrong(users, address="10.0.0.9")
    token, _ = users.sign_in("ann", GOOD, "10.0.0.7")
    users.sign_out(token)
    assert actions(users) == [
        ("ann", "add", "operator"), ("ann", "try", ""), ("ann", "refused", "wrong password"), ("ann", "try", ""),
        ("ann", "sign_in", ""), ("ann", "sign_out", ""),
    ]  # fmt: skip
    assert [e["address"] for e in all_rows(users.database, tables.user_events)][2:5] == [
        "10.0.0.9",
        "10.0.0.7",
        "10.0.0.7",
    ]


# -- machines


def test_a_machine_has_a_token_of_its_own(users: Users, clock: Clock) -> None:
    token = users.add_token("scada", "viewer", by="ann", expires_at=T0 + DAY)
    machine = users.token(token)
    assert machine is not None
    assert (machine.name, machine.may("viewer"), machine.may("reviewer")) == ("token:scada", True, False)
    assert users.session(token) is None, "a token opens no page"
    clock.now += DAY
    assert users.token(token) is None


def test_a_token_can_be_ended_and_is_never_admin(users: Users) -> None:
    token = users.add_token("scada", "operator", by="ann")
    for refused in (
        lambda: users.add_token("scada", "viewer", by="ann"),
        lambda: users.add_token("other", "admin", by="ann"),
        lambda: users.disable_token("nothing", by="ann"),
    ):
        with pytest.raises(UsageError, match="E2001"):
            refused()
    users.disable_token("scada", by="ann")
    assert users.token(token) is None
