"""`sfl` in processes of its own, each forked from one that has its imports behind it.

A fork is what `python -m sfl.cli` would be: it has its own arguments, environment, folder, streams
and signals. But it does not read torch and transformers anew, which takes most of a short one's
time, nor take them apart at its end. What it cannot show is what hangs on a fresh interpreter: its
memory, what it imports, another seed of Python's hashes, what objects do that are still there when
it ends. Where the environment has something that is read while a process imports, a fresh one is
started instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any

from sfl.node.process import QUIET_THREADS, SPIN, TLS_1_3
from tests.house.paths import ROOT

COMPUTING = ("device", "doctor", "edge", "eval", "export", "generate", "plan", "privacy", "serve")
COMPUTING += ("stage",)
"""Commands that need torch; the others are forked from a process without it."""
READ_EARLY = ("GOMP_", "GRPC_", "HF_", "KMP_", "LANG", "LC_", "LD_", "MALLOC_", "MKL_", "OMP_")
READ_EARLY += ("OPENBLAS_", "PYTHON", "SFL_KERNEL", "TOKENIZERS_", "TORCH_", "TRANSFORMERS_")
"""How variables begin that are read while a process imports, or before."""

AGENTS, DOCTOR, TRAPPED = "tests.house.agents", "tests.house.doctor", "tests.faults.trapped"
"""Programs that prepare a process for what it then is."""
ASKING = (AGENTS, DOCTOR)
"""Those that ask for more processes."""

HOOK = "SFL_TESTS_HOOK"
"""Environment variable: a file of Python that a fork runs before it is `sfl`, and so do its nodes.

To a fresh interpreter that is its `sitecustomize`.
"""


class Fork:
    """A process, with what tests ask of a `Popen`."""

    def __init__(self, told: int, arguments: Sequence[str], said: Sequence[IO[str]] = ()) -> None:
        """`told` is a pipe: a line with its number, and one with its exit code."""
        self.args = list(arguments)
        self.returncode: int | None = None
        self._told = told
        self._said = said
        self.pid = self._line()

    def __del__(self) -> None:
        if self._told >= 0:
            os.close(self._told)
        for file in self._said:
            file.close()

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            ready = select.poll()
            ready.register(self._told, select.POLLIN)
            if not ready.poll(None if timeout is None else 1000 * timeout):
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode = self._line()
            os.close(self._told)
            self._told = -1
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has written to standard output and error, once it has ended."""
        self.wait(timeout)
        for file in self._said:
            file.seek(0)
        output, errors = (file.read() for file in self._said)
        return output, errors

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _line(self) -> int:
        """The next number of the pipe; a line is written at once."""
        line = os.read(self._told, 20)
        assert line, "the process that others are forked from has ended"
        return int(line)


Process = subprocess.Popen[Any] | Fork


class Nursery:
    """A process that others are forked from: `tests.house.forking`.

    The one that computes is there for all workers of a session, the other one for this process: it
    knows what was said where nodes are forked from. Either ends once nobody is connected.
    """

    def __init__(self, computes: bool) -> None:
        self._computes = computes
        self._path = str(_folder() / ("computing" if computes else str(os.getpid())))
        self.orders = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with (_folder() / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                self.orders.connect(self._path)
            except (FileNotFoundError, ConnectionRefusedError):
                self._start()
                self.orders.connect(self._path)

    def _start(self) -> None:
        Path(self._path).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self._path)
            listener.listen()
            program = "from tests.house.forking import serve; serve({}, {})"
            self._process = subprocess.Popen(
                [sys.executable, "-c", program.format(listener.fileno(), self._computes)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd=ROOT,
                env=_plain,
                pass_fds=[listener.fileno()],
            )

    def alive(self) -> bool:
        gone = select.poll()
        gone.register(self.orders, 0)  # that it is gone is told in any case
        return not gone.poll(0)


NURSERIES = "SFL_TESTS_NURSERIES"
"""Environment variable: the folder of a session's nurseries, by which its workers find them."""
_plain = {**os.environ, "HF_HUB_OFFLINE": "1"}
_nurseries: dict[bool, Nursery] = {}


@cache
def _own_folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="sfl-tests-")


def _folder() -> Path:
    return Path(os.environ.get(NURSERIES) or _own_folder().name)


def ask(
    orders: socket.socket,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    streams: Sequence[int],
    module: str,
    asks: bool = False,
    session: bool = False,
    more: Sequence[int] = (),
) -> int:
    """Have a process forked, in a `session` of its own or not; a pipe, as a `Fork` reads it.

    With `asks` it can ask for others (`tests.house.agents`). It gets `more` files under their
    numbers here, if it is a server of forks, and otherwise who forks it gets them.
    """
    order = {"arguments": [*arguments], "environment": dict(environment), "module": module}
    own = {"asks": asks, "session": session, "more": [*more]}
    told, says = os.pipe()
    socket.send_fds(orders, [json.dumps({**order, **own}).encode()], [*streams, *more, says])
    os.close(says)
    return told


def fork(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    log: Path | None = None,
    module: str = "sfl.cli",
) -> Process:
    """Start `sfl` with these arguments; what it says is at the end of `log`, or `communicate`'s.

    `module` is what runs as the program: the command itself, or what prepares its process first.
    """
    own = {key: value for key, value in environment.items() if key != "PYTEST_CURRENT_TEST"}
    if _read_early(own) != _read_early(_plain):
        assert HOOK not in own, "an interpreter of its own runs no hook"
        return fresh(arguments, own, log, module)
    if [*arguments[:1]] == ["doctor"] and module == "sfl.cli":
        module = DOCTOR
    with contextlib.ExitStack() as files:
        nothing = files.enter_context(Path(os.devnull).open("rb"))
        said = [unnamed() for _ in range(2)] if log is None else []
        written = said or [files.enter_context(log.open("ab"))] * 2
        streams = [file.fileno() for file in (nothing, *written)]
        computes = module == TRAPPED or any(word in COMPUTING for word in arguments[:1])
        # A run's nodes are forked from what computes, whoever forks the run itself.
        is_run = [*arguments[:1]] == ["run"] and not computes
        more = [_nursery(True).orders.fileno()] if is_run else []
        orders, asks = _nursery(computes).orders, module in ASKING
        told = ask(orders, arguments, own, streams, module, asks, more=more)
    return Fork(told, arguments, said)


def fresh(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    log: Path | None = None,
    module: str = "sfl.cli",
) -> subprocess.Popen[str]:
    """The same with an interpreter of its own."""
    with contextlib.nullcontext() if log is None else log.open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=subprocess.PIPE if said is None else said,
            stderr=subprocess.PIPE if said is None else said,
            text=True,
            cwd=ROOT,
            env=environment,
        )


def unnamed() -> IO[str]:
    return TemporaryFile("w+", encoding="utf-8")


def _read_early(environment: Mapping[str, str]) -> dict[str, str]:
    """With what `sfl` sets for itself where nobody else has."""
    own = {key: value for key, value in environment.items() if key.startswith(READ_EARLY)}
    return SPIN | QUIET_THREADS | TLS_1_3 | own


def _nursery(computes: bool) -> Nursery:
    if (found := _nurseries.get(computes)) is None or not found.alive():
        found = _nurseries[computes] = Nursery(computes)
    return found
