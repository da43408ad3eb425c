"""The quickstart with its edge on an accelerator, against the same runs with the edge on the CPU.

    python benchmarks/accelerator_runs.py                 # on a machine with CUDA, 2 minutes
    python benchmarks/accelerator_runs.py --device cpu    # only tries the script

Every case is run with the edge on the CPU and on the device, `--together` runs at a time, devices
and cloud on the CPU in both. A line says how far the two adapters are apart (the largest difference
of a value, and the size of the values), the losses after the last round, and what torch held on the
device.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import ROOT, run

HOMES = ROOT / "examples" / "quickstart" / "homes.toml"
MB = 1e6


@dataclass(frozen=True, slots=True)
class Case:
    """What a run differs by."""

    topology: str
    computation: str
    codec: str
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """A line's words."""
        return f"{self.topology} {self.computation} {self.codec} {self.dtype}"

    def overrides(self, device: str, rounds: int) -> list[str]:
        """For `--set`."""
        return [
            f"run.rounds={rounds}",
            f"run.topology={self.topology!r}",
            f"training.computation={self.computation!r}",
            f"codec.activation={self.codec!r}",
            f"codec.gradient={self.codec!r}",
            "codec.adapter='none'",
            f"edge.device={device!r}",
            f"edge.dtype={self.dtype!r}",
            "edge.threads=2",
            *[f"devices.{n}.tail_layers={int(self.topology == 'u_shaped')}" for n in range(3)],
        ]


CASES = [
    *(Case(t, c, "none") for t in ("vanilla", "u_shaped") for c in ("lean", "reference")),
    *(
        Case("vanilla", "lean", spec)
        for spec in ("int8", "topk(0.1) | int(4)", "uniform(0.5) | rans", "delta(token) | int(4)")
    ),
    Case("u_shaped", "lean", "int8 | rans"),
    *(Case(topology, "lean", "none", "bfloat16") for topology in ("vanilla", "u_shaped")),
    Case("vanilla", "lean", "none", "autocast"),
]

Adapter = Mapping[str, np.ndarray]


def finish(folder: Path, case: Case, where: str, rounds: int) -> tuple[dict[str, Any], Adapter]:
    """A run's summary and its adapter."""
    summary = run(HOMES, folder, "run", case.overrides(where, rounds))
    path = folder / "run" / "adapter" / "adapter_model.safetensors"
    return summary, safetensors.numpy.load_file(path)


def show(
    case: Case, cpu: tuple[dict[str, Any], Adapter], there: tuple[dict[str, Any], Adapter]
) -> None:
    """One line."""
    assert cpu[1].keys() == there[1].keys()
    apart = [np.abs(cpu[1][name] - there[1][name]) for name in cpu[1]]
    size = max(float(np.abs(value).max()) for value in cpu[1].values())
    total = sum(values.size for values in apart)
    mean = sum(float(values.sum(dtype=np.float64)) for values in apart) / total
    held = [edge["accelerator_bytes"] / MB for edge in there[0]["edges"]]
    losses = [summary["eval_loss_after"] for summary in (cpu[0], there[0])]
    print(
        f"  {case.name:44} {max(float(v.max()) for v in apart):9.2e} {mean:9.2e} {size:7.2f}"
        f" {losses[0]:9.5f} {losses[1]:9.5f} {held[0]:9.1f}",
        flush=True,
    )


def main() -> None:
    """A line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--together", type=int, default=1)
    parser.add_argument("--only", default="", help="cases whose name has this")
    given = parser.parse_args()
    cases = [case for case in CASES if given.only in case.name]
    print(
        f"  {'topology, computation, codec, dtype':44} {'max apart':>9} {'mean':>9} {'largest':>7}"
        f" {'loss cpu':>9} {'there':>9} {'MB there':>9}"
    )
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(given.together) as pool:
        pairs = [
            [
                pool.submit(finish, Path(temporary) / f"{number}-{turn}", case, where, given.rounds)
                for turn, where in enumerate(("cpu", given.device))
            ]
            for number, case in enumerate(cases)
        ]
        for case, (cpu, there) in zip(cases, pairs, strict=True):
            show(case, cpu.result(), there.result())


if __name__ == "__main__":
    main()
