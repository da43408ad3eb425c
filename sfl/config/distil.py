"""A larger model on the edge that teaches the one that is trained (docs/distillation.md)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from sfl.config.base import Section
from sfl.config.node import Quantised
from sfl.config.size import Size
from sfl.plan import TIERED, U_SHAPED

if TYPE_CHECKING:
    from sfl.config.sections import RunSections

_DIVERGENCE = re.compile(r"(forward|reverse)|jsd:(0?\.\d+)")
_INPUT = re.compile(r"ids|blocks:(\d{1,4})")
LIKELIEST = 64
"""Tokens of a teacher that a device is told, unless settings say otherwise."""
EXACT_IDS = 1 << 24
"""Token ids below this are exact as float32."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far a student's distribution is from its teacher's.

    `forward`: KL(teacher || student). `reverse`: KL(student || teacher). `jsd`: the generalised
    Jensen-Shannon divergence, where the teacher has `weight` in the mixture (2306.13649, 2).
    """

    kind: Literal["forward", "reverse", "jsd"]
    weight: float = 0.5


class DistilSettings(Section):
    """A larger model on the edge that teaches the one that is trained (docs/distillation.md)."""

    teacher: str = ""
    """Folder or hub name of the larger model, on the edge. Its tokenizer is the model's own. Empty:
    nothing is distilled."""
    quantised: Quantised = "none"
    """Hold the teacher's linear layers in `nf4` or `int8`. Needs the extra `quantised`."""
    input: str = "ids"
    """What a device sends for the teacher. `ids`: its token ids, in the clear. `blocks:N`: the
    device holds the teacher's embedding and first N blocks, and sends what comes of them. Both
    reveal its texts (docs/privacy.md)."""
    alpha: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """What the teacher counts in the loss: `alpha T^2 D + (1 - alpha) cross-entropy`."""
    temperature: PositiveFloat = 2.0
    """T: logits of both are divided by it before they are compared."""
    divergence: str = "forward"
    """D. `forward`: KL(teacher || student). `reverse`: KL(student || teacher). `jsd:WEIGHT`: the
    generalised Jensen-Shannon divergence, such as `jsd:0.5`."""
    cache: Size | None = None
    """Keep the teacher's last hidden states on the edge's disk, in 8 bits, in at most so many
    bytes, such as `2GB`. Later epochs then need no teacher. It changes what the teacher says a
    little, in the first epoch too. Default: nothing is kept."""
    codec: str = "none"
    """`blocks:N`: what the teacher's hidden states are coded with on their way to the edge."""
    topk: PositiveInt | None = None
    """U-shaped, where the device computes the loss: how many of the teacher's likeliest tokens it
    is told at each position. The others count as one. Default: 64."""

    @property
    def is_on(self) -> bool:
        """Whether there is a teacher."""
        return bool(self.teacher)

    @property
    def likeliest(self) -> int:
        """`topk`, filled in."""
        return self.topk or LIKELIEST

    @property
    def blocks(self) -> int | None:
        """The teacher's blocks on a device; None where devices send token ids."""
        found = _INPUT.fullmatch(self.input)
        assert found is not None, "validated"
        return None if found[1] is None else int(found[1])

    @property
    def measure(self) -> Divergence:
        """`divergence`, parsed."""
        found = _DIVERGENCE.fullmatch(self.divergence)
        assert found is not None, "validated"
        if found[1] is not None:
            return Divergence("forward" if found[1] == "forward" else "reverse")
        return Divergence("jsd", float(found[2]))

    @field_validator("divergence")
    @classmethod
    def _divergence_is_known(cls, text: str) -> str:
        found = _DIVERGENCE.fullmatch(text)
        if found is None or (found[2] is not None and not 0.0 < float(found[2]) < 1.0):
            raise ValueError(
                f"{text!r} is no divergence; use forward, reverse, or jsd: with a weight between 0 "
                "and 1, such as jsd:0.5"
            )
        return text

    @field_validator("input")
    @classmethod
    def _input_is_known(cls, text: str) -> str:
        if _INPUT.fullmatch(text) is None:
            raise ValueError(
                f"{text!r} is nothing to send for a teacher; use ids, or blocks: with a number, "
                "such as blocks:1"
            )
        return text


def distil_problem(run: RunSections) -> Iterator[str]:
    """What does not go with a teacher; nothing where all does."""
    if not run.distil.is_on:
        given = [name for name, value in DistilSettings() if getattr(run.distil, name) != value]
        for name in given:
            yield f"distil.{name}: there is no teacher; set distil.teacher, or leave it out"
        return
    if run.distil.blocks is None and run.distil.codec != "none":
        yield "distil.codec: token ids are not coded; leave it out, or use distil.input"
    if run.run.topology not in U_SHAPED and run.distil.topk is not None:
        yield (
            f"distil.topk: in topology {run.run.topology} the loss is at the edge, which has all "
            "of what the teacher says; leave it out"
        )
    if run.run.topology in TIERED:
        yield (
            f"distil.teacher: topology {run.run.topology} has the loss behind the edge, where no "
            'teacher is; use run.topology "vanilla" or "u_shaped"'
        )
