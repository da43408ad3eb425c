"""Tensor to frame bytes and back, everything counted, beside the aims.

    python benchmarks/codec_speed.py      # a few seconds on a quiet machine

A float32 tensor of [8, 128, 768] (3 MiB) on two threads: encoder, packet, frames and their protobuf
envelopes as bytes, and back to a tensor of torch's own. By the compiled kernel; by the same C file
compiled here without AVX (SFL_PORTABLE), which a machine without it would run; and by torch alone.
Rows are noise around a vector for each of 1,000 tokens, so that `compact`'s delta has something to
know. Where a kernel is not compiled `compact` takes zstd for rANS, as a link to such a peer does.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sfl.codec.kernel as kernels
from benchmarks.runs import ROOT
from sfl.codec.pipeline import Codec, Decoder, Encoder, parse
from sfl.codec.transform import RowContext
from sfl.stage.messages import Key, Kind, Purpose, TensorMessage
from sfl.transport.frames.chunks import TensorAssembly
from sfl.transport.frames.envelope import Envelope, Frame
from sfl.transport.frames.tensors import decode_tensor, encode_tensor
from sfl.transport.frames.wire import EDGE_SESSION
from sfl.v1 import edge_pb2

SEQUENCES, LENGTH, HIDDEN = 8, 128, 768
TOKENS, NOISE = 1000, 0.3
THREADS = 2
WARM, REPEATS = 8, 40
TENSORS = 8
"""Different ones in turn, more than caches hold."""
AIMS = {
    ("compiled", "int8"): (0.3, 0.2),
    ("compiled", "sft"): (0.6, 0.3),
    ("no AVX", "int8"): (3.0, 2.0),
    ("no AVX", "sft"): (3.0, 2.0),
    ("torch", "sft"): (5.0, 4.0),
}
"""(Kernel, codec) -> milliseconds that encoding and decoding may take."""


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of each repetition, and bytes on the wire."""

    encode: list[float]
    decode: list[float]
    wire: float


def compile_kernel(folder: Path, *flags: str) -> Path | None:
    """`_kernel.c` with the project's own flags and these; None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module = project["tool"]["setuptools"]["ext-modules"][0]
    library = folder / "kernel.so"
    sources = [str(ROOT / source) for source in module["sources"]]
    command = [compiler, *module["extra-compile-args"], *flags, "-shared", "-fPIC"]
    subprocess.run([*command, "-o", str(library), *sources], check=True)
    return library


@contextlib.contextmanager
def kernel_of(library: ctypes.CDLL | None) -> Iterator[None]:
    """Code with this library, or with torch."""
    with mock.patch.object(kernels, "_library", lambda wanted: library):
        kernels.kernel.cache_clear()
        yield
    kernels.kernel.cache_clear()


def messages() -> list[TensorMessage]:
    """Tensors of the shape, and what delta knows their rows by."""
    draw = np.random.default_rng(0)
    torch.manual_seed(0)
    known = torch.randn(TOKENS, HIDDEN)
    found = []
    for number in range(TENSORS):
        tokens = draw.zipf(1.3, SEQUENCES * LENGTH) % TOKENS
        context = RowContext(
            tokens,
            np.roll(tokens, 1),
            np.repeat(np.arange(SEQUENCES), LENGTH),
            np.tile(np.arange(LENGTH), SEQUENCES),
        )
        rows = known[torch.from_numpy(tokens)] + NOISE * torch.randn(len(tokens), HIDDEN)
        key = Key(Purpose.TRAINING, 1, number, 0)
        lengths = (LENGTH,) * SEQUENCES
        found.append(TensorMessage(Kind.ACTIVATION, key, 1, lengths, rows, context=context))
    return found


def measure(codec: Codec, tensors: list[TensorMessage]) -> Times:
    """All in turn, over and over."""
    encoder, decoder = Encoder(codec), Decoder()
    assembly = TensorAssembly(1 << 30)
    envelope = Envelope(edge_pb2.DeviceMessage, EDGE_SESSION.tensor_fields[0])
    encode, decode, wire = [], [], 0
    for number in range(WARM + REPEATS):
        message = tensors[number % len(tensors)]
        assert message.rows is not None
        began = time.perf_counter()
        packet = encoder.encode(message.rows, number, message.lengths, message.context)
        sent = [envelope.serialize(frame) for frame in encode_tensor(message, packet)]
        encoded = time.perf_counter()
        whole = None
        for data in sent:
            frame = envelope.parse(data)
            assert isinstance(frame, Frame)
            whole = assembly.add(frame)
        assert whole is not None
        _, arrived, _ = decode_tensor(*whole)
        assert arrived is not None
        decoder.decode(arrived, (len(message.rows), HIDDEN))
        decoded = time.perf_counter()
        if number >= WARM:
            encode.append(1e3 * (encoded - began))
            decode.append(1e3 * (decoded - encoded))
            wire += sum(map(len, sent))
    return Times(encode, decode, wire / REPEATS)


def main() -> None:
    """A line for each kernel and codec."""
    torch.set_num_threads(THREADS)
    tensors = messages()
    raw = 4 * SEQUENCES * LENGTH * HIDDEN
    shape = [SEQUENCES, LENGTH, HIDDEN]
    print(f"\nfloat32 {shape}, {THREADS} threads, tensor to frame bytes and back, ms")
    print(f"  {'kernel':10} {'codec':16} {'encode: median, least':>22} {'decode':>16}   aim")
    with tempfile.TemporaryDirectory() as temporary:
        portable = compile_kernel(Path(temporary), "-DSFL_PORTABLE")
        libraries: dict[str, ctypes.CDLL | None] = {"compiled": kernels._library(), "torch": None}
        if portable is not None:
            libraries["no AVX"] = ctypes.CDLL(str(portable))
        for name in ("compiled", "no AVX", "torch"):
            if libraries.get(name) is None and name != "torch":
                print(f"  {name:10} not here: no compiler")
                continue
            with kernel_of(libraries[name]):
                for preset in ("none", "int8", "sft", "compact"):
                    codec = parse(preset).for_peer(name != "torch")
                    show(name, preset, measure(codec, tensors), raw)


def show(name: str, preset: str, times: Times, raw: int) -> None:
    """One line."""
    aim = AIMS.get((name, preset))
    missed = ""
    if aim is not None:
        met = median(times.encode) <= aim[0] and median(times.decode) <= aim[1]
        missed = f"{aim[0]:g} / {aim[1]:g}{'' if met else ', missed'}"
    print(
        f"  {name:10} {preset:8} {raw / times.wire:5.1f}x  "
        f"{median(times.encode):13.2f}, {min(times.encode):7.2f} "
        f"{median(times.decode):8.2f}, {min(times.decode):6.2f}   {missed}",
        flush=True,
    )


if __name__ == "__main__":
    main()
