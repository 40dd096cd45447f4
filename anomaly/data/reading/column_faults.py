"""From what was noted in a log's columns to faults: only columns that matter, the first rows of each kind."""

from __future__ import annotations

import re
from collections.abc import Iterator

from anomaly.config import LogSettings
from anomaly.data.reading.profile import ColumnProfile, FileProfile, Rows
from anomaly.data.reading.roles import Roles, merged
from anomaly.errors import Fault

MOST_FAULTS = 100


def column_faults(profiles: list[FileProfile], roles: Roles, settings: LogSettings) -> list[Fault]:
    """Faults in the cells of tags, categories, asset and label, and tags without any value (E3108, E3109)."""
    faults: list[Fault] = []
    boolean = {n for n in roles.tags if _is_boolean([p.columns[n] for p in profiles if n in p.columns])}
    for profile in profiles:
        for name in roles.tags:
            if name in profile.columns:
                faults += _tag_faults(profile, profile.columns[name], name in boolean)
        faults += _category_faults(profile, roles)
        faults += _time_twice(profile, roles)
        faults += _open_quotes(profile)
    first = profiles[0].source.name
    if not roles.tags:
        hint = "a log needs at least one column of numbers beside time, label and asset"
        faults.append(Fault("E3108", "at least one numeric tag", "none", hint, first))
    return [*faults, *_empty_tags(profiles, settings)]


def limited(faults: list[Fault]) -> list[Fault]:
    """The first 100 faults of each file, those of the whole file and of its columns before those of its rows."""
    by_file: dict[str | None, list[Fault]] = {}
    for fault in faults:
        by_file.setdefault(fault.file, []).append(fault)
    kept: list[Fault] = []
    for group in by_file.values():
        kept += sorted(group, key=lambda f: (f.row is not None, f.row or 0))[:MOST_FAULTS]
    return kept


def label_scheme(profiles: list[FileProfile], roles: Roles, settings: LogSettings, scoring: bool) -> list[Fault]:
    """Check the label's cells (E3112); says in ``roles.notices`` where they are fault codes.

    Binary: 0 and 1. Fault codes: 0 normal, k a fault, 100 + k its transient. "auto" takes fault codes only when a
    transient code shows them (or a model was already trained on them): a stray 2 is otherwise a typing error.
    """
    columns = merged(profiles).get(roles.label or "", [])
    binary, code = not any(c.not_binary for c in columns), not any(c.not_code for c in columns)
    scheme = settings.label_scheme
    if scheme == "auto":
        told = code and (scoring or any(c.transient for c in columns))
        scheme = "fault-code" if told and not binary else "binary"
    if scheme == "fault-code" and not binary and code:
        roles.notices.append(f"label {roles.label} holds fault codes: 0 is normal, every other code an event")
    hint = "--label-scheme fault-code reads 0 as normal and every other code as an event" if code else ""
    expected = "0 or 1" if scheme == "binary" else "a fault code: 0, 1 to 99 or 101 to 199"
    faults = []
    for profile in profiles:
        column = profile.columns.get(roles.label or "")
        rows: Rows = [] if column is None else column.not_binary if scheme == "binary" else column.not_code
        faults += [Fault("E3112", expected, cell, hint, profile.source.name, roles.label, row) for row, cell in rows]
    return faults


def _is_boolean(columns: list[ColumnProfile]) -> bool:
    return not any(c.text for c in columns) and all(c.boolean == c.values for c in columns)


def _tag_faults(profile: FileProfile, column: ColumnProfile, boolean: bool) -> Iterator[Fault]:
    name, file = column.name, profile.source.name
    if column.kind in ("time", "other"):
        yield Fault("E3107", "numbers", f"a column of type {profile.source.columns[name][1]}", "", file, name)
    for row, cell in column.text_rows + ([] if boolean else column.boolean_rows):
        yield Fault("E3107", "a number", cell, _cure(str(cell), name), file, name, row)
    for row, cell in column.infinite_rows:
        yield Fault("E3110", "a finite number", cell, "an empty cell says that there is no value", file, name, row)
    for row, cell in column.huge_rows:
        yield Fault("E3111", "a number of size below 1e30", cell, "", file, name, row)


def _cure(cell: str, name: str) -> str:
    if re.fullmatch(r"[+-]?\d+,\d+", cell.strip()):
        return "declare the decimal mark with --decimal ,"
    return f"correct the cell, or use --category {name} or --drop {name}"


def _category_faults(profile: FileProfile, roles: Roles) -> Iterator[Fault]:
    file = profile.source.name
    for name in [*roles.categories, *([roles.asset] if roles.asset else [])]:
        column = profile.columns.get(name)
        if column is not None and column.kind in ("time", "other"):
            found = f"a column of type {profile.source.columns[name][1]}"
            yield Fault("E3107", "text or numbers", found, "", file, name)
    asset = profile.columns.get(roles.asset or "")
    for row, cell in asset.empty_rows if asset else []:
        yield Fault("E3113", "the asset's name", "" if cell is None else cell, "", file, roles.asset, row)


def _time_twice(profile: FileProfile, roles: Roles) -> Iterator[Fault]:
    """One fault for each row that repeats a time with other cells, naming the first column that differs."""
    seen: set[int] = set()
    for name in [*roles.tags, *roles.categories, *([roles.label] if roles.label else [])]:
        for row in profile.columns[name].differing if name in profile.columns else []:
            if row not in seen:
                seen.add(row)
                yield Fault("E3206", "the values of the earlier row of this time", "other values",
                            "keep one of the rows", profile.source.name, name, row)  # fmt: skip


def _open_quotes(profile: FileProfile) -> Iterator[Fault]:
    hint = "a quote that never closes has swallowed the lines after it"
    for column in profile.columns.values():
        for row, cell in column.open_rows:
            yield Fault("E3004", "a cell without a line end", cell, hint, profile.source.name, column.name, row)


def _empty_tags(profiles: list[FileProfile], settings: LogSettings) -> Iterator[Fault]:
    columns = merged(profiles)
    for name in settings.tags or ():
        if name in columns and not any(c.values + c.text for c in columns[name]):
            hint = "leave it out of --tags"
            yield Fault("E3109", "at least one value", "none", hint, profiles[0].source.name, name)
