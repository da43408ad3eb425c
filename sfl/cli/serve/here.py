"""An edge that serves and its devices on one machine: a process each, and a file for each."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from sfl.config import EdgeConfig
from sfl.config.load import dump_toml
from sfl.config.node import DeviceConfig
from sfl.config.serve import (
    AnswerSettings,
    ServeConfig,
    ServedDevice,
    ServeDeviceConfig,
    ServeEdgeConfig,
)
from sfl.errors import RunFailed
from sfl.node.process import WITH_PARENT, cores

GLANCE = 0.1
GRACE = 5.0
"""Seconds that a process has to end by itself."""


class Processes:
    """The edge first, and its devices once it serves. They end with this process, however it does.

    Raises RunFailed where one cannot begin, or ends.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._folder = tempfile.TemporaryDirectory(prefix="sfl-serve-")
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            address = self._start_edge()
            for device in self._config.devices:
                config = device_file(self._config, device, address)
                file = self._write(device.name, dump_toml(config))
                self._start(f"device {device.name}", "serve", "--device", file)
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def wait(self) -> None:
        """Until one of them ends. Raises RunFailed."""
        while True:
            self._check()
            time.sleep(GLANCE)

    def end(self) -> None:
        """End all of them, the edge last, so that no device looks for it."""
        for process in reversed(self._running.values()):
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()
        self._folder.cleanup()

    def _start_edge(self) -> str:
        place = Path(self._folder.name) / "address"
        file = self._write("edge", dump_toml(edge_file(self._config)))
        self._start("the edge", "edge", file, "--address-file", str(place))
        while not place.exists():
            self._check()
            time.sleep(GLANCE)
        return place.read_text()

    def _start(self, name: str, *arguments: str) -> None:
        # Its standard input ends when this process does.
        self._running[name] = subprocess.Popen(
            [sys.executable, "-m", "sfl.cli", *arguments],
            stdin=subprocess.PIPE,
            env={**os.environ, WITH_PARENT: "1"},
        )

    def _check(self) -> None:
        for name, process in self._running.items():
            if (code := process.poll()) is not None:
                raise RunFailed(f"{name} has ended with exit code {code}; its last line says why")

    def _write(self, name: str, text: str) -> str:
        path = Path(self._folder.name) / f"{name}.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)


def edge_file(config: ServeConfig) -> ServeEdgeConfig:
    """The edge's own file."""
    given = config.edge.model_dump(exclude_unset=True)
    given.setdefault("model", config.model.path)
    given.setdefault("threads", _threads(config))
    edge = EdgeConfig.model_validate(given)
    return ServeEdgeConfig(edge=edge, serve=config.serve, codec=config.codec)


def device_file(config: ServeConfig, device: ServedDevice, edge: str) -> ServeDeviceConfig:
    """A device's own file."""
    own = device.model_dump(exclude={"name"})
    node = {
        "name": device.name,
        "edge": edge,
        "model": config.model.path,
        "threads": _threads(config),
    }
    return ServeDeviceConfig(
        device=DeviceConfig.model_validate(node), serve=AnswerSettings.model_validate(own)
    )


def _threads(config: ServeConfig) -> int:
    """Of each node: they share the cores."""
    return max(1, cores() // (1 + len(config.devices)))
