"""A stand-in for an accelerator, where there is none: its own memory as far as torch can tell.

A tensor here cannot be read by numpy, nor be mixed with the CPU's, and what is copied to the CPU is
counted. It computes with the CPU's kernels, so it shows where work is done, not what CUDA's
arithmetic gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
aten = torch.ops.aten
_COPIES = {aten._to_copy.default, aten.copy_.default}
_INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}


class OffHost(torch.Tensor):
    """A tensor of the accelerator; `memory` is what it stands for."""

    memory: torch.Tensor

    @staticmethod
    def __new__(cls, memory: torch.Tensor) -> OffHost:
        whole = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            memory.size(),
            strides=memory.stride(),
            storage_offset=memory.storage_offset(),
            dtype=memory.dtype,
            device=DEVICE,
            requires_grad=memory.requires_grad,
        )
        whole.memory = memory
        return whole  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} reached the accelerator while it was switched off")


class StandIn(TorchDispatchMode):
    """The accelerator while it is switched on; `copied` counts bytes to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.copied = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        away = [x for x in tensors if isinstance(x, OffHost)]
        target = kwargs.get("device")
        inside = bool(away) if target is None else torch.device(target).type == DEVICE.type
        if away and func not in _COPIES:
            # Places may lie on the CPU; what is looked up or put there may not.
            mixed = [args[0], *args[2:]] if func in _INDEXING else tensors
            strangers = [
                x
                for x in mixed
                if isinstance(x, torch.Tensor) and not isinstance(x, OffHost) and x.dim() > 0
            ]
            assert not strangers, f"{func} mixes the accelerator's tensors with the CPU's"
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        if func is aten._to_copy.default and away and not inside:
            self.copied += away[0].memory.numel() * away[0].memory.element_size()
        if func is aten.copy_.default and not isinstance(args[0], OffHost) and away:
            self.copied += away[0].memory.numel() * away[0].memory.element_size()
            inside = False
        result = func(*tree_map(_memory, args), **tree_map(_memory, kwargs))
        if not inside:
            return result
        known = {id(x.memory): x for x in away}  # what is done in place stays the object it was
        return tree_map(lambda x: known[id(x)] if id(x) in known else _wrapped(x), result)


def _wrapped(x: Any) -> Any:
    return OffHost(x) if isinstance(x, torch.Tensor) else x


def _memory(x: Any) -> Any:
    return x.memory if isinstance(x, OffHost) else x


@contextmanager
def accelerator() -> Iterator[StandIn]:
    """Switch the stand-in on."""
    with patch("torch.is_autocast_enabled", return_value=False), StandIn() as mode:
        yield mode
