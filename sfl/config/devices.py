"""One device of the run: its cut, its rank, its codecs and its link."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, NonNegativeFloat, NonNegativeInt, PositiveInt

from sfl.config.base import NodeName, Section
from sfl.config.codec import CodecChange
from sfl.config.node import LocalDevice


def _in_order(ends: tuple[int, int]) -> tuple[int, int]:
    if ends[0] > ends[1]:
        raise ValueError("the first number is the least one; exchange the two")
    return ends


Range = Annotated[tuple[NonNegativeInt, NonNegativeInt], AfterValidator(_in_order)]
"""The least and the most, both allowed."""


class LinkSettings(Section):
    """A limit of a device's link, inside the transport itself (a token bucket and a delay)."""

    up_mbit: NonNegativeFloat = 0.0
    """Megabits a second from the device to its edge. 0: no limit."""
    down_mbit: NonNegativeFloat = 0.0
    """Megabits a second from the edge to the device. 0: no limit."""
    delay_ms: NonNegativeFloat = 0.0
    """Milliseconds added to each message, each way."""


class DeviceEntry(LocalDevice):
    """One device of the run. The keys that are local to the device are read under `sfl run`
    only."""

    name: NodeName
    """Name of the device, unique in the run."""
    edge: NodeName | None = None
    """Name of the edge that this device is at, one of `run.edges`. Default: the one that it dials;
    `sfl run` divides devices among `run.edges` in turn."""
    cut_layer: NonNegativeInt = 1
    """Transformer blocks at the front of the model that this device holds."""
    tail_layers: NonNegativeInt = 0
    """Blocks at the end that this device holds (U-shaped only)."""
    cut_range: Range | None = None
    """The least and the most that a planner may choose for `cut_layer`. Default: 1, and all blocks
    but one, as far as this device's memory allows."""
    tail_range: Range | None = None
    """The least and the most that a planner may choose for `tail_layers`. Default: `tail_layers`
    stays."""
    stage_cuts: tuple[PositiveInt, ...] = ()
    """Three tiers: blocks before each stage behind the edge, if they are not `stages.cuts`."""
    stage_cut_range: Range | None = None
    """Three tiers: the least and the most blocks before the stage that `fleet` and `scan` may
    choose (docs/three-tiers.md). Default: they stay."""
    rank: PositiveInt | None = None
    """LoRA rank of this device. Default and upper bound: `lora.rank`. A smaller one needs a
    strategy that accepts different ranks."""
    optional: bool = False
    """It is no fault if this device never comes. Use it to reserve an entry for one more device."""
    codec: CodecChange = CodecChange()
    """Codecs of this device that differ from the run's."""
    link: LinkSettings = LinkSettings()
    """A slower link than the real one, for experiments and for sharing a radio fairly."""

    @property
    def least_cut(self) -> int:
        """The fewest blocks at the front that this device may be given."""
        return self.cut_layer if self.cut_range is None else self.cut_range[0]

    @property
    def shared(self) -> Self:
        """What every node may know: nothing that is local to this device."""
        fields = type(self).model_fields.keys() - LocalDevice.model_fields.keys()
        return type(self)(**{name: getattr(self, name) for name in fields})
