"""Files and folders appear whole, also where two processes write the same one; what killed runs left is swept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anomaly.files import TEMPORARY, atomic_path

WRITE = """
import sys
from pathlib import Path
from anomaly.files import atomic_path
target, word = Path(sys.argv[1]), sys.argv[2]
for turn in range(60):
    with atomic_path(target / "folder", folder=True) as folder:
        for number in range(5):
            (folder / f"{number}.txt").write_text(word)
    with atomic_path(target / "file.txt") as path:
        path.write_text(word * 1000)
"""


def test_two_processes_that_write_the_same_names_leave_one_whole(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", WRITE, str(tmp_path), word] for word in ("one", "two", "six")]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    assert len({(tmp_path / "folder" / f"{number}.txt").read_text() for number in range(5)}) == 1
    assert (tmp_path / "file.txt").read_text() in {word * 1000 for word in ("one", "two", "six")}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.txt", "folder"]


def test_what_a_killed_run_left_is_swept_and_what_others_write_is_not(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    own, old = (tmp_path / f".a.txt{TEMPORARY}{who}" for who in (f"{os.getpid()}-00", "0badcafe"))
    killed, other = (tmp_path / f".a.txt{TEMPORARY}{who}-00" for who in (gone.pid, os.getppid()))
    for path in (own, old, killed, other):
        path.write_text("half")
    with atomic_path(tmp_path / "a.txt") as path, atomic_path(tmp_path / "a.txt") as second:
        path.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a.txt").read_text() == "first", "the last to end stays"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted((other.name, "a.txt"))
    os.utime(other, (0, 0))
    with atomic_path(tmp_path / "a.txt") as path:
        path.write_text("third")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"], "a week old is nobody's work"


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept.txt").write_text("old")
    whole, replace = [], Path.replace

    def failing(self: Path, target: Path) -> Path:
        whole.append(self)
        if len(whole) == 2:
            raise OSError(5, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="Input/output"), atomic_path(tmp_path / "folder", folder=True) as folder:
        (folder / "kept.txt").write_text("new")
    assert (tmp_path / "folder" / "kept.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
