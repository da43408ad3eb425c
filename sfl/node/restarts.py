"""Which nodes of a run are started again after their process died, and when."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from sfl.errors import Bug, NotYet, OutOfMemory

FIRST_WAIT = 1.0
LONGEST_WAIT = 30.0
"""Seconds before a node is started again; also how long it must have run for the first wait."""
MEANT = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
"""Signals by which somebody stops a process on purpose."""

Note = Callable[[str], None]


class Restartable(Protocol):
    """A node's process, as far as starting it again asks for it."""

    @property
    def title(self) -> str:
        """Kind and name of the node, for a line."""

    @property
    def returns(self) -> bool:
        """Whether another process can go on where this one's ended."""

    def exit_code(self) -> int | None:
        """Exit code, None while it runs; negative: the signal that killed it."""

    def failure(self) -> str:
        """Why it ended."""

    def start_again(self, line: str) -> None:
        """Start another process in its place, and leave `line` in its log."""


def may_help(exit_code: int | None) -> bool:
    """Whether a process that ended so may get further the next time.

    It was killed, met a bug, had no memory left or came too early. A user's mistake stays one, what
    the run decided is decided, and who was stopped on purpose stays stopped.
    """
    if exit_code is None:
        return False
    if exit_code < 0:
        return -exit_code not in MEANT
    return exit_code in (Bug.exit_code, OutOfMemory.exit_code, NotYet.exit_code)


@dataclass(slots=True)
class Restarts:
    """Starts nodes again, each at most `limit` times, after waits that double.

    Knows no clock: `look` is told the time (seconds, monotonic). `note` is told each restart.
    `helps` says by a node's exit code whether another process may get further.
    """

    limit: int
    note: Note
    helps: Callable[[int | None], bool] = may_help
    _of: dict[str, _Count] = field(default_factory=dict)

    def look(self, nodes: Iterable[Restartable], now: float) -> None:
        """Start again whoever's time has come; who has just died waits first."""
        for node in nodes:
            if self.will_return(node):
                self._wait_or_start(node, self._count(node), now)

    def will_return(self, node: Restartable) -> bool:
        """Whether the node has died, and is started again."""
        return node.returns and self.helps(node.exit_code()) and self._count(node).done < self.limit

    def _wait_or_start(self, node: Restartable, count: _Count, now: float) -> None:
        if count.due is None:
            wait = count.next_wait(now)
            count.due = now + wait
            number = f"restart {count.done + 1} of {self.limit}"
            count.line = f"{node.title}: {node.failure()}; {number}"
            self.note(f"{count.line} in {wait:g} s")
        elif now >= count.due:
            count.started(now)
            node.start_again(count.line)

    def _count(self, node: Restartable) -> _Count:
        return self._of.setdefault(node.title, _Count())


@dataclass(slots=True)
class _Count:
    """One node's restarts."""

    done: int = 0
    wait: float = 0.0
    began: float | None = None
    due: float | None = None
    line: str = ""

    def next_wait(self, now: float) -> float:
        """Twice the last wait; the first one again for a node that has run for long since."""
        lasted = self.began is not None and now - self.began >= LONGEST_WAIT
        again = self.wait and not lasted
        self.wait = min(LONGEST_WAIT, self.wait * 2) if again else FIRST_WAIT
        return self.wait

    def started(self, now: float) -> None:
        """It runs again since `now`."""
        self.done, self.began, self.due = self.done + 1, now, None
