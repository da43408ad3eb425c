"""transformers' model code, imported without what only compiling and distributed training need.

A modeling file of transformers 5 pulls in torch's compiler (`torch._dynamo`), sympy and
`torch.distributed.tensor`, to mark functions that a compiler should leave alone and to ask tensors
whether they are distributed: 77 MB resident, of 119 MB, and most of the time. Nothing is rewritten
here. In a process that has called `leave_out_compiler`, torch answers while the file is imported
that it was built without its distributed package, as some builds for small machines are; and the
compiler's place is taken by a module that leaves marked functions as they are, and makes room for
the real one when anything else of it is asked for. A node never compiles.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

import torch
import torch.distributed

COMPILER = "torch._dynamo"
SMALL_PARTS = ("config",)
"""Modules of the compiler that eager code reads, and that load without the rest."""


def import_modeling(package: str) -> ModuleType:
    """`transformers.models.PACKAGE.modeling_PACKAGE`."""
    lean = isinstance(sys.modules.get(COMPILER), _NoCompiler)
    with _not_distributed() if lean else nullcontext():
        return importlib.import_module(f"transformers.models.{package}.modeling_{package}")


@contextmanager
def _not_distributed() -> Iterator[None]:
    available = torch.distributed.is_available
    torch.distributed.is_available = _is_not_available
    try:
        yield
    finally:
        torch.distributed.is_available = available


def _is_not_available() -> bool:
    return False


def leave_out_compiler() -> None:
    """Let this process do without torch's compiler, where nobody has loaded it yet."""
    if COMPILER in sys.modules:
        return
    spec = importlib.util.find_spec(COMPILER)
    if spec is None or spec.submodule_search_locations is None:
        return  # a torch that has it elsewhere: nothing is saved, nothing breaks
    stand_in: Any = _NoCompiler(COMPILER)
    stand_in.__spec__, stand_in.__file__ = spec, spec.origin
    stand_in.__path__ = list(spec.submodule_search_locations)
    sys.modules[COMPILER] = stand_in
    torch._dynamo = stand_in


class _NoCompiler(ModuleType):
    """Functions that are kept from a compiler that is not there are what they were."""

    def disable(
        self,
        fn: Callable[..., Any] | None = None,
        recursive: bool = True,
        *,
        reason: str | None = None,
        wrapping: bool = True,
    ) -> Callable[..., Any]:
        return _as_it_is if fn is None else fn

    def assume_constant_result(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return fn

    def allow_in_graph(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return fn

    def graph_break(self, msg: str = "") -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name in SMALL_PARTS:
            return importlib.import_module(f"{COMPILER}.{name}")
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
        return getattr(importlib.import_module(COMPILER), name)


def _as_it_is(fn: Callable[..., Any]) -> Callable[..., Any]:
    return fn
