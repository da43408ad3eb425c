"""Which linear layers of a model get LoRA, and how PEFT is told the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from sfl.errors import ConfigError
from sfl.models.families.family import Layout
from sfl.models.layers import ends_in
from sfl.models.quantised import QuantisedLinear

FIELD = "lora.target_modules"


@dataclass(frozen=True, slots=True)
class Target:
    """A linear layer, by its module name: `num_inputs` to `num_outputs` features."""

    name: str
    module: nn.Module
    num_inputs: int
    num_outputs: int


def find_targets(model: nn.Module, layout: Layout, names: Sequence[str]) -> list[Target]:
    """The linear layers within blocks whose path ends in one of `names`, as PEFT matches them."""
    return [
        target
        for name, module in model.named_modules()
        if name.startswith(f"{layout.blocks}.") and ends_in(name, names)
        if (target := _target(name, module)) is not None
    ]


def check_targets(model: nn.Module, layout: Layout, names: Sequence[str]) -> None:
    """Raise ConfigError, naming what exists, for a name that matches no linear layer."""
    linear = {
        name
        for name, module in model.named_modules()
        if name.startswith(f"{layout.blocks}.") and _target(name, module) is not None
    }
    for wanted in names:
        if not any(ends_in(name, [wanted]) for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise ConfigError(
                FIELD,
                wanted,
                "no linear layer of the model's blocks has this name",
                f"Choose from {', '.join(known)}.",
            )


def peft_selector(model: nn.Module, layout: Layout, names: Sequence[str]) -> list[str] | str:
    """`target_modules` of an adapter_config.json that selects exactly `find_targets`.

    A list where names suffice; where they match outside of the blocks too (BERT's `dense` is in
    the pooler as well), the regular expression of their full paths.
    """
    everywhere = [name for name, _ in model.named_modules() if ends_in(name, names)]
    if len(everywhere) == len(find_targets(model, layout, names)):
        return sorted(names)
    ends = "|".join(re.escape(name) for name in sorted(names))
    return rf"{re.escape(layout.blocks)}\.\d+\.(?:.+\.)?(?:{ends})"


def uses_transposed_weights(targets: Iterable[Target]) -> bool:
    """Whether the layers store [in, out], which PEFT calls fan_in_fan_out."""
    return any(isinstance(target.module, Conv1D) for target in targets)


def _target(name: str, module: nn.Module) -> Target | None:
    if isinstance(module, nn.Linear | QuantisedLinear):
        return Target(name, module, module.in_features, module.out_features)
    if isinstance(module, Conv1D):
        num_inputs, num_outputs = module.weight.shape
        return Target(name, module, num_inputs, num_outputs)
    return None
