"""Local optimisation: batches, steps and the optimizer."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from sfl.config.base import Fraction, Section


class TrainingSettings(Section):
    """Local optimisation. Device and edge use AdamW, and keep its moments over rounds."""

    batch_size: PositiveInt = 8
    """Sequences of one optimizer step."""
    computation: Literal["auto", "reference", "lean"] = "auto"
    """How a batch is computed. `reference`: the same as an unsplit transformers loop, bit for bit,
    with padded batches and logits at every position. `lean`: only what counts is computed. It is
    faster and smaller, and equal to rounding. `auto`: `reference` where no codec of the run changes
    a bit, otherwise `lean`."""
    micro_batches: PositiveInt | Literal["auto"] = 1
    """Micro-batches of one step. With more than one, device, link and edge work at the same time.
    `auto`: before the first round every device rehearses a few steps with 1, 2, 4, ... of them. The
    number that suits the slowest device is written into the effective configuration."""
    local_steps: PositiveInt | None = None
    """Optimizer steps in a round. Use this or `local_epochs`, not both."""
    local_epochs: PositiveInt | None = None
    """Passes over a device's data in a round. Default: one."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of AdamW."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    eps: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the learning rate over all steps of the run, after the warmup."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises linearly from 0."""
    max_grad_norm: PositiveFloat | None = None
    """Clip the gradient's norm over device and edge together. Off by default."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.local_steps is not None and self.local_epochs is not None:
            raise ValueError("local_steps: give it or local_epochs, not both")
        return self

    @model_validator(mode="after")
    def _micro_batches_fit(self) -> Self:
        if self.micro_batches != "auto" and self.micro_batches > self.batch_size:
            raise ValueError(f"micro_batches: at most batch_size ({self.batch_size})")
        return self
