"""How one node holds the frozen base and computes with it, settled once before it is loaded."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from sfl.adapters.lora import Adapter
from sfl.config import EdgeConfig, LocalDevice, ModelSettings, RunSettings
from sfl.config.folding import GIVE_FLOAT32, NEEDS_FLOAT32, cannot_fold
from sfl.config.node import Dtype, Quantised
from sfl.errors import ConfigError
from sfl.models.memory.footprint import logit_bytes, piece_rows
from sfl.models.placement import lay_out
from sfl.models.quantised import check_quantised, first_that_runs
from sfl.models.span import SpanModel
from sfl.stage.precision import fastest_dtype

log = logging.getLogger(__name__)


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


def settle(
    own: EdgeConfig | LocalDevice, model: ModelSettings, threads: int, folds: bool = False
) -> BaseForm:
    """A node's own settings, or the run's; `auto` measured with `threads`, or tried.

    Raises ConfigError where this machine does not have the device, where the quantisation that was
    asked for does not run there, and where the run `folds` sums into a base that cannot take them.
    """
    section = "edge" if isinstance(own, EdgeConfig) else "device"
    if folds and (field := cannot_fold(own)):
        fix = f"U{GIVE_FLOAT32[1:]}."
        raise ConfigError(f"{section}.{field}", getattr(own, field), NEEDS_FLOAT32, fix)
    device = "cpu"
    if isinstance(own, EdgeConfig):
        check_devices(own)
        device = own.devices[0]
    form = BaseForm(decided(own.dtype or model.dtype, threads, device))
    if own.quantised != "auto":
        check_quantised(f"{section}.quantised", own.quantised, form.weights, device)
        return replace(form, quantised=own.quantised)
    if folds:
        return form
    found, why = first_that_runs(form.weights, device)
    if why:
        log.warning("%s.quantised auto is %s here: %s", section, found, why)
    return replace(form, quantised=found)


@cache
def decided(dtype: Dtype, threads: int, device: str = "cpu") -> Dtype:
    """`dtype`, or what was measured to be faster on `device`; measured once in a process."""
    return fastest_dtype(threads, device).dtype if dtype == "auto" else dtype


def begin_adapter(
    adapter: Adapter, values: Mapping[str, np.ndarray], settings: RunSettings, round_: int
) -> None:
    """Load what a round begins with: all of it from `values`, or LoRA made anew over what was
    folded into the base. Raises ProtocolError where values do not fit."""
    if settings.aggregation.traits.folds:
        adapter.start_afresh(values, settings.run.seed, round_)
    else:
        adapter.load(values)


def lay_over_devices(model: SpanModel, own: EdgeConfig) -> None:
    """Move an edge's blocks to `edge.device`, by the memory that is free there now.

    The last one keeps room for the head and for logits of a piece, the least that a loss takes.
    """
    if own.devices == ("cpu",):
        return
    free = [torch.cuda.mem_get_info(device)[0] for device in own.devices]
    blocks, after = model.held_bytes()
    if model.span.head and model.task == "causal_lm":
        rows = piece_rows(model.vocab_size)
        after += logit_bytes(rows, model.vocab_size, model.hidden_size, model.autocast)
    model.lay_over(lay_out(model.span, own.devices, free, blocks, after))


def check_devices(own: EdgeConfig) -> None:
    """Raise ConfigError for a device that this machine does not have."""
    if own.devices == ("cpu",):
        return
    known = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device in own.devices:
        if torch.device(device).index >= known:
            have = ", ".join(f"cuda:{index}" for index in range(known)) or "none on CUDA"
            raise ConfigError(
                "edge.device",
                device,
                f"this machine has no such device (it has: {have})",
                'Name one that `sfl doctor` shows, or use "cpu".',
            )


if __name__ == "__main__":
    # For a process without torch, what `auto` comes to on a device: of dtype, with so many threads;
    # of quantised, beside that dtype.
    question, given, where = sys.argv[1:]
    try:
        check_devices(EdgeConfig(device=where))
    except ConfigError as missing:
        sys.exit(str(missing))
    if question == "dtype":
        sys.stdout.write(f"{decided('auto', int(given), where)}\n")
    else:
        weights = torch.bfloat16 if given == "bfloat16" else torch.float32
        found, why = first_that_runs(weights, where)
        sys.stdout.write(f"{found}\n")
        sys.stderr.write(why)
