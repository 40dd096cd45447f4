"""Tells which files of a watched folder have settled."""

from __future__ import annotations

import time
from pathlib import Path


class Landing:
    """Tells which files of a folder have settled; names with a leading dot, links and other kinds of files are passed over."""

    def __init__(self, folder: Path, settle_s: float) -> None:
        self._folder, self._settle_s = folder, settle_s
        self._seen: dict[str, tuple[list[int], float]] = {}

    def look(self) -> tuple[dict[str, list[int]], int]:
        """Name to stamp (size, modification time in ns) of the settled files, by name, and how many have not settled."""
        now, settled, seen = time.monotonic(), dict[str, list[int]](), dict[str, tuple[list[int], float]]()
        for path in sorted(self._folder.iterdir()):
            if path.suffix.lower() not in (".csv", ".parquet") or path.name.startswith(".") or path.is_symlink():
                continue
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            if not path.is_file():
                continue
            stamp = [stat.st_size, stat.st_mtime_ns]
            since = self._seen.get(path.name, (None, now))
            seen[path.name] = (stamp, since[1] if since[0] == stamp else now)
            still = max(time.time() - stat.st_mtime, now - seen[path.name][1])
            if still >= self._settle_s:
                settled[path.name] = stamp
        self._seen = seen
        return settled, len(seen) - len(settled)
