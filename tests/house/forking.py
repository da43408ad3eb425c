"""The process that others are forked from: with torch, or without it for those that do not compute.

A forked `sfl run` has its nodes forked from one more process, which is there for all runs.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing import forkserver, popen_forkserver
from multiprocessing.context import ForkServerProcess
from typing import Any
from unittest.mock import patch

import setproctitle

NODES = "tests.house.nursery"
"""What is imported where nodes of runs are forked from."""
COMPUTING = ("sfl.cli.app", NODES)
SERVING = (
    "sfl.cli.app",
    "sfl.cli.ca",
    "sfl.cli.run",
    "cloud_aggregator.aggregator",
    "cloud_aggregator.command",
    "tests.house.forking",
)

asking: list[socket.socket] = []
"""Where a process asks for more of them that was forked to do so."""


def serve(orders: int, computes: bool) -> None:
    """Fork a process for each that is asked for; this returns in all of them."""
    import_all(computes)
    if (rest := Forking(orders, computes).work()) is not None:
        rest()


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

    def __init__(self, orders: int, computes: bool) -> None:
        self._computes = computes
        self._orders = socket.socket(fileno=orders)
        self._inner, self._asking = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._watched = selectors.DefaultSelector()
        for own in (self._orders, self._inner):
            self._watched.register(own, selectors.EVENT_READ)
        self._noise = Noise()

    def work(self) -> Callable[[], None] | None:
        """What is left to do in a process that was forked; None in this one, once nobody asks."""
        while True:
            for key, _ in self._watched.select():
                if key.data is not None:
                    self._note_end(key)
                    continue
                message, files, *_ = socket.recv_fds(key.fileobj, 1 << 18, 4)  # type: ignore[arg-type]
                if not message:
                    return None
                if (rest := self._fork(json.loads(message), files)) is not None:
                    return rest

    def _fork(self, order: dict[str, Any], files: list[int]) -> Callable[[], None] | None:
        *streams, told = files
        is_run = not self._computes and order["arguments"][:1] == ["run"]
        if is_run:
            prepare_nodes(self._noise)
        pid = os.fork()
        if pid == 0:
            os.close(told)
            self._leave(order["asks"])
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
            for file in (other.fd, *other.data[1:]) if other.data else ():
                if file is not None:
                    os.close(file)
        self._watched.close()
        self._orders.close()
        self._inner.close()
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
    runpy.run_module(module, run_name="__main__", alter_sys=True)


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


def prepare_nodes(noise: Noise) -> None:
    """Have the processes that nodes are forked from, with all that they import."""
    streams = [(number, os.dup(number)) for number in (1, 2)]
    for number, _ in streams:
        os.dup2(noise.file, number)
    before = computing._forkserver_pid
    for own, preloaded in ((computing, [NODES]), (clouds, [*SERVING])):
        own.set_forkserver_preload(preloaded)
        own.ensure_running()
    for number, stream in streams:
        os.dup2(stream, number)
        os.close(stream)
    if computing._forkserver_pid != before:
        ready = ForkServerProcess(target=int)  # a run cannot see that it is still at work
        ready.start()
        ready.join()


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
    child.run_child(*given)
