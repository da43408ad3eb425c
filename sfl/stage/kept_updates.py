"""What rounds added to the base, for blocks that a device may get later (FLoRA, 2409.05976)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

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
        self._file: IO[bytes] | None = None
        self._sizes: list[int] = []

    def add(self, values: Mapping[str, np.ndarray]) -> None:
        """Keep what a round gave. Raises DiskError."""
        data = safetensors.numpy.save(dict(values))
        where = self._folder or Path(tempfile.gettempdir())
        with on_disk(where, SETTING):
            if self._file is None:
                own = None if self._folder is None else writable_folder(where, SETTING)
                self._file = tempfile.TemporaryFile(dir=own)  # noqa: SIM115 - ends with the process
            self._file.write(data)
            self._file.flush()
        self._sizes.append(len(data))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Each of them, the first one first."""
        if self._file is None:
            return
        self._file.seek(0)
        for size in self._sizes:
            yield safetensors.numpy.load(self._file.read(size))
