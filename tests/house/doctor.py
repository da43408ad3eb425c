"""`sfl doctor`, whose processes for what may crash or is to be measured are forks, as it is itself.

A program: `fork(["doctor", ...])` starts it. What such a process takes is then no measurement.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sfl.cli.doctor import fits, quantised
from tests.house.forking import asking
from tests.house.forks import Fork, ask, unnamed


def run(command: Sequence[str], *, timeout: float, **_: Any) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ...`, as `subprocess.run` does it, with what it says."""
    _, _, module, *arguments = command
    with ExitStack() as files:
        nothing = files.enter_context(Path(os.devnull).open("rb"))
        said = [unnamed() for _ in range(2)]
        streams = [file.fileno() for file in (nothing, *said)]
        process = Fork(ask(asking[0], arguments, os.environ, streams, module), command, said)
    output, errors = process.communicate(timeout)
    return subprocess.CompletedProcess(command, process.wait(), output, errors)


def main() -> None:
    for own in (fits, quantised):
        known: Any = own
        known.subprocess = SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)
    sys.argv[0] = "sfl"
    runpy.run_module("sfl.cli", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
