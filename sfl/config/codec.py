"""How a run's tensors are compressed: settings by role, by device and by round."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Self

from pydantic import PositiveInt, model_validator

from sfl.config.base import Section
from sfl.plan import SERVERS, TIERED, U_SHAPED, Hop, Topology, Toward


class CodecChange(Section):
    """Codecs that differ from the run's, for one device or from a round on."""

    activation: str | None = None
    """Hidden states from a device to its edge."""
    gradient: str | None = None
    """Their gradients, from the edge to the device."""
    hidden: str | None = None
    """U-shaped: hidden states from the edge back to the device."""
    tail_gradient: str | None = None
    """U-shaped: their gradients, from the device to the edge."""
    evaluation: str | None = None
    """Hidden states of evaluations, both ways."""
    adapter: str | None = None
    """Changes of the adapter, both ways."""
    stage_activation: str | None = None
    """Three tiers: hidden states from an edge to the stage behind it."""
    stage_gradient: str | None = None
    """Three tiers: their gradients, from the stage to the edge."""
    stage_hidden: str | None = None
    """Three tiers, U-shaped: hidden states from a stage back to the edge."""
    stage_tail_gradient: str | None = None
    """Three tiers, U-shaped: their gradients, from the edge to the stage."""


class ScheduledCodec(CodecChange):
    """A change of codecs between rounds."""

    from_round: PositiveInt
    """First round of the change."""
    device: str | None = None
    """The device that it applies to. Default: all."""


def unread_roles(topology: Topology) -> tuple[str, ...]:
    """Settings of `CodecChange` for tensors that no run of this topology sends."""
    unread = {"stage"} if topology not in TIERED else set()
    unread |= {"hidden", "tail"} if topology not in U_SHAPED else set()
    return tuple(role for role in CodecChange.model_fields if unread & set(role.split("_")))


AUTO_CODECS = ("none", "bf16", "compact")
"""What `codec.activation = "auto"` chooses from, the most exact first.

Nobody is given `fp16` unasked: it ends the run of a model whose values exceed 65504.
"""


def common_codec(chosen: Mapping[str, str]) -> str:
    """What most devices chose, or were given: it holds for those that chose nothing."""
    votes = list(chosen.values())
    return max(AUTO_CODECS, key=votes.count)


EVALUATION_CODEC = "fine"
"""Evaluations where training is not exact: any finite value, and a loss that does not tell it from
`none` (`benchmarks/evaluation_codec.py`)."""


class ServeCodec(Section):
    """How rows of conversations are compressed, at an edge that only serves."""

    serve: str = "none"
    """Rows of conversations, both ways. `none` is lossless. `fp16` and `int8` are smaller, and
    change what is said. Only codecs that remember no rows (docs/compression.md)."""


class CodecSettings(Section):
    """How tensors are compressed on the wire, by role and direction (docs/compression.md)."""

    activation: str = "compact"
    """Hidden states from a device to its edge. A preset (`none`, `fp16`, `int8`, `fine`, `compact`,
    `sft`, `extreme`), or stages such as `topk(0.3) | stochastic(4) | zstd`. `auto` is for
    `activation` and `gradient` together: before the first round every device rehearses a few steps
    with `compact`, `bf16` and `none` over its real link. It gets the most exact of those that are
    fast. The effective configuration records the choice for each device."""
    gradient: str = "compact"
    """Their gradients, from the edge to the device."""
    hidden: str | None = None
    """U-shaped: hidden states from the edge back to the device. Default: as `activation`."""
    tail_gradient: str | None = None
    """U-shaped: their gradients, from the device to the edge. Default: as `gradient`."""
    evaluation: str | None = None
    """Hidden states of evaluations, both ways. Default: `none` where `activation` is `none`,
    otherwise `fine`. The result is then the adapter's quality and not the codec's."""
    adapter: str = "none"
    """Changes of the adapter between a device and its edge, both ways, with error feedback, e.g.
    `stochastic(4) | zstd`. A stream's first adapter is sent in full."""
    stage_activation: str | None = None
    """Three tiers: hidden states from an edge to the stage behind it. Default: as `activation`."""
    stage_gradient: str | None = None
    """Three tiers: their gradients, from the stage to the edge. Default: as `gradient`."""
    stage_hidden: str | None = None
    """Three tiers, U-shaped: hidden states from a stage back to the edge. Default: as
    `stage_activation`."""
    stage_tail_gradient: str | None = None
    """Three tiers, U-shaped: their gradients, from the edge to the stage. Default: as
    `stage_gradient`."""
    serve: str = "none"
    """Rows of conversations over the run's cut, both ways (docs/serving.md). `none` is lossless.
    `fp16` and `int8` are smaller, and change what is said. Only codecs that remember no rows."""
    schedule: tuple[ScheduledCodec, ...] = ()
    """Changes between rounds. Later ones win."""

    @model_validator(mode="after")
    def _auto_is_of_both_directions(self) -> Self:
        if (self.activation == "auto") != (self.gradient == "auto"):
            raise ValueError('activation and gradient: "auto" is for both or for neither')
        return self

    @property
    def is_auto(self) -> bool:
        """Whether rehearsed steps are still to choose."""
        return self.activation == "auto"


UP, DOWN = Hop("device", "edge"), Hop("edge", "device")
STAGE_HOPS = tuple(Hop(one, other) for one, other in itertools.pairwise(SERVERS))
"""From each stage server to the one behind it; they share their settings."""


def _coded_by() -> dict[tuple[Hop, Toward], str]:
    found = {
        (UP, Toward.LOSS): "activation",
        (UP, Toward.INPUT): "gradient",
        (DOWN, Toward.LOSS): "hidden",
        (DOWN, Toward.INPUT): "tail_gradient",
    }
    for hop in STAGE_HOPS:
        back = Hop(hop.after, hop.before)
        found[hop, Toward.LOSS] = "stage_activation"
        found[hop, Toward.INPUT] = "stage_gradient"
        found[back, Toward.LOSS] = "stage_hidden"
        found[back, Toward.INPUT] = "stage_tail_gradient"
    return found


CODED_BY = _coded_by()
"""Which setting codes what crosses a hop in training, forward and backward."""


class RoleCodecs(Section):
    """The codecs of one device in one round, nothing left to be filled in."""

    activation: str
    """Device to edge."""
    gradient: str
    """Edge to device."""
    hidden: str
    """Edge to device, U-shaped."""
    tail_gradient: str
    """Device to edge, U-shaped."""
    evaluation: str
    """Both ways."""
    adapter: str = "none"
    """Both ways."""
    stage_activation: str = "none"
    """Edge to stage."""
    stage_gradient: str = "none"
    """Stage to edge."""
    stage_hidden: str = "none"
    """Stage to edge, U-shaped."""
    stage_tail_gradient: str = "none"
    """Edge to stage, U-shaped."""
