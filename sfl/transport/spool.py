"""Updates on disk between their arrival and the aggregation, one file a device and side."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from sfl.certificates.identity import NAME
from sfl.errors import ProtocolError
from sfl.rounds.messages import Side
from sfl.v1 import tensor_pb2

SIDES: tuple[Side, ...] = ("device", "edge")


class Spool:
    """A folder of safetensors files, whole or not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, round_: int, device: str, side: Side) -> Path:
        """Where one side's part of a device's update lies."""
        return self.folder / f"round-{round_:04d}" / f"{device}.{side}.safetensors"

    def files(self, round_: int, device: str) -> tuple[Path, ...]:
        """Both parts of a device's update."""
        return tuple(self.path(round_, device, side) for side in SIDES)

    def open(self, header: tensor_pb2.AdapterHeader) -> BinaryIO:
        """A file to write a part into. Raises ProtocolError."""
        path = self._final(header)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_suffix(".partial").open("wb")

    def close(
        self,
        header: tensor_pb2.AdapterHeader,
        file: BinaryIO,
        check: Callable[[Path], None] = lambda path: None,
    ) -> None:
        """Give a part its name, now that it is whole; raises what `check` of it does.

        What was there of that name stays until then. Raises ProtocolError.
        """
        num_bytes = file.tell()
        file.close()
        path = self._final(header)
        if num_bytes != header.num_bytes:
            raise ProtocolError(f"{num_bytes} bytes came, {header.num_bytes} were announced")
        check(path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)

    def drop(self, round_: int) -> None:
        """Remove a round's files."""
        shutil.rmtree(self.folder / f"round-{round_:04d}", ignore_errors=True)

    def drop_all(self) -> None:
        """Remove the spool."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _final(self, header: tensor_pb2.AdapterHeader) -> Path:
        # Both become parts of a path.
        if header.side not in SIDES or NAME.fullmatch(header.device) is None:
            raise ProtocolError(f"no part {header.side!r} of device {header.device!r} is due")
        side: Side = "device" if header.side == "device" else "edge"
        return self.path(header.round, header.device, side)
