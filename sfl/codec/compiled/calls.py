"""How Python calls the core: arguments as C takes them, threads, and what does not fit."""

from __future__ import annotations

import ctypes
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfl.errors import ProtocolError

MISFIT = 2  # what the compiled kernel returns where its arguments do not fit each other

LONG = ctypes.c_int64
INT = ctypes.c_int32


class Core:
    """What the passes share: the loaded library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._c = library


def at(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    """Where an array's values begin."""
    return ctypes.c_void_p(array.ctypes.data)


def of(values: Tensor) -> ctypes.c_void_p:
    """Where a tensor's values begin."""
    return ctypes.c_void_p(values.data_ptr())


T = TypeVar("T")


def fitting(made: T, status: int) -> T:
    """What the kernel made, where its arguments fitted each other. Raises ProtocolError."""
    if status == MISFIT:
        raise ProtocolError("lengths in a packet do not fit each other")
    return made


_process_threads: int | None = None


def use_threads(count: int) -> None:
    """The kernel works with so many threads of its own, whichever thread calls it."""
    global _process_threads
    _process_threads = count


def threads() -> ctypes.c_int32:
    """How many threads the core may take."""
    return ctypes.c_int32(_process_threads or torch.get_num_threads())
