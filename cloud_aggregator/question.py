"""One question to a planner, with all that its answer depends on: for a thread beside the loop."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from cloud_aggregator.gathered import Gathered
from sfl.codec.spec import read_calls
from sfl.config.planner import ADVICE
from sfl.planners import Decision
from sfl.planners.planner import Planner
from sfl.planners.plans import Plan
from sfl.planners.situation import decide, failure, unfit
from sfl.rounds import Planned
from sfl.rounds.assignment import assign

log = logging.getLogger("sfl.cloud")


@dataclass(frozen=True, slots=True)
class Question:
    """What a planner is asked; `stays` is the answer that changes nothing."""

    planner: Planner
    gathered: Gathered
    stays: Planned

    def answer(self) -> Planned:
        """What the planner decides, however long it takes; where it fails, all stays as it is.

        A plug-in may raise anything; the run goes on.
        """
        try:
            return self._answer()
        except Exception as error:
            policy = self.gathered.settings.planner.policy
            log.debug("planner %s failed", policy, exc_info=True)
            return replace(self.stays, fault=failure(policy, error))

    def _answer(self) -> Planned:
        round_, advises = self.stays.round, self.gathered.settings.planner.policy == ADVICE
        known, measured = self.gathered.state()
        decision, state = decide(self.planner, known.rounded(), measured)
        plan = Plan(decision, advises, state)
        log.info("%s", plan)
        if advises:
            return Planned(round_, {}, (), decision.memory, plan.as_json())
        self._check(decision)
        chosen, order, memory = decision.devices, decision.order, decision.memory
        return Planned(round_, chosen, order, memory, plan.as_json(), unfit(state))

    def _check(self, decision: Decision) -> None:
        """Raises ValueError or ConfigError for what nobody could carry out."""
        settings, base_of = self.gathered.settings, self.gathered.base_of
        for name, choice in decision.devices.items():
            if not 0.0 < choice.share <= 1.0:
                raise ValueError(f"{name}: a share of {choice.share:g} of its link")
            for spec in (choice.activation, choice.gradient):
                if spec is not None:
                    read_calls(spec)
            assign(settings, base_of(name), name, decision.round, choice=choice)
