"""What an edge serves, and within which bounds: `[serve]` of its file, or `[edge.serve]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from sfl.config.base import NodeName, Section
from sfl.config.size import Size

BASE = "base"
"""The name under which the model is served without an adapter."""


class ServeSettings(Section):
    """What an edge serves, and within which bounds."""

    adapters: dict[NodeName, Path] = Field(default_factory=dict)
    """Adapters by name, each a folder in PEFT's format, such as a run's `adapter`. The name is the
    endpoint's `model`. `base`, the model without one, is always there."""
    cut_layer: NonNegativeInt = 1
    """Fewest blocks that a device holds itself: the edge loads those behind them."""
    batch: PositiveInt = 16
    """Most conversations whose next tokens are computed as one batch. With 1 each is computed by
    itself, with the bits that it has alone."""
    prefill_chunk: Annotated[PositiveInt, Field(le=1 << 16)] = 256
    """Most tokens of a prompt that are computed at a time. Others' next tokens come in between."""
    kv_memory: Size = 1 << 30
    """Memory for keys and values of all conversations, such as `2GB`."""
    max_tokens: Annotated[PositiveInt, Field(le=1 << 20)] = 512
    """Most tokens of one answer."""
    evict: Literal["spill", "recompute"] = "spill"
    """What becomes of the conversation that nobody has used for longest, if another one needs its
    room. `spill`: its keys and values go to a file in `spill_dir` and come back. `recompute`: they
    are forgotten, and the device sends its part again."""
    spill_dir: Path = Path("~/.cache/sfl/spilled")
    """Folder of those files. They have no name, and are gone when the edge ends."""
    spill_disk: Size = 16 << 30
    """Most bytes of those files in all. Beyond it those are forgotten that nobody has used for
    longest, so that devices which never come back fill no disk."""

    @model_validator(mode="after")
    def _base_is_taken(self) -> Self:
        if BASE in self.adapters:
            raise ValueError(f"adapters: {BASE!r} is the model without one; choose another name")
        return self
