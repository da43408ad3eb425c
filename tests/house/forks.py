"""Nodes that a test starts by hand, each forked from one process that has its imports behind it.

A node is a process of its own, as `python -m sfl.cli` would be, and its exit an interpreter's own;
but it does not read torch and transformers anew, which takes most of a short node's time.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import setproctitle

from tests.house.paths import ROOT

POLL = 0.02


class Fork:
    """A node, with what tests ask of a `Popen`."""

    def __init__(self, pid: int, arguments: list[str], code: Path) -> None:
        self.pid = pid
        self.args = arguments
        self._code = code
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and self._code.exists():
            self.returncode = int(self._code.read_text())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (timeout or float("inf"))
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(POLL)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Nursery:
    """The process that nodes are forked from, all with the same environment."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self._codes = TemporaryDirectory(prefix="sfl-forks-")
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.house.forks import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        self._count = 0
        atexit.register(self.close)

    def alive(self) -> bool:
        return self._process.poll() is None

    def start(self, arguments: list[str], log: Path, module: str) -> Fork:
        """`sfl` with these arguments, all it says at the end of `log`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._count += 1
        code = Path(self._codes.name) / str(self._count)
        self._process.stdin.write(json.dumps([arguments, str(log), str(code), module]) + "\n")
        self._process.stdin.flush()
        return Fork(int(self._process.stdout.readline()), arguments, code)

    def close(self) -> None:
        """End it; nodes that are still there are their tests' own to end."""
        self._process.kill()
        self._process.communicate()
        self._codes.cleanup()
        atexit.unregister(self.close)


_nurseries: list[Nursery] = []


def fork(
    arguments: list[str], environment: dict[str, str], log: Path, module: str = "sfl.cli"
) -> Fork:
    """Start `sfl` with these arguments; another environment is another nursery's.

    `module` is what runs as the program: the command itself, or what prepares its process first.
    """
    wanted = {key: value for key, value in environment.items() if key != "PYTEST_CURRENT_TEST"}
    if not _nurseries or not _nurseries[0].alive() or _nurseries[0].environment != wanted:
        for nursery in _nurseries:
            nursery.close()
        _nurseries[:] = [Nursery(wanted)]
    return _nurseries[0].start(arguments, log, module)


def serve() -> None:
    """The nursery: a line for each node to be forked, its process number as the answer."""
    environment = dict(os.environ)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _import_all()
    watched = selectors.DefaultSelector()
    watched.register(0, selectors.EVENT_READ)
    asked = b""
    while True:
        for key, _ in watched.select():
            if key.fd != 0:
                _note_end(watched, key)
                continue
            read = os.read(0, 1 << 16)
            if not read:
                return
            *lines, asked = (asked + read).split(b"\n")
            for line in lines:
                arguments, log, code, module = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    watched.close()
                    answers.close()
                    _run(arguments, environment, Path(log), module)
                    return
                watched.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, Path(code)))
                answers.write(f"{pid}\n")
                answers.flush()


def _import_all() -> None:
    from sfl.cli.launch.child import PACKAGE
    from sfl.node.process import quiet_environment

    quiet_environment()
    os.environ[PACKAGE] = "llama"
    for name in ("sfl.cli", "sfl.cli.app", "cloud_aggregator.command", "tests.house.nursery"):
        importlib.import_module(name)
    gc.freeze()


def _note_end(watched: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    """What a node's end came to, whole or not there."""
    pid, code = key.data
    watched.unregister(key.fd)
    os.close(key.fd)
    _, status = os.waitpid(pid, 0)
    written = code.with_suffix(".new")
    written.write_text(str(os.waitstatus_to_exitcode(status)))
    written.rename(code)


def _run(arguments: list[str], environment: dict[str, str], log: Path, module: str) -> None:
    """`python -m sfl.cli`, in a process that has done nothing yet."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    setproctitle.setproctitle(" ".join([sys.executable, "-m", "sfl.cli", *arguments]))
    with Path(os.devnull).open("rb") as nothing, log.open("ab") as said:
        for number, file in enumerate((nothing, said, said)):
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["sfl", *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
