"""Families of models: one registered model per asset, or per class of assets, under a common name.

A member is registered as FAMILY--GROUP, where GROUP is the asset or class with what MLflow refuses in a name replaced. Which
assets a version learned from stands in its tags, and so does the key by which an interrupted training knows it again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly.errors import Fault, Unavailable, UsageError
from anomaly.files import atomic_path
from registry.promotion_table import PromotionTable, mirror
from registry.state import State, connection, find_state, locked, private_folder
from registry.tracking import ASSETS_TAG, CHALLENGER, CHAMPION, FAMILY_TAG, GROUP_TAG, KEY_TAG, KIND_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

_log = logging.getLogger(__name__)

_LONGEST = 80  # letters of a model's name, as settings.name allows
_LEAST_GROUP = 12
_UNFIT = re.compile(r"[^\w-]")
_FAMILY = re.compile(r"(?:models:/)?([\w.-]+)(?:@([\w-]+))?")


@dataclass(frozen=True)
class Member:
    """One model of a family: its registered name, the asset or class it is for, and the assets it learned from."""

    name: str
    group: str
    assets: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """All models of a family; ``kind`` is "asset" or "class", ``alias`` the version that is meant of each."""

    name: str
    kind: str
    alias: str
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Registered:
    """A version that was registered by an earlier run of the same training, and its tags."""

    name: str
    version: int
    tags: dict[str, str]


def member_name(family: str, group: str) -> str:
    """The registered name of a member, of at most 80 letters; two groups never share one.

    Raises UsageError E2002 for a family name that leaves no room.

    >>> member_name("press", "P-101")
    'press--P-101'
    >>> member_name("press", "line 1/P:7")
    'press--line_1_P_7-fd4eca8b'
    """
    room = _LONGEST - len(family) - 2
    if room < _LEAST_GROUP:
        most = _LONGEST - _LEAST_GROUP - 2
        raise UsageError(Fault("E2002", f"name: at most {most} letters, as an asset's name comes after it", family))
    slug = _UNFIT.sub("_", group)
    if slug != group or len(slug) > room:
        slug = f"{slug[: room - 9]}-{hashlib.sha256(group.encode()).hexdigest()[:8]}"
    return f"{family}--{slug}"


def registered_before(family: str, home: Path | None = None) -> dict[tuple[str, str], Registered]:
    """Versions of the family's members by (name, training key): what an interrupted training need not do again.

    Raises UsageError E2002 where ``family`` itself is a registered model, Unavailable E5003.
    """
    state = find_state(home)
    found: dict[tuple[str, str], Registered] = {}
    if state.is_new:
        return found
    with connection(state) as client:
        if _is_model(client, family):
            hint = "a name is either one model or a family of models: choose another one with --name"
            raise UsageError(Fault("E2002", "a name that no single model has", family, hint))
        for model in _models(client, family):
            newest = max((int(v) for v in dict(model.aliases).values()), default=0)
            for version in client.search_model_versions(f"name = '{model.name}'"):
                key = version.tags.get(KEY_TAG)
                # A run that was killed between version and alias has not finished: it is done again.
                if key and int(version.version) <= newest:
                    found[model.name, key] = Registered(model.name, int(version.version), dict(version.tags))
    return found


def find_family(reference: str, home: Path | None = None) -> Family | None:
    """The family that NAME or NAME@ALIAS stands for; None where it is a folder, one model, or nothing known.

    When MLflow does not answer, the family is what it was when it last did; Unavailable E5003 never comes from here.
    """
    state, match = find_state(home), _FAMILY.fullmatch(reference)
    if match is None or state.is_new or (Path(reference) / "manifest.json").is_file():
        return None
    name, alias = match[1], match[2] or CHAMPION
    try:
        with connection(state) as client:
            found = None if _is_model(client, name) else _family(client, state, name, alias)
    except Unavailable as error:
        _log.warning("MLflow does not answer: %s", error.faults[0].line())
        return _remembered(state, name, alias)
    if found is not None:
        _remember(state, found)
    return found


def _is_model(client: MlflowClient, name: str) -> bool:
    """Whether ``name`` itself is registered."""
    return len(client.search_registered_models(f"name = '{name}'", max_results=1)) > 0


def _models(client: MlflowClient, family: str) -> Iterator[RegisteredModel]:
    token = None
    while True:
        page = client.search_registered_models(f"tags.{FAMILY_TAG} = '{family}'", max_results=200, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _family(client: MlflowClient, state: State, name: str, alias: str) -> Family | None:
    members, kind, table = [], "asset", PromotionTable(state)
    for model in _models(client, name):
        aliases = mirror(client, table, model.name, dict(model.aliases))
        number = aliases.get(alias) or (aliases.get(CHALLENGER) if alias == CHAMPION else None)
        if number is None:
            _log.warning("%s has no %s: its assets are not scored", model.name, alias)
            continue
        version = client.get_model_version(model.name, number)
        kind = version.tags.get(KIND_TAG, kind)
        members.append(_member(version))
    return Family(name, kind, alias, tuple(sorted(members, key=lambda m: m.name))) if members else None


def _member(version: ModelVersion) -> Member:
    assets = json.loads(version.tags.get(ASSETS_TAG, "[]"))
    return Member(version.name, version.tags.get(GROUP_TAG, ""), tuple(str(a) for a in assets))


def _note(state: State, name: str, alias: str) -> Path:
    return state.cache / "families" / f"{hashlib.sha256(f'{name}@{alias}'.encode()).hexdigest()[:32]}.json"


def _remember(state: State, family: Family) -> None:
    private_folder(state.cache)
    private_folder(state.cache / "families")
    with locked(state.cache), atomic_path(_note(state, family.name, family.alias)) as temporary:
        temporary.write_text(json.dumps(asdict(family)), encoding="utf-8")


def _remembered(state: State, name: str, alias: str) -> Family | None:
    try:
        held = json.loads(_note(state, name, alias).read_text(encoding="utf-8"))
        members = [Member(str(m["name"]), str(m["group"]), tuple(m["assets"])) for m in held["members"]]
        return Family(name, str(held["kind"]), alias, tuple(members))
    except (OSError, ValueError, TypeError, LookupError):
        return None
