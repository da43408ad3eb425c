"""How far a student's distribution is from its teacher's: one function and one line each.

All take log-probabilities `[m, V]` in float32 and give the sum over the m rows, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from sfl.config.distil import Divergence

Measure = Callable[[Tensor, Tensor], Tensor]
"""Of a student's log-probabilities, from its teacher's."""


def forward(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student): the student is to cover all that the teacher would say."""
    return kl_div(student, teacher, reduction="sum", log_target=True)


def reverse(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(student || teacher): the student is to say nothing that the teacher would not."""
    return kl_div(teacher, student, reduction="sum", log_target=True)


def jensen_shannon(weight: float, student: Tensor, teacher: Tensor) -> Tensor:
    """Both against their mixture, where the teacher has this weight (2306.13649, section 2)."""
    mixed = torch.logaddexp(teacher + math.log(weight), student + math.log1p(-weight))
    return weight * forward(mixed, teacher) + (1.0 - weight) * forward(mixed, student)


def measure_of(divergence: Divergence) -> Measure:
    """The function that settings name."""
    plain = {"forward": forward, "reverse": reverse}
    return plain.get(divergence.kind, partial(jensen_shannon, divergence.weight))
