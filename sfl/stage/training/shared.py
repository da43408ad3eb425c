"""A session whose adapter is its team's: one for all devices of a stage (`stages.adapters`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sfl.adapters.lora import LoraBank
from sfl.config import RunSettings
from sfl.errors import ProtocolError
from sfl.metrics.stats import NodeStats
from sfl.models.span import SpanModel
from sfl.rounds.values import Assignment
from sfl.stage.messages import GradientNorm, Outgoing, Purpose
from sfl.stage.optimizer import NO_MOMENTS, Optimizer
from sfl.stage.remembered import IN_MEMORY, GoOn
from sfl.stage.session import Group, Request
from sfl.stage.snapshots import Snapshots
from sfl.stage.training.session import adapter_of
from sfl.stage.training.stepper import Stepper
from sfl.stage.training.team import Team
from sfl.stage.training.vanilla import VanillaSession

TEAM = "*"
"""What the shared adapter is called in the bank: no device has this name."""


def new_team(
    assignment: Assignment,
    model: SpanModel,
    bank: LoraBank,
    settings: RunSettings,
    snapshots: Snapshots | None = None,
    holder: Any = "stage",
) -> Team:
    """One adapter for all devices of a stage server."""
    span = assignment.plan.span_of(holder)
    return Team(adapter_of(TEAM, assignment, span, model, bank, settings), settings, snapshots)


class SharedStepper(Stepper):
    """Counts one member's micro-batches; the team steps once all members have had theirs."""

    def __init__(
        self, device: str, optimizer: Optimizer, stats: NodeStats, blocks: int, team: Team
    ) -> None:
        super().__init__(device, optimizer, stats, blocks)
        self._team = team
        self._member = device
        self._num_done = 0
        self._waits = False

    def begin_round(self, step: int = 0) -> None:
        """As of any; nothing of the open step has been given."""
        super().begin_round(step)
        self._num_done, self._waits = 0, False

    @property
    def taken(self) -> int:
        """Steps that this member has taken; the event loop may ask, and changes nothing."""
        return self.step + (self._waits and self._team.step > self.step)

    def catch_up(self) -> None:
        """Count the step that this member waited for, once the team has taken it."""
        if self.taken > self.step:
            self._waits = False
            self.step += 1

    def after_backward(
        self, own: Assignment, num_micro_batches: int, is_last: bool = True
    ) -> list[GradientNorm]:
        """Count a micro-batch; after the last one this member waits for the others."""
        self._team.collect(self._member, self.step)
        self._num_done += 1
        if self._num_done == num_micro_batches:
            self._num_done, self._waits = 0, True
            self._team.done(self._member, self.step)
            self.catch_up()
        return []


class SharedSession(VanillaSession):
    """One member of a team."""

    def __init__(
        self,
        device: str,
        assignment: Assignment,
        model: SpanModel,
        bank: LoraBank,
        settings: RunSettings,
        stats: NodeStats,
        team: Team,
        **options: Any,
    ) -> None:
        self.team = team
        super().__init__(device, assignment, model, bank, settings, stats, **options)

    def _made(self, model: SpanModel, bank: LoraBank) -> Any:
        return self.team.trained

    def _stepper(self) -> Stepper:
        optimizer = self.team.trained.optimizer
        return SharedStepper(self.device, optimizer, self.stats, self.span.num_blocks, self.team)

    @property
    def step(self) -> int:
        """Steps that this member has taken in the open round."""
        return self._stepper_here.taken

    def waits_for(self, step: int) -> tuple[str, ...]:
        """Members without whose gradients a step cannot be computed yet."""
        return self.team.behind if step > self.team.step else ()

    def begin_round(
        self,
        assignment: Assignment,
        values: Mapping[str, np.ndarray],
        moments: Mapping[str, torch.Tensor] = NO_MOMENTS,
        go_on: GoOn = IN_MEMORY,
    ) -> None:
        """Be a member of the round; its adapter is the team's."""
        if go_on.step or moments or not assignment.same_adapter(self.assignment):
            raise ProtocolError("a shared adapter goes on from rounds' ends, with one cut and rank")
        self.team.begin_round(self.device, assignment, values, go_on.moments)
        self.open(assignment, 0)

    def handle(self, message: Request) -> list[Outgoing]:
        """As of any session, with the adapter of the message's step."""
        self._stepper_here.catch_up()
        if isinstance(message, GradientNorm):
            raise ProtocolError("norms are not exchanged where an adapter is shared")
        step = self.stepper.step if message.key.purpose is Purpose.TRAINING else 0
        if step > self.team.step:
            raise ProtocolError(f"step {step} came before the others had taken the one before it")
        with self.team.at(step):
            return super().handle(message)

    def group(self, message: Request) -> Group | None:
        """None: a batch's backward would leave one gradient for all, and each is to count once."""
        return None

    def close(self) -> None:
        """The adapter stays: it is the others', too."""
        self._flights.clear()

    @property
    def _stepper_here(self) -> SharedStepper:
        assert isinstance(self.stepper, SharedStepper)
        return self.stepper


def team_snapshots(cache: Any, run_key: str, server: str, stats: NodeStats) -> Snapshots | None:
    """Where a stage keeps the steps of a round that members may begin again."""
    return Snapshots.under(cache, run_key, server, "team", "steps", count=stats.snapshots)
