"""A planner's state, as it is in the simulated fleet when a round is planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sfl.config.planner import ADVICE
from sfl.plan import SERVERS
from sfl.planners import State
from sfl.planners.plans import Plan, recorded_for
from sfl.planners.situation import (
    Present,
    Remembered,
    decide,
    failure,
    planner_of,
    state_of,
    unfit,
)
from sfl.planners.told import Cut
from sfl.rounds import Planned, PlanRound
from sfl.rounds.tally import NEVER
from sfl.simulate.fleet import Fleet, link_cost

if TYPE_CHECKING:
    from sfl.simulate.cloud import Cloud

MOST_KEPT = 1_000
"""Devices up to which a decision is kept with the state that it was taken from."""


class Planning:
    """Asks the run's planner, which knows links as they are now, and speeds in the mean."""

    def __init__(self, cloud: Cloud, fleet: Fleet, recorded: Sequence[Plan] = ()) -> None:
        """`recorded` are another run's decisions. Raises ConfigError for a plug-in that is not
        there."""
        self._cloud = cloud
        self._fleet = fleet
        self._recorded = recorded
        self._planner = planner_of(cloud.settings.planner.policy)
        self._cuts: dict[tuple[int, int], Cut] = {}

    def decide(self, command: PlanRound) -> Planned:
        """What these devices do from the round on; where the planner fails, what they did before,
        as in a real run."""
        state = self._cloud.coordinator.state
        try:
            return self._decide(command)
        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything
            fault = failure(self._cloud.settings.planner.policy, error)
            return Planned(command.round, {}, state.order, state.memory, fault=fault)

    def _decide(self, command: PlanRound) -> Planned:
        assert self._planner is not None, "nobody asks where there is none"
        advises = self._cloud.settings.planner.policy == ADVICE
        decision, state = decide(self._planner, self._state(command), measured=True)
        kept = state if len(command.devices) <= MOST_KEPT else None
        line = Plan(decision, advises, kept).as_json()
        if advises:
            return Planned(command.round, {}, (), decision.memory, line)
        chosen, order = decision.devices, decision.order
        return Planned(command.round, chosen, order, decision.memory, line, unfit(state))

    def _state(self, command: PlanRound) -> State:
        cloud, run = self._cloud, self._cloud.coordinator.state
        settings = cloud.settings
        steps = cloud.steps(command.round)
        before = Remembered(run.memory, recorded_for(self._recorded, command.round))
        return state_of(
            settings,
            command.round,
            replace(cloud.parts.workload, steps=steps),
            [self._present(name) for name in command.devices],
            dict.fromkeys(self._fleet.edges, self._fleet.edge_cost),
            before,
            dict(zip(SERVERS[1:], self._fleet.stages, strict=False)),
        )

    def _present(self, name: str) -> Present:
        cloud, run = self._cloud, self._cloud.coordinator.state
        own, entry = cloud.lives[name].own, cloud.settings.device(name)
        chosen, tally = run.choices.get(name), run.tallies.get(name, NEVER)
        took = run.open.stragglers.took.values()
        outcome = tally.outcome(run.round, 0.0)
        if outcome is not None and not outcome.success:
            outcome = tally.outcome(run.round, max(took, default=0.0))
        at = (entry.cut_layer, entry.tail_layers) if chosen is None else chosen.at
        link = link_cost(own.channel, cloud.events.now, own.latency)
        cost = replace(own.cost, link=link)
        told = self._told()
        edge = cloud.lives[name].working.edge.name
        return Present(name, edge, cost, at, told, own.kind.memory, tally.success, outcome)

    def _told(self) -> tuple[Cut, ...]:
        """Every cut with the memory that it needs; who has no budget takes any."""
        if not self._cuts:
            layers, needs = self._fleet.shape.num_layers, self._fleet.needs
            for cut in range(layers):
                for tail in range(layers - cut):
                    if tail == 0 or self._cloud.parts.workload.u_shaped:
                        self._cuts[cut, tail] = Cut(cut, tail, needs(cut, tail))
        return tuple(self._cuts.values())
