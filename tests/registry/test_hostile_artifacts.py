"""Hostile artifacts (RELIABILITY F2, F3): every kind carries a payload that would make a file; none runs, each is refused.

Each kind comes in three ways: as a bundle folder, through MLflow's own loader of the registered version (what
`mlflow models serve` does), and through our catalogue with the recorded digest made to fit, as who may write to the registry
could do.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import marshal
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import joblib
import numpy as np
import pytest
from sealing import reseal

from anomaly.errors import ModelRefused
from registry import bundle, pyfunc
from registry.bundle import save_bundle, verify_bundle
from registry.catalogue import resolve, resolve_model
from registry.state import State, connection, find_state
from registry.tracking import DIGEST_TAG, record_run

Plant = Callable[[Path, Path], None]


class Payload:
    """Unpickling it makes the file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def code(marker: Path) -> str:
    """A module that makes the file when it is imported, and whatever is asked of it later."""
    return f"open({str(marker)!r}, 'w').close()\ndef _load_pyfunc(path):\n    return None\n"


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def put_zip(folder: Path, *extra: tuple[zipfile.ZipInfo | str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    """The model's own arrays with members added, or put in place of those of the same name."""
    with np.load(folder / bundle.ARRAYS, allow_pickle=False) as own:
        held: dict[str, tuple[zipfile.ZipInfo | str, bytes]] = {f"{n}.npy": (f"{n}.npy", npy(own[n])) for n in own}
    held |= {(m if isinstance(m, str) else m.filename): (m, blob) for m, blob in extra}
    with zipfile.ZipFile(folder / bundle.ARRAYS, "w", method) as archive:
        for member, blob in held.values():
            archive.writestr(member, blob, method)
    reseal(folder)


# The kinds ----------------------------------------------------------------------------------------------------------


def pickle_member(folder: Path, marker: Path) -> None:
    (folder / "model.pkl").write_bytes(pickle.dumps(Payload(marker)))


def joblib_arrays(folder: Path, marker: Path) -> None:
    joblib.dump(Payload(marker), folder / bundle.ARRAYS)
    reseal(folder)


def keras_lambda(folder: Path, marker: Path) -> None:
    function = eval(f"lambda x: __import__('os').system(\"touch '{marker}'\") or x")  # noqa: S307 - our own payload
    held = {"code": base64.b64encode(marshal.dumps(function.__code__)).decode(), "defaults": None, "closure": None}
    layers = [
        {"module": "keras.layers", "class_name": "InputLayer", "config": {"batch_shape": [None, 2], "name": "i"}},
        {
            "module": "keras.layers",
            "class_name": "Lambda",
            "config": {"name": "l", "function": {"class_name": "__lambda__", "config": held}, "arguments": {}},
        },
    ]
    config = {"module": "keras", "class_name": "Sequential", "config": {"name": "s", "layers": layers}}
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        file.create_group("layers")
    with zipfile.ZipFile(folder / bundle.ARRAYS, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.0.0"}))
        archive.writestr("model.weights.h5", weights.getvalue())
    reseal(folder)


def code_folder(folder: Path, marker: Path) -> None:
    (folder / "code" / "registry").mkdir(parents=True)
    for name in ("sitecustomize.py", "registry/__init__.py", "registry/pyfunc.py"):
        (folder / "code" / name).write_text(code(marker))


def extra_member(folder: Path, marker: Path) -> None:
    put_zip(folder, ("evil.py", code(marker).encode()))


def path_traversal(folder: Path, marker: Path) -> None:
    put_zip(folder, (os.path.relpath(marker, folder), b"written"))


def absolute_path(folder: Path, marker: Path) -> None:
    put_zip(folder, (str(marker), b"written"))


def symlink(path: Path, marker: Path) -> None:
    path.rename(marker.with_name("outside"))
    path.symlink_to(marker.with_name("outside"))


def symlink_in_zip(folder: Path, marker: Path) -> None:
    link = zipfile.ZipInfo("weights.npy")
    link.external_attr = 0o120777 << 16
    put_zip(folder, (link, str(marker).encode()))


def hdf5_external(folder: Path, marker: Path) -> None:
    with h5py.File(folder / bundle.ARRAYS, "w") as file:
        file.create_dataset("weights", (2,), "f8", external=[(str(marker), 0, 16)])
    reseal(folder)


def hdf5_virtual(folder: Path, marker: Path) -> None:
    layout = h5py.VirtualLayout((2,), "f8")
    layout[:] = h5py.VirtualSource(str(marker), "secret", (2,))
    with h5py.File(folder / bundle.ARRAYS, "w") as file:
        file.create_virtual_dataset("weights", layout)
        file["scale"] = h5py.ExternalLink(str(marker), "/secret")
    reseal(folder)


def object_array(folder: Path, marker: Path) -> None:
    hostile = np.empty(2, dtype=object)
    hostile[:] = [Payload(marker)] * 2
    put_zip(folder, ("weights.npy", npy(hostile)))


def zip_bomb(folder: Path, marker: Path) -> None:
    put_zip(folder, ("weights.npy", npy(np.zeros(4_000_000))), method=zipfile.ZIP_DEFLATED)
    reseal(folder, lambda body: body["arrays"]["weights"].update(shape=[4_000_000]))


def named_class(folder: Path, marker: Path) -> None:
    (marker.parent / "evil_plugin.py").write_text(code(marker))
    hostile = {"class_name": "evil_plugin.Encoder", "module": "evil_plugin", "py/object": "evil_plugin.Encoder"}
    reseal(folder, lambda body: body["model"].update(encoder_name="evil_plugin:Encoder", encoder=hostile, **hostile))


def swapped_weights(folder: Path, marker: Path) -> None:
    with np.load(folder / bundle.ARRAYS, allow_pickle=False) as own:
        swapped = own["weights"][::-1].copy()
    put_zip(folder, ("weights.npy", npy(swapped)))


@dataclass(frozen=True)
class Kind:
    """How it is planted, and the code of each way: folder, MLflow's loader, catalogue."""

    plant: Plant
    codes: tuple[str, str, str]
    real: bool = False  # with the class of real models


SAME = ("E4003",) * 3
KINDS = {
    "pickle member": Kind(pickle_member, ("E4005",) * 3),
    "joblib in place of the arrays": Kind(joblib_arrays, SAME),
    "Keras archive with a Lambda layer": Kind(keras_lambda, SAME),
    "code folder": Kind(code_folder, ("E4005",) * 3),
    "extra member": Kind(extra_member, SAME),
    "path traversal": Kind(path_traversal, SAME),
    "absolute path": Kind(absolute_path, SAME),
    "link in the zip": Kind(symlink_in_zip, SAME),
    "external HDF5 storage": Kind(hdf5_external, SAME),
    "virtual HDF5 data set": Kind(hdf5_virtual, SAME),
    "array of objects": Kind(object_array, SAME),
    "zip bomb": Kind(zip_bomb, SAME),
    "a class named in the manifest": Kind(named_class, SAME, real=True),
    "swapped weights of the right size": Kind(swapped_weights, ("E4004",) * 3),
}


# A registered version to plant them in ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Registry:
    """One registered version; ``logged`` is its folder in MLflow's artifacts."""

    state: State
    logged: Path

    @property
    def bundle(self) -> Path:
        return self.logged / "data" / "bundle"

    def tag(self, digest: str) -> None:
        """Record ``digest`` for the version, as its registration would have."""
        with connection(self.state) as client:
            client.set_model_version_tag("press", "1", DIGEST_TAG, digest)


@pytest.fixture(scope="module")
def registered(migrated: Path, model_class: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A small registered model; tests change it through ``registry`` alone."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "home").mkdir()
    shutil.copyfile(migrated, folder / "home" / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANOMALY_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        model = model_class()
        save_bundle(model, folder / "bundle")
        nothing: dict[str, Any] = {"settings": {}, "fingerprint": "f" * 64, "split": {}, "metrics": {}, "history": {}}
        record_run(model, folder / "bundle", name="press", **nothing)
        state = find_state()
        (manifest,) = state.artifacts.rglob("manifest.json")
        shutil.copytree(manifest.parents[2], folder / "whole")
        yield Registry(state, manifest.parents[2])


@pytest.fixture
def registry(registered: Registry) -> Registry:
    """The registered model as it was registered, with nothing in the cache."""
    whole = registered.state.home.parent / "whole"
    shutil.rmtree(registered.logged)
    shutil.copytree(whole, registered.logged)
    shutil.rmtree(registered.state.cache, ignore_errors=True)
    registered.tag(verify_bundle(registered.bundle))
    return registered


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that no payload may make; what lies beside it could be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "ran"


@pytest.fixture
def small(model_class: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's entry builds small models."""
    load = pyfunc.load_bundle
    monkeypatch.setattr(pyfunc, "load_bundle", lambda path: load(path, model_class=model_class))


def by_mlflow(registry: Registry) -> Any:
    """What `mlflow models serve` does."""
    with connection(registry.state):
        import mlflow.pyfunc

        return mlflow.pyfunc.load_model("models:/press@champion")


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ModelRefused) as caught:
        call()
    return caught.value.faults[0].code


def test_unchanged_it_loads_in_all_three_ways(registry: Registry, small: None, model: Any) -> None:
    assert pyfunc._load_pyfunc(str(registry.bundle)).model.digest == verify_bundle(registry.bundle)
    assert len(by_mlflow(registry).predict(model.canary.astype({"Flow rate": float, "Pressure": float}))) == 12
    assert pyfunc._load_pyfunc(str(resolve("press"))).model.threshold.value == 1.5


@pytest.mark.parametrize("name", KINDS)
def test_a_hostile_kind_is_refused_and_nothing_runs(
    registry: Registry, marker: Path, request: pytest.FixtureRequest, name: str
) -> None:
    kind = KINDS[name]
    if not kind.real:
        request.getfixturevalue("small")
    kind.plant(registry.bundle, marker)
    registry.tag(hashlib.sha256((registry.bundle / bundle.MANIFEST).read_bytes()).hexdigest())
    found = (
        refusal(lambda: pyfunc.load_bundle(registry.bundle)),
        refusal(lambda: by_mlflow(registry)),
        refusal(lambda: pyfunc._load_pyfunc(str(resolve("press")))),
    )
    assert found == kind.codes
    assert not marker.exists() and "evil_plugin" not in sys.modules
    assert not list(registry.state.cache.glob("**/ran")), "nothing was written where the copies lie"


@pytest.mark.parametrize("name", [*sorted(bundle.MEMBERS), "MLmodel"])
def test_a_link_is_refused(registry: Registry, marker: Path, small: None, name: str) -> None:
    """MLflow downloads no link out of the artifacts; where it loads them in place, the bundle refuses it."""
    from mlflow.exceptions import MlflowException

    path = registry.logged / name if name == "MLmodel" else registry.bundle / name
    symlink(path, marker)
    assert refusal(lambda: resolve("press")) == "E4005"
    if name in bundle.MEMBERS:
        assert refusal(lambda: pyfunc.load_bundle(registry.bundle)) == refusal(lambda: by_mlflow(registry)) == "E4005"
    else:
        with pytest.raises(MlflowException, match="outside"):
            by_mlflow(registry)


def test_swapped_weights_under_the_digest_of_the_registration_are_refused(registry: Registry, marker: Path) -> None:
    swapped_weights(registry.bundle, marker)
    assert refusal(lambda: resolve("press")) == "E4002"


# What describes the model to MLflow ---------------------------------------------------------------------------------


def loader_swapped(logged: Path, marker: Path) -> None:
    text = (logged / "MLmodel").read_text()
    (logged / "MLmodel").write_text(text.replace("registry.pyfunc", "evil_loader"))
    (marker.parent / "evil_loader.py").write_text(code(marker))


def code_key(logged: Path, marker: Path) -> None:
    text = (logged / "MLmodel").read_text()
    assert "code: null" in text
    (logged / "MLmodel").write_text(text.replace("code: null", "code: data"))


def other_flavor(logged: Path, marker: Path) -> None:
    text = (logged / "MLmodel").read_text()
    (logged / "MLmodel").write_text(text.replace("flavors:\n", "flavors:\n  sklearn:\n    pickled_model: model.pkl\n"))


def yaml_object(logged: Path, marker: Path) -> None:
    (logged / "MLmodel").write_text(f"flavors: !!python/object/apply:os.system [\"touch '{marker}'\"]\n")


def endless_description(logged: Path, marker: Path) -> None:
    with (logged / "MLmodel").open("a") as stream:
        stream.write("# more\n" * 200_000)


def requirement(line: str, name: str = "requirements.txt") -> Plant:
    def plant(logged: Path, marker: Path) -> None:
        text = (logged / name).read_text()
        # MLflow names pip with or without a release, by the environment it runs in.
        beside_pip = re.sub(r"(?m)^- pip[^:\n]*$", rf"\g<0>\n- {line}", text)
        (logged / name).write_text(f"{text}\n{line}\n" if name.endswith(".txt") else beside_pip)
        assert line in (logged / name).read_text(), "the package was planted"

    return plant


def code_under_data(logged: Path, marker: Path) -> None:
    (logged / "data" / "registry.py").write_text(code(marker))


def module_beside(logged: Path, marker: Path) -> None:
    (logged / "sitecustomize.py").write_text(code(marker))


DESCRIBED: dict[str, tuple[Plant, str]] = {
    "another loader": (loader_swapped, "E4003"),
    "a code path": (code_key, "E4003"),
    "another flavor": (other_flavor, "E4003"),
    "an object in the YAML": (yaml_object, "E4003"),
    "a description without end": (endless_description, "E4003"),
    "no description": (lambda logged, marker: (logged / "MLmodel").unlink(), "E4002"),
    "another package": (requirement("evil-package==1.0"), "E4003"),
    "an address": (requirement("numpy @ https://plant.example/numpy.whl"), "E4003"),
    "an unpinned package": (requirement("numpy"), "E4003"),
    "a package in conda.yaml": (requirement("evil-package==1.0", "conda.yaml"), "E4003"),
    "a package in python_env.yaml": (requirement("evil-package==1.0", "python_env.yaml"), "E4003"),
    "a code folder": (code_folder, "E4005"),
    "a module": (module_beside, "E4005"),
    "a module beside the bundle": (code_under_data, "E4005"),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_description_that_was_changed_is_refused_by_the_catalogue(
    registry: Registry, marker: Path, name: str
) -> None:
    plant, expected = DESCRIBED[name]
    plant(registry.logged, marker)
    assert refusal(lambda: resolve("press")) == expected
    assert not marker.exists()
    assert not [p for p in registry.state.cache.iterdir() if len(p.name) == 64], "no copy was kept"


def test_a_sound_copy_goes_on_whatever_happens_to_the_description(registry: Registry, marker: Path) -> None:
    before = resolve_model("press")
    loader_swapped(registry.logged, marker)
    assert resolve_model("press") == before
    assert not marker.exists()


# The payloads are live ----------------------------------------------------------------------------------------------


def test_the_payloads_would_run_if_they_were_loaded(registry: Registry, tmp_path: Path) -> None:
    """Otherwise the tests above would prove nothing."""
    ran = tmp_path / "ran"

    def fired() -> bool:
        was = ran.exists()
        ran.unlink(missing_ok=True)
        return was

    whole = (registry.bundle / bundle.ARRAYS).read_bytes()
    pickle_member(registry.bundle, ran)
    pickle.loads((registry.bundle / "model.pkl").read_bytes())  # noqa: S301 - our own payload
    assert fired()
    object_array(registry.bundle, ran)
    np.load(registry.bundle / bundle.ARRAYS, allow_pickle=True)["weights"]
    assert fired()
    joblib_arrays(registry.bundle, ran)
    joblib.load(registry.bundle / bundle.ARRAYS)
    assert fired()
    loader_swapped(registry.logged, ran)
    found = importlib.util.spec_from_file_location("evil_loader", tmp_path / "evil_loader.py")
    assert found is not None and found.loader is not None
    found.loader.exec_module(importlib.util.module_from_spec(found))
    assert fired()
    (registry.bundle / bundle.ARRAYS).write_bytes(whole)
    path_traversal(registry.bundle, ran)
    with zipfile.ZipFile(registry.bundle / bundle.ARRAYS) as archive:
        assert (registry.bundle / archive.namelist()[-1]).resolve() == ran


_UNSAFE = "import sys, keras; keras.saving.load_model(sys.argv[1], safe_mode=False)"


@pytest.mark.slow
def test_the_lambda_layer_would_run_if_keras_loaded_it(registry: Registry, tmp_path: Path) -> None:
    keras_lambda(registry.bundle, tmp_path / "ran")
    archive = tmp_path / "evil.keras"
    shutil.copyfile(registry.bundle / bundle.ARRAYS, archive)
    done = subprocess.run([sys.executable, "-c", _UNSAFE, str(archive)], capture_output=True, text=True, check=False)
    assert (tmp_path / "ran").exists(), done.stderr[-2000:]
