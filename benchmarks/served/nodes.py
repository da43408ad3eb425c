"""Processes of an edge that serves, of devices, and of a whole model; and links between them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import tomli_w

from benchmarks.runs import ROOT
from sfl.node.process import WITH_PARENT
from tests.house.proxy import Proxy

PINGS = 25


class Node:
    """A process that is asked by a line of JSON and answers by one, and the CPU time it takes."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self._log = log
        # A node of sfl then ends with this process, however it does; the others read jobs there.
        with_parent = {WITH_PARENT: "1"} if arguments[0] == "sfl.cli" else {}
        with log.open("w") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                cwd=ROOT,
                env={**os.environ, **with_parent},
            )

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def ask(self, job: Mapping[str, Any]) -> None:
        """Give it something to do."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def told(self) -> Any:
        """What came of it. Raises SystemExit where it has ended."""
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{' '.join(self._process.args[2:])}:\n{self._log.read_text()}")  # type: ignore[index, arg-type]

    def cpu(self) -> float:
        """Seconds of all its threads so far."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def until(self, file: Path) -> str:
        """What it writes there, once it has. Raises SystemExit where it ends before."""
        while not file.exists() or not (text := file.read_text().strip()):
            if self._process.poll() is not None:
                raise SystemExit(self._log.read_text())
            time.sleep(0.05)
        return text


@contextlib.contextmanager
def edge(
    folder: Path, name: str, model: Path, serve: Mapping[str, Any], **own: Any
) -> Iterator[tuple[Node, str]]:
    """`sfl edge` over a file, one thread, and where it listens."""
    file, place = folder / f"{name}.toml", folder / f"{name}.address"
    listening = {"model": str(model), "listen": "127.0.0.1:0", "threads": 1}
    tables = {
        "edge": {**listening, "metrics": {"enabled": False}, **own},
        "serve": {"spill_dir": str(folder), **serve},
    }
    file.write_text(tomli_w.dumps(tables))
    arguments = ["sfl.cli", "edge", str(file), "--address-file", str(place)]
    node = Node(arguments, folder / f"{name}.log")
    try:
        yield node, node.until(place)
    finally:
        node.close()


@contextlib.contextmanager
def devices(folder: Path, count: int, model: Path) -> Iterator[list[Node]]:
    """Processes that hold front blocks and answer what they are told to."""
    nodes = [
        Node(["benchmarks.served.device", f"d{n}", str(model)], folder / f"d{n}.log")
        for n in range(count)
    ]
    try:
        yield nodes
    finally:
        for node in nodes:
            node.close()


@contextlib.contextmanager
def whole(folder: Path, model: Path) -> Iterator[Node]:
    """A process that has all of the model, and no link."""
    node = Node(["benchmarks.served.whole", str(model)], folder / "whole.log")
    try:
        yield node
    finally:
        node.close()


@contextlib.contextmanager
def link(target: str, milliseconds: float) -> Iterator[tuple[str, float]]:
    """Where to dial `target` over a link of such a round trip, and what the trip measures, in ms.

    It is measured with a byte there and back through the same kind of proxy.
    """
    if not milliseconds:
        with echo() as place:
            yield target, pinged(place)
        return
    trip = milliseconds / 1e3
    with echo() as place, Proxy(place, trip) as beside:
        measured = pinged(beside.address)
    with Proxy(target, trip) as own:
        yield own.address, measured


@contextlib.contextmanager
def echo() -> Iterator[str]:
    """A port that says what it hears, to one caller."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_echo, args=(server,), daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def _echo(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        own, _ = server.accept()
        with own:
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while heard := own.recv(64):
                own.sendall(heard)


def pinged(address: str) -> float:
    """Milliseconds of a round trip, the median."""
    host, _, port = address.rpartition(":")
    found = []
    with socket.create_connection((host, int(port))) as own:
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(PINGS):
            began = time.perf_counter()
            own.sendall(b"x")
            own.recv(1)
            found.append(time.perf_counter() - began)
    return 1e3 * median(found)
