"""One question to a planner, with all that its answer depends on: for a thread beside the loop."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sfl.codec.spec import read_calls
from sfl.config import RunSettings
from sfl.config.planner import ADVICE
from sfl.planners import Decision, State
from sfl.planners.planner import Planner
from sfl.planners.plans import Plan
from sfl.planners.situation import decide, failure, unfit
from sfl.rounds import Planned
from sfl.rounds.assignment import assign
from sfl.rounds.values import EdgeBase

log = logging.getLogger("sfl.cloud")


@dataclass(frozen=True, slots=True)
class Question:
    """What a planner is asked; `bases` are those of the edges of `state`'s devices, by device.

    `stays` is the answer that changes nothing. A planner may take as long as it likes.
    """

    planner: Planner
    settings: RunSettings
    state: State
    measured: bool
    bases: Mapping[str, EdgeBase]
    stays: Planned

    def answer(self) -> Planned:
        """What the planner decides; where it fails, all stays as it is.

        A plug-in may raise anything; the run goes on.
        """
        try:
            return self._answer()
        except Exception as error:
            policy = self.settings.planner.policy
            log.debug("planner %s failed", policy, exc_info=True)
            return replace(self.stays, fault=failure(policy, error))

    def _answer(self) -> Planned:
        round_, advises = self.stays.round, self.settings.planner.policy == ADVICE
        decision, state = decide(self.planner, self.state.rounded(), self.measured)
        plan = Plan(decision, advises, state)
        log.info("%s", plan)
        if advises:
            return Planned(round_, {}, (), decision.memory, plan.as_json())
        self._check(decision)
        chosen, order, memory = decision.devices, decision.order, decision.memory
        return Planned(round_, chosen, order, memory, plan.as_json(), unfit(state))

    def _check(self, decision: Decision) -> None:
        """Raises ValueError or ConfigError for what nobody could carry out."""
        for name, choice in decision.devices.items():
            if not 0.0 < choice.share <= 1.0:
                raise ValueError(f"{name}: a share of {choice.share:g} of its link")
            for spec in (choice.activation, choice.gradient):
                if spec is not None:
                    read_calls(spec)
            assign(self.settings, self.bases[name], name, decision.round, choice=choice)
