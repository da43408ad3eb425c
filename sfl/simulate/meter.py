"""What a device has done so far: seconds by kind, bytes by what for, steps, joules."""

from __future__ import annotations

from dataclasses import dataclass

from sfl.cost.energy import Energy, PowerModel
from sfl.simulate.bursts import Burst


@dataclass(slots=True)
class Meter:
    """Sums over the run. Seconds of both links are of bytes on their way, without latency.

    `in_rounds` are seconds of rounds that it finished, from orders to the last byte.
    """

    computing: float = 0.0
    sending: float = 0.0
    receiving: float = 0.0
    in_rounds: float = 0.0
    trained_up: float = 0.0
    trained_down: float = 0.0
    scored_up: float = 0.0
    scored_down: float = 0.0
    adapter_up: float = 0.0
    adapter_down: float = 0.0
    steps: int = 0
    rounds: int = 0
    losses: int = 0

    def did(self, burst: Burst, slower: float, up: float, down: float) -> None:
        """A burst, at these rates (megabits a second)."""
        self.computing += slower * burst.device
        self.sending += burst.bytes_up * 8e-6 / up
        self.receiving += burst.bytes_down * 8e-6 / down
        if burst.trains:
            self.steps += 1
            self.trained_up += burst.bytes_up
            self.trained_down += burst.bytes_down
        else:
            self.scored_up += burst.bytes_up
            self.scored_down += burst.bytes_down

    def sent(self, num_bytes: float, up: float) -> None:
        """An adapter's part."""
        self.adapter_up += num_bytes
        self.sending += num_bytes * 8e-6 / up

    def received(self, num_bytes: float, down: float) -> None:
        """An adapter's part."""
        self.adapter_down += num_bytes
        self.receiving += num_bytes * 8e-6 / down

    def finished(self, seconds: float, trained: bool) -> None:
        """A round, from orders until all was delivered; the last one only evaluates."""
        self.rounds += trained
        self.in_rounds += seconds

    @property
    def bytes_up(self) -> float:
        """Whatever for."""
        return self.trained_up + self.scored_up + self.adapter_up

    @property
    def bytes_down(self) -> float:
        """Whatever for."""
        return self.trained_down + self.scored_down + self.adapter_down

    @property
    def waiting(self) -> float:
        """Seconds of its rounds in which it did nothing."""
        return max(0.0, self.in_rounds - self.computing - self.sending - self.receiving)

    def energy(self, power: PowerModel) -> Energy:
        """So far."""
        return power.energy(self.computing, self.sending, self.receiving, self.waiting)
