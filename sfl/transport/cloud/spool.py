"""Updates on disk between their arrival and the aggregation, one file a device and holder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from sfl.errors import ProtocolError
from sfl.node.certificates.identity import NAME
from sfl.node.files import sync_folder
from sfl.node.numbered import of_rounds, round_name, round_of
from sfl.transport.cloud.sums import SUM
from sfl.v1 import tensor_pb2


class Spool:
    """A folder of safetensors files, whole or not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, round_: int, device: str, side: str) -> Path:
        """Where one holder's part of a device's update is."""
        return self.folder / round_name(round_) / f"{device}.{side}.safetensors"

    def files(self, round_: int, device: str, holders: Sequence[str]) -> tuple[Path, ...]:
        """All parts of a device's update; `holders` are its plan's."""
        return tuple(self.path(round_, device, side) for side in holders)

    def begin(self, header: tensor_pb2.AdapterHeader) -> Part:
        """A part to be written as it comes. Raises ProtocolError."""
        return self._begin(header, self._final(header))

    def sum_path(self, round_: int, edge: str, number: int) -> Path:
        """Where an edge's answer to the order of that number is."""
        return self.path(round_, edge, f"{SUM}-{number}")

    def begin_sum(self, edge: str, header: tensor_pb2.AdapterHeader) -> Part:
        """An edge's sum, to be written as it comes."""
        return self._begin(header, self.sum_path(header.round, edge, header.number))

    def _begin(self, header: tensor_pb2.AdapterHeader, path: Path) -> Part:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
            sync_folder(self.folder)
        return Part(header, path)

    def drop(self, round_: int) -> None:
        """Remove the files of a round, and of those before it."""
        for folder in of_rounds(self.folder):
            if round_of(folder) <= round_:
                shutil.rmtree(folder, ignore_errors=True)

    def _final(self, header: tensor_pb2.AdapterHeader) -> Path:
        # Both become parts of a path. Whose part is due the device's contract has said.
        if not all(NAME.fullmatch(name) for name in (header.side, header.device)):
            raise ProtocolError(f"no part {header.side!r} of device {header.device!r} is expected")
        return self.path(header.round, header.device, header.side)


class Part:
    """One holder's part of an update on its way to disk: never more of it than was announced."""

    def __init__(self, header: tensor_pb2.AdapterHeader, path: Path) -> None:
        self.header = header
        self._path = path
        self._partial = path.with_suffix(".partial")
        self._file = self._partial.open("wb")
        self._size = 0

    def write(self, data: bytes) -> None:
        """Take a frame's data. Raises ProtocolError where that is too much."""
        self._size += len(data)
        if self._size > self.header.num_bytes:
            raise ProtocolError(f"more than the announced {self.header.num_bytes} bytes came")
        self._file.write(data)

    def close(self, check: Callable[[Path], None] = lambda path: None) -> None:
        """Give the part its name, now that it is whole; raises what `check` of it does.

        What was there of that name stays until then. It outlives a power cut when this returns.
        Raises ProtocolError.
        """
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._size != self.header.num_bytes:
            self.drop()
            raise ProtocolError(f"{self._size} bytes came, {self.header.num_bytes} were announced")
        try:
            check(self._partial)
        except Exception:
            self.drop()
            raise
        self._partial.replace(self._path)
        sync_folder(self._path.parent)

    def drop(self) -> None:
        """Leave nothing of a part that will not be whole."""
        self._file.close()
        self._partial.unlink(missing_ok=True)
