"""A node of a run as a process that ends with this one: started, asked to stop, and gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfl.node.files import on_disk
from sfl.node.notify import ADDRESS, WATCHDOG, WATCHDOG_PROCESS
from sfl.node.process import WITH_PARENT

MANAGER = (ADDRESS, WATCHDOG, WATCHDOG_PROCESS)

LEAVE = 10.0
"""Seconds that a node has to leave by itself once its run is over."""
STOP = 15.0
"""Seconds from SIGTERM to SIGKILL."""


@dataclass(frozen=True, slots=True)
class Files:
    """Where a node leaves what it says."""

    log: Path
    error: Path
    address: Path

    @classmethod
    def within(cls, folder: Path) -> Files:
        """In a folder of the node's own."""
        return cls(folder / "log", folder / "error", folder / "address")


class Child:
    """One process; standard library only, and no thread of its own."""

    def __init__(self, module: str, arguments: Sequence[str], files: Files) -> None:
        """Start `python -m module`. Raises DiskError."""
        self.files = files
        for file in (files.log, files.error, files.address):
            with on_disk(file.parent):
                file.parent.mkdir(parents=True, exist_ok=True)
        for file in (files.error, files.address):
            file.unlink(missing_ok=True)
        told = ["--address-file", str(files.address)] if "device" not in module else []
        command = [sys.executable, "-m", module, *arguments, *told]
        with on_disk(files.log.parent), files.log.open("ab") as said:
            self._process = subprocess.Popen(
                [*command, "--error-file", str(files.error)],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the parent, who tells them when to end
            )

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Exit code, None while it runs; negative: the signal that killed it."""
        code = self._process.poll()
        if code is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return code

    def address(self) -> str:
        """Where it listens; empty while that is not known."""
        try:
            return self.files.address.read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    def failure(self) -> str:
        """Why it ended, in its own words where it left any."""
        try:
            return self.files.error.read_text(encoding="utf-8").strip()
        except OSError:
            code = self.exit_code()
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"

    def terminate(self) -> None:
        """Ask it to stop."""
        if self.exit_code() is None:
            self._process.terminate()

    def kill(self) -> None:
        """End it at once, and wait for that."""
        if self.exit_code() is None:
            self._process.kill()
            self._process.wait()
            self.exit_code()


def _environment() -> dict[str, str]:
    """This process's own, without what its service manager has told this process alone."""
    own = {key: value for key, value in os.environ.items() if key not in MANAGER}
    return {**own, WITH_PARENT: "1"}


class Ending:
    """A child that is to end: by itself, then asked, then killed; told the time by its owner."""

    def __init__(self, child: Child, now: float, leave: float = LEAVE) -> None:
        self._child = child
        self._ask_at, self._kill_at = now + leave, now + leave + STOP
        self._asked = False

    def look(self, now: float) -> bool:
        """Do what is due; whether it has ended."""
        if self._child.exit_code() is not None:
            return True
        if now >= self._kill_at:
            self._child.kill()
            return True
        if now >= self._ask_at and not self._asked:
            self._asked = True
            self._child.terminate()
        return False
