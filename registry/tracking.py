"""One training run in MLflow: settings, data fingerprint, split, curves, metrics, report, and the model it made.

The model is logged as a pyfunc model through ``loader_module``: the artifact is our bundle, data without code or
pickle, and MLflow's own tools (``mlflow models serve``, Spark) load it with the installed ``registry.pyfunc``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import shutil
import socket
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly.faults import killpoint
from registry.bundle import MEMBERS, installed_versions, verify_bundle
from registry.promotion_table import CHAMPION, Champion, Entry, PromotionTable, mirror, now, user
from registry.state import State, connection, find_state, private_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

    from anomaly.model import AnomalyModel

EXPERIMENT = "anomaly"
CHALLENGER = "challenger"

#: Tag of a model version that holds the digest its bundle must have.
DIGEST_TAG = "bundle_digest"

#: Tag of a registered model that is one of a family, and the tags of its versions.
FAMILY_TAG, KIND_TAG, GROUP_TAG, ASSETS_TAG, KEY_TAG = "family", "family_kind", "group", "assets", "training_key"

#: Folder of the bundle inside the logged model.
BUNDLE_PATH = "data/bundle"

#: What loading and scoring with a bundle needs; the installed versions are pinned in the logged model.
NEEDS = ("tensorflow-cpu", "tensorflow", "keras", "h5py", "numpy", "scipy", "pandas", "scikit-learn", "mlflow")

_DATASET = "log"
_PACKAGES = ("anomaly", "registry", "alerts", "pipelines")
_LONGEST_PARAM = 500
_LONGEST_DIGEST = 36  # MLflow's column for a data set's digest
_BATCH = 1000  # metrics in one request, MLflow's limit
_UNFIT = re.compile(r"[^\w./ -]")


@dataclass(frozen=True)
class RegisteredModel:
    """A new version of a registered model; ``aliases`` are those that point to it now."""

    name: str
    version: int
    run_id: str
    model_id: str
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Membership:
    """That a model is one of a family of models, one per asset or per class of assets.

    ``key`` is the digest of what it was trained from and how; ``tags`` go to the version, beside the ``assets``.
    """

    family: str
    kind: str  # "asset" or "class"
    group: str  # the asset, or the class
    assets: tuple[str, ...]
    key: str
    tags: Mapping[str, str]


def record_run(
    model: AnomalyModel,
    bundle: Path,
    *,
    name: str,
    settings: Mapping[str, Any],
    fingerprint: str,
    split: Mapping[str, Any],
    metrics: Mapping[str, float],
    history: Mapping[str, list[float]],
    report: Path | None = None,
    tags: Mapping[str, str] | None = None,
    member: Membership | None = None,
    home: Path | None = None,
) -> RegisteredModel:
    """Record one training run and register the model in ``bundle`` as the next version of ``name``.

    ``fingerprint`` is the hex digest of the training data; ``split`` any JSON-ready value; ``metrics`` are tied to the model and
    the data (non-finite ones are named in the tag ``undefined_metrics``); ``history`` holds a list per curve, one value per
    epoch. Run and version say in words what they are, and carry the version and digest of our code, so that the lists of
    ``mlflow ui`` can be read. The version gets the alias ``challenger``, and ``champion`` as well if there is none; afterwards
    the champion changes by ``registry.promotion`` alone. On an exception the run is marked FAILED; runs that a killed process
    left RUNNING are marked KILLED by the next one.

    Raises ModelRefused (the bundle), Unavailable E5003 (MLflow does not answer).
    """
    digest = verify_bundle(bundle)
    state = find_state(home)
    with connection(state) as client:
        import mlflow

        experiment = _experiment(client, state)
        end_abandoned_runs(client, experiment)
        own = {"bundle_digest": digest, "data_fingerprint": fingerprint, "process": _process(), **code_version()}
        own |= {**_kinds(settings), **_family_tags(member), **(tags or {})}
        with mlflow.start_run(experiment_id=experiment, run_name=name, tags=own) as run:
            _log_what_was_run(client, run.info.run_id, settings, fingerprint, split, history, report)
            killpoint("registry.before_log")
            model_id = _log_model(model, bundle, name)
            killpoint("registry.after_log")
            _log_metrics(client, run.info.run_id, metrics, model_id, fingerprint)
            version = _register(client, name, model_id, run.info.run_id, digest, member)
            _describe(client, run.info.run_id, name, version, metrics)
            killpoint("registry.before_alias")
            aliases = _set_aliases(client, PromotionTable(state), name, version, digest)
    return RegisteredModel(name, version, run.info.run_id, model_id, aliases)


def signature(model: AnomalyModel) -> ModelSignature:
    """Columns a served model takes and gives.

    The time is of any type, so that ISO text (JSON has no times) and datetimes both pass; a missing tag value is
    null or NaN.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    contract = model.contract
    asset = [ColSpec("string", contract.asset, required=False)] if contract.asset else []
    takes = [ColSpec(AnyType(), contract.time), *asset, *(ColSpec("double", tag) for tag in contract.tags)]
    takes += [ColSpec("string", name, required=False) for name in contract.categories]
    gives = [("string", "time"), ("string", "asset"), ("double", "anomaly_score"), ("double", "threshold"),
             ("string", "outcome"), ("string", "reason"), ("string", "top_tags")]  # fmt: skip
    return ModelSignature(inputs=Schema(takes), outputs=Schema([ColSpec(kind, name) for kind, name in gives]))


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names with values of at most 500 characters.

    >>> flat({"window": {"lookback": 16}, "name": "a"})
    {'window.lookback': '16', 'name': 'a'}
    """
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[_UNFIT.sub("_", f"{prefix}{key}")] = str(value)[:_LONGEST_PARAM]
    return found


def end_abandoned_runs(client: MlflowClient, experiment: str) -> int:
    """Mark runs KILLED whose process of ours, on this machine, is gone; gives their number."""
    runs = client.search_runs([experiment], "attributes.status = 'RUNNING'", max_results=200)
    gone = [r.info.run_id for r in runs if _is_gone(r.data.tags.get("process", ""))]
    for run_id in gone:
        client.set_terminated(run_id, "KILLED")
    return len(gone)


def code_version() -> dict[str, str]:
    """Which code this is: the installed version, and a digest of our sources, which an edit changes too."""
    installed = {"code_version": ", ".join(installed_versions(("plant-anomaly",)).values())}
    return {**{k: v for k, v in installed.items() if v}, "code_digest": _code_digest()}


@functools.cache
def _code_digest() -> str:
    """First 16 hex digits of the digest of every source file of the four packages; they lie beside each other."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(p for package in _PACKAGES for p in (root / package).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _kinds(settings: Mapping[str, Any]) -> dict[str, str]:
    """Tags that runs are compared by at a glance."""
    encoder, detection = settings.get("encoder") or {}, settings.get("detection") or {}
    found = {"encoder": encoder.get("name"), "detectors": ", ".join(detection.get("detectors") or ())}
    return {name: str(value) for name, value in found.items() if value}


def _family_tags(member: Membership | None) -> dict[str, str]:
    return {FAMILY_TAG: member.family, GROUP_TAG: member.group[:_LONGEST_PARAM]} if member else {}


def _describe(client: MlflowClient, run_id: str, name: str, version: int, metrics: Mapping[str, float]) -> None:
    """Name and words of the run and the version, as MLflow's pages show them."""
    words = in_words(metrics)
    client.set_tag(run_id, "mlflow.runName", f"{name} v{version}")
    client.set_tag(run_id, "model_version", f"{name}/{version}")
    client.set_tag(run_id, "mlflow.note.content", f"Model **{name}** version {version}. {words}")
    client.update_model_version(name, str(version), words)


def in_words(metrics: Mapping[str, float]) -> str:
    """The figures that matter most, each with its interval, in a sentence.

    >>> in_words({"average_precision": 0.5, "average_precision_low": 0.25, "average_precision_high": 0.75})
    'On the test part: average precision 0.5 (0.25 to 0.75).'
    """
    told = []
    for name in ("average_precision", "event_recall", "false_episodes_per_day"):
        ends = [metrics.get(f"{name}{end}", math.nan) for end in ("_low", "_high")]
        if math.isfinite(metrics.get(name, math.nan)):
            interval = f" ({ends[0]:.3g} to {ends[1]:.3g})" if all(map(math.isfinite, ends)) else ""
            told.append(f"{name.replace('_', ' ')} {metrics[name]:.3g}{interval}")
    return f"On the test part: {', '.join(told)}." if told else "No figure is defined on the test part."


def _process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _is_gone(process: str) -> bool:
    host, _, pid = process.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _experiment(client: MlflowClient, state: State) -> str:
    """Id of our experiment. Without a server its artifacts go under our state, never into ./mlruns."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        location = None if state.is_server else private_folder(state.artifacts).as_uri()
        try:
            return str(client.create_experiment(EXPERIMENT, artifact_location=location))
        except MlflowException:
            found = client.get_experiment_by_name(EXPERIMENT)  # another process was first
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _log_what_was_run(
    client: MlflowClient,
    run_id: str,
    settings: Mapping[str, Any],
    fingerprint: str,
    split: Mapping[str, Any],
    history: Mapping[str, list[float]],
    report: Path | None,
) -> None:
    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import Metric

    mlflow.log_params(flat(settings))
    source = CodeDatasetSource({"fingerprint": fingerprint})
    mlflow.log_input(MetaDataset(source, name=_DATASET, digest=fingerprint[:_LONGEST_DIGEST]), context="training")
    mlflow.log_text(json.dumps(split, indent=1, default=str), "split.json")
    now = int(time.time() * 1000)
    curves = [
        Metric(_UNFIT.sub("_", name), float(value), now, epoch)
        for name, values in history.items()
        for epoch, value in enumerate(values, 1)  # MLflow ties what it finds at step 0 to the model
        if math.isfinite(value)
    ]
    for part in _parts(curves):
        client.log_batch(run_id, metrics=part)
    if report is not None:
        mlflow.log_artifact(str(report), "report")


def _log_metrics(
    client: MlflowClient, run_id: str, metrics: Mapping[str, float], model_id: str, fingerprint: str
) -> None:
    """Finite metrics, tied to the run, the model and the data set; the names of the others as a tag."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    finite = {_UNFIT.sub("_", k): float(v) for k, v in metrics.items() if math.isfinite(v)}
    for part in _parts(finite.items()):
        data = {"dataset_name": _DATASET, "dataset_digest": fingerprint[:_LONGEST_DIGEST]}
        client.log_batch(run_id, metrics=[Metric(k, v, now, 0, model_id, run_id=run_id, **data) for k, v in part])
    undefined = [name for name, value in metrics.items() if not math.isfinite(value)]
    if undefined:
        client.set_tag(run_id, "undefined_metrics", ", ".join(undefined))


def _parts(items: Iterable[Any]) -> list[list[Any]]:
    whole = list(items)
    return [whole[i : i + _BATCH] for i in range(0, len(whole), _BATCH)]


def _log_model(model: AnomalyModel, bundle: Path, name: str) -> str:
    """Log the bundle as a pyfunc model; gives its model id."""
    import mlflow.pyfunc

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example")  # the signature is explicit
        copy = Path(folder) / Path(BUNDLE_PATH).name
        copy.mkdir()
        for member in sorted(MEMBERS):
            shutil.copyfile(bundle / member, copy / member)
        logged = mlflow.pyfunc.log_model(
            name=name.replace(".", "_"),  # MLflow refuses a dot here, and allows it in the registered name
            loader_module="registry.pyfunc",
            data_path=str(copy),
            pip_requirements=[f"{k}=={v}" for k, v in installed_versions(NEEDS).items()],
            signature=signature(model),
            metadata=installed_versions(("plant-anomaly",)),
        )
    return str(logged.model_id)


def _register(
    client: MlflowClient, name: str, model_id: str, run_id: str, digest: str, member: Membership | None
) -> int:
    """The next version of ``name``; its digest is recorded in the same step, and what family it is of."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {DIGEST_TAG: digest}
    if member:
        client.set_registered_model_tag(name, FAMILY_TAG, member.family)
        tags |= {**member.tags, KEY_TAG: member.key, GROUP_TAG: member.group, KIND_TAG: member.kind}
        tags[ASSETS_TAG] = json.dumps(member.assets)
    made = client.create_model_version(name, f"models:/{model_id}", run_id=run_id, tags=tags, model_id=model_id)
    return int(made.version)


def _set_aliases(client: MlflowClient, table: PromotionTable, name: str, version: int, digest: str) -> tuple[str, ...]:
    """Newest is challenger; it is champion too where there is none. What was decided in our table is not touched."""
    client.set_registered_model_alias(name, CHALLENGER, str(version))
    row = table.champion(name)
    if CHAMPION in mirror(client, table, name, client.get_registered_model(name).aliases):
        return (CHALLENGER,)
    why = "first version of this name" if row is None else f"champion version {row.version} is gone"
    entry = Entry(now(), user(), "registered", name, row.version if row else None, version, why, digest)
    if row is None:
        table.note(entry)  # our table begins with the first promotion: until then the alias says it
    else:
        table.change(row, Champion(name, version, digest), entry)
    client.set_registered_model_alias(name, CHAMPION, str(version))
    return (CHALLENGER, CHAMPION)
