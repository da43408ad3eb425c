"""When an edge's optimizer steps: once all micro-batches of a step have had their backward."""

from __future__ import annotations

from sfl.errors import ProtocolError
from sfl.metrics.costs import Work
from sfl.metrics.stats import Measurement, NodeStats
from sfl.plan import Toward
from sfl.rounds.values import Assignment
from sfl.stage.messages import GradientNorm, Key, Purpose
from sfl.stage.optimizer import Optimizer


class Stepper:
    """Counts one device's micro-batches, exchanges norms where clipping asks for it, and steps."""

    def __init__(self, device: str, optimizer: Optimizer, stats: NodeStats, blocks: int) -> None:
        """`blocks`: how many the optimizer's adapter is of."""
        self.step = 0
        self._blocks = blocks
        self._device = device
        self._optimizer = optimizer
        self._stats = stats
        self._backward_done = 0
        self._own_norm: float | None = None
        self._norm: float | None = None  # with those of the stages behind this one
        self._early: GradientNorm | None = None  # from before, while those behind are to come

    def begin_round(self, step: int = 0) -> None:
        """Forget what the round before left unfinished; `step` steps of this one are taken."""
        self.step = step
        self._backward_done = 0
        self._own_norm = self._norm = self._early = None

    @property
    def waits_for_norm(self) -> bool:
        """Whether the device's norm is to come before the step is taken."""
        return self._own_norm is not None

    def after_backward(
        self, own: Assignment, num_micro_batches: int, is_last: bool = True
    ) -> list[GradientNorm]:
        """Count a micro-batch; after the last one step, or exchange norms and step then.

        `is_last`: no stage is behind this one, whose norm would have to come first.
        """
        self._backward_done += 1
        if self._backward_done < num_micro_batches:
            return []
        if not self._optimizer.clips:
            self._apply(own, None)
            return []
        with self._measured(own, ends=False):
            self._optimizer.pull()
            self._own_norm = self._optimizer.squared_norm()
        return [self._told(own, self._own_norm)] if is_last else []

    def take_norm(self, own: Assignment, message: GradientNorm) -> list[GradientNorm]:
        """A neighbour's norm is here; what the neighbours are told then.

        Once that of all stages behind is there, the one before is told the sum. With the norms of
        those before this one the step is taken. Raises ProtocolError where none was due.
        """
        if self._own_norm is None or message.step != self.step:
            raise _not_due(message)
        if message.toward is Toward.INPUT:
            return self._take_norm_behind(own, message, self._own_norm)
        if self._early is not None:
            raise _not_due(message)
        if self._norm is None:
            self._early = message
            return []
        return [self._take_norm_before(own, message, self._own_norm, self._norm)]

    def _take_norm_before(
        self, own: Assignment, message: GradientNorm, norm: float, squared: float
    ) -> GradientNorm:
        """All norms are here; what the stage behind is told. `squared`: from here on."""
        onward = GradientNorm(own.round, self.step, norm, before=(*message.before, message.squared))
        for one in reversed(onward.before):
            squared = one + squared
        self._own_norm = self._norm = self._early = None
        self._apply(own, squared)
        return onward

    def _take_norm_behind(
        self, own: Assignment, message: GradientNorm, norm: float
    ) -> list[GradientNorm]:
        if self._norm is not None:
            raise _not_due(message)
        told = self._told(own, norm + message.squared)
        if (early := self._early) is None:
            return [told]
        return [told, self._take_norm_before(own, early, norm, told.squared)]

    def _told(self, own: Assignment, norm: float) -> GradientNorm:
        self._norm = norm
        return GradientNorm(own.round, self.step, norm, Toward.INPUT)

    def _apply(self, own: Assignment, squared: float | None) -> None:
        """Take the step, clipped by the squared norm of all stages where there is one."""
        if own.rehearse:
            self._optimizer.forget()
        else:
            with self._measured(own):
                if squared is None:
                    self._optimizer.pull()
                else:
                    self._optimizer.clip(squared)
                self._optimizer.step(own.steps.first + self.step, own.steps.total)
        self._backward_done = 0
        self.step += 1

    def _measured(self, own: Assignment, ends: bool = True) -> Measurement:
        """The time of what is done once a step; of that before its end, too."""
        here = Key(Purpose.TRAINING, own.round, self.step, 0)
        work = Work(0, self._blocks, passes=int(ends))
        return self._stats.phases.measure("step", here, self._device, work)


def _not_due(message: GradientNorm) -> ProtocolError:
    return ProtocolError(f"a gradient norm of step {message.step} was not expected")
