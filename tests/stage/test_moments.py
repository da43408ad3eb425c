"""AdamW's moments go by the parameters' names: a block that changes sides takes them along."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from sfl.config import AggregationSettings, TrainingSettings
from sfl.stage.optimizer import Optimizer

NAMES = ("layers.0.B", "layers.1.B", "layers.2.B", "layers.3.B")
TRAINING = TrainingSettings(weight_decay=0.01)


def gradient(name: str, step: int) -> torch.Tensor:
    return torch.randn(5, generator=torch.Generator().manual_seed(10 * step + NAMES.index(name)))


def trained(cuts: Sequence[int], keep: bool = True, strategy: str = "fedavg") -> torch.Tensor:
    """What comes of one step at each of these cuts, over two sides that hand moments over."""
    values = {name: torch.ones(5) for name in NAMES}
    remembered: dict[str, torch.Tensor] = {}
    aggregation = AggregationSettings.model_validate({"strategy": strategy})
    for step, cut in enumerate(cuts):
        held: dict[str, torch.Tensor] = {}
        for own in (NAMES[:cut], NAMES[cut:]):
            parameters = {name: torch.nn.Parameter(values[name].clone()) for name in own}
            optimizer = Optimizer(parameters, TRAINING, aggregation)
            optimizer.begin_round()
            optimizer.take_back(remembered)
            for name, parameter in parameters.items():
                parameter.grad = gradient(name, step)
            optimizer.step(step, len(cuts))
            held |= optimizer.held() if keep else {}
            values |= {name: parameter.detach() for name, parameter in parameters.items()}
        remembered = held
    return torch.stack([values[name] for name in NAMES])


@pytest.mark.parametrize("cuts", [(1, 2, 3, 2, 1, 2), (0, 4, 0, 4, 0, 4), (3, 3, 1, 1, 2, 2)])
def test_any_sequence_of_cuts_gives_the_fixed_runs_bits(cuts: tuple[int, ...]) -> None:
    fixed = trained((2,) * len(cuts))
    assert torch.equal(trained(cuts), fixed)
    assert not torch.allclose(trained(cuts, keep=False), fixed)


def test_names_tell_what_is_remembered_of_whom() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    proximal = AggregationSettings(strategy="fedprox")
    optimizer = Optimizer({"base.layers.0.lora_A.weight": weight}, TRAINING, proximal)
    optimizer.begin_round()
    weight.grad = torch.ones(2)
    optimizer.step(0, 1)
    assert set(optimizer.held()) == {
        f"base.layers.0.lora_A.weight:{what}"
        for what in ("exp_avg", "exp_avg_sq", "step", "anchor")
    }
