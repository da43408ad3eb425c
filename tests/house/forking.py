"""The process that others are forked from: with torch, or without it for those that do not compute.

A forked `sfl run` has its nodes forked from one more process, which is there for all runs. It is
itself a fork of the process with torch.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing import forkserver, popen_forkserver, resource_tracker, util
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import setproctitle

from tests.house.forks import HOOK, Fork, ask

NODES = "tests.house.nursery"
"""What is imported where nodes of runs are forked from."""
COMPUTING = (
    "sfl.cli.app",
    NODES,
    "sfl.cli.doctor.examine",
    "sfl.cli.model",
    "sfl.node.certificates.authority",
    "sfl.service.agent",
)
SERVING = (
    "sfl.aggregation.fedavg",
    "sfl.cli.app",
    "sfl.cli.ca",
    "sfl.cli.jobs.shown",
    "sfl.cli.run",
    "sfl.node.certificates.authority",
    "sfl.service.operators",
    "sfl.service.server",
    "sfl.transport.jobs.client",
    "cloud_aggregator.aggregator",
    "cloud_aggregator.command",
    "tests.house.forking",
)
SERVER = "multiprocessing.forkserver"
"""The program of what is no `sfl`, but forks nodes of runs."""
ASIDE = 200
"""Files are few, and have lower numbers than this."""

asking: list[socket.socket] = []
"""Where a process asks for more of them that was forked to do so."""


def serve(listener: int, computes: bool) -> None:
    """Fork a process for each that is asked for; this returns in all of them."""
    import_all(computes)
    rest = Forking(socket.socket(fileno=listener), computes).work()
    end_after(rest or int)


def import_all(computes: bool) -> None:
    """What processes would else read anew; without torch for those that do not compute."""
    from sfl.cli.launch.child import PACKAGE
    from sfl.node.process import quiet_environment

    quiet_environment()
    os.environ[PACKAGE] = "llama"
    for name in COMPUTING if computes else SERVING:
        importlib.import_module(name)
    assert computes or "torch" not in sys.modules
    gc.collect()
    gc.freeze()


class Forking:
    """What is asked comes by a socket: a process's streams, and a pipe for what becomes of it.

    The pipe is told the process's number, and its exit code once it has ended.
    """

    def __init__(self, listener: socket.socket, computes: bool) -> None:
        self._computes = computes
        self._listener = listener
        inner, self._asking = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connected: int | None = None
        self._watched = selectors.DefaultSelector()
        for own in (listener, inner):
            self._watched.register(own, selectors.EVENT_READ)
        self._noise = Noise()

    def work(self) -> Callable[[], None] | None:
        """What is left to do in a process that was forked; None in this one, once nobody asks."""
        while self._connected is None or self._connected:
            for key, _ in self._watched.select():
                if key.data is not None:
                    self._note_end(key)
                elif key.fileobj is self._listener:
                    self._watched.register(self._listener.accept()[0], selectors.EVENT_READ)
                    self._connected = (self._connected or 0) + 1
                elif (rest := self._take(key.fileobj)) is not None:  # type: ignore[arg-type]
                    return rest
        return None

    def _take(self, orders: socket.socket) -> Callable[[], None] | None:
        """An order, or the end of who gave them."""
        message, files, *_ = socket.recv_fds(orders, 1 << 18, 8)
        if message:
            return self._fork(json.loads(message), files)
        self._watched.unregister(orders)
        orders.close()
        assert self._connected
        self._connected -= 1
        return None

    def _fork(self, order: dict[str, Any], files: list[int]) -> Callable[[], None] | None:
        *streams, told = files
        is_run = not self._computes and order["arguments"][:1] == ["run"]
        if is_run:
            with socket.socket(fileno=streams.pop()) as orders:
                prepare_nodes(self._noise, orders)
        pid = os.fork()
        if pid == 0:
            os.close(told)
            self._leave(order["asks"])
            if order["module"] == SERVER:
                return partial(become_server, order, streams)
            return partial(become, order, streams, is_run)
        os.write(told, b"%d\n" % pid)
        errors = streams.pop() if is_run else None
        for file in streams:
            os.close(file)
        self._watched.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, told, errors))
        return None

    def _leave(self, asks: bool) -> None:
        """None of this is a forked process's own, but for who `asks` for more of them."""
        for other in list(self._watched.get_map().values()):
            if isinstance(other.fileobj, socket.socket):
                other.fileobj.close()
                continue
            for file in (other.fd, *other.data[1:]):
                if file is not None:
                    os.close(file)
        self._watched.close()
        if asks:
            asking.append(self._asking)
        else:
            self._asking.close()

    def _note_end(self, key: selectors.SelectorKey) -> None:
        pid, told, errors = key.data
        self._watched.unregister(key.fd)
        os.close(key.fd)
        _, status = os.waitpid(pid, 0)
        if errors is not None:
            os.write(errors, self._noise.taken())
            os.close(errors)
        with contextlib.suppress(BrokenPipeError):  # nobody wants to know any more
            os.write(told, b"%d\n" % os.waitstatus_to_exitcode(status))
        os.close(told)


def become(order: dict[str, Any], streams: list[int], is_run: bool) -> None:
    """Be `python -m sfl.cli`, in a process that has done nothing yet."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments, module = order["arguments"], order["module"]
    shown = "sfl.cli" if module.startswith("tests.") else module
    setproctitle.setproctitle(" ".join([sys.executable, "-m", shown, *arguments]))
    if order["session"]:
        os.setsid()
    for number, file in enumerate(streams):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(order["environment"])
    if is_run:
        share_nodes()
    sys.argv = ["sfl", *arguments]
    run_hook()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def run_hook() -> None:
    """What `sitecustomize` is to a fresh interpreter."""
    if path := os.environ.get(HOOK):
        exec(compile(Path(path).read_text(), path, "exec"), {"__name__": HOOK})


def end_after(program: Callable[[], object]) -> None:
    """Run it, and end as an interpreter does, but for what it takes apart last: its modules.

    A fork would copy every page of them only to free it: a quarter of a second. What ends it in
    another way than a command's own ends an interpreter.
    """
    code: object = None
    try:
        program()
    except SystemExit as ended:
        code = ended.code
        if not isinstance(code, int | None):
            raise
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0xFF & (code or 0))


# -- `sfl run` ------------------------------------------------------------------------------------


class Noise:
    """What is said where nodes are forked from, which a user's run would show."""

    def __init__(self) -> None:
        self.file = os.memfd_create("noise")

    def taken(self) -> bytes:
        """All of it, which is forgotten."""
        said = os.pread(self.file, os.lseek(self.file, 0, os.SEEK_CUR), 0)
        os.ftruncate(self.file, 0)
        os.lseek(self.file, 0, os.SEEK_SET)
        return said


computing: Any = forkserver._forkserver  # type: ignore[attr-defined]
clouds: Any = forkserver.ForkServer()
"""What a run's edge and devices are forked from, and what its cloud is, without torch."""
servers: list[Fork] = []
"""Of the former, the last is at work."""


def prepare_nodes(noise: Noise, orders: socket.socket) -> None:
    """Have the processes that nodes are forked from, with all that they import."""
    streams = [(number, os.dup(number)) for number in (1, 2)]
    for number, _ in streams:
        os.dup2(noise.file, number)
    resource_tracker.ensure_running()
    if not servers or servers[-1].poll() is not None:
        _start_computing(orders)
    clouds.set_forkserver_preload([*SERVING])
    clouds.ensure_running()
    for number, stream in streams:
        os.dup2(stream, number)
        os.close(stream)


def _start_computing(orders: socket.socket) -> None:
    """As `ensure_running` does it, but for an interpreter of its own: it is asked for."""

    def forked(path: object, arguments: list[Any], kept: list[int]) -> int:
        program = os.fsdecode(arguments[-1])
        told = ask(orders, [program], {}, (0, 1, 2), SERVER, more=kept)
        servers.append(Fork(told, [program]))
        return servers[-1].pid

    if servers:
        os.close(computing._forkserver_alive_fd)
        computing._forkserver_pid = None
    with patch.object(util, "spawnv_passfds", forked):
        computing.ensure_running()


def become_server(order: dict[str, Any], files: list[int]) -> None:
    """Be what `ensure_running` starts: it names its files by the numbers that it has for them."""
    aside = [fcntl.fcntl(file, fcntl.F_DUPFD, ASIDE) for file in files]
    for file in files:
        os.close(file)
    for number, file in zip((0, 1, 2, *order["more"]), aside, strict=True):
        os.dup2(file, number)
        os.close(file)
    exec(order["arguments"][0], {})


def share_nodes() -> None:
    """Have this run's nodes forked from there: only who started it can ask whether it is there."""
    from sfl.cli.launch import node

    for own in (forkserver, computing, clouds):
        own.ensure_running = lambda: None
    node.SpawnProcess = Cloud  # type: ignore[misc,assignment]
    node.run_child = WithEnvironment()  # type: ignore[assignment]


class Cloud(ForkServerProcess):
    """In a user's run it is an interpreter of its own."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        return _CloudPopen(process_obj)


class _CloudPopen(popen_forkserver.Popen):
    def _launch(self, process_obj: Any) -> None:
        with patch.object(forkserver, "connect_to_new_process", clouds.connect_to_new_process):
            super()._launch(process_obj)


class WithEnvironment:
    """What a node does first: it takes over what is the run's environment as it is started."""

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (run_child, dict(os.environ))


def run_child(environment: dict[str, str], *given: Any) -> None:
    """A node of a run, with the run's environment."""
    from sfl.cli.launch import child

    setproctitle.getproctitle()  # it looks for its place in the environment as it was
    os.environ.clear()
    os.environ.update(environment)
    run_hook()
    child.run_child(*given)
