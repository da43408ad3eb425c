"""What a decision depends on, as the run is at one moment: a planner's state is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from sfl.adapters.manifest import AdapterManifest
from sfl.config import RunSettings
from sfl.cost.work import ADAPTER_VALUE_BYTES
from sfl.models.folder import ModelFolder
from sfl.models.shape import facts_from_headers
from sfl.planners import State
from sfl.planners.costs import Costs, Seen
from sfl.planners.outset import ModelFacts
from sfl.planners.plans import Plan, recorded_for
from sfl.planners.situation import Present, Remembered, state_of
from sfl.rounds import RunState
from sfl.rounds.placing import here
from sfl.rounds.tally import NEVER
from sfl.rounds.values import DeviceFacts, EdgeBase
from sfl.rounds.work import steps_of


@dataclass(frozen=True, slots=True)
class Gathered:
    """Values that nobody changes any more, so that a thread may take its time over them.

    `names` are the devices of round `round`, `told` what these have said of themselves, and `seen`
    what nodes have shown of their costs. `model` is the run's, where this machine has it, and
    `manifest` says what its adapter consists of. `recorded` are another run's decisions.
    """

    settings: RunSettings
    run: RunState
    round: int
    names: tuple[str, ...]
    told: Mapping[str, DeviceFacts]
    seen: Seen
    model: ModelFolder | None
    manifest: AdapterManifest | None
    recorded: Sequence[Plan]

    def state(self) -> tuple[State, bool]:
        """All that a decision depends on, and whether anything of it was measured.

        Fits the costs of every node, which takes longest.
        """
        settings, run, names = self.settings, self.run, self.names
        there = run.roster.devices
        edges = sorted({*here(run), *(there[name].edge for name in names)})
        costs = Costs.of(
            settings, self._model_facts(), self.seen, names, edges, tokens=self._tokens()
        )
        longest = max(run.open.stragglers.took.values(), default=0.0)
        devices = [self._present(name, costs, longest) for name in names]
        steps = max(steps_of(settings, there[n].num_examples, self.round).count for n in names)
        before = Remembered(run.memory, recorded_for(self.recorded, self.round))
        load = costs.workload(steps)
        state = state_of(settings, self.round, load, devices, costs.edges, before, costs.stages)
        return state, bool(costs.seen)

    def base_of(self, device: str) -> EdgeBase:
        """What the device's edge can compute."""
        return self.run.bases[self.run.roster.devices[device].edge]

    def _tokens(self) -> float | None:
        """Of a step, by what devices tell of their examples; None where none does."""
        kept = sum(min(own.num_tokens, own.num_tokens_kept) for own in self.told.values())
        examples = sum(own.num_examples for own in self.told.values())
        return self.settings.training.batch_size * kept / examples if kept else None

    def _present(self, name: str, costs: Costs, longest: float) -> Present:
        """A device as it is now; who failed took as long as the `longest`."""
        chosen, entry = self.run.choices.get(name), self.settings.device(name)
        at = (entry.cut_layer, entry.tail_layers) if chosen is None else chosen.at
        tally, facts = self.run.tallies.get(name, NEVER), self.told.get(name)
        return Present(
            name,
            self.run.roster.devices[name].edge,
            costs.devices[name],
            at,
            () if facts is None else facts.cuts,
            None if facts is None else facts.memory,
            tally.success,
            tally.outcome(self.run.round, longest),
            self.seen.noise(name),
        )

    def _model_facts(self) -> ModelFacts:
        """From the model's headers, or from what its adapter consists of."""
        num_layers, model, manifest = self.run.num_layers, self.model, self.manifest
        assert num_layers is not None, "a round is planned for a model"
        if model is not None and model.tensors and model.num_layers == num_layers:
            return facts_from_headers(self.settings, model)
        assert manifest is not None, "a model has an adapter"
        lora = [spec for spec in manifest.parameters if "lora_" in spec.name]
        values = sum(prod(spec.shape) for spec in lora)
        # A block's widest inputs are the MLP's; all others are as wide as the hidden states.
        hidden = min((spec.fan_in for spec in lora if "lora_A" in spec.name), default=1)
        return ModelFacts(num_layers, hidden, ADAPTER_VALUE_BYTES * values / num_layers)
