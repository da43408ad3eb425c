"""What the run's planner is asked before a round begins, of what the run has shown by then."""

from __future__ import annotations

from collections.abc import Callable

from cloud_aggregator.averaging import GlobalAdapter
from cloud_aggregator.effective import EffectiveConfig
from cloud_aggregator.gathered import Gathered
from cloud_aggregator.question import Question
from sfl.models.folder import ModelFolder
from sfl.planners.costs import NothingSeen
from sfl.planners.situation import planner_of
from sfl.report.observing import Observing
from sfl.report.plans import recorded_plans
from sfl.report.projection import RunProjection
from sfl.rounds import Coordinator, Planned, PlanRound


class Planning:
    """Gathers what a decision depends on. For the event loop, as that changes."""

    def __init__(
        self,
        config: EffectiveConfig,
        told: RunProjection,
        adapter: GlobalAdapter,
        model: ModelFolder | None,
        observing: Observing | None,
    ) -> None:
        """`model` is the run's, where this machine has it; `observing` has what nodes show of their
        costs. Raises ConfigError for what no decision could be made of."""
        self._config = config
        self._told = told
        self._adapter = adapter
        self._model = model
        own = config.current.planner
        self._recorded = recorded_plans(own.policy, own.plans)
        planner = planner_of(own.policy)
        assert planner is not None, "made only where one decides"
        self._planner = planner
        self._observing = observing

    def asked(self, command: PlanRound, coordinator: Coordinator) -> Callable[[], Planned]:
        """What these devices are to do from the round on: a job for a thread, as costs are fitted
        in it, and a planner may take its time."""
        said = self._told.rounds.facts
        gathered = Gathered(
            self._config.current.settings,
            coordinator.state,
            command.round,
            command.devices,
            {name: said[name] for name in command.devices if name in said},
            NothingSeen() if self._observing is None else self._observing.known,
            self._model,
            self._adapter.manifest,
            self._recorded,
        )
        return Question(self._planner, gathered, self.stays(command, coordinator)).answer

    def stays(self, command: PlanRound, coordinator: Coordinator, why: str = "") -> Planned:
        """Devices go on as before; `why` where that is a fault of the planner."""
        state, policy = coordinator.state, self._config.current.planner.policy
        fault = f"planner {policy!r} {why}, so that cuts stay" if why else ""
        return Planned(command.round, {}, state.order, state.memory, fault=fault)
