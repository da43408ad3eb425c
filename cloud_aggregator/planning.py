"""Asks the run's planner before a round begins; the coordinator carries out what it decides."""

from __future__ import annotations

from cloud_aggregator.effective import EffectiveConfig
from sfl.config.ranges import ways_of
from sfl.cost.values import DeviceCost, EdgeCost, LinkCost, NodeCost, PassCost, Workload
from sfl.planners import PLANNERS, Aims, Cut, DeviceState, EdgeState, State
from sfl.rounds import Coordinator, Planned, PlanRound

UNKNOWN = NodeCost(PassCost(1.0, 1.0))
"""Of a node that nothing is known of yet."""


class Planning:
    """Makes a planner's state of what the run has shown, and its decision an event."""

    def __init__(self, config: EffectiveConfig) -> None:
        self._config = config

    def decide(self, command: PlanRound, coordinator: Coordinator) -> Planned:
        """What these devices do from the round on. Raises ValueError where a planner is wrong."""
        settings = self._config.current
        advises = settings.planner.policy == "advice"
        planner = PLANNERS["fleet" if advises else settings.planner.policy]
        decision = planner.decide(_state(command, coordinator))
        if advises:
            return Planned(command.round, {})
        return Planned(command.round, decision.devices, decision.order)


def _state(command: PlanRound, coordinator: Coordinator) -> State:
    settings, layers = coordinator.settings, coordinator.num_layers
    assert layers is not None, "a round is planned for a model"
    devices = []
    for name in command.devices:
        cuts = tuple(Cut(*way) for way in ways_of(settings, name, layers))
        chosen = coordinator.state.choices.get(name)
        entry = settings.device(name)
        at = (entry.cut_layer, entry.tail_layers) if chosen is None else chosen.at
        cost = DeviceCost(UNKNOWN, LinkCost(1.0, 1.0))
        devices.append(DeviceState(name, coordinator.devices[name].edge, cost, cuts, at))
    edges = sorted({one.edge for one in devices})
    return State(
        command.round,
        Workload(layers, 1, 1, u_shaped=settings.run.topology == "u_shaped"),
        tuple(devices),
        tuple(EdgeState(name, EdgeCost(UNKNOWN)) for name in edges),
        Aims(select=settings.planner.select),
        settings.run.seed,
    )
