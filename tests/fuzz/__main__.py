"""`python -m tests.fuzz packets --inputs 100000 --seed 1 [--sanitize]`: counts, and what it took.

`edge`, `cloud` and `device` are live: messages to a real node under TLS (live.py, device.py).

Every kind of input is a function of a number of inputs and a seed. `--sanitize` builds the
compiled kernel with AddressSanitizer and UBSan first; the first finding ends the process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.house.paths import ROOT

OFFLINE = ("packets", "numbers", "frames", "messages")
LIVE = ("edge", "cloud", "device")
FLAT = 120_000_000  # bytes that may come on top once a tenth of the inputs is through
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def kinds() -> dict[str, Callable[[int, int], Iterator[bool]]]:
    """Each kind of input: whether each was taken, for a number of inputs and a seed."""
    from tests.fuzz import messages, packets

    return {
        "packets": packets.fuzz,
        "numbers": packets.fuzz_numbers,
        "frames": messages.fuzz_frames,
        "messages": messages.fuzz_messages,
    }


def main() -> None:
    """Feed the inputs, say how many were taken and refused, and that memory stayed flat."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=(*OFFLINE, *LIVE))
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sanitize", action="store_true")
    options = parser.parse_args()
    if options.sanitize:
        sys.exit(sanitized([a for a in sys.argv[1:] if a != "--sanitize"]))
    if options.kind in LIVE:
        sys.exit(lively(options.kind, options.inputs, options.seed))
    from sfl.codec.kernel import kernel
    from sfl.metrics.memory import memory_use

    taken, early, began = 0, memory_use().resident, time.perf_counter()
    for number, good in enumerate(kinds()[options.kind](options.inputs, options.seed)):
        taken += good
        if number == options.inputs // 10:
            early = memory_use().resident
    grown = memory_use().resident - early
    sys.stdout.write(
        f"{options.kind}, kernel {os.environ.get('SFL_KERNEL', kernel().name)}, seed "
        f"{options.seed}: {options.inputs:,} inputs, {taken:,} taken, "
        f"{options.inputs - taken:,} refused, {time.perf_counter() - began:.0f} s, memory "
        f"{grown / 1e6:+.0f} MB\n"
    )
    if grown > FLAT:
        sys.exit(f"memory grew by {grown / 1e6:.0f} MB")


def lively(kind: str, inputs: int, seed: int) -> int:
    """Attack a live node; say what was sent, and what went wrong."""
    from tests.fuzz import device, live

    if kind == "device":
        line, problems = device.live(inputs, seed)
    else:
        with live.arena() as nodes:
            line, problems = live.live(kind, inputs, seed, nodes)
    sys.stdout.write("\n".join([line, *problems]) + "\n")
    return len(problems) > 0


def sanitized(arguments: list[str]) -> int:
    """The same in a process whose kernel is built with sanitizers."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernel.so"
        build = ["cc", "-shared", "-fPIC", "-O1", "-g", "-std=gnu11", "-pthread", *SANITIZED]
        source = ROOT / "sfl" / "codec" / "_kernel.c"
        subprocess.run([*build, "-o", str(library), str(source)], check=True)
        runtime = subprocess.check_output(["cc", "-print-file-name=libasan.so"], text=True).strip()
        environment = {
            **os.environ,
            "LD_PRELOAD": runtime,
            "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=8",
            "SFL_KERNEL": str(library),
        }
        command = [sys.executable, "-m", "tests.fuzz", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    main()
