"""Activation functions that torch has in one piece, in place of ones made of many.

GPT-2's `gelu_new` is five elementwise steps in transformers, four of them kept for the backward;
torch's tanh GELU is the same function in one, equal to rounding.
"""

from __future__ import annotations

from torch import nn


def fuse_activations(model: nn.Module) -> None:
    """Replace every `NewGELUActivation` of the model."""
    # Loaded with the model's own code by now.
    from transformers.activations import NewGELUActivation

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
