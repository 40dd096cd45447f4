"""A file of signals copied into chunks of whole rows, compressed or not (METHODS S1, S3)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py

from anomaly.data.store_files import new_file
from anomaly.data.store_layout import filters
from anomaly.data.store_signals import SignalsStore, SignalsWriter, repack_signals
from anomaly.errors import Fault, UsageError

#: Windows copied at once.
_BLOCK = 4096


class _FilteredWriter(SignalsWriter):
    """A writer of signals that takes any filter."""

    def __init__(self, file: h5py.File, options: dict[str, Any]) -> None:
        super().__init__(file, compress=False)
        self._options = options


def repack_filtered(
    source: Path, target: Path, compress: str = "none", progress: Callable[[int, int], None] | None = None
) -> str:
    """As ``repack_signals``, the copy compressed by none, gzip or zstd; what was slow about the source, or "".

    Raises UsageError E2001 for a compression that is not there, and what ``repack_signals`` raises.
    """
    options = filters(compress)
    if not options:
        return repack_signals(source, target, progress)
    if target.exists() and source.exists() and target.samefile(source):
        raise UsageError(Fault("E2003", "a new path for the copy", "the file itself", file=str(target)))
    with SignalsStore.open(source) as store, new_file(target) as file:
        attributes = file.create_group("metadata").attrs
        for name, value in store.attributes.items():
            attributes[name] = value
        writer, done = _FilteredWriter(file, options), 0
        for block in store.blocks(_BLOCK):
            here = slice(done, done + len(block))
            columns = {name: store.metadata(name, here.start, here.stop) for name in store.metadata_names}
            writer.append(block, None if store.labels is None else store.labels[here], columns)
            done += len(block)
            if progress is not None:
                progress(done, store.n_windows)
        file.attrs["complete"] = True
        return store.notice
