"""Which precision a machine is faster in, measured and never guessed from its name."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch

from sfl.stage.threads import compute_here

TOKENS, WIDTH = 256, 768
"""Shape of the measured layer: rows of a small batch, width of a GPT-2 block."""
SECONDS = 0.3
"""What each precision is measured for; where one run takes as long, that run is all."""
CLEARLY = 1.2
"""bfloat16 must be faster by this factor: LoRA and norms stay in float32 and gain nothing."""

DtypeName = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Precision:
    """Measured speeds in GFLOP/s of one device (`cpu`, `cuda:0`); 0 where it cannot do it."""

    device: str
    threads: int
    float32_gflops: float
    bfloat16_gflops: float

    @property
    def dtype(self) -> DtypeName:
        """What to compute in: bfloat16 only where it was measured clearly faster."""
        faster = self.bfloat16_gflops >= CLEARLY * self.float32_gflops
        return "bfloat16" if faster else "float32"


def fastest_dtype(threads: int, device: str = "cpu") -> Precision:
    """Measure a frozen layer's forward and input gradient in both precisions; under a second.

    The calling thread computes with `threads` cores for as long as it measures.
    """
    before = torch.get_num_threads()
    compute_here(threads)
    try:
        return Precision(
            device,
            threads,
            _gflops(torch.float32, device),
            _gflops(torch.bfloat16, device),
        )
    finally:
        compute_here(before)


def _gflops(dtype: torch.dtype, device: str) -> float:
    try:
        rows = torch.ones(TOKENS, WIDTH, dtype=dtype, device=device)
        weight = torch.full((WIDTH, WIDTH), 1e-3, dtype=dtype, device=device)
        best = _best_time(rows, weight)
    except RuntimeError:  # a device without kernels of this type
        return 0.0
    return 2 * (2 * TOKENS * WIDTH * WIDTH) / best / 1e9


def _best_time(rows: torch.Tensor, weight: torch.Tensor) -> float:
    """Seconds of the quickest run: other processes can only make one slower."""
    times: list[float] = []
    while sum(times) < SECONDS:
        _finish(rows)
        began = time.perf_counter()
        (rows @ weight.T) @ weight  # forward, and the gradient of its input
        _finish(rows)
        times.append(time.perf_counter() - began)
    return min(times)


def _finish(tensor: torch.Tensor) -> None:
    """Wait for an accelerator, which computes beside its caller."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
