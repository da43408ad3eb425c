"""What a side trains: its part of the adapter, and the optimizer that has its moments."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from sfl.adapters.lora import Adapter
from sfl.config import RunSettings
from sfl.rounds.values import Point
from sfl.stage.base import begin_adapter
from sfl.stage.optimizer import NO_MOMENTS, Optimizer
from sfl.stage.remembered import GoOn, Within


class Trained:
    """An adapter with its optimizer; both can give up their memory and take it back."""

    def __init__(
        self,
        adapter: Adapter,
        settings: RunSettings,
        moments: Mapping[str, torch.Tensor] = NO_MOMENTS,
    ) -> None:
        """`moments` are an earlier optimizer's, by name; those of other parameters are left."""
        self.adapter = adapter
        self.optimizer = Optimizer(adapter.trained, settings.training, settings.aggregation)
        self.optimizer.adopt(moments)
        self._settings = settings

    def begin_round(self, values: Mapping[str, np.ndarray], round_: int) -> None:
        """Take the global adapter's part; moments stay where they mean the same."""
        begin_adapter(self.adapter, values, self._settings, round_)
        self.optimizer.begin_round()

    def resume(self, go_on: GoOn) -> None:
        """Be, within a round, where another one was after some of its steps."""
        self.adapter.load(go_on.values)
        self.optimizer.adopt(go_on.moments or NO_MOMENTS)

    def within(self, point: Point) -> Within:
        """What another one needs for that; a copy."""
        values = {
            name: parameter.detach().to("cpu", copy=True).numpy()
            for name, parameter in self.adapter.parameters.items()
        }
        moments = {name: tensor.clone() for name, tensor in self.optimizer.moments().items()}
        return Within(point, moments, values)

    def state(self) -> dict[str, np.ndarray]:
        """The part of the adapter as it is now. Raises AdapterRefused where it diverged."""
        self.optimizer.check_finite()
        return self.adapter.state()

    @property
    def has_gradients(self) -> bool:
        """Whether a step is under way."""
        return any(p.grad is not None for p in self.adapter.parameters.values())

    def held(self) -> dict[str, torch.Tensor]:
        """Adapter, moments and anchors, each by a name of its own."""
        adapter = {f"adapter/{n}": p.detach() for n, p in self.adapter.parameters.items()}
        return adapter | {f"optimizer/{n}": t for n, t in self.optimizer.held().items()}

    def let_go(self) -> None:
        """Give up their memory; the parameters stay the objects that bank and optimizer know."""
        for parameter in self.adapter.parameters.values():
            parameter.data = parameter.data.new_empty(0)
        self.optimizer.let_go()

    def take_back(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Have them again, as `held` had them."""
        parts: dict[str, dict[str, torch.Tensor]] = {"adapter": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            kind, _, own = name.partition("/")
            parts[kind][own] = tensor
        for name, parameter in self.adapter.parameters.items():
            parameter.data = parts["adapter"][name]
        self.optimizer.take_back(parts["optimizer"])
