"""`sfl` as the agent of a service, or the service: its nodes are forked as it was itself.

A program: `fork(..., module="tests.house.agents")`.
"""

from __future__ import annotations

import os
import runpy
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import IO, Any

from sfl.service import child
from tests.house.forking import asking
from tests.house.forks import Fork, ask


class Node(Fork):
    """What a node is to who starts it: a `Popen`."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: int,
        stdout: IO[bytes],
        stderr: IO[bytes],
        env: Mapping[str, str],
        start_new_session: bool,
    ) -> None:
        _, _, module, *arguments = command
        theirs, ours = os.pipe()
        self.stdin = os.fdopen(ours, "wb", buffering=0)
        streams = (theirs, stdout.fileno(), stderr.fileno())
        told = ask(asking[0], arguments, env, streams, module, session=start_new_session)
        os.close(theirs)
        super().__init__(told, command)


def main() -> None:
    known: Any = child
    known.subprocess = SimpleNamespace(Popen=Node, PIPE=-1)
    runpy.run_module("sfl.cli", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
