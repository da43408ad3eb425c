"""The base model and its adapter."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from sfl.config.base import Fraction, Section
from sfl.config.node import Dtype

Task = Literal["causal_lm", "sequence_classification"]


class ModelSettings(Section):
    """The base model, frozen, and the task."""

    path: str
    """A Hugging Face folder, or a name on the hub; safetensors only."""
    task: Task = "causal_lm"
    """What the head computes."""
    labels: tuple[str, ...] = ()
    """Class names, in order, for `sequence_classification`."""
    max_length: PositiveInt = 512
    """Longest sequence in tokens. The model's context is the upper bound."""
    dtype: Dtype = "float32"
    """Precision of the frozen weights and of the arithmetic. LoRA stays in float32. `autocast`:
    products in bfloat16 over float32 weights. `auto`: each node measures float32 against bfloat16
    once, and takes bfloat16 where it is clearly faster. The effective configuration records the
    choice."""

    @model_validator(mode="after")
    def _labels_fit_task(self) -> Self:
        if self.task == "sequence_classification" and len(self.labels) < 2:
            raise ValueError("labels: list at least two class names for sequence_classification")
        if self.task != "sequence_classification" and self.labels:
            raise ValueError(f"labels: task {self.task!r} has no classes; set task, or leave them")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: a class name is given twice")
        return self


class LoraSettings(Section):
    """The adapter: LoRA (Hu et al., 2106.09685) on both sides of the cut."""

    rank: PositiveInt = 8
    """Rank r of the global adapter. A device may have a smaller one (`devices.rank`)."""
    alpha: PositiveFloat = 16.0
    """The update is scaled by alpha / r. Here r is the rank of the adapter itself: a device's own,
    or the global one."""
    dropout: Fraction = 0.0
    """Dropout on the input of A, drawn from keyed generators."""
    target_modules: tuple[str, ...] = ()
    """Names of the linear layers that get LoRA. Empty: the family's default."""
