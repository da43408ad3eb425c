"""What reaches the cloud where edges add up their devices' adapters, and where they do not.

    python benchmarks/edge_sums.py                                  # 10 minutes, 2 cores
    python benchmarks/edge_sums.py --fleets 2x4 --rounds 2          # 3 minutes

Real clouds and real edges, each a process; devices are light (`benchmarks/light.py`), so that only
edges compute. The model is random and small, its LoRA large (`--rank`). Each fleet, edges x devices
of each, has a run with `aggregation.sums` "flat", "by_edge" and "at_edges". The columns:

    MB a round     adapters and sums from all edges to the cloud, all bytes of their messages
    MB an adapter  the same, over the devices of a round
    spool MB       the largest that the cloud's files of a round were, looked at every 10 ms
    peak MB        the cloud's largest resident memory over the run
    adapter        the first digits of its SHA-256: "by_edge" and "at_edges" must be the same
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.light import LightDevice, Nodes, Shape, each
from benchmarks.throughput import make_model
from sfl.adapters.artifact import WEIGHTS
from sfl.node.process import quiet_environment

MB = 1e6
VOCABULARY = 2048
SUMS = ("flat", "by_edge", "at_edges")
LOOK_EVERY = 0.01


@dataclass(frozen=True, slots=True)
class Result:
    """Bytes of one run, and its adapter."""

    sent: int
    spooled: int
    peak: int
    digest: str


def settings(model: Path, edges: int, each_has: int, sums: str, given: Any) -> dict[str, Any]:
    """A run in which every device has the same cut, and so many examples that weights differ."""
    names = [f"device-{number:02}" for number in range(edges * each_has)]
    return {
        "run": {"rounds": given.rounds, "edges": [f"edge-{number}" for number in range(edges)]},
        "model": {"path": str(model), "max_length": given.length},
        "lora": {"rank": given.rank, "alpha": given.rank},
        "training": {"batch_size": 1, "local_steps": given.steps, "computation": "lean"},
        "codec": {"activation": "none", "gradient": "none"},
        "aggregation": {"sums": sums},
        "evaluation": {"every": given.rounds},
        "network": {"heartbeat_interval": 5.0, "join_timeout": 300.0},
        "cloud": {"metrics": {"enabled": False}},
        "devices": each(names, lambda _: {"cut_layer": 1}),
    }


class Spool:
    """The largest that a folder of files was."""

    def __init__(self, folder: Path) -> None:
        self.most = 0
        self._folder = folder
        self._over = threading.Event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at it meanwhile."""
        watcher = threading.Thread(target=self._look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            self._over.set()
            watcher.join()

    def _look(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            self.most = max(self.most, sum(map(_size, self._folder.glob("*/*"))))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # the round is over
        return 0


def measure(folder: Path, values: dict[str, Any], given: Any) -> Result:
    """One run to its end."""
    folder.mkdir()
    shape = Shape(1, given.length, given.hidden, VOCABULARY, per_token=True)
    devices = [LightDevice(entry["name"], shape) for entry in values["devices"]]
    quiet = {"threads": 1, "metrics": {"enabled": False}}
    spool = Spool(folder / "run" / "spool")
    with (
        Nodes(folder, values, quiet) as nodes,
        ThreadPoolExecutor(len(devices)) as pool,
        spool.watched(),
    ):
        count = len(nodes.addresses)
        futures = [
            pool.submit(device.run, nodes.addresses[number % count])
            for number, device in enumerate(devices)
        ]
        for future in futures:
            future.result()
        summary = nodes.summary()
    assert summary.cloud is not None
    digest = hashlib.sha256((folder / "run" / "adapter" / WEIGHTS).read_bytes()).hexdigest()
    sent = sum(edge.traffic.bytes_up_by_role["adapter"] for edge in summary.edges)
    return Result(sent, spool.most, summary.cloud.peak_rss_bytes, digest)


def compare(folder: Path, model: Path, fleet: str, given: Any) -> None:
    """Three runs of one fleet."""
    edges, each_has = map(int, fleet.split("x"))
    count, found = edges * each_has, {}
    for sums in SUMS:
        values = settings(model, edges, each_has, sums, given)
        found[sums] = own = measure(folder / f"{fleet}-{sums}", values, given)
        sent = own.sent / given.rounds / MB
        print(
            f"{edges:5}{count:9}  {sums:9}{sent:11.2f}{sent / count:15.2f}{own.spooled / MB:10.2f}"
            f"{own.peak / MB:9.0f}  {own.digest[:8]}",
            flush=True,
        )
    if found["by_edge"].digest != found["at_edges"].digest:
        raise SystemExit("edges' sums gave another adapter than the cloud's own sums by edge")


def main() -> None:
    """A table: every fleet, every way to add up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--fleets", nargs="+", default=["2x4", "2x8", "4x4"], metavar="EDGESxEACH")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--length", type=int, default=16)
    given = parser.parse_args()
    quiet_environment()
    print(
        f"hidden {given.hidden}, {given.layers} layers, rank {given.rank}, {given.rounds} rounds\n"
        f"{'edges':>5}{'devices':>9}  {'sums':9}{'MB a round':>11}{'MB an adapter':>15}"
        f"{'spool MB':>10}{'peak MB':>9}  adapter",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_model(folder / "model", given.hidden, given.layers, VOCABULARY)
        for fleet in given.fleets:
            compare(folder, folder / "model", fleet, given)


if __name__ == "__main__":
    main()
