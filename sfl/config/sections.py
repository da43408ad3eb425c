"""The sections of a run, and the rules that hold between them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from sfl.aggregation.traits import STRATEGIES
from sfl.config.aggregation import AggregationSettings
from sfl.config.asynchronous import Mode, problem_of
from sfl.config.base import NodeName, PackageVersion, RunId, Section, given_twice
from sfl.config.codec import CodecChange, CodecSettings, unread_roles
from sfl.config.data import DataSettings
from sfl.config.devices import DeviceEntry
from sfl.config.distil import DistilSettings, distil_problem
from sfl.config.evaluation import EvaluationSettings
from sfl.config.folding import FOLDING_DTYPES, GIVE_FLOAT32, NEEDS_FLOAT32, cannot_fold
from sfl.config.model import LoraSettings, ModelSettings
from sfl.config.network import NetworkSettings
from sfl.config.planner import PlannerSettings, planner_problem
from sfl.config.recovery import RecoverySettings
from sfl.config.stages import StagesSettings, stages_problem
from sfl.config.training import TrainingSettings
from sfl.plan import Topology

MOST_STEPS = (1 << 32) - 2
"""Of one device over a run: what 32 bits count, and one more round that only evaluates."""


Placement = Literal["configured", "nearest", "least_loaded"]
"""How the cloud chooses an edge for a device."""


class RunSection(Section):
    """What is run, and for how long."""

    id: RunId = ""
    """Name of the run and of its folder. Empty: date, time and a short random suffix."""
    output_dir: Path = Path("runs")
    """Folder in which the run's own folder is made."""
    seed: NonNegativeInt = 0
    """Seed that every keyed random choice derives from."""
    topology: Topology = "vanilla"
    """`vanilla`: labels and loss are at the edge. `u_shaped`: the device also holds the end of the
    model, so labels and logits never leave it. `three_tier`: stages behind the edge hold the end of
    the model, labels and loss. `three_tier_u_shaped`: they stand between the edge and the device's
    own end (docs/three-tiers.md)."""
    mode: Mode = "synchronous"
    """`synchronous`: a round waits for its devices. `asynchronous`: every device works at its own
    pace, and an average takes `aggregation.buffer_size` updates (docs/asynchronous.md)."""
    rounds: PositiveInt = 4
    """Number of rounds. Each trains `local_steps` on every device and ends in one aggregation.
    Asynchronous runs: number of aggregations."""
    min_devices: PositiveInt | None = None
    """Fewest devices with which a round may close. Default: all but one (one, if there is one), or
    as many as `aggregation.strategy` needs. Asynchronous: `aggregation.buffer_size` at most."""
    keep_round_adapters: bool = False
    """Keep the aggregated adapter of every round under `adapters/`."""
    edges: tuple[NodeName, ...] = ()
    """Names of the run's edges. The cloud refuses every other edge, whatever its certificate.
    `sfl run` starts all of them. Default: the edge of `[edge]`, by `edge.name`."""
    placement: Placement = "configured"
    """Which edge the cloud gives a device. `configured`: `devices.edge`, or the one that the device
    dials. `nearest`: the one with the shortest round trip, as the device measures it.
    `least_loaded`: the one with the fewest devices (docs/edges.md)."""

    plugins: tuple[PackageVersion, ...] = ()
    """Written by the run: the packages whose plug-ins it uses, each as `name==version`. A node that
    has another version, or none, ends (docs/plugins.md)."""

    @model_validator(mode="after")
    def _edges_are_different(self) -> Self:
        if (name := given_twice(self.edges)) is not None:
            raise ValueError(f"edges: the name {name!r} is given twice")
        return self


class RunSections(Section):
    """The sections of a run, and the rules that hold between them."""

    run: RunSection = RunSection()
    """The run."""
    model: ModelSettings
    """The base model."""
    lora: LoraSettings = LoraSettings()
    """The adapter."""
    training: TrainingSettings = TrainingSettings()
    """Optimisation."""
    distil: DistilSettings = DistilSettings()
    """A teacher on the edge."""
    aggregation: AggregationSettings = AggregationSettings()
    """Averaging."""
    codec: CodecSettings = CodecSettings()
    """Compression."""
    data: DataSettings = DataSettings()
    """Examples."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Held-out scores."""
    network: NetworkSettings = NetworkSettings()
    """Waits and bounds."""
    recovery: RecoverySettings = RecoverySettings()
    """Snapshots."""
    planner: PlannerSettings = PlannerSettings()
    """Cuts, codecs and participants by round."""
    stages: StagesSettings = StagesSettings()
    """Deeper tiers."""
    devices: tuple[DeviceEntry, ...] = Field(min_length=1)
    """The devices of the run."""

    @model_validator(mode="after")
    def _devices_make_sense(self) -> Self:
        names = [device.name for device in self.devices]
        if (twice := given_twice(names)) is not None:
            raise ValueError(f"devices: the name {twice!r} is given twice")
        if self.run.min_devices is not None and self.run.min_devices > len(names):
            raise ValueError(f"run.min_devices: at most the number of devices ({len(names)})")
        known = set(names)
        for change in self.codec.schedule:
            if change.device is not None and change.device not in known:
                raise ValueError(
                    f"codec.schedule: no device {change.device!r}; known: {', '.join(names)}"
                )
        changes: list[tuple[str, CodecChange]] = [
            *((f"devices.{device.name}.codec", device.codec) for device in self.devices),
            *(("codec.schedule", change) for change in self.codec.schedule),
        ]
        for place, own in changes:
            if "auto" in own.model_dump(exclude={"device"}).values():
                raise ValueError(
                    f'{place}: "auto" is for the run\'s codec.activation and codec.gradient; '
                    "name a codec here"
                )
        return self

    @model_validator(mode="after")
    def _codecs_are_read(self) -> Self:
        unread, topology = unread_roles(self.run.topology), self.run.topology
        changes: list[tuple[str, CodecChange | CodecSettings]] = [
            ("codec", self.codec),
            *((f"devices.{device.name}.codec", device.codec) for device in self.devices),
            *(("codec.schedule", change) for change in self.codec.schedule),
        ]
        for place, own in changes:
            for role in unread:
                if getattr(own, role) is not None:
                    raise ValueError(
                        f"{place}.{role}: in topology {topology} no tensor is coded by it; leave "
                        "it out, or choose another run.topology"
                    )
        return self

    @model_validator(mode="after")
    def _steps_can_be_counted(self) -> Self:
        rounds, steps = self.run.rounds, self.training.local_steps or 1
        if rounds * steps > MOST_STEPS:
            field = "training.local_steps" if steps > 1 else "run.rounds"
            raise ValueError(
                f"{field}: {rounds} rounds of {steps} steps are more than {MOST_STEPS}, the most "
                "that a run counts; lower either"
            )
        return self

    @model_validator(mode="after")
    def _ranks_can_be_averaged(self) -> Self:
        strategy, most = self.aggregation.strategy, self.lora.rank
        for device in self.devices:
            rank, field = device.rank or most, f"devices.{device.name}.rank"
            if rank > most:
                raise ValueError(f"{field}: at most lora.rank ({most}); raise that, or lower this")
            if rank < most and not self.aggregation.traits.mixes_ranks:
                built_in = STRATEGIES.built_in.items()
                able = [name for name, traits in built_in if traits.mixes_ranks]
                raise ValueError(
                    f"{field}: {strategy} cannot average unequal ranks; use lora.rank ({most}), or "
                    f"aggregation.strategy = {' or '.join(map(repr, able))}"
                )
        return self

    @model_validator(mode="after")
    def _bases_can_be_changed(self) -> Self:
        if not self.aggregation.traits.folds:
            return self
        if self.model.dtype not in FOLDING_DTYPES:
            raise ValueError(f"model.dtype: {NEEDS_FLOAT32}; {GIVE_FLOAT32}")
        for device in self.devices:
            if field := cannot_fold(device):
                raise ValueError(f"devices.{device.name}.{field}: {NEEDS_FLOAT32}; {GIVE_FLOAT32}")
        coded = [
            ("codec.adapter", self.codec.adapter),
            *((f"devices.{d.name}.codec.adapter", d.codec.adapter) for d in self.devices),
            *(("codec.schedule", change.adapter) for change in self.codec.schedule),
        ]
        for field, codec in coded:
            if codec not in (None, "none"):
                raise ValueError(
                    f"{field}: flora adds what travels to every base for good, so it travels as it "
                    'is; leave it at "none"'
                )
        return self

    @model_validator(mode="after")
    def _devices_suffice(self) -> Self:
        options, count = self.aggregation, len(self.devices)
        needed = options.fewest_devices
        if needed > count:
            lower = ", or lower aggregation.byzantine" if options.traits.fewest_more else ""
            raise ValueError(
                f"aggregation.strategy: needs {needed} devices, the run has {count}; "
                f"add some, or choose another strategy{lower}"
            )
        if self.run.min_devices is not None and self.run.min_devices < needed:
            raise ValueError(
                f"run.min_devices: {options.strategy} needs {needed} devices in every round; "
                f"use at least {needed}, or leave it out"
            )
        if options.selected is not None and options.selected > count - options.byzantine:
            raise ValueError(
                f"aggregation.selected: at most {count - options.byzantine}, the devices less "
                "aggregation.byzantine"
            )
        return self

    @model_validator(mode="after")
    def _mode_fits(self) -> Self:
        if (problem := problem_of(self)) is not None:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _planner_fits(self) -> Self:
        if (problem := planner_problem(self)) is not None:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        for problem in stages_problem(self):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _teacher_fits(self) -> Self:
        for problem in distil_problem(self):
            raise ValueError(problem)
        return self
