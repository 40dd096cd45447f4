"""Registered models: list them, show one, and get a verified copy of one to score with.

MLflow is the catalogue, not the authority over bytes: a model is copied into our own cache and its bundle must have
the digest that was recorded when it was registered. A copy that was verified once serves while MLflow is down. Nor is it the
authority over who is champion: ``registry.promotion_table`` is, and every read here sets MLflow's aliases right by it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly.errors import ModelRefused, Unavailable, shown
from anomaly.files import atomic_path
from registry.bundle import MANIFEST, MEMBERS, refused, verify_bundle
from registry.promotion_table import Entry, PromotionTable, mirror
from registry.state import State, connection, find_state, locked, private_folder
from registry.tracking import BUNDLE_PATH, CHALLENGER, CHAMPION, DIGEST_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_log = logging.getLogger(__name__)

_REFERENCE = re.compile(r"(models:/)?(?P<name>[\w.-]+)(?:@(?P<alias>[\w-]+)|/(?P<version>\d{1,9}))?")
_FORMS = "a bundle folder, models:/NAME@ALIAS, models:/NAME/VERSION, or a registered NAME"
_LOGGED = re.compile(r"models:/m-\w+")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ModelRow:
    """One version of a registered model; ``metrics`` without the ends of their intervals."""

    name: str
    version: int
    aliases: tuple[str, ...]
    created: datetime
    metrics: dict[str, float]
    digest: str | None


@dataclass(frozen=True)
class ModelCard:
    """Everything recorded about one version."""

    name: str
    version: int
    aliases: tuple[str, ...]
    created: datetime
    digest: str | None
    run_id: str | None = None
    model_id: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    history: tuple[Entry, ...] = ()  # who promoted what of this name, oldest first


@dataclass(frozen=True)
class ResolvedModel:
    """A verified bundle on this machine; ``name`` and ``version`` are None for a bundle folder given as such."""

    path: Path
    digest: str
    name: str | None = None
    version: int | None = None


@dataclass(frozen=True)
class _Reference:
    name: str
    alias: str | None
    version: int | None


def list_models(home: Path | None = None) -> list[ModelRow]:
    """Every registered version, newest first within each name; empty if nothing was registered yet.

    Raises Unavailable E5003 when MLflow does not answer.
    """
    state = find_state(home)
    if state.is_new:
        return []
    rows = []
    with connection(state) as client:
        for name, held in _names(client).items():
            aliases = mirror(client, PromotionTable(state), name, held)
            for version in client.search_model_versions(f"name = '{name}'"):
                card = _card(client, version, aliases)
                middle = {k: v for k, v in card.metrics.items() if not k.endswith(("_low", "_high"))}
                rows.append(ModelRow(card.name, card.version, card.aliases, card.created, middle, card.digest))
    return sorted(rows, key=lambda r: (r.name, -r.version))


def show_model(reference: str, home: Path | None = None) -> ModelCard:
    """All that is recorded about the version that ``reference`` names (as in ``resolve``, without folders).

    Raises ModelRefused E4001 (unknown; the known names are listed), Unavailable E5003.
    """
    state, wanted = find_state(home), _parsed(reference)
    if state.is_new:
        raise _unknown(reference, [])
    with connection(state) as client:
        version, aliases = _version(client, state, wanted, reference)
        return replace(_card(client, version, aliases), history=PromotionTable(state).history(wanted.name))


def resolve(reference: str | Path, home: Path | None = None) -> Path:
    """Folder of a verified bundle; see ``resolve_model``."""
    return resolve_model(reference, home).path


def resolve_model(reference: str | Path, home: Path | None = None) -> ResolvedModel:
    """A bundle folder, ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or NAME as a verified bundle on this machine.

    NAME means its champion, or its challenger while there is no champion. A registered model is copied into
    ``HOME/cache/<digest>`` and checked against the digest in the registry. When MLflow does not answer, the copy this
    reference stood for last is used, with a warning in the log.

    Raises ModelRefused: E4001 unknown, E4002 the bytes are not those that were registered, E4003, E4005 as
    ``verify_bundle``; Unavailable E5003 when MLflow does not answer and there is no copy.
    """
    folder = Path(reference)
    if (folder / MANIFEST).is_file() or _is_path(str(reference)):
        return ResolvedModel(folder, verify_bundle(folder))
    state, wanted = find_state(home), _parsed(str(reference))
    if state.is_new:
        raise _unknown(str(reference), [])
    try:
        with connection(state) as client:
            found = _copied(client, state, _version(client, state, wanted, str(reference))[0])
    except Unavailable as error:
        if error.faults[0].code != "E5003":
            raise
        return _last_known(state, wanted, error)
    _remember(state, wanted, found)
    return found


def _is_path(reference: str) -> bool:
    """Whether this can only be meant as a path: it has a slash and is no models:/ reference."""
    return not reference.startswith("models:/") and ("/" in reference or reference in ("", ".", ".."))


def _parsed(reference: str) -> _Reference:
    match = _REFERENCE.fullmatch(reference)
    if match is None or (match["version"] and not match[1]):  # NAME/VERSION alone would look like a path
        raise refused("E4001", _FORMS, reference)
    version = int(match["version"]) if match["version"] else None
    return _Reference(match["name"], match["alias"], version)


def _unknown(reference: str, names: list[str]) -> ModelRefused:
    known = f"known names: {', '.join(shown(n) for n in names)}" if names else "no model is registered yet"
    return refused("E4001", _FORMS, reference, f"{known}; `anomaly models list` shows all")


def _names(client: MlflowClient) -> dict[str, dict[str, str]]:
    """Registered names, each with alias → version."""
    found: dict[str, dict[str, str]] = {}
    token = None
    while True:
        page = client.search_registered_models(max_results=200, page_token=token)
        found |= {m.name: dict(m.aliases) for m in page}
        token = page.token
        if not token:
            return found


def _version(
    client: MlflowClient, state: State, wanted: _Reference, reference: str
) -> tuple[ModelVersion, dict[str, str]]:
    """The version a reference stands for, and the aliases of its name as our table has them."""
    from mlflow.exceptions import MlflowException

    names = _names(client)
    if wanted.name not in names:
        raise _unknown(reference, sorted(names))
    aliases = mirror(client, PromotionTable(state), wanted.name, names[wanted.name])
    try:
        return client.get_model_version(wanted.name, str(wanted.version or _by_alias(wanted, aliases))), aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise refused("E4001", f"a version of {wanted.name}", reference, "see `anomaly models list`") from error


def _by_alias(wanted: _Reference, aliases: dict[str, str]) -> str:
    alias = wanted.alias or CHAMPION
    if alias in aliases:
        return aliases[alias]
    if wanted.alias is None and CHALLENGER in aliases:
        _log.warning("%s has no champion: its challenger, version %s, is used", wanted.name, aliases[CHALLENGER])
        return aliases[CHALLENGER]
    known = ", ".join(sorted(aliases)) or "none"
    raise refused("E4001", f"an alias of {wanted.name}", alias, f"its aliases: {known}; or give a version")


def _card(client: MlflowClient, version: ModelVersion, aliases: dict[str, str]) -> ModelCard:
    from mlflow.exceptions import MlflowException

    metrics: dict[str, float] = {}
    settings: dict[str, str] = {}
    try:
        data = client.get_run(version.run_id).data if version.run_id else None
        metrics, settings = (dict(data.metrics), dict(data.params)) if data else ({}, {})
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # the run may be deleted, the model is still there
            raise
    return ModelCard(
        name=version.name,
        version=int(version.version),
        aliases=tuple(sorted(a for a, v in aliases.items() if str(v) == str(version.version))),
        created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
        digest=version.tags.get(DIGEST_TAG),
        run_id=version.run_id,
        model_id=version.source.removeprefix("models:/") if _LOGGED.fullmatch(version.source or "") else None,
        metrics=metrics,
        settings=settings,
        tags=dict(version.tags),
    )


def _copied(client: MlflowClient, state: State, version: ModelVersion) -> ResolvedModel:
    """The version's bundle in our cache, fetched unless a sound copy is there."""
    digest = version.tags.get(DIGEST_TAG, "")
    if not _DIGEST.fullmatch(digest):
        hint = "only models registered by `anomaly train` can be used"
        raise refused("E4003", f"a version with the tag {DIGEST_TAG}", f"{version.name}/{version.version}", hint)
    promoted = PromotionTable(state).champion(version.name)
    if promoted and promoted.version == int(version.version) and promoted.digest and promoted.digest != digest:
        hint = "the registry was changed after the promotion: do not use it; `anomaly models rollback` goes back"
        raise refused("E4002", f"the promoted digest {promoted.digest}", digest, hint)
    target = private_folder(state.cache) / digest
    with locked(state.cache):
        if not _is_sound(target, digest):
            _fetch(state, f"models:/{version.name}/{version.version}/{BUNDLE_PATH}", target, digest)
    return ResolvedModel(target, digest, version.name, int(version.version))


def _is_sound(folder: Path, digest: str) -> bool:
    try:
        return verify_bundle(folder, expect_digest=digest) == digest
    except ModelRefused:
        return False


def _fetch(state: State, uri: str, target: Path, digest: str) -> None:
    """Copy a bundle's files to ``target``; it appears once verified. What lies beside them is looked at and left there."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory(dir=state.cache) as download, atomic_path(target, folder=True) as temporary:
        temporary.chmod(0o700)
        _check_surroundings(uri.removesuffix(f"/{BUNDLE_PATH}"), Path(download))
        for member in sorted(MEMBERS):
            try:
                source = download_artifacts(artifact_uri=f"{uri}/{member}", dst_path=download)
            except MlflowException as error:
                if error.error_code == "INVALID_PARAMETER_VALUE":  # a link that leads out of the artifacts
                    raise refused(
                        "E4005", "a plain file", error, "do not use the version", f"{uri}/{member}"
                    ) from error
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                raise refused("E4002", "the file of the registered model", error, "register it again", uri) from error
            shutil.copyfile(source, temporary / member)
        verify_bundle(temporary, expect_digest=digest)


def _check_surroundings(uri: str, download: Path) -> None:
    """Refuse a logged model at ``uri`` that holds code or a file too many (E4005), or that MLflow would load by another
    loader than ours (E4003): somebody changed it, and ``mlflow models serve`` would run what they put there."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    from registry.pyfunc import DESCRIPTION, check_description

    root = {Path(e.path).name: e.is_dir for e in _listed(uri)}
    data, bundle = BUNDLE_PATH.split("/")
    wrong = [n for n, folder in root.items() if (n != data) if folder or Path(n).suffix not in _DESCRIBING]
    wrong += [n for n in (Path(e.path).name for e in _listed(f"{uri}/{data}")) if n != bundle]
    wrong += [n for n in (Path(e.path).name for e in _listed(f"{uri}/{BUNDLE_PATH}")) if n not in MEMBERS]
    if wrong:
        hint = "the registry was changed after training: do not use the version"
        raise refused("E4005", "the files that were registered", f"also {wrong[0]}", hint, uri)
    for name in sorted(set(root) & set(DESCRIPTION)):
        try:
            download_artifacts(artifact_uri=f"{uri}/{name}", dst_path=str(download))
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise refused("E4005", "a plain file", error, "do not use the version", f"{uri}/{name}") from error
    check_description(download)


#: Kinds of files that describe a logged model; none of them is run, and `check_description` reads those that name code.
_DESCRIBING = frozenset({"", ".txt", ".yaml", ".yml", ".json", ".toml", ".lock"})


def _listed(uri: str) -> list[Any]:
    """What MLflow lists at ``uri``; nothing where there is no such folder."""
    from mlflow.artifacts import list_artifacts
    from mlflow.exceptions import MlflowException

    try:
        return list(list_artifacts(artifact_uri=uri))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return []


def _note(state: State, wanted: _Reference) -> Path:
    """File that says which copy a reference stood for last."""
    key = hashlib.sha256(f"{wanted.name}\n{wanted.alias}\n{wanted.version}".encode()).hexdigest()[:32]
    return state.cache / "references" / f"{key}.json"


def _remember(state: State, wanted: _Reference, found: ResolvedModel) -> None:
    private_folder(state.cache / "references")
    entry = {"name": found.name, "version": found.version, "digest": found.digest}
    with locked(state.cache), atomic_path(_note(state, wanted)) as temporary:
        temporary.write_text(json.dumps(entry), encoding="utf-8")


def _last_known(state: State, wanted: _Reference, error: Unavailable) -> ResolvedModel:
    """The promoted champion's copy, else the one a reference stood for when MLflow last answered; ``error`` if there is none."""
    if wanted.version is None and wanted.alias in (None, CHAMPION):
        row = PromotionTable(state).champion(wanted.name)
        if row and _is_sound(state.cache / row.digest, row.digest):
            _log.warning("MLflow does not answer: %s version %d is used from the cache", row.name, row.version)
            return ResolvedModel(state.cache / row.digest, row.digest, row.name, row.version)
    try:
        entry: Any = json.loads(_note(state, wanted).read_text(encoding="utf-8"))
        name, version, digest = str(entry["name"]), int(entry["version"]), str(entry["digest"])
    except (OSError, ValueError, TypeError, LookupError):
        raise error from None
    if not _DIGEST.fullmatch(digest) or not _is_sound(state.cache / digest, digest):
        raise error
    _log.warning("MLflow does not answer: %s version %d is used from the cache", name, version)
    return ResolvedModel(state.cache / digest, digest, name, version)
