"""Bytes of a run in all, over its devices' links: by purpose and direction, and on the socket.

    python -m benchmarks.bytes_in_all                    # the quickstart, about 2 minutes
    python -m benchmarks.bytes_in_all FILE --set run.rounds=2

Every device dials its edge through a relay that counts what TCP carries, so that gRPC's own framing
and heartbeats are seen beside the messages that `summary.json` counts. No TLS.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import ROOT
from sfl.cli.launch import run as launching
from sfl.config import load_run
from sfl.report import text
from sfl.report.summary import RunSummary
from sfl.report.traffic import traffic_table

PIECE = 1 << 16


class Relay:
    """Passes connections on to `address`, and counts what they carry each way."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._to = host, int(port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.carried: Counter[str] = Counter()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            device, _ = self._server.accept()
            edge = socket.create_connection(self._to)
            for way, source, target in (("up", device, edge), ("down", edge, device)):
                threading.Thread(target=self._pass, args=(way, source, target), daemon=True).start()

    def _pass(self, way: str, source: socket.socket, target: socket.socket) -> None:
        try:
            while piece := source.recv(PIECE):
                self.carried[way] += len(piece)
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            target.close()


def measured(config: Path, options: list[str]) -> tuple[RunSummary, Counter[str]]:
    """A run to its end: its summary, and what the sockets of its devices carried."""
    relays: list[Relay] = []
    original = vars(launching)["device_node"]

    def through_relay(folder: Path, settings: object, name: str, address: str) -> object:
        relays.append(Relay(address))
        return original(folder, settings, name, relays[-1].address)

    vars(launching)["device_node"] = through_relay
    with tempfile.TemporaryDirectory() as temporary:
        settings = load_run(config, [*options, f"run.output_dir={temporary!r}"])
        folder = launching.run_on_this_machine(settings, lambda status: None, lambda folder: None)
        summary = RunSummary.read(folder / "summary.json")
    return summary, sum((relay.carried for relay in relays), Counter())


def main() -> None:
    """Print the table, and how much more the sockets carried."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    homes = ROOT / "examples" / "quickstart" / "homes.toml"
    parser.add_argument("config", nargs="?", type=Path, default=homes)
    parser.add_argument("--set", dest="options", action="append", default=[])
    given = parser.parse_args()
    summary, carried = measured(given.config, given.options)
    print(traffic_table(summary))
    total = carried.total()
    more = 100.0 * (total / summary.bytes_in_all - 1.0)
    sizes = " ".join(f"{text.size(value):>9}" for value in (carried["up"], carried["down"], total))
    print(f"{'on the sockets':24} {sizes}  {more:+.1f}%")
    scores = (summary.eval_accuracy_before, summary.eval_accuracy_after)
    losses = (summary.eval_loss_before, summary.eval_loss_after)
    name = text.score_name(summary.task)
    print(f"{name} {' -> '.join(map(text.percent, scores))}, "
          f"loss {' -> '.join(map(text.loss, losses))}")  # fmt: skip


if __name__ == "__main__":
    main()
