"""Coding gradients on an accelerator, against copying them to the CPU and coding them there.

    python benchmarks/codec_accelerator.py                                # on a machine with CUDA
    python benchmarks/codec_accelerator.py --device cpu --shape 2x64x96   # only tries the script

The rows are a gradient of `--shape`, sequences x tokens x hidden, of random values. Both ways begin
with rows that lie on the device, and end with a packet in the CPU's memory. They take turns, A B A
B, and the device is waited for before each reading of the clock. Bytes copied are counted in one
repetition more. Decoding has one way: on the CPU, then a copy to the device.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sfl.codec.kernel import kernel
from sfl.codec.packet import Packet
from sfl.codec.pipeline import Decoder, Encoder, parse
from sfl.node.process import keep_heap
from sfl.stage.threads import compute_here

SPECS = (
    "none",
    "fp16",
    "int8",
    "int(4)",
    "int8 | zstd",
    "int8 | rans",
    "uniform(0.5) | rans",
    "topk(0.1) | int(4)",
    "topk(0.1, row) | int(4)",
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WARM = 3
MB = 1e6
aten = torch.ops.aten


class Copied(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts bytes that go from an accelerator to the CPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what `func` copies, and do it."""
        result = func(*args, **(kwargs or {}))
        source = args[1] if func is aten.copy_.default else args[0] if args else None
        if isinstance(source, torch.Tensor) and not source.is_cpu:
            if func is aten._local_scalar_dense.default:
                self.bytes += source.element_size()
            elif isinstance(result, torch.Tensor) and result.is_cpu:
                self.bytes += source.numel() * source.element_size()
        return result


@dataclass(slots=True)
class Way:
    """One way to a packet: its name, what it does, and milliseconds of each repetition."""

    name: str
    encode: Callable[[int], Packet]
    times: list[float] = field(default_factory=list)


def wait(device: str) -> None:
    """Until the device has computed what it was given."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def timed(device: str, work: Callable[[], object]) -> float:
    """Milliseconds."""
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return 1e3 * (time.perf_counter() - began)


def ways(spec: str, rows: torch.Tensor, groups: tuple[int, ...]) -> list[Way]:
    """Where the rows are, and where the CPU is."""
    there, here = Encoder(parse(spec)), Encoder(parse(spec))
    return [
        Way("there", lambda key: there.encode(rows, key, groups)),
        Way("copied", lambda key: here.encode(rows.cpu(), key, groups)),
    ]


def copied(way: Way) -> int:
    """Bytes that one packet takes from the device."""
    with Copied() as mode:
        way.encode(0)
    return int(mode.bytes)


def measure(spec: str, rows: torch.Tensor, groups: tuple[int, ...], given: Any) -> None:
    """One codec's line."""
    both = ways(spec, rows, groups)
    for turn in range(WARM + given.repeats):
        for way in both:
            took = timed(given.device, lambda way=way, turn=turn: way.encode(turn))  # type: ignore[misc]
            if turn >= WARM:
                way.times.append(took)
    packet = both[0].encode(0)
    decoder, shape = Decoder(), (len(rows), rows.shape[1])
    back = [
        timed(given.device, lambda: decoder.decode(packet, shape).to(given.device))
        for _ in range(WARM + given.repeats)
    ][WARM:]
    there, here = (median(way.times) for way in both)
    print(
        f"  {spec:26} {there:8.2f} {here:8.2f} {here / there:6.2f}x"
        f" {copied(both[0]) / MB:9.2f} {copied(both[1]) / MB:9.2f}"
        f" {len(packet.payload) / MB:9.2f} {median(back):9.2f}",
        flush=True,
    )


def main() -> None:
    """A table for each type of the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", default="8x512x2048", help="sequences x tokens x hidden")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--specs", nargs="+", default=list(SPECS))
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    given = parser.parse_args()
    keep_heap()  # as an edge does: memory that is freed is used again
    compute_here(given.threads)
    name = platform.processor() or platform.machine()
    if given.device != "cpu":
        name = f"{torch.cuda.get_device_name(given.device)}, CUDA {torch.version.cuda}"
    sequences, length, hidden = map(int, given.shape.split("x"))
    for dtype in given.dtypes:
        torch.manual_seed(0)
        rows = torch.randn(sequences * length, hidden).to(given.device, DTYPES[dtype]) * 1e-3
        print(
            f"\n{dtype} {given.shape} on {name}, torch {torch.__version__}; on the CPU "
            f"{given.threads} threads and the {kernel().name} kernel; ms and MB, "
            f"medians of {given.repeats}"
        )
        print(
            f"  {'codec':26} {'there':>8} {'copied':>8} {'gain':>7} {'MB there':>9} {'copied':>9}"
            f" {'packet':>9} {'decode':>9}"
        )
        for spec in given.specs:
            measure(spec, rows, (length,) * sequences, given)


if __name__ == "__main__":
    main()
