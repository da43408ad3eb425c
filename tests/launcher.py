"""`sfl run` again and again in one process, whose nodes are forked from one that knows torch.

A run by itself spends most of its time on imports, and they are the same for each. Nodes are
processes of their own here as there. What a run inherits by its environment it gets from a process
of its own instead (see `federation.launch`): the one that nodes are forked from keeps what it
began with.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory


class Launcher:
    """Another process that calls `sfl`'s main again and again, in `folder`."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._said = TemporaryDirectory(prefix="sfl-launcher-")
        # Given as text, so that a spawned child finds no main module to import once more.
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.launcher import serve; serve()"],
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
        """One command to its end; the process is gone after one that takes too long."""
        assert self._process.stdin is not None and self._process.stdout is not None
        paths = [Path(self._said.name) / name for name in ("stdout", "stderr")]
        request = {"arguments": arguments, "files": list(map(str, paths))}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            self._process.kill()
            raise subprocess.TimeoutExpired(arguments, timeout)
        answer = self._process.stdout.readline()
        code = int(answer) if answer else self._process.wait()
        return subprocess.CompletedProcess(arguments, code, *(path.read_text() for path in paths))

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10.0)
        self._process.kill()
        self._process.wait()
        self._said.cleanup()


def serve() -> None:
    """The other process: one command a line, its exit code as the answer.

    What a command does not catch ends it, with the traceback in the command's stderr.
    """
    from sfl.cli import main
    from sfl.launch.child import PACKAGE
    from sfl.process import quiet_environment

    quiet_environment()
    os.environ[PACKAGE] = "llama"
    multiprocessing.set_forkserver_preload(["tests.nursery"])
    forkserver.ensure_running()  # before a run would start one with less in it
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        for number, path in enumerate(request["files"], 1):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
            os.close(file)
        sys.argv = ["sfl", *request["arguments"]]
        code: object = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        answers.write(f"{code if isinstance(code, int) else int(code is not None)}\n")
        answers.flush()
