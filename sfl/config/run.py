"""The run's settings, owned by the cloud and sent to every node."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import NonNegativeInt, model_validator

from sfl.codec.stages import is_exact
from sfl.config.base import Section
from sfl.config.codec import (
    AUTO_CODECS,
    EVALUATION_CODEC,
    CodecChange,
    RoleCodecs,
    common_codec,
)
from sfl.config.devices import DeviceEntry
from sfl.config.folding import GIVE_FLOAT32, MOVES_THE_BASE, NEEDS_FLOAT32, cannot_fold
from sfl.config.node import CloudNode, EdgeConfig, StageConfig
from sfl.config.sections import RunSections
from sfl.config.simulate import SimulateSettings
from sfl.config.stages import NO_STAGE
from sfl.errors import ConfigError
from sfl.plan import SERVERS, TIERED, U_SHAPED, Holder, Plan

_CODED_AS = {
    "hidden": "activation",
    "tail_gradient": "gradient",
    "stage_activation": "activation",
    "stage_gradient": "gradient",
    "stage_hidden": "stage_activation",
    "stage_tail_gradient": "stage_gradient",
}
"""Roles that take the codec of another one where they have none, in this order."""


class RunSettings(RunSections):
    """What the cloud owns, and sends to every node."""

    @property
    def is_asynchronous(self) -> bool:
        """Whether every device works at its own pace."""
        return self.run.mode == "asynchronous"

    @property
    def counts_late_updates(self) -> bool:
        """Whether an update may count in a later round than its own."""
        return self.is_asynchronous or self.aggregation.late_updates == "weighted"

    @property
    def sums_at_edges(self) -> bool:
        """Whether edges add up what their devices train."""
        return self.aggregation.sums == "at_edges"

    @property
    def buffer_size(self) -> int:
        """Updates that make the next adapter of an asynchronous run."""
        default = max((len(self.devices) + 1) // 2, self.aggregation.fewest_devices)
        return self.aggregation.buffer_size or default

    @property
    def min_devices(self) -> int:
        """Fewest devices a round may close with."""
        default = max(1, len(self.devices) - 1, self.aggregation.fewest_devices)
        if self.is_asynchronous:
            default = min(default, self.buffer_size)
        return self.run.min_devices or default

    @property
    def names(self) -> tuple[str, ...]:
        """Who may take part."""
        return tuple(entry.name for entry in self.devices)

    def rank(self, device: str) -> int:
        """LoRA rank of the device called so."""
        return self.device(device).rank or self.lora.rank

    def scaling(self, device: str) -> float:
        """What the device's B A is multiplied by: alpha over its own rank."""
        return self.lora.alpha / self.rank(device)

    def knows(self, name: str) -> bool:
        """Whether a device of the run is called so."""
        return name in self._entries

    def device(self, name: str) -> DeviceEntry:
        """The entry of the device called `name`; KeyError where there is none."""
        return self._entries[name][1]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As of any model; a copy may have other devices, so it makes an index of its own."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("_entries", None)
        return copied

    @cached_property
    def _entries(self) -> dict[str, tuple[int, DeviceEntry]]:
        """Every device by name, with its position."""
        return {entry.name: (index, entry) for index, entry in enumerate(self.devices)}

    def plan(
        self,
        device: str,
        num_layers: int,
        cut_layer: int | None = None,
        tail_layers: int | None = None,
        stage_cuts: tuple[int, ...] = (),
    ) -> Plan:
        """How a model of so many blocks is cut for a device, at its own cuts or others.

        Raises ConfigError, which names the device's field.
        """
        entry = self.device(device)
        cut = entry.cut_layer if cut_layer is None else cut_layer
        tail = entry.tail_layers if tail_layers is None else tail_layers
        deep = stage_cuts or self.stage_cuts(device)
        try:
            return Plan.split(num_layers, cut, tail, self.run.topology, deep)
        except ConfigError as error:
            field = f"devices.{device}.{error.field}"
            raise ConfigError(field, error.value, error.problem, error.fix) from None

    @property
    def is_tiered(self) -> bool:
        """Whether stages follow the edge."""
        return self.run.topology in TIERED

    @property
    def loss_server(self) -> Holder | None:
        """Which stage server computes the loss; None where the device does."""
        if self.run.topology in U_SHAPED:
            return None
        return SERVERS[len(self.stage_cuts(self.devices[0].name))]

    def stage_cuts(self, device: str) -> tuple[int, ...]:
        """Blocks before each stage behind the edge, for a device; none in two tiers."""
        return self.device(device).stage_cuts or self.stages.cuts

    def codecs(
        self, device: str, round_: int, auto: str = "", planned: CodecChange | None = None
    ) -> RoleCodecs:
        """What a device's tensors are coded with in a round; the last word that fits counts.

        `auto` is what stands where a codec has yet to be chosen; by default the coarsest. What is
        `planned` for the round comes last.
        """
        chosen = self.codec.model_dump(exclude={"schedule", "serve"})
        if self.codec.is_auto:
            chosen.update(dict.fromkeys(("activation", "gradient"), auto or AUTO_CODECS[-1]))
        changes: list[CodecChange] = [self.device(device).codec]
        changes += [
            step
            for step in self.codec.schedule
            if step.from_round <= round_ and step.device in (None, device)
        ]
        changes += [] if planned is None else [planned]
        for change in changes:
            own = change.model_dump(exclude_none=True, exclude={"from_round", "device"})
            chosen.update(own)
        exact = is_exact(chosen["activation"])
        for role, default in _CODED_AS.items():
            chosen[role] = chosen[role] or chosen[default]
        chosen["evaluation"] = chosen["evaluation"] or ("none" if exact else EVALUATION_CODEC)
        return RoleCodecs(**chosen)

    @property
    def computation(self) -> Literal["reference", "lean"]:
        """How batches are laid out and losses taken, `auto` decided."""
        if self.training.computation != "auto":
            return self.training.computation
        changes = [self.codec, *(d.codec for d in self.devices), *self.codec.schedule]
        roles = {*_CODED_AS, *_CODED_AS.values()}
        specs = [getattr(change, role) for change in changes for role in roles]
        return "reference" if all(is_exact(spec) for spec in specs if spec) else "lean"

    def settled(self, micro_batches: int, codecs: Mapping[str, str]) -> Self:
        """These settings with what a rehearsal chose instead of `auto`.

        `codecs` has the choice for each device that rehearsed; what most have holds for the others.
        """
        training = self.training.model_copy(update={"micro_batches": micro_batches})
        if not self.codec.is_auto:
            return self.model_copy(update={"training": training})
        # The nodes compute as they were told when they joined, whatever codec was chosen since.
        training = training.model_copy(update={"computation": self.computation})
        common = common_codec(codecs)
        devices = []
        for entry in self.devices:
            own = codecs.get(entry.name, common)
            lacks = [r for r in ("activation", "gradient") if getattr(entry.codec, r) is None]
            if own != common:
                change = entry.codec.model_copy(update=dict.fromkeys(lacks, own))
                entry = entry.model_copy(update={"codec": change})
            devices.append(entry)
        codec = self.codec.model_copy(update={"activation": common, "gradient": common})
        return self.model_copy(
            update={"training": training, "codec": codec, "devices": tuple(devices)}
        )

    def device_index(self, name: str) -> int:
        """Position of the device in the run: its share of a partitioned file."""
        return self._entries[name][0]


class LaunchSettings(Section):
    """What `sfl run` does with the processes that it starts."""

    restarts: NonNegativeInt = 3
    """How often a node is started again within the run. That happens if it was killed, met a bug or
    had no memory left. 0: never."""


class RunConfig(RunSettings):
    """A run's file: the settings, and the nodes that `sfl run` starts on this machine."""

    cloud: CloudNode = CloudNode()
    """The cloud process."""
    edge: EdgeConfig = EdgeConfig()
    """The edge process of `sfl run`."""
    stage: StageConfig = StageConfig()
    """The stage process of `sfl run`, and of each further one. Its keys are those of an edge, but
    for `cloud`, `service`, `max_runs`, `advertise`, `snapshots`, `connect_timeout` and `serve`."""
    launch: LaunchSettings = LaunchSettings()
    """How `sfl run` treats its processes."""
    simulate: SimulateSettings | None = None
    """The fleet of `sfl simulate`. A run itself does not read it."""

    @model_validator(mode="after")
    def _edge_can_be_changed(self) -> Self:
        if self.aggregation.traits.folds and (field := cannot_fold(self.edge)):
            raise ValueError(f"edge.{field}: {NEEDS_FLOAT32}; {GIVE_FLOAT32}")
        if self.aggregation.traits.folds and self.edge.serve is not None:
            raise ValueError(f"edge.serve: {MOVES_THE_BASE}; leave it out, or use flexlora")
        return self

    @model_validator(mode="after")
    def _edges_are_there(self) -> Self:
        for entry in self.devices:
            if entry.edge is not None and entry.edge not in self.edges:
                known = ", ".join(self.edges)
                raise ValueError(
                    f"devices.{entry.name}.edge: {entry.edge!r} is none of the run's edges "
                    f"({known}); name it in run.edges, or leave it out"
                )
        return self

    @model_validator(mode="after")
    def _stages_are_read(self) -> Self:
        if self.is_tiered:
            return self
        given = ["edge.next"] if self.edge.next else []
        own = self.stage
        given += [f"stage.{key}" for key, value in StageConfig() if getattr(own, key) != value]
        if given:
            raise ValueError(f"{given[0]}: topology {self.run.topology} {NO_STAGE}")
        return self

    @property
    def edges(self) -> tuple[str, ...]:
        """Names of the edges that may take part."""
        return self.run.edges or (self.edge.name,)

    @property
    def stage_nodes(self) -> tuple[StageConfig, ...]:
        """The stages that `sfl run` starts, in the order in which activations reach them."""
        count, name = len(self.stage_cuts(self.devices[0].name)), self.stage.name
        names = [name if number == 1 else f"{name}{number}" for number in range(1, count + 1)]
        before = [self.edges, *((own,) for own in names)]
        each = zip(names, before, strict=False)
        return tuple(
            self.stage.model_copy(update={"name": own, "before": who}) for own, who in each
        )

    @property
    def settings(self) -> RunSettings:
        """Only what travels to the nodes."""
        fields = {name: getattr(self, name) for name in RunSettings.model_fields}
        return RunSettings.model_construct(**fields)
