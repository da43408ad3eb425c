"""What rounds added to the base, for blocks that a device may get later (FLoRA, 2409.05976)."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from sfl.node.files import on_disk, writable_folder

SETTING = "device.cache_dir"


class KeptUpdates:
    """Base updates in their order, in a file that is gone with its process.

    A device that begins anew is sent all of them again.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """The file is in `folder`, or where the system has temporary ones."""
        self._folder = folder
        self._file: int | None = None
        self._ends = [0]

    def add(self, values: Mapping[str, np.ndarray]) -> None:
        """Keep what a round gave. Raises DiskError."""
        data = memoryview(safetensors.numpy.save(dict(values)))
        with on_disk(self._folder or Path(tempfile.gettempdir()), SETTING):
            if self._file is None:
                self._file = self._opened()
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, data[written:], self._ends[-1] + written)
        self._ends.append(self._ends[-1] + len(data))

    def _opened(self) -> int:
        """A file without a name."""
        where = None if self._folder is None else writable_folder(self._folder, SETTING)
        file, name = tempfile.mkstemp(dir=where)
        os.unlink(name)  # noqa: PTH108 - as mkstemp has it
        weakref.finalize(self, os.close, file)
        return file

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Each of them, the first one first."""
        for begin, end in zip(self._ends, self._ends[1:], strict=False):
            assert self._file is not None
            yield safetensors.numpy.load(os.pread(self._file, end - begin, begin))
