"""A planner's state, as it is in the simulated fleet when a round is planned."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sfl.config.ranges import ways_of
from sfl.planners import PLANNERS, Cut, Decision, DeviceState, EdgeState, State
from sfl.planners.situation import aims_of
from sfl.rounds import Planned, PlanRound
from sfl.simulate.fleet import Fleet, link_cost

if TYPE_CHECKING:
    from sfl.simulate.cloud import Cloud


class Planning:
    """Asks the run's planner, which knows the links as they are now and speeds as they were."""

    def __init__(self, cloud: Cloud, fleet: Fleet) -> None:
        self._cloud = cloud
        self._fleet = fleet
        self._memory = State(0, cloud.parts.workload, (), ()).memory
        self.decisions: list[Decision] = []

    def decide(self, command: PlanRound) -> Planned:
        """What these devices do from the round on. Raises ValueError where a planner is wrong."""
        own = self._cloud.settings.planner
        advises = own.policy == "advice"
        state = self.state(command)
        decision = PLANNERS["fleet" if advises else own.policy].decide(state)
        self._memory = decision.memory
        self.decisions.append(decision)
        if advises:
            return Planned(command.round, {})
        return Planned(command.round, decision.devices, decision.order)

    def state(self, command: PlanRound) -> State:
        """All that is known."""
        cloud, settings = self._cloud, self._cloud.settings
        steps = settings.training.local_steps or 1
        return State(
            command.round,
            replace(cloud.parts.workload, steps=steps),
            tuple(self._device(name) for name in command.devices),
            tuple(EdgeState(name, self._fleet.edge_cost) for name in self._fleet.edges),
            aims_of(settings),
            settings.run.seed,
            self._memory,
        )

    def _device(self, name: str) -> DeviceState:
        cloud = self._cloud
        life, chosen = cloud.lives[name], cloud.coordinator.state.choices.get(name)
        own, entry = life.own, cloud.settings.device(name)
        at = (entry.cut_layer, entry.tail_layers) if chosen is None else chosen.at
        ways = ways_of(cloud.settings, name, self._fleet.shape.num_layers)
        return DeviceState(
            name,
            own.edge,
            replace(own.cost, link=link_cost(own.channel, cloud.events.now, own.latency)),
            tuple(Cut(*way, self._fleet.needs(*way)) for way in ways),
            at,
            own.kind.memory,
            life.success,
            life.outcome,
        )
