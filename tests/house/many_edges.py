"""A run of several edges as processes, started one by one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.house.federation import Outcome
from tests.house.forks import fork
from tests.house.nodes import ByHand
from tests.house.waiting import until


class ManyEdges(ByHand):
    """A cloud, and edges with the devices that dial each; the first edge is the run's own."""

    def __init__(
        self, folder: Path, values: dict[str, Any], edges: Mapping[str, Sequence[str]]
    ) -> None:
        first, *others = edges
        self.edge_lines = f'name = "{first}"\n'
        super().__init__(folder, values)
        self.addresses = {first: self.edge_address}
        for name in others:
            self.addresses[name] = self._started(name)
        names = [entry["name"] for entry in values["devices"]]
        for edge, devices in edges.items():
            self.edge_address = self.addresses[edge]
            for name in devices:
                self.device(names.index(name))

    def _started(self, name: str) -> str:
        file, address = self.folder / f"{name}.toml", self.folder / f"{name}.address"
        first, own = self.edge_lines, f'name = "{name}"\n'
        file.write_text(self.edge_file.read_text().replace(first, own))
        command = ["edge", str(file), "--address-file", str(address)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        self.processes.append(fork(command, environment, self.folder / f"{name}.log"))
        until(address.exists, f"address of edge {name}")
        return address.read_text().strip()


def run_of(folder: Path, values: dict[str, Any], edges: Mapping[str, Sequence[str]]) -> Outcome:
    """Such a run to its end."""
    nodes = ManyEdges(folder, values, edges)
    try:
        return nodes.outcome()
    finally:
        nodes.stop()
