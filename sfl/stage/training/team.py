"""One adapter that several devices train together at the last stage: SplitLLM's (2501.13318).

Each step takes the mean of the members' gradients, `(g_1 + ... + g_M) / M`, once all are there. The
adapter's values at every step of the open round are kept. So a member that begins its part again
computes with what it had then, and counts no second time. All of this runs on the compute thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from sfl.adapters.lora import Adapter
from sfl.config import RunSettings
from sfl.errors import LeftBehind, ProtocolError
from sfl.rounds.values import BEGINNING, Assignment, Point
from sfl.stage.snapshots import Snapshot, Snapshots
from sfl.stage.training.trained import Trained

Gradients = dict[str, torch.Tensor]
Values = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a team is: the steps taken of its round's, and whose gradients are still to come."""

    round: int
    step: int
    num_steps: int
    members: tuple[str, ...]
    behind: tuple[str, ...]

    @property
    def is_open(self) -> bool:
        """Whether steps of the round are still to be taken."""
        return self.step < self.num_steps


class Team:
    """The shared adapter with its optimizer, and how far its members are in the open round."""

    def __init__(
        self, adapter: Adapter, settings: RunSettings, snapshots: Snapshots | None = None
    ) -> None:
        """`snapshots` are where a round's steps are kept for another process of this stage."""
        self.trained = Trained(adapter, settings)
        self.step = 0
        """Steps taken in the open round."""
        self.members: tuple[str, ...] = ()
        self._snapshots = snapshots
        self._told: Assignment | None = None
        self._left_out: set[str] = set()
        self._history: list[Values] = []
        self._given: dict[str, Gradients] = {}
        self._done: set[str] = set()
        self._after: Point | None = None
        self._settled = False  # whether memory has the moments of a round's end

    @property
    def behind(self) -> tuple[str, ...]:
        """Members whose gradients of the open step are still to come."""
        return tuple(name for name in self.members if name not in self._done)

    @property
    def standing(self) -> Standing:
        """How far it is, for who is not on the compute thread."""
        told = self._told
        number, count = (0, 0) if told is None else (told.round, told.steps.count)
        return Standing(number, self.step, count, self.members, self.behind)

    # -- a round ----------------------------------------------------------------------------------

    def begin_round(
        self,
        device: str,
        told: Assignment,
        values: Mapping[str, np.ndarray],
        moments: Mapping[str, torch.Tensor] | None,
    ) -> None:
        """A member begins; the first one loads the adapter.

        Where memory has no moments they are those of the latest point that a member comes from.
        Raises ProtocolError for who is no member, LeftBehind for who was not waited for any more.
        """
        if device not in told.together:
            raise ProtocolError(f"device {device} is none of those that share this adapter")
        if self._told is None or self._told.round != told.round:
            self._begin(told, values)
        if device in self._left_out:
            raise LeftBehind(f"round {told.round} goes on without device {device}")
        self.members = tuple(name for name in told.together if name not in self._left_out)
        self._given.pop(device, None)
        self._done.discard(device)
        self._take_moments(told, moments)

    def _begin(self, told: Assignment, values: Mapping[str, np.ndarray]) -> None:
        if self._told is not None and self.step < self._told.steps.count:
            self._settled = False  # a round was given up in its middle
        self._told, self.step, self._after = told, 0, None
        self._left_out, self._done, self._given = set(), set(), {}
        self.trained.begin_round(values, told.round)
        self._history = [self._values()]
        if not self._settled:
            self.trained.optimizer.let_go()
        self._take_back(told)

    def _take_moments(self, told: Assignment, moments: Mapping[str, torch.Tensor] | None) -> None:
        """Nobody has taken a step yet: all members begin before the first."""
        if self._settled or self.step or moments is None:
            return
        if told.after > (self._after or BEGINNING):
            self.trained.optimizer.let_go()
            self.trained.optimizer.adopt(moments)
            self._after = told.after

    def leave_out(self, device: str) -> None:
        """Go on without a member that does not come back.

        What it has given to the steps before stays in them, and is kept first: it gives it to no
        other process.
        """
        self._left_out.add(device)
        self.members = tuple(name for name in self.members if name != device)
        self._given.pop(device, None)
        self.keep()
        if self.members and self._told is not None and not self.behind:
            self._take_step()

    # -- a step ----------------------------------------------------------------------------------

    @contextmanager
    def at(self, step: int) -> Iterator[None]:
        """Compute with the values of a step that is taken already, or of the open one."""
        if step == self.step:
            yield
            return
        now = self._values()
        self._load(self._history[step])
        try:
            yield
        finally:
            self._load(now)

    def collect(self, device: str, step: int) -> None:
        """Take what a member's backward has left in the parameters, once for each step."""
        own = self._given.setdefault(device, {})
        for name, parameter in self.trained.adapter.trained.items():
            if parameter.grad is None:
                continue
            if step == self.step and device not in self._left_out:
                own[name] = own[name] + parameter.grad if name in own else parameter.grad
            parameter.grad = None

    def done(self, device: str, step: int) -> None:
        """A member has had the backward of all of a step; with the last one's the step is taken."""
        if step != self.step or device not in self.members:
            return
        self._done.add(device)
        if not self.behind:
            self._take_step()

    def _take_step(self) -> None:
        told, optimizer = self._told, self.trained.optimizer
        assert told is not None
        count = len(self.members)
        for name, parameter in self.trained.adapter.trained.items():
            found = [own[name] for m in self.members if name in (own := self._given.get(m, {}))]
            if found:
                total = found[0]
                for gradient in found[1:]:  # always in the members' order
                    total = total + gradient
                parameter.grad = total / count
        optimizer.pull()
        optimizer.step(told.steps.first + self.step, told.steps.total)
        self._done, self._given = set(), {}
        self.step += 1
        self._history.append(self._values())
        self._settled = self.step == told.steps.count
        if self._settled:
            self._keep(told)

    def _values(self) -> Values:
        return {name: p.detach().clone() for name, p in self.trained.adapter.parameters.items()}

    def _load(self, values: Values) -> None:
        for name, parameter in self.trained.adapter.parameters.items():
            parameter.data.copy_(values[name])

    # -- another process --------------------------------------------------------------------------

    def keep(self) -> None:
        """Write the steps that the open round has by now, and who was left out of it."""
        if self._told is not None and self.step < self._told.steps.count:
            self._keep(self._told)

    def _keep(self, told: Assignment) -> None:
        """Write a round's steps before anybody hears of its end: a member may begin it again."""
        if self._snapshots is None:
            return
        arrays = {
            f"step/{step}/{name}": tensor.cpu().numpy()
            for step, values in enumerate(self._history)
            for name, tensor in values.items()
        }
        moments = self.trained.optimizer.moments().items()
        arrays |= {f"moments/{name}": tensor.detach().cpu().numpy() for name, tensor in moments}
        point = Point(told.round, self.step, 0)
        facts = {"first": told.steps.first, "left_out": sorted(self._left_out)}
        self._snapshots.write(Snapshot(point, arrays, facts), last=self._settled)

    def _take_back(self, told: Assignment) -> None:
        """Be where an earlier process was, in a round or at its end, that this one did not see."""
        if self._snapshots is None or not told.steps.count or self._settled:
            return
        points = [point for point in self._snapshots.points() if point.round == told.round]
        found = self._snapshots.read(points[-1]) if points else None
        if found is None or not self._same_beginning(found.of("step/0")):
            return
        for step in range(1, found.point.step + 1):
            values = found.of(f"step/{step}")
            self._history.append({name: torch.from_numpy(a) for name, a in values.items()})
        self._load(self._history[-1])
        moments = {name: torch.from_numpy(a) for name, a in found.of("moments").items()}
        self.trained.optimizer.adopt(moments)
        self._left_out = set(found.facts.get("left_out", ()))
        self.step = found.point.step
        self._settled = self.step == told.steps.count

    def _same_beginning(self, arrays: Mapping[str, np.ndarray]) -> bool:
        own = self._history[0]
        return arrays.keys() == own.keys() and all(
            np.array_equal(array, own[name].cpu().numpy()) for name, array in arrays.items()
        )
