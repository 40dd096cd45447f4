"""The settings of notifications: one TOML with a table ``[notify]``, a table per target, and no secret in it.

A secret is named by ``…_env`` (an environment variable) or ``…_file`` (a file that holds nothing else), so that the settings can
lie in a repository. An unknown key is refused with the nearest known one.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from alerts.outbox import QuietHours, SenderRules, Transport
from alerts.targets import TargetRules
from alerts.transports import MailServer, alertmanager, apprise, mail, webhook
from anomaly.errors import Fault, UsageError

KINDS = ("webhook", "alertmanager", "mail", "apprise")
_MINUTE, _HOUR = 60_000_000, 3_600_000_000
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}", re.ASCII)
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", re.ASCII)


@dataclass(frozen=True)
class TargetSettings:
    """One target. ``url``, ``secret`` and ``password`` come from what ``…_env`` or ``…_file`` names; ``url`` may stand in the
    settings too, but for an apprise target, whose address is a secret.

    ``http``, ``networks``, ``hosts`` and ``timeout_s`` as in ``targets.TargetRules``; the mail fields as in
    ``transports.MailServer``. ``min_priority`` overrides the one above all targets.
    """

    kind: str = "webhook"
    url: str = ""
    url_env: str = ""
    url_file: str = ""
    secret_env: str = ""
    secret_file: str = ""
    min_priority: int | None = None
    http: bool = False
    networks: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    timeout_s: float = 10.0
    host: str = ""
    port: int = 587
    security: str = "starttls"
    sender: str = ""
    to: tuple[str, ...] = ()
    user: str = ""
    password_env: str = ""
    password_file: str = ""


@dataclass(frozen=True)
class NotifySettings:
    """What is told to whom; times of the day are in ``zone``.

    ``min_priority``: 1 tells of high alerts only, 3 of all. ``per_asset`` and ``per_sensor`` messages at most in
    ``window_hours``; the others are counted in the digest. In ``quiet`` (``22:00-06:00``, "" for never) messages of a priority
    below ``quiet_passes`` wait. ``digest_hour`` UTC, -1 for no digest. ``escalate_minutes``: a new alert of priority 1 or 2
    that nobody took for so long is told of once more; 0 for never. ``return_minutes``: so long after its end an alert that
    somebody took counts as returned to normal; 0 for never. ``silent_minutes``: an asset without data for twice as long is an
    alert of its own; 0 for never.
    """

    targets: Mapping[str, TargetSettings] = field(default_factory=dict)
    min_priority: int = 3
    per_asset: int = 12
    per_sensor: int = 6
    window_hours: float = 24.0
    quiet: str = ""
    zone: str = "UTC"
    quiet_passes: int = 1
    digest_hour: int = 6
    escalate_minutes: float = 60.0
    return_minutes: float = 0.0
    silent_minutes: float = 0.0
    attempts: int = 10

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("min_priority", self.min_priority in (1, 2, 3), "1, 2 or 3"),
            ("quiet_passes", self.quiet_passes in (0, 1, 2, 3), "0, 1, 2 or 3"),
            ("per_asset", self.per_asset >= 1, "a number of at least 1"),
            ("per_sensor", self.per_sensor >= 1, "a number of at least 1"),
            ("attempts", self.attempts >= 1, "a number of at least 1"),
            ("window_hours", 0 < self.window_hours <= 24 * 31, "hours above 0, 744 at most"),
            ("digest_hour", -1 <= self.digest_hour <= 23, "an hour from 0 to 23, or -1 for none"),
            ("escalate_minutes", 0 <= self.escalate_minutes <= 1e6, "minutes of at least 0"),
            ("return_minutes", 0 <= self.return_minutes <= 1e6, "minutes of at least 0"),
            ("silent_minutes", 0 <= self.silent_minutes <= 1e6, "minutes of at least 0"),
            ("quiet", not self.quiet or _TIME.fullmatch(self.quiet), "hours such as 22:00-06:00"),
            ("zone", _is_zone(self.zone), "a time zone such as Europe/Berlin"),
        ):
            if not good:
                raise UsageError(Fault("E2002", f"notify.{name}: {expected}", getattr(self, name)))
        for name, target in self.targets.items():
            _check_target(name, target)

    @classmethod
    def from_toml(cls, path: Path) -> NotifySettings:
        """The settings in ``path``; raises UsageError E2001 where it cannot be read, E2002 for a key or value that is wrong."""
        try:
            with path.open("rb") as stream:
                held = tomllib.load(stream)
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            hint = "docs/notifications.md shows one"
            raise UsageError(Fault("E2001", "a TOML file with a table [notify]", error, hint, str(path))) from error
        if set(held) != {"notify"} or not isinstance(held["notify"], dict):
            raise UsageError(Fault("E2002", "one table [notify]", ", ".join(held) or "nothing", file=str(path)))
        return cls.from_dict(held["notify"])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NotifySettings:
        """Settings from plain values, as the table ``[notify]`` holds them; UsageError E2002 for what is wrong.

        >>> NotifySettings.from_dict({"quiet": "22:00-06:00"}).rules("x").quiet.start
        1320
        """
        given = dict(values)
        targets = given.pop("targets", {})
        if not isinstance(targets, dict) or not all(isinstance(own, dict) for own in targets.values()):
            raise UsageError(Fault("E2002", "notify.targets: a table per target", targets))
        made = {name: TargetSettings(**_checked(TargetSettings, own, f"notify.targets.{name}"))
                for name, own in targets.items()}  # fmt: skip
        return cls(targets=made, **_checked(cls, given, "notify"))

    def target(self, name: str) -> TargetSettings:
        """One target; UsageError E2001, with the names there are, for another one."""
        if name not in self.targets:
            known = ", ".join(self.targets) or "none yet; docs/notifications.md shows how to add one"
            raise UsageError(Fault("E2001", f"a target of the settings: {known}", name))
        return self.targets[name]

    def rules(self, name: str) -> SenderRules:
        """What the target is sent, and how often."""
        own = self.targets.get(name)
        least = self.min_priority if own is None or own.min_priority is None else own.min_priority
        return SenderRules(
            per_asset=self.per_asset,
            per_sensor=self.per_sensor,
            limit_window_us=round(self.window_hours * _HOUR),
            attempts=self.attempts,
            quiet=self._quiet(),
            least_priority=least,
        )

    def _quiet(self) -> QuietHours | None:
        match = _TIME.fullmatch(self.quiet)
        if match is None:
            return None
        start, end = (int(match[k]) * 60 + int(match[k + 1]) for k in (1, 3))
        return QuietHours(start, end, self.zone, self.quiet_passes)

    @property
    def escalate_us(self) -> int | None:
        """``escalate_minutes`` in microseconds; None for never."""
        return round(self.escalate_minutes * _MINUTE) or None

    @property
    def return_us(self) -> int | None:
        """``return_minutes`` in microseconds; None for never."""
        return round(self.return_minutes * _MINUTE) or None


def transport(
    name: str, own: TargetSettings, clock: Callable[[], int], environment: Mapping[str, str] | None = None
) -> Transport:
    """The way to a target, its secrets read now. Raises UsageError E2001 where one is missing or is not of its form."""
    known = os.environ if environment is None else environment
    if own.kind == "mail":
        password = _secret(name, "password", own, known) if own.password_env or own.password_file else ""
        return mail(MailServer(own.host, own.sender, own.to, own.port, own.security, own.user, password, own.timeout_s))
    rules = TargetRules(own.http, own.networks, own.hosts, own.timeout_s)
    url = own.url or _secret(name, "url", own, known)
    if own.kind == "alertmanager":
        return alertmanager(url, rules)
    if own.kind == "apprise":
        return apprise(url, rules)
    return webhook(url, _secret(name, "secret", own, known), clock, rules)


def _secret(name: str, what: str, own: TargetSettings, environment: Mapping[str, str]) -> str:
    """A secret from where the settings say; its value is in no message."""
    variable, file = getattr(own, f"{what}_env"), getattr(own, f"{what}_file")
    place = f"the {what} of the target {name}"
    if variable:
        if not environment.get(variable):
            raise UsageError(Fault("E2001", f"{place} in the environment variable {variable}", "nothing"))
        return environment[variable].strip()
    try:
        text = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(Fault("E2001", f"{place} in a file", type(error).__name__, file=file)) from error
    if not text:
        raise UsageError(Fault("E2001", f"{place} in a file", "an empty one", file=file))
    return text


def _checked(kind: type, values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The values as the fields of ``kind`` want them; raises UsageError E2002."""
    known = {f.name: str(f.type) for f in fields(kind) if f.name != "targets"}
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            if key in ("secret", "password"):
                hint = f"no secret stands in the settings: name where it is with {key}_env or {key}_file"
            raise UsageError(Fault("E2002", f"a known key of [{place}]", key, hint))
        made[key] = _typed(known[key], value, f"{place}.{key}")
    return made


def _typed(kind: str, value: Any, place: str) -> Any:
    own = kind.removesuffix(" | None")
    if own == "tuple[str, ...]" and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if own == "float" and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    plain: dict[str, type] = {"str": str, "int": int, "bool": bool}
    if own in plain and type(value) is plain[own]:
        return value
    raise UsageError(Fault("E2002", f"{place}: {'a list of text' if own.startswith('tuple') else own}", value))


def _check_target(name: str, own: TargetSettings) -> None:
    """Raises UsageError E2002 where a target lacks what its kind needs, or has a name that is none."""
    place = f"notify.targets.{name}"
    if not _NAME.fullmatch(name):
        raise UsageError(Fault("E2002", "a target's name of small letters, digits, - and _", name))
    if own.kind not in KINDS:
        raise UsageError(Fault("E2002", f"{place}.kind: {', '.join(KINDS)}", own.kind))
    if own.min_priority not in (None, 1, 2, 3) or not 0 < own.timeout_s <= 60:
        raise UsageError(Fault("E2002", f"{place}: a min_priority of 1 to 3 and a timeout_s of 60 at most", "others"))
    if own.kind == "mail":
        if not own.host:
            raise UsageError(Fault("E2002", f"{place}.host: the mail server", "nothing"))
        MailServer(own.host, own.sender, own.to, own.port, own.security)
        return
    wanted = ["url_env", "url_file"] + ([] if own.kind == "apprise" else ["url"])
    if sum(bool(getattr(own, key)) for key in ("url", "url_env", "url_file")) != 1 or not any(
        getattr(own, key) for key in wanted
    ):
        raise UsageError(Fault("E2002", f"{place}: one of {', '.join(wanted)}", "none of them, or several"))
    if own.kind == "webhook" and bool(own.secret_env) == bool(own.secret_file):
        raise UsageError(Fault("E2002", f"{place}: secret_env or secret_file", "neither, or both"))


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True
