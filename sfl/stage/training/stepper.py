"""When an edge's optimizer steps: once all micro-batches of a step have had their backward."""

from __future__ import annotations

from sfl.errors import ProtocolError
from sfl.metrics.stats import Measurement, NodeStats
from sfl.rounds.values import RoundStart
from sfl.stage.messages import GradientNorm, Key, Purpose
from sfl.stage.optimizer import Optimizer


class Stepper:
    """Counts one device's micro-batches, exchanges norms where clipping asks for it, and steps."""

    def __init__(self, device: str, optimizer: Optimizer, stats: NodeStats) -> None:
        self.step = 0
        self._device = device
        self._optimizer = optimizer
        self._stats = stats
        self._backward_done = 0
        self._own_norm: float | None = None

    def begin_round(self) -> None:
        """Forget what the round before left unfinished."""
        self.step = 0
        self._backward_done = 0
        self._own_norm = None

    @property
    def waits_for_norm(self) -> bool:
        """Whether the device's norm is to come before the step is taken."""
        return self._own_norm is not None

    def after_backward(self, start: RoundStart, num_micro_batches: int) -> list[GradientNorm]:
        """Count a micro-batch; after the last one step, or exchange norms and step then."""
        self._backward_done += 1
        if self._backward_done < num_micro_batches:
            return []
        if not self._optimizer.clips:
            self._apply(start, None)
            return []
        with self._measured(start):
            self._optimizer.pull()
            self._own_norm = self._optimizer.squared_norm()
        return [GradientNorm(start.round, self.step, self._own_norm)]

    def take_norm(self, start: RoundStart, message: GradientNorm) -> None:
        """The device's norm is here: step. Raises ProtocolError where none was due."""
        if self._own_norm is None or message.step != self.step:
            raise ProtocolError(f"a gradient norm of step {message.step} was not expected")
        # Both sides must add in the same order: the device's first.
        squared = message.squared + self._own_norm
        self._own_norm = None
        self._apply(start, squared)

    def _apply(self, start: RoundStart, squared: float | None) -> None:
        """Take the step, clipped by both sides' squared norm where there is one."""
        if start.rehearse:
            self._optimizer.forget()
        else:
            with self._measured(start):
                if squared is None:
                    self._optimizer.pull()
                else:
                    self._optimizer.clip(squared)
                self._optimizer.step(start.first_step + self.step, start.total_steps)
        self._backward_done = 0
        self.step += 1

    def _measured(self, start: RoundStart) -> Measurement:
        """The time of what is done once a step."""
        here = Key(Purpose.TRAINING, start.round, self.step, 0)
        return self._stats.phases.measure("step", here, self._device)
