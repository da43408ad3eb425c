"""An edge that serves and its devices on one machine: a process each, and a file for each."""

from __future__ import annotations

import logging
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
from sfl.node.restarts import Restarts

log = logging.getLogger("sfl")

GLANCE = 0.1
GRACE = 5.0
"""Seconds that a process has to end by itself."""
RESTARTS = 5
"""So often each is started again."""


class Node:
    """One process, begun again with the same words and, once it is known, at the same address."""

    returns = True

    def __init__(self, title: str, *arguments: str) -> None:
        self.title = title
        self._arguments = arguments
        self.at: tuple[str, ...] = ()
        """Arguments of another process in its place, by which others find it again."""
        self._process = self._begin()

    def exit_code(self) -> int | None:
        """Exit code, None while it runs; negative: the signal that killed it."""
        return self._process.poll()

    def failure(self) -> str:
        """Why it ended."""
        code = self.exit_code()
        if code is not None and code < 0:
            return f"it was killed by signal {-code}"
        return f"it has ended with exit code {code}; its last line says why"

    def start_again(self, line: str) -> None:
        """Start another process in its place."""
        log.warning(line)
        self._process = self._begin(*self.at)

    def end(self) -> None:
        """Ask it to end, and see that it does."""
        self._process.terminate()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _begin(self, *more: str) -> subprocess.Popen[bytes]:
        # Its standard input ends when this process does.
        return subprocess.Popen(
            [sys.executable, "-m", "sfl.cli", *self._arguments, *more],
            stdin=subprocess.PIPE,
            env={**os.environ, WITH_PARENT: "1"},
        )


class Processes:
    """The edge first, and its devices once it serves. They end with this process, however it does.

    One that was killed is started again. Raises RunFailed where one cannot begin, or ends.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._folder = tempfile.TemporaryDirectory(prefix="sfl-serve-")
        self._nodes: list[Node] = []
        self._restarts = Restarts(RESTARTS, log.warning)

    def __enter__(self) -> Self:
        try:
            address = self._start_edge()
            for device in self._config.devices:
                config = device_file(self._config, device, address)
                file = self._write(device.name, dump_toml(config))
                self._nodes.append(Node(f"device {device.name}", "serve", "--device", file))
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
        """Until one of them has ended for good. Raises RunFailed."""
        while True:
            self._restarts.look(self._nodes, time.monotonic())
            for node in self._nodes:
                if not self._restarts.will_return(node):
                    _check(node)
            time.sleep(GLANCE)

    def end(self) -> None:
        """End all of them, the edge last, so that no device looks for it."""
        for node in reversed(self._nodes):
            node.end()
        self._nodes.clear()
        self._folder.cleanup()

    def _start_edge(self) -> str:
        place = Path(self._folder.name) / "address"
        file = self._write("edge", dump_toml(edge_file(self._config)))
        edge = Node("the edge", "edge", file, "--address-file", str(place))
        self._nodes.append(edge)
        while not place.exists():
            _check(edge)
            time.sleep(GLANCE)
        address = place.read_text()
        edge.at = ("--set", f"edge.listen={address}")
        return address

    def _write(self, name: str, text: str) -> str:
        path = Path(self._folder.name) / f"{name}.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)


def _check(node: Node) -> None:
    if node.exit_code() is not None:
        raise RunFailed(f"{node.title}: {node.failure()}")


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
