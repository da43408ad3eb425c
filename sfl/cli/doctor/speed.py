"""How quick this machine computes and codes."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from sfl.cli.doctor.report import Check
from sfl.codec.kernel import kernel
from sfl.codec.pipeline import decode, parse
from sfl.stage.precision import fastest_dtype
from sfl.stage.threads import compute_here

ROWS, WIDTH = 1024, 768
SPECS = {"compiled": "stochastic(4) | rans", "torch": "stochastic(4) | zstd"}
"""What a run uses: entropy codes are quick in C alone."""
RUNS = 5


def check_precision(threads: int, device: str = "cpu") -> Check:
    """Both precisions, and which one to use."""
    found = fastest_dtype(threads, device)
    return Check(
        "precision" if device == "cpu" else f"precision on {device}",
        "ok",
        f"float32 {found.float32_gflops:.3g} GFLOP/s, bfloat16 {found.bfloat16_gflops:.3g}; use "
        f'model.dtype = "{found.dtype}"',
        figures={
            "float32_gflops": found.float32_gflops,
            "bfloat16_gflops": found.bfloat16_gflops,
            "threads": found.threads,
            "device": device,
            "dtype": found.dtype,
        },
    )


def check_codec(threads: int) -> Check:
    """The codec's kernel, and its speed on one tensor."""
    compute_here(threads)
    compiled, spec = kernel().name == "compiled", SPECS[kernel().name]
    codec = parse(spec)
    rows = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    packet = codec.encode(rows)
    there, back = _best(lambda: codec.encode(rows)), _best(lambda: decode(packet))
    megabytes = rows.numel() * 4 / 1e6
    return Check(
        "codec",
        "ok" if compiled else "warning",
        f"{'compiled kernel' if compiled else 'torch does the work of the compiled kernel'}: "
        f"[{ROWS}, {WIDTH}] as {spec!r} coded at {megabytes / there:,.0f} MB/s, decoded at "
        f"{megabytes / back:,.0f} MB/s",
        "" if compiled else "Install a C compiler, then: pip install --force-reinstall sfl.",
        {
            "kernel": kernel().name,
            "spec": spec,
            "encode_seconds": there,
            "decode_seconds": back,
            "tensor_bytes": rows.numel() * 4,
        },
    )


def _best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
