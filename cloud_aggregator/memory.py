"""What a strategy remembers between rounds, on disk: a file a round, of which the latest counts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.numpy

from sfl.aggregation.contribution import Array
from sfl.node.files import on_disk, write_atomic
from sfl.node.numbered import of_rounds, round_name, round_of

FOLDER = "strategy"


class StrategyMemory:
    """`strategy/round-*.safetensors` in a run's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, round_: int, state: Mapping[str, Array]) -> str:
        """Keep it; where it is, in the run's folder, or nothing where nothing is remembered.

        Raises DiskError.
        """
        if not state:
            return ""
        name = f"{FOLDER}/{round_name(round_)}.safetensors"
        write_atomic(self._folder / name, safetensors.numpy.save(dict(state)))
        return name

    def read(self, name: str) -> dict[str, Array]:
        """What `save` kept, to the bit. Raises DiskError."""
        with on_disk(self._folder):
            return safetensors.numpy.load((self._folder / name).read_bytes()) if name else {}

    def forget_before(self, round_: int) -> None:
        """Drop earlier files, once a journal names a later one. Raises DiskError."""
        with on_disk(self._folder):
            for file in of_rounds(self._folder / FOLDER, ".safetensors"):
                if round_of(file) < round_:
                    file.unlink()
