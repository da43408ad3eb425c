"""When an edge's optimizer steps: once all micro-batches of a step have had their backward."""

from __future__ import annotations

from sfl.errors import ProtocolError
from sfl.metrics.costs import Work
from sfl.metrics.stats import Measurement, NodeStats
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

    def begin_round(self, step: int = 0) -> None:
        """Forget what the round before left unfinished; `step` steps of this one are taken."""
        self.step = step
        self._backward_done = 0
        self._own_norm = None

    @property
    def waits_for_norm(self) -> bool:
        """Whether the device's norm is to come before the step is taken."""
        return self._own_norm is not None

    def after_backward(self, own: Assignment, num_micro_batches: int) -> list[GradientNorm]:
        """Count a micro-batch; after the last one step, or exchange norms and step then."""
        self._backward_done += 1
        if self._backward_done < num_micro_batches:
            return []
        if not self._optimizer.clips:
            self._apply(own, None)
            return []
        with self._measured(own, ends=False):
            self._optimizer.pull()
            self._own_norm = self._optimizer.squared_norm()
        return [GradientNorm(own.round, self.step, self._own_norm)]

    def take_norm(self, own: Assignment, message: GradientNorm) -> None:
        """The device's norm is here: step. Raises ProtocolError where none was due."""
        if self._own_norm is None or message.step != self.step:
            raise ProtocolError(f"a gradient norm of step {message.step} was not expected")
        # Both sides must add in the same order: the device's first.
        squared = message.squared + self._own_norm
        self._own_norm = None
        self._apply(own, squared)

    def _apply(self, own: Assignment, squared: float | None) -> None:
        """Take the step, clipped by both sides' squared norm where there is one."""
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
