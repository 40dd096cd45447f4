"""Which column plays which part: declared by the settings, matched to a model's contract, or inferred and printed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from anomaly.config import LogSettings
from anomaly.data.contract import LogContract
from anomaly.data.reading.profile import ColumnProfile, FileProfile
from anomaly.errors import Fault

#: A column of such a name is left out unless it is declared: trained on it, a model would know the answer.
LABEL_NAMES = frozenset(
    ("anomaly", "changepoint", "is_anomaly", "anomaly_label", "label", "class", "target", "attack", "fault")
)
_MOST_CATEGORIES = 20


@dataclass
class Roles:
    """The parts of the columns, with what was inferred (``notices``) and what is wrong with the choice (``faults``)."""

    tags: list[str] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    asset: str | None = None
    label: str | None = None
    notices: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def leave_out(self, name: str, reason: str, *, notice: bool = True) -> None:
        """Leave column ``name`` out for ``reason``, and say so."""
        self.left_out.append((name, reason))
        if notice:
            self.notices.append(f"column {name} is left out: {reason}")


def near(name: str, others: Iterable[str]) -> str:
    """A hint naming the column of ``others`` that ``name`` may have become, or "".

    >>> near("Pressure", ["Presure", "Flow"])
    "renamed? 'Presure' is close to 'Pressure'"
    """
    folded = {o.casefold(): o for o in others}
    found = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.7)
    return f"renamed? {folded[found[0]]!r} is close to {name!r}" if found else ""


def some_names(names: list[str]) -> str:
    """A few names, and how many more there are.

    >>> some_names(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


def missing(name: str, profile: FileProfile, others: Iterable[str], what: str = "this column") -> Fault:
    """Fault E3101: ``profile``'s file has no column ``name``; ``others`` are candidates for a near miss."""
    return Fault("E3101", what, "no such column", near(name, others), profile.source.name, name)


def matched(profiles: list[FileProfile], settings: LogSettings, contract: LogContract) -> Roles:
    """Roles of a log to score: the contract's, every file checked against them (E3101 missing, E3102 extra)."""
    roles = Roles(list(contract.tags), list(contract.categories), list(contract.left_out))
    roles.asset = None if settings.asset_from_name else settings.asset or contract.asset
    label = settings.label or contract.label
    roles.label = label if any(label in p.source.columns for p in profiles) else None
    wanted = [*roles.tags, *roles.categories, *([roles.asset] if roles.asset else [])]
    known = {*wanted, *settings.drop, *(c for c, _ in roles.left_out), label, contract.time, settings.time}
    for profile in profiles:
        # a profile has every column but the time and those ignored on purpose
        columns = list(profile.columns)
        extra = [c for c in columns if c not in known]
        absent = [w for w in wanted if w not in profile.source.columns]
        roles.faults += [missing(w, profile, extra, "this column of the model's contract") for w in absent]
        for name in extra:
            hint = f"take the column out; if it is not a sensor, train with --drop {name}"
            roles.faults.append(
                Fault("E3102", "only the columns of the model's contract", "one more", hint, profile.source.name, name)
            )
    return roles


def inferred(profiles: list[FileProfile], settings: LogSettings) -> Roles:
    """Roles of a log to learn from: the declared ones checked, the others inferred from every file's columns."""
    roles = Roles(asset=settings.asset)
    _declared(roles, profiles, settings)
    taken = {settings.asset, settings.label, *settings.categories, *settings.drop}
    for name, columns in merged(profiles).items():
        if name in taken:
            continue
        if len(columns) < len(profiles):
            if settings.tags is None or name not in settings.tags:  # a declared tag is missed by name elsewhere
                roles.leave_out(name, "not in every file")
        elif settings.tags is None:
            _infer(roles, name, columns, sum(p.rows for p in profiles))
        elif name not in settings.tags:
            roles.leave_out(name, "not among the declared tags", notice=False)
    if settings.tags is not None:
        roles.tags = list(dict.fromkeys(settings.tags))
    for dropped in settings.drop:
        roles.leave_out(dropped, "dropped by declaration", notice=False)
    return roles


def merged(profiles: list[FileProfile]) -> dict[str, list[ColumnProfile]]:
    """Each column with its profiles in the files that have it, in the order of first appearance."""
    found: dict[str, list[ColumnProfile]] = {}
    for profile in profiles:
        for name, column in profile.columns.items():
            found.setdefault(name, []).append(column)
    return found


def _declared(roles: Roles, profiles: list[FileProfile], settings: LogSettings) -> None:
    """Check that declared columns exist, and take the categories and the label."""
    wanted = [*(settings.tags or ()), *settings.categories, *([settings.asset] if settings.asset else [])]
    for profile in profiles:
        columns = profile.source.columns
        roles.faults += [missing(w, profile, columns) for w in wanted if w not in columns]
    roles.categories = list(dict.fromkeys(settings.categories))
    label = settings.label
    if label is None:
        roles.notices.append("no label column: every row is taken as normal")
        return
    without = [p for p in profiles if label not in p.source.columns]
    if len(without) == len(profiles):
        seen = [c for p in profiles for c in p.source.columns]
        hint = near(label, seen) or "the label column is optional: without it every row is taken as normal"
        roles.faults.append(Fault("E3105", "the label column", "no such column", hint, profiles[0].source.name, label))
        return
    roles.label = label
    taken_as = (
        "normal"
        if settings.unlabelled == "normal"
        else "unknown, not normal (--unlabelled normal takes them as normal)"
    )
    if without:
        names = some_names([p.source.path.name for p in without])
        roles.notices.append(f"no label column {label} in {names}: these rows are {taken_as}")


def _infer(roles: Roles, name: str, columns: list[ColumnProfile], rows: int) -> None:
    """Give one undeclared column its part, by its name and by what its cells were."""
    values, text, boolean = (sum(getattr(c, k) for c in columns) for k in ("values", "text", "boolean"))
    odd = next((c.kind for c in columns if c.kind in ("time", "other")), None)
    if name.casefold() in LABEL_NAMES:
        roles.leave_out(name, f"looks like a label, not a sensor; --label {name} uses it as one")
    elif odd:
        roles.leave_out(name, "holds times" if odd == "time" else "holds neither numbers nor text")
    elif re.fullmatch(r"__index_level_\d+__", name):
        roles.leave_out(name, "is a pandas row index")
    elif values + text == 0:
        roles.leave_out(name, "no value in any row")
    elif (text == 0 and boolean in (0, values)) or 2 * (values - boolean) > values + text:
        roles.tags.append(name)  # mostly numbers: its text cells are faults, not a category
    else:
        _infer_text(roles, name, columns, rows)


def _infer_text(roles: Roles, name: str, columns: list[ColumnProfile], rows: int) -> None:
    distinct: set[str] = set()
    for column in columns:
        if column.distinct is None:
            roles.leave_out(name, "text with many different values; keep it with --category")
            return
        distinct |= column.distinct
    if len(distinct) <= _MOST_CATEGORIES and len(distinct) * 10 <= rows:
        roles.categories.append(name)
        roles.notices.append(f"text column {name} is kept as a category ({len(distinct)} values)")
    else:
        roles.leave_out(name, "text that does not repeat; keep it with --category")
