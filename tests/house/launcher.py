"""`sfl run` again and again, each in a process forked from one that has its imports behind it.

A run by itself spends most of its time on imports, and they are the same for each. What a run does
to its process ends with it here as there, and its exit is an interpreter's own; nodes are processes
of their own, forked from one nursery for all runs. So what the launcher cannot show is what hangs
on a nursery that is fresh: its memory, its one model family, another seed of Python's hashes.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import os
import runpy
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory

NURSERY = "tests.house.nursery"
POLL = 0.05


class Launcher:
    """Another process that runs `sfl` in `folder`, and passes on `environment` as it is."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._said = TemporaryDirectory(prefix="sfl-launcher-")
        self._files = [Path(self._said.name) / name for name in ("stdout", "stderr")]
        command = "from tests.house.launcher import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", command, *map(str, self._files)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=self.environment,
        )
        atexit.register(self.close)

    def alive(self) -> bool:
        return self._process.poll() is None

    def run(self, arguments: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
        """One command to its end; one that takes too long is killed, and the launcher with it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            self.close()
            raise subprocess.TimeoutExpired(arguments, timeout)
        answer = self._process.stdout.readline()
        output, errors = (path.read_text() for path in self._files)
        assert answer, f"the launcher itself ended: {errors}"
        return subprocess.CompletedProcess(arguments, int(answer), output, errors)

    def close(self) -> None:
        """End it, and the run that it may be at."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10.0)
        self._process.kill()
        self._process.wait()
        self._said.cleanup()
        atexit.unregister(self.close)


def serve() -> None:
    """The other process: one command's arguments a line, its exit code as the answer.

    It ends with its standard input, and kills the command that it may be at then.
    """
    import sfl.cli.run  # noqa: F401  # with the whole command line
    from sfl.cli.launch.child import PACKAGE
    from sfl.node.process import quiet_environment

    answers = os.fdopen(os.dup(1), "w")
    for number, path in enumerate(sys.argv[1:], 1):
        # Appended to, since what the nursery says for a run goes there too.
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    environment = dict(os.environ)
    quiet_environment()
    os.environ[PACKAGE] = "llama"
    multiprocessing.set_forkserver_preload([NURSERY])
    forkserver.ensure_running()
    ready = ForkServerProcess(target=int)  # a run cannot see that its nursery is still at work
    ready.start()
    ready.join()
    for line in sys.stdin:
        forkserver.ensure_running()  # should it have died
        for number in (1, 2):
            os.ftruncate(number, 0)
        run = os.fork()
        if run == 0:
            answers.close()
            os.environ.clear()
            os.environ.update(environment)
            _run(json.loads(line))
            return
        answers.write(f"{_await_end(run)}\n")
        answers.flush()


def _run(arguments: list[str]) -> None:
    """`python -m sfl.cli`, in a process that has done nothing yet."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # The nursery is the launcher's child: it is there, and only the launcher can ask whether it is.
    forkserver.ensure_running = lambda: None
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]
    sys.argv = ["sfl", *arguments]
    runpy.run_module("sfl.cli", run_name="__main__", alter_sys=True)


def _await_end(run: int) -> int:
    """The run's exit code; ends with standard input, since nobody wants to know then."""
    while True:
        pid, status = os.waitpid(run, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if select.select([0], [], [], POLL)[0]:
            os.kill(run, signal.SIGKILL)
            os.waitpid(run, 0)
            sys.exit()
