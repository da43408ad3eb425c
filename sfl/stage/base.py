"""How one node holds the frozen base and computes with it, settled once before it is loaded."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache

import torch

from sfl.config import EdgeConfig, LocalDevice, ModelSettings
from sfl.config.node import Dtype, Quantised
from sfl.models.quantised import check_quantised
from sfl.stage.precision import fastest_dtype


@dataclass(frozen=True, slots=True)
class BaseForm:
    """Never `auto`. `quantised` is about the linear layers of the blocks only."""

    dtype: Dtype = "float32"
    quantised: Quantised = "none"

    @property
    def weights(self) -> torch.dtype:
        """What weights that are not quantised are held in, and hidden states travel in."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

    @property
    def autocast(self) -> bool:
        """Whether products are taken in bfloat16 over float32 weights."""
        return self.dtype == "autocast"


def settle(own: EdgeConfig | LocalDevice, model: ModelSettings, threads: int) -> BaseForm:
    """A node's own settings, or the run's; `auto` measured with `threads`.

    Raises ConfigError where the quantisation that was asked for does not run on this machine.
    """
    form = BaseForm(decided(own.dtype or model.dtype, threads), own.quantised)
    section = "edge" if isinstance(own, EdgeConfig) else "device"
    check_quantised(f"{section}.quantised", form.quantised, form.weights)
    return form


@cache
def decided(dtype: Dtype, threads: int) -> Dtype:
    """`dtype`, or what was measured to be faster; measured once in a process."""
    return fastest_dtype(threads).dtype if dtype == "auto" else dtype


if __name__ == "__main__":
    # What `auto` comes to, a line for each number of threads: for a process without torch.
    for count in sys.argv[1:]:
        sys.stdout.write(f"{decided('auto', int(count))}\n")
