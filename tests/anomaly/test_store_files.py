"""Damaged, unfinished and hostile HDF5 files are refused before anything is believed (RELIABILITY §0, §2.1-2.4)."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from anomaly.config import SplitSettings, WindowSettings
from anomaly.data import store_files, store_probe
from anomaly.data.contract import LogChunk, LogContract
from anomaly.data.store import SignalsStore, WindowStore, create_store, write_signals
from anomaly.data.store_files import seal
from anomaly.errors import InputRefused

CONTRACT = LogContract("time", ("a", "b"), 1_000_000)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, n = tmp_path_factory.mktemp("files") / "good.h5", 400
    chunk = LogChunk(
        np.arange(n), np.arange(n) * 1_000_000, np.full(n, "plant", object),
        np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32), np.empty((n, 0), object),
        np.zeros(n, np.int8), np.zeros((n, 2), bool),
    )  # fmt: skip
    with create_store(path, CONTRACT, WindowSettings(4), SplitSettings()) as writer:
        writer.append(chunk)
    return path


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(good, tmp_path / "store.h5"))


def refusal(path: Path, kind: type[WindowStore] | type[SignalsStore] = WindowStore, verify: bool = True) -> str:
    with pytest.raises(InputRefused) as caught:
        kind.open(path, verify=verify)
    faults = caught.value.faults
    assert all(f.file == str(path) for f in faults)
    return faults[0].code


def test_every_flipped_bit_is_refused(good: Path, copy: Path) -> None:
    original, rng = good.read_bytes(), np.random.default_rng(4)
    recorded = original.index(b"\0")  # the leading block up to its padding, which says nothing
    places = [*range(0, recorded, 7), *rng.integers(512, len(original), 60).tolist()]
    for at in places:
        flipped = bytearray(original)
        flipped[at] ^= 1 << int(rng.integers(8))
        copy.write_bytes(flipped)
        assert refusal(copy) == "E3006", at


@pytest.mark.parametrize("kept", [1, 300, 512, 513, 5000, -1])
@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_store_is_refused(good: Path, copy: Path, kept: int, verify: bool) -> None:
    copy.write_bytes(good.read_bytes()[:kept])
    # Less than our first line is not known to be ours.
    assert refusal(copy, verify=verify) == ("E3007" if kept == 1 else "E3006")


def test_what_is_no_store_is_refused_by_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    assert refusal(path) == "E3001"
    path.write_bytes(b"")
    assert refusal(path) == "E3002"
    path.write_text("time,a\n1,2\n")
    assert refusal(path) == "E3007"
    write_signals(tmp_path / "s.h5", [np.zeros((3, 2, 1), np.float32)])
    assert refusal(tmp_path / "s.h5") == "E3007"


def test_an_unfinished_store_is_refused(copy: Path) -> None:
    with h5py.File(copy, "r+") as file:
        del file.attrs["complete"]
    seal(copy)
    assert refusal(copy) == "E3401"


def test_a_store_of_another_format_version_or_without_parts_is_refused(copy: Path) -> None:
    with h5py.File(copy, "r+") as file:
        file.attrs["format_version"] = 99
    seal(copy)
    assert refusal(copy) == "E3007"
    with h5py.File(copy, "r+") as file:
        file.attrs["format_version"] = 1
        del file["split"]
    seal(copy)
    assert refusal(copy) == "E3006"


def test_a_store_repacked_by_another_tool_is_still_read(good: Path, tmp_path: Path) -> None:
    """Without our leading block the file is foreign; its content is a store all the same."""
    path = tmp_path / "repacked.h5"
    with h5py.File(good) as old, h5py.File(path, "x") as new:
        for name in old:
            old.copy(name, new)
        new.attrs.update(old.attrs)
    with WindowStore.open(path, expect=CONTRACT) as store:
        assert store.n_windows == 397


def test_a_broken_chunk_is_refused_when_the_digest_was_not_asked_for(good: Path, copy: Path) -> None:
    with h5py.File(good) as file:
        chunk = file["series/plant/values"].id.get_chunk_info(0)
    data = bytearray(good.read_bytes())
    data[512 + chunk.byte_offset + 40] ^= 4
    copy.write_bytes(data)
    with WindowStore.open(copy, verify=False) as store, pytest.raises(InputRefused, match="E3006"):
        list(store.row_blocks())


def hostile(path: Path, trick: str) -> None:
    """A foreign file that would make a reader believe bytes that are not in it."""
    secret = path.with_suffix(".txt")
    secret.write_bytes(b"secret" * 100)
    with h5py.File(path, "x") as file:
        if trick == "external storage":
            file.create_dataset("signals", (4, 4, 4), "u1", external=[(str(secret), 0, 64)])
            return
        if trick == "virtual":
            layout = h5py.VirtualLayout((5, 4, 1), "f4")
            layout[:] = h5py.VirtualSource("nowhere.h5", "x", (5, 4, 1))
            file.create_virtual_dataset("signals", layout)
            return
        if trick == "shape bomb":
            file.create_dataset("signals", (10**12, 16, 1), "f8", chunks=(64, 16, 1))
            return
        if trick == "zip bomb":
            file.create_dataset("signals", data=np.zeros((2**22, 8, 4), "f4"), chunks=(2**15, 8, 4), compression="gzip")
            return
        if trick == "large chunk":
            file.create_dataset("signals", (2**24, 2, 1), "f4", chunks=(2**24, 2, 1))[:1] = 1
            return
        file["signals"] = np.ones((5, 4, 1), "f4")
        links = {"soft link": h5py.SoftLink("/signals"), "external link": h5py.ExternalLink("other.h5", "/x")}
        file.create_group("metadata")["more"] = links[trick]


TRICKS = ["external storage", "virtual", "shape bomb", "large chunk", "soft link", "external link"]


@pytest.mark.parametrize("trick", [*TRICKS, pytest.param("zip bomb", marks=pytest.mark.slow)])
def test_hostile_files_are_refused(tmp_path: Path, trick: str) -> None:
    path = tmp_path / "hostile.h5"
    hostile(path, trick)
    if trick == TRICKS[0]:  # once through the child, the rest by the same check in this process
        assert refusal(path, SignalsStore) == "E3403"
    assert store_probe.probe(path)["code"] == "E3403"


def test_a_sealed_hostile_file_is_refused_as_well(copy: Path) -> None:
    with h5py.File(copy, "r+") as file:
        file["series/more"] = h5py.ExternalLink("other.h5", "/x")
    seal(copy)
    assert refusal(copy) == "E3403"


def test_internal_hard_links_and_loops_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    with h5py.File(path, "x") as file:
        file["signals"] = np.ones((5, 4, 1), "f4")
        file.create_group("metadata")["again"] = file["signals"]
        file["metadata"]["loop"] = file["metadata"]
    with SignalsStore.open(path) as store:
        assert store.n_windows == 5
        np.testing.assert_array_equal(store.metadata("again"), np.ones((5, 4, 1)))


def test_a_truncated_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    with h5py.File(path, "x") as file:
        file["signals"] = np.ones((500, 4, 1), "f4")
    path.write_bytes(path.read_bytes()[:3000])
    assert refusal(path, SignalsStore) == "E3006"


def test_a_look_that_hangs_or_dies_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.h5"
    with h5py.File(path, "x") as file:
        file["signals"] = np.ones((5, 4, 1), "f4")
    sleeper, dier = tmp_path / "sleeper.py", tmp_path / "dier.py"
    sleeper.write_text("import time; time.sleep(60)")
    dier.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(store_files.store_probe, "__file__", str(sleeper))
    with pytest.raises(InputRefused, match=r"E3006.*longer than 0.3 s"):
        store_files.probe_foreign(path, seconds=0.3)
    monkeypatch.setattr(store_files.store_probe, "__file__", str(dier))
    with pytest.raises(InputRefused, match=r"E3006.*status -11"):
        store_files.probe_foreign(path)


@pytest.mark.skipif(sys.platform != "linux", reason="address-space limits are kept by Linux")
def test_the_child_limits_itself(tmp_path: Path) -> None:
    import subprocess

    program = (
        "import sys; sys.argv = ['x', 'none.h5']; import runpy, resource\n"
        f"runpy.run_path({store_probe.__file__!r}, run_name='__main__')\n"
        "print(resource.getrlimit(resource.RLIMIT_AS)[0], resource.getrlimit(resource.RLIMIT_CPU)[0])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert '"E3006"' in done.stdout
    assert done.stdout.split("}")[1].split() == [str(4 << 30), "60"]
