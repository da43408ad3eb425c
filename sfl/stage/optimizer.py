"""AdamW over one side's part of an adapter, with the run's schedule and clipping.

The update is elementwise, so two sides that step the same step number do what one process would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch

from sfl.config import AggregationSettings, TrainingSettings
from sfl.errors import AdapterRefused
from sfl.rounds.work import learning_rate_factor

__all__ = ["Optimizer", "learning_rate_factor"]

_ANCHOR = "anchor"

MOMENT_KINDS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW remembers of a parameter."""

NO_MOMENTS: Mapping[str, torch.Tensor] = MappingProxyType({})


class Optimizer:
    """AdamW (1711.05101) whose moments live as long as the session that owns it.

    What it remembers goes by the parameters' names (PEFT's), never by their order: a block that
    moves to another side takes its moments along.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        settings: TrainingSettings,
        aggregation: AggregationSettings,
    ) -> None:
        self._settings = settings
        self._aggregation = aggregation
        self._names = tuple(parameters)
        self._parameters = list(parameters.values())
        self._global: list[torch.Tensor] = []
        self._adamw = None
        if self._parameters:
            self._adamw = torch.optim.AdamW(
                self._parameters,
                lr=settings.learning_rate,
                betas=settings.betas,
                eps=settings.eps,
                weight_decay=settings.weight_decay,
            )

    @property
    def clips(self) -> bool:
        """Whether both sides exchange norms before they step."""
        return self._settings.max_grad_norm is not None

    def begin_round(self) -> None:
        """The parameters hold the round's global adapter now."""
        if self._aggregation.proximal:
            self._global = [p.detach().clone() for p in self._parameters]
        if self._aggregation.traits.changes_basis and self._adamw is not None:
            # Moments belong to components that the adapter no longer has.
            self._adamw.state.clear()

    def pull(self) -> None:
        """Add the proximal term's gradient, `mu (w - w_global)` (FedProx, 1812.06127, eq. 2).

        Elementwise, and before clipping: it is part of what is minimised.
        """
        if not self._global:
            return
        mu = self._aggregation.proximal
        for parameter, anchor in zip(self._parameters, self._global, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - anchor, alpha=mu)

    def squared_norm(self) -> float:
        """Squared L2 norm of this side's gradients, in float64. Raises AdapterRefused."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        squared = sum(float(g.double().square().sum()) for g in gradients)
        if not math.isfinite(squared):
            raise AdapterRefused(f"the squared norm of the gradients is {squared}")
        return squared

    def clip(self, squared_norm_of_both: float) -> None:
        """Scale gradients so that the norm over both sides is at most `max_grad_norm`."""
        limit = self._settings.max_grad_norm
        assert limit is not None
        coefficient = min(1.0, limit / (math.sqrt(squared_norm_of_both) + 1e-6))
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(coefficient)

    def step(self, step: int, total_steps: int) -> None:
        """Apply the gradients of `step` (counted over the run), and clear them."""
        if self._adamw is None:
            return
        factor = learning_rate_factor(self._settings, step, total_steps)
        for group in self._adamw.param_groups:
            group["lr"] = self._settings.learning_rate * factor
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)

    def forget(self) -> None:
        """Clear the gradients of a step that was only rehearsed."""
        for parameter in self._parameters:
            parameter.grad = None

    def held(self) -> dict[str, torch.Tensor]:
        """All that it remembers, as `NAME:exp_avg` and the like; no gradients."""
        anchors = zip(self._names, self._global, strict=bool(self._global))
        tensors = {f"{name}:{_ANCHOR}": anchor for name, anchor in anchors}
        state = {} if self._adamw is None else self._adamw.state
        for name, parameter in zip(self._names, self._parameters, strict=True):
            tensors |= {f"{name}:{key}": value for key, value in state.get(parameter, {}).items()}
        return tensors

    def moments(self) -> dict[str, torch.Tensor]:
        """All of it that the next round goes on from."""
        return {n: t for n, t in self.held().items() if not n.endswith(f":{_ANCHOR}")}

    def let_go(self) -> None:
        """Give up the memory of what `held` has."""
        self._global = []
        if self._adamw is not None:
            self._adamw.state.clear()

    def take_back(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Remember what `held` had, here or of another side; what is not of these parameters stays
        where it is."""
        own = dict(zip(self._names, self._parameters, strict=True))
        for called, tensor in tensors.items():
            name, _, key = called.rpartition(":")
            if key != _ANCHOR and name in own:
                assert self._adamw is not None
                self._adamw.state[own[name]][key] = tensor
        anchors = [tensors.get(f"{name}:{_ANCHOR}") for name in self._names]
        self._global = [anchor for anchor in anchors if anchor is not None]

    def adopt(self, moments: Mapping[str, torch.Tensor]) -> None:
        """Go on from moments that another optimizer `held`, of this side or of one that handed a
        block over. Those of other parameters, or of another rank, are left."""
        own = dict(zip(self._names, self._parameters, strict=True))
        for called, tensor in moments.items():
            name, _, key = called.rpartition(":")
            if key == _ANCHOR or name not in own or not _fits(moments, name, own[name]):
                continue
            assert self._adamw is not None
            home = tensor.device if key == "step" else own[name].device
            self._adamw.state[own[name]][key] = tensor.to(home, copy=True)

    def check_finite(self) -> None:
        """Raise AdapterRefused where training has diverged: a parameter is NaN or infinite."""
        if not all(bool(torch.isfinite(p).all()) for p in self._parameters):
            raise AdapterRefused(
                "the adapter is no longer finite: training diverged; "
                "lower training.learning_rate or set training.max_grad_norm"
            )


def _fits(moments: Mapping[str, torch.Tensor], name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether a parameter's moments are all there, and have its shape."""
    own = [moments.get(f"{name}:{kind}") for kind in MOMENT_KINDS]
    *both, step = own
    return step is not None and all(m is not None and m.shape == parameter.shape for m in both)
