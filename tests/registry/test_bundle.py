"""A bundle: what goes in comes out, and every damaged or hostile one is refused with its code (RELIABILITY §5 F)."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sealing import reseal

from anomaly.errors import ModelRefused, Unavailable, UsageError
from registry import bundle, members
from registry.bundle import load_bundle, save_bundle, verify_bundle


@pytest.fixture
def saved(model: Any, tmp_path: Path) -> Path:
    save_bundle(model, tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture
def load(model_class: Any) -> Callable[..., Any]:
    return lambda folder, **kw: load_bundle(folder, model_class=model_class, **kw)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ModelRefused) as caught:
        call()
    assert caught.value.exit_code == 4
    return caught.value.faults[0].code


def _set_weights(body: dict[str, Any], **changes: Any) -> None:
    body["arrays"]["weights"].update(changes)


def with_arrays(folder: Path, **arrays: np.ndarray) -> None:
    """Put other arrays into the bundle, described rightly."""
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    (folder / bundle.ARRAYS).write_bytes(stream.getvalue())
    described = {k: {"dtype": a.dtype.str, "shape": list(a.shape)} for k, a in arrays.items()}
    reseal(folder, lambda body: body.update(arrays=described))


def test_s60_a_saved_model_comes_back_with_the_same_scores(model: Any, saved: Path, load: Any) -> None:
    loaded = load(saved)
    pd.testing.assert_frame_equal(loaded.score_frame(model.canary), model.score_frame(model.canary))
    pd.testing.assert_frame_equal(loaded.canary, model.canary, check_dtype=False)
    assert loaded.canary["time"].dtype == "datetime64[us, UTC]"
    assert loaded.settings == model.settings and loaded.contract == model.contract


def test_a_bundle_is_three_files_and_its_digest_is_that_of_the_manifest(model: Any, tmp_path: Path, load: Any) -> None:
    digest = save_bundle(model, tmp_path / "m")
    assert {p.name for p in (tmp_path / "m").iterdir()} == {"manifest.json", "arrays.npz", "canary.json"}
    assert digest == hashlib.sha256((tmp_path / "m/manifest.json").read_bytes()).hexdigest()
    assert digest == verify_bundle(tmp_path / "m") == load(tmp_path / "m", expect_digest=digest).digest
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_the_same_model_saved_twice_has_the_same_digest(model: Any, tmp_path: Path) -> None:
    """No clock in a bundle: a model trained again on the same data and seed is the same model to the alert ledger."""
    assert save_bundle(model, tmp_path / "a") == save_bundle(model, tmp_path / "b")


def test_the_manifest_says_with_what_and_where_the_threshold_came_from(saved: Path) -> None:
    manifest = bundle.read_manifest(saved)
    assert manifest["libraries"]["numpy"] == np.__version__
    assert manifest["model"]["threshold"]["rule"] == "fixed"
    assert np.isnan(manifest["model"]["threshold"]["interval"][0])
    assert manifest["canary_scores"][4] is None


def test_times_without_a_zone_and_text_columns_come_back(model: Any) -> None:
    frame = model.canary.assign(time=model.canary["time"].dt.tz_localize(None), count=range(12), note=None)
    back = members.unpack_canary(members.pack_canary(frame))
    assert back["time"].dtype == "datetime64[us]"
    assert back["count"].dtype == np.int64 and back["note"].isna().all()
    assert back["time"].tolist() == frame["time"].tolist()


# Damage: F1 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(bundle.MEMBERS))
def test_f1_a_flip_of_any_kind_of_byte_is_refused(saved: Path, load: Any, name: str) -> None:
    whole = (saved / name).read_bytes()
    for at in np.random.default_rng(1).integers(0, len(whole), 60):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(at) % 8
        (saved / name).write_bytes(bytes(flipped))
        assert refusal(lambda: load(saved)) in ("E4002", "E4003")
        assert refusal(lambda: verify_bundle(saved)) in ("E4002", "E4003")


@pytest.mark.parametrize("name", sorted(bundle.MEMBERS))
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_f1_a_cut_file_is_refused(saved: Path, load: Any, name: str, kept: float) -> None:
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(whole[: int(len(whole) * kept)])
    assert refusal(lambda: load(saved)) in ("E4002", "E4003")


@pytest.mark.parametrize("name", [bundle.ARRAYS, bundle.CANARY])
def test_f1_a_missing_file_is_refused(saved: Path, load: Any, name: str) -> None:
    (saved / name).unlink()
    assert refusal(lambda: load(saved)) == "E4002"


def test_f1_arrays_of_another_model_are_refused(model: Any, saved: Path, load: Any, tmp_path: Path) -> None:
    save_bundle(replace(model, weights=np.array([2.0, 1.0])), tmp_path / "other")
    (saved / bundle.ARRAYS).write_bytes((tmp_path / "other" / bundle.ARRAYS).read_bytes())
    assert refusal(lambda: load(saved)) == "E4002"


def test_f1_a_whole_other_bundle_is_refused_by_the_recorded_digest(model: Any, saved: Path, load: Any) -> None:
    recorded = verify_bundle(saved)
    save_bundle(replace(model, weights=np.array([2.0, 1.0])), saved)
    load(saved)
    assert refusal(lambda: load(saved, expect_digest=recorded)) == "E4002"


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_no_bundle_there_is_e4001(tmp_path: Path, load: Any, make: Any) -> None:
    make(tmp_path / "m")
    assert refusal(lambda: load(tmp_path / "m")) == "E4001"


# Hostile contents with right digests: F2, F3, F4 --------------------------------------------------------------------


class _Marker:
    """Unpickling it makes the file: the proof that something ran."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_f2_a_pickle_inside_the_arrays_is_refused_and_does_not_run(saved: Path, load: Any, tmp_path: Path) -> None:
    hostile = np.empty(2, dtype=object)
    hostile[:] = [_Marker(tmp_path / "ran")] * 2
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=True, **{"scale/center": np.zeros(2, np.float32), "weights": hostile})
    (saved / bundle.ARRAYS).write_bytes(stream.getvalue())
    for dtype in ("|O", "<f8"):
        reseal(saved, partial(_set_weights, dtype=dtype))
        assert refusal(lambda: load(saved)) == "E4003"
    assert not (tmp_path / "ran").exists()


def test_f2_a_bare_pickle_in_place_of_the_arrays_does_not_run(saved: Path, load: Any, tmp_path: Path) -> None:
    (saved / bundle.ARRAYS).write_bytes(pickle.dumps(_Marker(tmp_path / "ran")))
    reseal(saved)
    assert refusal(lambda: load(saved)) == "E4003"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("scale/center", "weights"):
            archive.writestr(f"{name}.npy", pickle.dumps(_Marker(tmp_path / "ran")))
    (saved / bundle.ARRAYS).write_bytes(stream.getvalue())
    reseal(saved, partial(_set_weights, shape=[1]))
    assert refusal(lambda: load(saved)) == "E4003"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("make", [lambda p: p.write_text("print()"), lambda p: p.mkdir(), lambda p: p.symlink_to("/")])
def test_f3_an_extra_member_is_refused(saved: Path, load: Any, make: Any) -> None:
    make(saved / "model.py")
    assert refusal(lambda: load(saved)) == "E4005"


@pytest.mark.parametrize("name", sorted(bundle.MEMBERS))
def test_f3_a_link_in_place_of_a_member_is_refused(saved: Path, load: Any, tmp_path: Path, name: str) -> None:
    (saved / name).rename(tmp_path / "elsewhere")
    (saved / name).symlink_to(tmp_path / "elsewhere")
    assert refusal(lambda: load(saved)) == "E4005"


def test_f3_a_fifo_is_refused_without_waiting(saved: Path, load: Any) -> None:
    (saved / bundle.CANARY).unlink()
    os.mkfifo(saved / bundle.CANARY)
    assert refusal(lambda: load(saved)) == "E4005"


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "arrays.npz/../x"])
def test_f3_a_path_in_the_member_list_is_refused(saved: Path, load: Any, name: str) -> None:
    reseal(saved, lambda body: body["members"].update({name: body["members"].pop(bundle.ARRAYS)}))
    assert refusal(lambda: load(saved)) == "E4005"


@pytest.mark.parametrize("name", ["../weights", "/weights", "a//b", "a/../b", ""])
def test_f3_a_path_as_array_name_is_refused(saved: Path, load: Any, name: str) -> None:
    reseal(saved, lambda body: body["arrays"].update({name: body["arrays"].pop("weights")}))
    assert refusal(lambda: load(saved)) == "E4003"


def test_f3_declared_giant_sizes_are_refused_before_memory_is_used(saved: Path, load: Any) -> None:
    for change in (
        lambda body: body["arrays"]["weights"].update(shape=[10**12, 16]),
        lambda body: body["arrays"]["weights"].update(shape=[10**200]),
        lambda body: body["members"][bundle.ARRAYS].update(size=10**15),
        lambda body: body["members"][bundle.ARRAYS].update(size=-1),
        lambda body: body["members"][bundle.ARRAYS].update(size=1.5),
    ):
        reseal(saved, change)
        assert refusal(lambda: load(saved)) == "E4003"


def test_f3_a_giant_shape_in_the_array_header_is_refused(saved: Path, load: Any) -> None:
    def npy(shape: tuple[int, ...]) -> bytes:
        stream = io.BytesIO()
        header = {"descr": "<f8", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        return stream.getvalue() + bytes(16)

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("weights.npy", npy((10**12,)))
    (saved / bundle.ARRAYS).write_bytes(stream.getvalue())
    reseal(saved, lambda body: body.update(arrays={"weights": {"dtype": "<f8", "shape": [2]}}))
    assert refusal(lambda: load(saved)) == "E4003"


def test_f3_a_compressed_or_doubled_member_is_refused(saved: Path, load: Any) -> None:
    npy = io.BytesIO()
    np.lib.format.write_array(npy, np.zeros(1000))
    for count, method in ((1, zipfile.ZIP_DEFLATED), (2, zipfile.ZIP_STORED)):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", method) as archive:
            for _ in range(count):
                archive.writestr(zipfile.ZipInfo("weights.npy"), npy.getvalue(), method)
        (saved / bundle.ARRAYS).write_bytes(stream.getvalue() + bytes(8000))
        reseal(saved, lambda body: body.update(arrays={"weights": {"dtype": "<f8", "shape": [1000]}}))
        assert refusal(lambda: load(saved)) == "E4003"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_weights_are_refused_on_loading_and_saving(model: Any, saved: Path, load: Any, bad: float) -> None:
    with_arrays(saved, **{"scale/center": model.center, "weights": np.array([1.0, bad])})
    assert refusal(lambda: load(saved)) == "E4003"
    assert refusal(lambda: save_bundle(replace(model, weights=np.array([1.0, bad])), saved)) == "E4003"


@pytest.mark.parametrize("bad", [{"$float": "nan"}, {"$float": "inf"}, None, "3", -0.1, 1e6, True])
def test_f4_a_bad_threshold_is_refused_on_loading(saved: Path, load: Any, bad: object) -> None:
    reseal(saved, lambda body: body["model"]["threshold"].update(value=bad))
    assert refusal(lambda: load(saved)) == "E4003"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.1, 1e6])
def test_f4_a_bad_threshold_is_refused_on_saving(model: Any, tmp_path: Path, bad: float) -> None:
    hostile = replace(model, threshold=replace(model.threshold, value=bad))
    assert refusal(lambda: save_bundle(hostile, tmp_path / "m")) == "E4003"
    assert list(tmp_path.iterdir()) == []


def test_f4_a_missing_threshold_or_model_part_is_refused(saved: Path, load: Any) -> None:
    reseal(saved, lambda body: body["model"].pop("threshold"))
    assert refusal(lambda: load(saved)) == "E4003"
    reseal(saved, lambda body: body.pop("model"))
    assert refusal(lambda: load(saved)) == "E4003"


@pytest.mark.parametrize("change", [{"version": 2}, {"version": "1"}, {"format": "other"}])
def test_a_format_we_do_not_know_is_refused(saved: Path, load: Any, change: dict[str, Any]) -> None:
    reseal(saved, lambda body: body.update(change))
    assert refusal(lambda: load(saved)) == "E4003"


@pytest.mark.parametrize(
    "text", [b"[]", b"{}", b"[" * 100_000, b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff", b"9" * 5000]
)
def test_a_manifest_that_is_not_ours_is_refused(saved: Path, load: Any, text: bytes) -> None:
    (saved / bundle.MANIFEST).write_bytes(text)
    assert refusal(lambda: load(saved)) == "E4003"


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff", b"9" * 5000])
def test_json_outside_strict_json_is_refused(text: bytes) -> None:
    assert refusal(lambda: members.parse_json(text, "m")) == "E4003"


@pytest.mark.parametrize(
    "columns",
    [
        [],
        [{"name": "a", "kind": "<f8", "values": []}],
        [{"name": "a", "kind": "<f8", "values": [1, 2]}, {"name": "b", "kind": "text", "values": ["x"]}],
        [{"name": "a", "kind": "|O", "values": [1]}],
        [{"name": "a", "kind": "<f8", "values": [[1]]}],
        [{"name": "a", "kind": "<f8", "values": ["x"]}],
        [{"name": "a", "kind": "zoned", "values": ["yesterday"]}],
        [{"name": "a", "kind": "<f8", "values": [1.0] * 1001}],
        "text",
    ],
)
def test_canary_rows_of_another_form_are_refused(columns: object) -> None:
    assert refusal(lambda: members.unpack_canary(json.dumps({"columns": columns}).encode())) == "E4003"


# Canary: F6, F7 ---------------------------------------------------------------------------------------------------


def test_f7_perturbed_weights_fail_the_canary(model: Any, saved: Path, load: Any) -> None:
    with_arrays(saved, **{"scale/center": model.center, "weights": model.weights * 1.001})
    assert refusal(lambda: load(saved)) == "E4004"
    with_arrays(saved, **{"scale/center": model.center, "weights": model.weights * (1 + 1e-9)})
    load(saved)


@pytest.mark.parametrize("scores", [[], None, [None] * 12, "x", [1.0] * 12, {"a": 1}])
def test_f7_other_recorded_scores_fail_the_canary(saved: Path, load: Any, scores: object) -> None:
    reseal(saved, lambda body: body.update(canary_scores=scores))
    assert refusal(lambda: load(saved)) == "E4004"


def test_f6_another_minor_version_is_reported_and_the_canary_decides(saved: Path, load: Any, caplog: Any) -> None:
    reseal(saved, lambda body: body["libraries"].update(numpy="1.0.0"))
    load(saved)
    assert "numpy 1.0.0" in caplog.text


def test_a_model_without_canary_rows_is_not_saved(model: Any, tmp_path: Path) -> None:
    assert refusal(lambda: save_bundle(replace(model, canary=pd.DataFrame()), tmp_path / "m")) == "E4004"
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_come_back_the_same_is_not_saved(model: Any, tmp_path: Path) -> None:
    parts, arrays = model.to_parts()
    model.to_parts = lambda: (parts, {**arrays, "weights": arrays["weights"] * 2})
    assert refusal(lambda: save_bundle(model, tmp_path / "m")) == "E4004"
    assert list(tmp_path.iterdir()) == []


def test_an_array_of_objects_is_not_saved(model: Any, tmp_path: Path) -> None:
    parts, arrays = model.to_parts()
    model.to_parts = lambda: (parts, {**arrays, "names": np.array(["a", None], dtype=object)})
    assert refusal(lambda: save_bundle(model, tmp_path / "m")) == "E4003"


# Where it is written ------------------------------------------------------------------------------------------------


def test_an_earlier_model_is_replaced_only_if_asked(model: Any, saved: Path) -> None:
    with pytest.raises(UsageError, match="E2003"):
        save_bundle(model, saved, replace=False)
    other = save_bundle(replace(model, weights=np.array([2.0, 1.0])), saved)
    assert verify_bundle(saved) == other
    assert [p.name for p in saved.parent.iterdir()] == ["m"]


@pytest.mark.parametrize("there", ["file", "folder", "link"])
def test_what_is_not_a_model_is_never_replaced(model: Any, tmp_path: Path, there: str) -> None:
    target = tmp_path / "mine"
    if there == "file":
        target.write_text("keep")
    else:
        (tmp_path / "data").mkdir()
        (tmp_path / "data/keep.csv").write_text("keep")
        target.symlink_to(tmp_path / "data") if there == "link" else (tmp_path / "data").rename(target)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="E2003"):
        save_bundle(model, target)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_unavailable(model: Any, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(Unavailable, match="E5002"):
            save_bundle(model, tmp_path / "m")
    finally:
        tmp_path.chmod(0o700)


def test_bundles_load_without_mlflow() -> None:
    code = "import sys, registry.bundle, registry.catalogue; print('mlflow' in sys.modules, 'keras' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# The real model -------------------------------------------------------------------------------------------------------


def test_s60_the_real_model_comes_back_with_the_same_scores(real_model: Any, tmp_path: Path) -> None:
    digest = save_bundle(real_model, tmp_path / "m")
    loaded = load_bundle(tmp_path / "m", expect_digest=digest)
    expected = real_model.score_frame(real_model.canary)
    found = loaded.score_frame(real_model.canary)
    assert expected["anomaly_score"].notna().sum() > 5 and expected["anomaly_score"].isna().any()
    pd.testing.assert_frame_equal(found.drop(columns="top_tags"), expected.drop(columns="top_tags"), rtol=1e-5)
    assert loaded.threshold == real_model.threshold and loaded.settings == real_model.settings


_SCORES = """
import sys
from pathlib import Path
from registry.bundle import load_bundle
model = load_bundle(Path(sys.argv[1]))
print(model.score_frame(model.canary)["anomaly_score"].to_json())
"""


@pytest.mark.slow
def test_s60_a_fresh_process_gives_the_same_scores(real_model: Any, tmp_path: Path) -> None:
    save_bundle(real_model, tmp_path / "m")
    command = [sys.executable, "-c", _SCORES, str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = np.array(list(json.loads(done.stdout.splitlines()[-1]).values()), dtype=float)
    np.testing.assert_allclose(found, real_model.score_frame(real_model.canary)["anomaly_score"], rtol=1e-5)


@pytest.mark.parametrize("part", ["preparer", "encoder", "calibrator", "contract", "settings", "threshold"])
def test_the_real_model_without_one_of_its_parts_is_refused(real_model: Any, tmp_path: Path, part: str) -> None:
    save_bundle(real_model, tmp_path / "m")
    reseal(tmp_path / "m", lambda body: body["model"].update({part: {"no": "such"}}))
    assert refusal(lambda: load_bundle(tmp_path / "m")) == "E4003"
