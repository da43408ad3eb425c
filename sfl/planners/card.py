"""CARD (2412.00090): cut and edge clock of each device, for delay and the edge's energy at once.

Delay and energy are each scaled to 0..1 over what is possible, and weighed. At a given cut the best
clock has a closed form, in which the edge's work cancels: it is the same at every cut. So one look
at each legal cut finds the optimum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sfl.planners.decision import Choice
from sfl.planners.planner import Planner, Proposal
from sfl.planners.seconds import edge_seconds, own_seconds
from sfl.planners.state import DeviceState, State
from sfl.planners.told import Cut


@dataclass(frozen=True, slots=True)
class _Range:
    """The least of something, and how far it goes from there."""

    least: float
    width: float

    def scaled(self, value: float) -> float:
        return (value - self.least) / self.width if self.width > 0.0 else 0.0


@dataclass(frozen=True, slots=True)
class _Scales:
    """What is possible for one device, over all its cuts and clocks; `watts` are the edge's."""

    weight: float
    watts: float
    least_clock: float
    delays: _Range
    energies: _Range

    def utility(self, own: float, edge: float, clock: float) -> float:
        """Of seconds of the device and, at the fastest clock, of the edge."""
        delay = self.delays.scaled(own + edge / clock)
        energy = self.energies.scaled(self.watts * clock * clock * edge)
        return self.weight * delay + (1.0 - self.weight) * energy

    @property
    def clock(self) -> float:
        """Where the utility's derivative by the clock is 0, within what the edge can do."""
        price = 2.0 * (1.0 - self.weight) * self.watts * self.delays.width
        if price <= 0.0:
            return 1.0
        best: float = (self.weight * self.energies.width / price) ** (1.0 / 3.0)
        return min(max(best, self.least_clock), 1.0)


def propose(state: State) -> Proposal:
    """The least utility of each device, trained one at a time."""
    return Proposal({device.name: _best(state, device) for device in state.able}, state.memory)


def utility(state: State, device: DeviceState, choice: Choice) -> float:
    """Weighed delay and energy of a choice, 0 for the best of both; smaller is better."""
    scales = _scales(state, device, _parts(state, device))
    return scales.utility(*_seconds(state, device, choice), choice.edge_clock)


def delay_and_energy(state: State, device: DeviceState, choice: Choice) -> tuple[float, float]:
    """Of a round with nobody else: seconds, and joules of the edge."""
    own, edge = _seconds(state, device, choice)
    clocks = state.edge(device.edge).cost.clock
    return own + edge / choice.edge_clock, clocks.energy(edge, choice.edge_clock).joules


def _best(state: State, device: DeviceState) -> Choice:
    parts = _parts(state, device)
    scales = _scales(state, device, parts)
    clock = scales.clock
    cut = min(device.legal, key=lambda cut: scales.utility(*parts[cut], clock))
    return replace(device.choice(cut), edge_clock=clock)


def _parts(state: State, device: DeviceState) -> dict[Cut, tuple[float, float]]:
    """Of each cut a round's seconds without the edge, and the edge's at its fastest clock."""
    return {cut: _seconds(state, device, device.choice(cut)) for cut in device.legal}


def _seconds(state: State, device: DeviceState, choice: Choice) -> tuple[float, float]:
    full = edge_seconds(state, device, replace(choice, edge_clock=1.0))
    return own_seconds(state, device, choice), full


def _scales(state: State, device: DeviceState, parts: Mapping[Cut, tuple[float, float]]) -> _Scales:
    clocks = state.edge(device.edge).cost.clock
    ends = (clocks.least, 1.0)
    delays = [own + edge / clock for own, edge in parts.values() for clock in ends]
    energies = [clocks.energy(edge, clock).joules for _, edge in parts.values() for clock in ends]
    return _Scales(
        state.aims.weight,
        clocks.watts,
        clocks.least,
        _Range(min(delays), max(delays) - min(delays)),
        _Range(min(energies), max(energies) - min(energies)),
    )


CARD = Planner("card", propose, alone=utility)
