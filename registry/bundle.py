"""AnomalyModel ↔ a folder of JSON and arrays with digests and canary scores; no code, no pickle.

A bundle is exactly three files. ``manifest.json`` holds the model part as JSON, the size and SHA-256 of the two other
files, the shape and type of every array, and the canary scores; ``arrays.npz`` holds the arrays; ``canary.json`` a few
log rows. The manifest carries a seal over its own bytes, so a change in any byte of any file is noticed without a
second opinion. The bundle's digest is the SHA-256 of ``manifest.json``: who recorded it elsewhere can tell a whole
bundle that was swapped. Reading one checks everything before it is used, from the bytes that were checked, and runs
none of them (RELIABILITY §2.7, §5 F1 to F7, §9.2).
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from anomaly.errors import AnomalyError, Fault, ModelRefused, UsageError
from anomaly.files import atomic_path
from registry import members

if TYPE_CHECKING:
    from anomaly.model import AnomalyModel

_log = logging.getLogger(__name__)

MANIFEST, ARRAYS, CANARY = "manifest.json", "arrays.npz", "canary.json"
MEMBERS = frozenset({MANIFEST, ARRAYS, CANARY})

FORMAT, VERSION = "plant-anomaly bundle", 1

#: Bytes of each file that are read at most; a larger one is refused before it is read.
LIMITS = {MANIFEST: 64 << 20, ARRAYS: 2 << 30, CANARY: 16 << 20}

#: A score is -log10 of a probability: the smallest double is 5e-324, so no real threshold lies above this.
_LARGEST_THRESHOLD = 324.0
_TOLERANCE = 1e-5

#: Distributions whose version is written into the manifest; another minor version is reported on load.
LIBRARIES = ("plant-anomaly", "numpy", "pandas", "scikit-learn", "keras", "tensorflow-cpu", "tensorflow")

_NO_SEAL = "0" * 64
_SEAL = re.compile(rb'"seal": "([0-9a-f]{64})"')


class Bundled(Protocol):
    """What a model must offer to be bundled; ``anomaly.model.AnomalyModel`` does."""

    canary: pd.DataFrame
    digest: str | None

    @property
    def threshold(self) -> Any: ...
    def to_parts(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]: ...
    def score_frame(self, frame: pd.DataFrame) -> pd.DataFrame: ...


def save_bundle(model: Bundled, folder: Path, *, replace: bool = True) -> str:
    """Write ``model`` as a bundle and give the bundle's digest.

    The folder appears whole or not at all, and only after the written copy was loaded and gave the same scores on the
    canary rows. An existing bundle is replaced; any other existing folder or file is left alone. Raises UsageError
    E2003 (the target exists), ModelRefused E4003 (a non-finite array or threshold, an array of objects) or E4004 (no
    canary rows, or the written copy scores them differently), Unavailable E5002 (disk).
    """
    folder = Path(folder).resolve()
    _check_target(folder, replace)
    _check_threshold(model)
    parts, arrays = model.to_parts()
    blobs = {ARRAYS: members.pack_arrays(arrays), CANARY: members.pack_canary(model.canary)}
    body = {
        "format": FORMAT,
        "version": VERSION,
        "seal": _NO_SEAL,
        "libraries": installed_versions(LIBRARIES),
        "members": {name: _entry(blob) for name, blob in blobs.items()},
        "arrays": members.describe(arrays),
        "canary_scores": _canary_scores(model, model.canary),
        "model": parts,
    }
    blobs[MANIFEST] = _sealed(members.dump_json(body))
    with atomic_path(folder, folder=True) as temporary:
        for name, blob in blobs.items():
            (temporary / name).write_bytes(blob)
        load_bundle(temporary, model_class=type(model))
    return _digest(blobs[MANIFEST])


def load_bundle(folder: Path, *, expect_digest: str | None = None, model_class: Any = None) -> AnomalyModel:
    """The model in a bundle, after every check; its ``digest`` and ``canary`` are set.

    ``expect_digest`` is the digest recorded elsewhere (a registry); ``model_class`` another class with
    ``from_parts``, AnomalyModel if None. Raises ModelRefused: E4001 no bundle there, E4002 bytes differ from their
    digest, E4003 contents we do not read, E4004 other scores on the canary rows, E4005 a file too many.
    """
    manifest, blobs = _read(Path(folder), expect_digest)
    arrays = members.unpack_arrays(blobs[ARRAYS], manifest.get("arrays"))
    canary = members.unpack_canary(blobs[CANARY])
    model = _built(model_class or _anomaly_model(), manifest["model"], arrays)
    _check_threshold(model)
    _report_other_versions(manifest)
    model.canary, model.digest = canary, _digest(blobs[MANIFEST])
    _check_canary(model, manifest.get("canary_scores"))
    return model


def verify_bundle(folder: Path, *, expect_digest: str | None = None) -> str:
    """Check a bundle's files and digests without building the model; gives the bundle's digest.

    Raises ModelRefused E4001, E4002, E4003 or E4005 as ``load_bundle`` does.
    """
    _, blobs = _read(Path(folder), expect_digest)
    return _digest(blobs[MANIFEST])


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle whose files and digests were checked; raises as ``verify_bundle`` does."""
    return _read(Path(folder), None)[0]


def installed_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of the distributions among ``names`` that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def refused(code: str, expected: str, found: object, hint: str = "", file: Path | str | None = None) -> ModelRefused:
    """A ModelRefused of one fault."""
    return ModelRefused(Fault(code, expected, found, hint, str(file) if file is not None else None))


def _anomaly_model() -> type[AnomalyModel]:
    from anomaly.model import AnomalyModel  # brings the encoder's library with it

    return AnomalyModel


def _check_target(folder: Path, replace: bool) -> None:
    """Only an absent or empty folder, or a bundle, may be written over."""
    if not os.path.lexists(folder):
        return
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else None
    ours = names is not None and names <= MEMBERS and (not names or MANIFEST in names)
    if not ours:
        hint = "choose a new folder; only an earlier model is written over"
        raise UsageError(Fault("E2003", "a new folder or an earlier model", "something else", hint, str(folder)))
    if names and not replace:
        raise UsageError(Fault("E2003", "a new folder", "a model is there", "choose another", str(folder)))


def _check_threshold(model: Bundled) -> None:
    value = getattr(getattr(model, "threshold", None), "value", None)
    number = isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool)
    if not number or not 0 <= float(value) <= _LARGEST_THRESHOLD:  # type: ignore[arg-type]
        hint = "fit the threshold again; without one no row could be called anomalous"
        raise refused("E4003", f"a threshold between 0 and {_LARGEST_THRESHOLD:g}", value, hint)


def _entry(blob: bytes) -> dict[str, Any]:
    return {"sha256": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def _sealed(manifest: bytes) -> bytes:
    """The manifest with its zero seal replaced by the digest of the manifest with the zero seal."""
    return manifest.replace(_NO_SEAL.encode(), _digest(manifest).encode(), 1)


def _read(folder: Path, expect_digest: str | None) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Manifest and bytes of a bundle's files, all digests checked."""
    _check_members(folder)
    blobs = {MANIFEST: _bytes_of(folder / MANIFEST, LIMITS[MANIFEST])}
    if expect_digest is not None and _digest(blobs[MANIFEST]) != expect_digest:
        hint = "the model was changed after it was registered; train or register it again"
        raise refused("E4002", f"digest {expect_digest}", _digest(blobs[MANIFEST]), hint, folder / MANIFEST)
    manifest = _manifest(blobs[MANIFEST], folder / MANIFEST)
    for name in (ARRAYS, CANARY):
        entry = manifest["members"][name]
        blobs[name] = _bytes_of(folder / name, entry["size"], exactly=True)
        if _digest(blobs[name]) != entry["sha256"]:
            raise refused("E4002", f"sha256 {entry['sha256']}", _digest(blobs[name]), _COPY_AGAIN, folder / name)
    return manifest, blobs


_COPY_AGAIN = "the file was damaged or changed; copy the model again or train it again"


def _check_members(folder: Path) -> None:
    """Exactly our files, each a plain one. Symlinks are refused by kind, so nothing outside is read."""
    try:
        entries = {e.name: e.is_file(follow_symlinks=False) for e in os.scandir(folder)}
    except OSError as error:
        hint = "give the folder that `anomaly train --out` wrote, or a registered name"
        raise refused("E4001", "a model bundle folder", error.strerror or error, hint, folder) from error
    if MANIFEST not in entries:
        raise refused("E4001", f"a model bundle folder, with {MANIFEST}", f"no {MANIFEST}", file=folder)
    for name, plain in sorted(entries.items()):
        if name not in MEMBERS or not plain:
            found = "a file too many" if plain else "a folder, link or device"
            raise refused("E4005", f"only the files {', '.join(sorted(MEMBERS))}", found, file=folder / name)
    for name in sorted(MEMBERS - set(entries)):
        raise refused("E4002", "the file named in the manifest", "no such file", _COPY_AGAIN, folder / name)


def _bytes_of(path: Path, limit: int, *, exactly: bool = False) -> bytes:
    """The bytes of a plain file of at most (or exactly) ``limit`` bytes; a link is not followed."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(handle, "rb") as stream:
            found = os.fstat(stream.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise refused("E4005", "a plain file", "another kind", file=path)
            if found.st_size > limit or (exactly and found.st_size != limit):
                expected = f"{limit} bytes" if exactly else f"at most {limit} bytes"
                raise refused("E4002" if exactly else "E4003", expected, f"{found.st_size} bytes", _COPY_AGAIN, path)
            return stream.read(limit)
    except OSError as error:
        raise refused("E4001", "a readable file", error.strerror or error, file=path) from error


def _manifest(blob: bytes, path: Path) -> dict[str, Any]:
    """The manifest as checked JSON: seal, format, version, member list with sizes within the limits."""
    seal = _SEAL.search(blob[:400])
    if seal is None:
        raise refused("E4003", "a manifest with a seal", "none", "the model may be of another program", path)
    unsealed = blob[: seal.start(1)] + _NO_SEAL.encode() + blob[seal.end(1) :]
    if _digest(unsealed) != seal[1].decode():
        raise refused("E4002", "a manifest as it was written", "changed bytes", _COPY_AGAIN, path)
    manifest = members.parse_json(blob, path)
    if not isinstance(manifest, dict) or (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        found = (manifest.get("format"), manifest.get("version")) if isinstance(manifest, dict) else "no table"
        hint = "load it with the version of this package that wrote it, or train again"
        raise refused("E4003", f"{FORMAT} version {VERSION}", found, hint, path)
    _check_entries(manifest.get("members"), path)
    if not isinstance(manifest.get("model"), dict):
        raise refused("E4003", "the model part as a table", type(manifest.get("model")).__name__, file=path)
    return manifest


def _check_entries(entries: object, path: Path) -> None:
    """The manifest lists exactly our files, with sizes that can be read."""
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise refused("E4003", "a table of members", type(entries).__name__, file=path)
    if set(entries) != {ARRAYS, CANARY}:
        raise refused("E4005", f"members {ARRAYS} and {CANARY}", sorted(entries), file=path)
    for name, entry in entries.items():
        size, digest = entry.get("size"), entry.get("sha256")
        if type(size) is not int or not 0 <= size <= LIMITS[name]:
            raise refused("E4003", f"{name} of at most {LIMITS[name]} bytes", size, file=path)
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise refused("E4003", f"the SHA-256 of {name}", digest, file=path)


def _built(model_class: Any, parts: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Any:
    try:
        return model_class.from_parts(parts, arrays)
    except (AnomalyError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        hint = "load it with the version of this package that wrote it, or train again"
        raise refused("E4003", "a model part we can build", f"{type(error).__name__}: {error}", hint) from error


def _canary_scores(model: Bundled, canary: pd.DataFrame) -> list[float | None]:
    """The anomaly_score of every canary row, None where the row is unscorable."""
    scores = model.score_frame(canary)["anomaly_score"].to_numpy(dtype=np.float64)
    return [float(s) if np.isfinite(s) else None for s in scores]


def _check_canary(model: Any, recorded: object) -> None:
    try:
        expected = np.array(recorded, dtype=np.float64)  # None becomes NaN
        found = np.array(_canary_scores(model, model.canary), dtype=np.float64)
    except (AnomalyError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise refused("E4004", "scores of the canary rows", f"{type(error).__name__}: {error}") from error
    same = expected.shape == found.shape
    if not same or not np.allclose(expected, found, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
        far = "another number of rows" if not same else _farthest(expected, found)
        raise refused("E4004", "the recorded canary scores", far, "train the model again on this machine")


def _farthest(expected: NDArray[np.float64], found: NDArray[np.float64]) -> str:
    apart = np.where(np.isnan(expected) & np.isnan(found), 0.0, np.abs(expected - found))
    row = int(np.argmax(np.where(np.isnan(apart), np.inf, apart)))
    return f"row {row + 1}: {found[row]:.6g} in place of {expected[row]:.6g}"


def _report_other_versions(manifest: dict[str, Any]) -> None:
    """Another minor version of a library is logged; whether it matters is what the canary tells."""
    recorded = manifest.get("libraries")
    if not isinstance(recorded, dict):
        return
    for name, now in installed_versions(LIBRARIES).items():
        then = recorded.get(name)
        if isinstance(then, str) and then.split(".")[:2] != now.split(".")[:2]:
            _log.warning("model written with %s %s, running %s; its canary scores decide", name, then[:40], now)
