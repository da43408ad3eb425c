"""What the run's planner is asked before a round begins, of what the run has shown by then."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod

from cloud_aggregator.averaging import GlobalAdapter
from cloud_aggregator.effective import EffectiveConfig
from cloud_aggregator.question import Question
from sfl.adapters.manifest import AdapterManifest
from sfl.config import RunSettings
from sfl.cost.work import ADAPTER_VALUE_BYTES
from sfl.models.folder import ModelFolder
from sfl.models.shape import facts_from_headers
from sfl.planners import State
from sfl.planners.costs import Costs, NothingSeen, Seen
from sfl.planners.outset import ModelFacts
from sfl.planners.plans import recorded_for
from sfl.planners.situation import Present, Remembered, failure, planner_of, state_of
from sfl.report.plans import recorded_plans
from sfl.report.projection import RunProjection
from sfl.rounds import Coordinator, Planned, PlanRound, RunState
from sfl.rounds.placing import here
from sfl.rounds.tally import NEVER
from sfl.rounds.work import steps_of

log = logging.getLogger("sfl.cloud")


class Planning:
    """Makes a planner's state of what the run has shown. For the event loop, as that changes."""

    def __init__(
        self,
        config: EffectiveConfig,
        told: RunProjection,
        adapter: GlobalAdapter,
        model: ModelFolder | None,
        seen: Seen | None,
    ) -> None:
        """`model` is the run's, where this machine has it; `seen` what nodes have shown of their
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
        self._seen: Seen = NothingSeen() if seen is None else seen
        self._facts: ModelFacts | None = None

    def asked(self, command: PlanRound, coordinator: Coordinator) -> Callable[[], Planned]:
        """What these devices are to do from the round on: a job for a thread, as a planner may take
        its time. Where it cannot even be asked, they go on as before."""
        settings, policy = self._config.current.settings, self._config.current.planner.policy
        stays = self.stays(command, coordinator)
        try:
            state, measured = self._state(command, coordinator)
        except Exception as error:
            log.debug("no state for planner %s", policy, exc_info=True)
            failed = replace(stays, fault=failure(policy, error))
            return lambda: failed
        bases = {name: coordinator.base_of(name) for name in command.devices}
        return Question(self._planner, settings, state, measured, bases, stays).answer

    def stays(self, command: PlanRound, coordinator: Coordinator, why: str = "") -> Planned:
        """Devices go on as before; `why` where that is a fault of the planner."""
        state, policy = coordinator.state, self._config.current.planner.policy
        fault = f"planner {policy!r} {why}, so that cuts stay" if why else ""
        return Planned(command.round, {}, state.order, state.memory, fault=fault)

    def _state(self, command: PlanRound, coordinator: Coordinator) -> tuple[State, bool]:
        """All that a decision depends on, and whether anything of it was measured."""
        settings, run, names = self._config.current.settings, coordinator.state, command.devices
        there = run.roster.devices
        edges = sorted({*here(run), *(there[name].edge for name in names)})
        facts = self._model_facts(settings, run)
        tokens = self._step_tokens(settings, names)
        costs = Costs.of(settings, facts, self._seen, names, edges, tokens=tokens)
        devices = [self._present(name, settings, run, costs) for name in names]
        steps = max(steps_of(settings, there[n].num_examples, command.round).count for n in names)
        before = Remembered(run.memory, recorded_for(self._recorded, command.round))
        load = costs.workload(steps)
        state = state_of(settings, command.round, load, devices, costs.edges, before)
        return state, bool(costs.seen)

    def _step_tokens(self, settings: RunSettings, names: Iterable[str]) -> float | None:
        """Of a step, by what devices tell of their examples; None where none does."""
        known = [own for name in names if (own := self._told.rounds.facts.get(name)) is not None]
        kept = sum(min(own.num_tokens, own.num_tokens_kept) for own in known)
        examples = sum(own.num_examples for own in known)
        return settings.training.batch_size * kept / examples if kept else None

    def _present(self, name: str, settings: RunSettings, run: RunState, costs: Costs) -> Present:
        """A device as it is now."""
        chosen, entry = run.choices.get(name), settings.device(name)
        at = (entry.cut_layer, entry.tail_layers) if chosen is None else chosen.at
        took = run.open.stragglers.took.values()
        tally, facts = run.tallies.get(name, NEVER), self._told.rounds.facts.get(name)
        return Present(
            name,
            run.roster.devices[name].edge,
            costs.devices[name],
            at,
            () if facts is None else facts.cuts,
            None if facts is None else facts.memory,
            tally.success,
            tally.outcome(run.round, max(took, default=0.0)),
        )

    def _model_facts(self, settings: RunSettings, run: RunState) -> ModelFacts:
        """Made once, when edges have said what the model is."""
        if self._facts is None:
            assert run.num_layers is not None, "a round is planned for a model"
            self._facts = _facts(settings, self._model, self._adapter.manifest, run.num_layers)
        return self._facts


def _facts(
    settings: RunSettings,
    model: ModelFolder | None,
    manifest: AdapterManifest | None,
    num_layers: int,
) -> ModelFacts:
    """From the model's headers, or from what its adapter consists of."""
    if model is not None and model.tensors and model.num_layers == num_layers:
        return facts_from_headers(settings, model)
    assert manifest is not None, "a round is planned for a model"
    lora = [spec for spec in manifest.parameters if "lora_" in spec.name]
    values = sum(prod(spec.shape) for spec in lora)
    # A block's widest inputs are the MLP's; all others are as wide as the hidden states.
    hidden = min((spec.fan_in for spec in lora if "lora_A" in spec.name), default=1)
    return ModelFacts(num_layers, hidden, ADAPTER_VALUE_BYTES * values / num_layers)
