"""What a planner decides: a choice for each device, and why; as JSON a line of `plans.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Memory = Mapping[str, Mapping[str, float]]
"""What a planner remembers from decision to decision: numbers by name, in tables by name."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One device's part, until the next decision.

    `activation` and `gradient` are codecs, with the bits that a value then takes; None: as the
    settings say. `share` of the link's rates is the device's own. `edge_clock` is the edge's while
    it serves this device, as a share of its fastest. `edge_share`: so much of the edge serves it
    beside others; None: the whole edge, one device at a time. `edge` is another one than its own.
    `stage_cuts` are the blocks before each stage behind its edge; (): those stay.
    """

    cut_layer: int
    tail_layers: int = 0
    activation: str | None = None
    gradient: str | None = None
    activation_bits: float | None = None
    gradient_bits: float | None = None
    share: float = 1.0
    edge_clock: float = 1.0
    edge_share: float | None = None
    edge: str = ""
    takes_part: bool = True
    stage_cuts: tuple[int, ...] = ()

    @property
    def edge_speed(self) -> float:
        """Of the edge for this device, as a share of the whole one at its fastest clock."""
        return self.edge_clock * (1.0 if self.edge_share is None else self.edge_share)

    @property
    def at(self) -> tuple[int, int]:
        """The blocks that the device holds before and after the edge's."""
        return self.cut_layer, self.tail_layers


@dataclass(frozen=True, slots=True)
class Why:
    """What a decision rests on.

    `seconds` and `bound` are of a round, `parts` are those of the device that it waits for. `score`
    is what the planner makes small, `staying` that of the present cuts, and `runner_up_score` that
    of the best other plan that was looked at. `gain` is the share of `staying` that is saved, and
    `needed` the share from which on a move pays. `moving_seconds` pass once.
    """

    seconds: float = 0.0
    bound: float = 0.0
    slowest: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    joules: float = 0.0
    energy_source: str = "modelled"
    score: float = 0.0
    staying: float | None = None
    runner_up: str = ""
    runner_up_score: float | None = None
    gain: float = 0.0
    needed: float = 0.0
    moving_seconds: float = 0.0
    moved: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    """Devices that would have moved, for less than a move costs."""
    note: str = ""

    def __str__(self) -> str:
        """One line of a log."""
        parts = ", ".join(f"{name} {seconds:.3g}" for name, seconds in self.parts.items())
        line = f"a round of {self.seconds:.3g} s; {self.slowest} is the slowest ({parts})"
        if self.moved:
            line += f"; moves {', '.join(self.moved)}: gains {self.gain:.0%}"
            line += f", costs {self.moving_seconds:.3g} s once"
        if self.kept:
            line += f"; leaves {', '.join(self.kept)}: a move gains too little"
        return line + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True, slots=True)
class Decision:
    """A plan of all devices from `round` on. `order` names them as an edge best serves them.

    `memory` is what the planner is told the next time.
    """

    round: int
    policy: str
    devices: Mapping[str, Choice]
    order: tuple[str, ...] = ()
    memory: Memory = field(default_factory=dict)
    why: Why = Why()

    def as_json(self) -> str:
        """One line, without what is as usual."""
        return _adapter().dump_json(self, exclude_defaults=True).decode()

    @staticmethod
    def from_json(line: str | bytes) -> Decision:
        """The same back. Raises pydantic's ValidationError, a ValueError, for anything else."""
        return _adapter().validate_json(line)


@cache
def _adapter() -> TypeAdapter[Decision]:
    from pydantic import TypeAdapter

    return TypeAdapter(Decision)
