"""The servers before a stage: who may come, and who has said that the run is over."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sfl.errors import NotYet, Refused
from sfl.plan import HOLDERS
from sfl.stage.messages import Finish
from sfl.transport.stage.service import Arriving

STAGE = HOLDERS[2]


class ServersBefore:
    """Edges, or the stage before this one. One alone ends no run that others are in."""

    def __init__(self, stage: str, named: Sequence[str]) -> None:
        """`named` may come to `stage`; without names, the edges of the first run that comes."""
        self.first_word: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once one of them has said that the run is over."""
        self._stage = stage
        self._named = frozenset(named)
        self._last: dict[str, str] = {}
        """By device, which of them had it last: one whose devices are all elsewhere has no say."""
        self._said: dict[str, Finish] = {}

    def check(self, arriving: Arriving, first: Arriving | None) -> None:
        """Raises Refused for a server that may not come; `first` is who has come first."""
        server = arriving.server
        if server == self._stage:
            raise Refused(
                f"stage.name = {server!r}: the server before this stage has that name, too; give "
                "each one of its own"
            )
        if self._named:
            if server not in self._named:
                raise Refused(
                    f"stage.before of stage {self._stage} does not name {server!r}: add it there, "
                    "if it is one of the run's"
                )
            return
        run = first or arriving
        if run.holder != STAGE:
            return  # the names of stages are in no run's settings
        edges = run.settings.run.edges or (run.server,)
        if server not in edges:
            raise Refused(
                f"edge {server!r} is none of the edges of run {run.run_id}: name it in run.edges"
            )

    def came(self, device: str, server: str) -> None:
        """It has had a device let in."""
        self._last[device] = server

    def say(self, server: str, end: Finish) -> None:
        """It says that the run is over. Who has had no device here is not heard."""
        if server in self._last.values():
            self._said.setdefault(server, end)
            if not self.first_word.done():
                self.first_word.set_result(None)

    def another_run(self, first: Arriving, run_id: str) -> None:
        """Nobody has told the end of the run, and the next one has begun: another process is to
        begin with that one."""
        if not self.first_word.done():
            problem = f"this stage was of that run, and run {run_id} has begun"
            error = NotYet("run.id", first.run_id, problem, "Start the stage again")
            self.first_word.set_exception(error)

    @property
    def awaited(self) -> frozenset[str]:
        """Who has not said so yet."""
        return frozenset(self._last.values()) - self._said.keys()

    @property
    def end(self) -> Finish:
        """What they have said: the run ended well if all say so."""
        said = list(self._said.values())
        return next((end for end in said if not end.ok), said[0])
