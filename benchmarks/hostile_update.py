"""What one lying device does to the others' held-out loss, with the guard on updates and without.

    python benchmarks/hostile_update.py
    python benchmarks/hostile_update.py --rounds 10 --attacks weight values

The quickstart's three homes train; a fourth device, `mallory`, has a certificate like theirs and
takes part from the first round on (benchmarks/hostile_device.py). `weight`: it says it has 2^63
examples, and each value of its part of the adapter is moved by 0.5, up or down by a coin. `far`:
the same with as many examples as a home, also with `large_updates = "refuse"`. `values`:
100 examples, every value plus or minus 1000. `quiet`: as many examples as are allowed, every value
moved by ten steps of the learning rate; this one also with `aggregation.max_weight_share`.

The losses are the homes' own, as the run recorded them, weighted by targets: before the first round
and after each. A run that ends before its last round is shown with its reason. Last how near the
longest honest update came to its bound, over all rounds: in the run without a liar, and in one in
which the homes pass once over 400, 40 and 8 of their examples a round, which is 25, 3 and 1 steps.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tomli_w

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import ROOT
from sfl.config import load_run
from sfl.node.process import cores

QUICKSTART = ROOT / "examples" / "quickstart"
HOMES = ("harbour", "meadow", "loft")
UNEQUAL = {"harbour": 400, "meadow": 40, "loft": 8}
LIAR = "mallory"
OFF = {"max_update_norm": "off", "max_examples": 1 << 63, "strikes": 1 << 31}
NEAREST = re.compile(r"the longest update, of device (\S+), is ([0-9.]+) of its bound")


@dataclass(frozen=True, slots=True)
class Attack:
    """What the liar says."""

    title: str
    options: tuple[str, ...]


ATTACKS = {
    "weight": Attack(
        "2^63 examples, moved by 0.5", ("--examples", str(1 << 63), "--values", "0.5", "--moved")
    ),
    "far": Attack(
        "400 examples, moved by 0.5", ("--examples", "400", "--values", "0.5", "--moved")
    ),
    "values": Attack("100 examples, values +-1000", ("--examples", "100", "--values", "1000")),
    "quiet": Attack(
        "10^7 examples, moved by 0.1", ("--examples", "10000000", "--values", "0.1", "--moved")
    ),
}


@dataclass(frozen=True, slots=True)
class Result:
    """One run."""

    losses: tuple[float, ...]
    """Before the first round, and after each that somebody evaluated."""
    end: str
    faults: tuple[str, ...]
    nearest: float


def settings(
    folder: Path, rounds: int, attacked: bool, aggregation: Mapping[str, object], unequal: bool
) -> Path:
    """The quickstart's file, with a liar among its devices or without."""
    values = load_run(QUICKSTART / "homes.toml").settings.model_dump(mode="json", exclude_none=True)
    kept = {name: values[name] for name in ("model", "lora", "training", "codec")}
    if unequal:
        kept["training"] = {**kept["training"], "local_epochs": 1}
        del kept["training"]["local_steps"]
    devices = [device for device in values["devices"] if device["name"] in HOMES]
    if attacked:
        devices.append({"name": LIAR, "cut_layer": 1})
    run = {"id": "r", "output_dir": str(folder), "rounds": rounds, "min_devices": 2}
    evaluation = {"every": 1}
    own = {
        "run": run,
        "aggregation": dict(aggregation),
        "evaluation": evaluation,
        "devices": [{k: d[k] for k in ("name", "cut_layer")} for d in devices],
    }
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(kept | own))
    return path


@contextmanager
def nodes(
    folder: Path, config: Path, attack: Attack | None, unequal: bool
) -> Iterator[subprocess.Popen[bytes]]:
    """The run's processes; yields the cloud's."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *command: str) -> subprocess.Popen[bytes]:
        with (folder / f"{name}.log").open("wb") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT))
        return started[-1]

    def server(kind: str, file: Path) -> tuple[subprocess.Popen[bytes], str]:
        address = folder / f"{kind}.address"
        process = start(kind, *_sfl(kind), str(file), "--address-file", str(address))
        while not address.exists():
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            raise SystemExit((folder / f"{kind}.log").read_text())
        return process, address.read_text().strip()

    try:
        cloud, address = server("cloud", config)
        edge = folder / "edge.toml"
        threads = max(1, cores() - 1)
        edge.write_text(f'[edge]\ncloud = "{address}"\nthreads = {threads}\n')
        address = server("edge", edge)[1]
        for name in HOMES:
            most = UNEQUAL[name] if unequal else None
            start(name, *_sfl("device"), str(_device(folder, name, name, address, most)))
        if attack is not None:
            liar = ROOT / "benchmarks" / "hostile_device.py"
            file = _device(folder, LIAR, HOMES[0], address)
            start(LIAR, sys.executable, str(liar), str(file), *attack.options)
        yield cloud
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()


def _sfl(command: str) -> tuple[str, ...]:
    return sys.executable, "-m", "sfl.cli", command


def _device(folder: Path, name: str, home: str, edge: str, most: int | None = None) -> Path:
    file, data = folder / f"{name}.toml", QUICKSTART / "data" / home
    train = folder / f"{name}.jsonl"
    lines = (data / "train.jsonl").read_text().splitlines(keepends=True)
    train.write_text("".join(lines[:most]))
    file.write_text(
        f'[device]\nname = "{name}"\nedge = "{edge}"\nthreads = 1\n'
        f'model = "{QUICKSTART / "model"}"\ntrain = "{train}"\n'
        f'eval = "{data / "eval.jsonl"}"\n'
    )
    return file


def measure(
    rounds: int,
    attack: Attack | None,
    aggregation: Mapping[str, object] | None = None,
    unequal: bool = False,
) -> Result:
    """Run it, and read what it left."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = settings(folder, rounds, attack is not None, aggregation or {}, unequal)
        with nodes(folder, config, attack, unequal) as cloud:
            cloud.wait()
        run, log = folder / "r", (folder / "cloud.log").read_text()
        summary = json.loads((run / "summary.json").read_text())
        sums: dict[int, tuple[float, int]] = {}
        for line in (run / "metrics.jsonl").read_text().splitlines():
            record = json.loads(line)
            if record.get("node") in HOMES and record.get("eval_targets"):
                total, targets = sums.get(record["round"], (0.0, 0))
                total += record["eval_loss_sum"]
                sums[record["round"]] = (total, targets + record["eval_targets"])
        faults = [f["problem"] for f in summary["faults"] if f["node"] == LIAR]
        nearest = [float(part) for device, part in NEAREST.findall(log) if device in HOMES]
        return Result(
            tuple(total / targets for _, (total, targets) in sorted(sums.items())),
            summary["failure"] or "",
            tuple(faults),
            max(nearest, default=0.0),
        )


def show(title: str, result: Result) -> None:
    losses = " ".join(f"{loss:8.3f}" for loss in result.losses)
    print(f"  {title:44s} {losses}")
    for fault in result.faults:
        print(f"      {LIAR}: {fault}")
    if result.end:
        print(f"      the run ended: {result.end[:400]}")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--attacks", nargs="*", choices=sorted(ATTACKS), default=sorted(ATTACKS))
    options = parser.parse_args()
    print(f"quickstart, {options.rounds} rounds; held-out loss of {', '.join(HOMES)}")
    print("  before the first round, then after each")
    honest = measure(options.rounds, None)
    show("nobody lies", honest)
    for name in options.attacks:
        attack = ATTACKS[name]
        show(f"{attack.title}; guard off", measure(options.rounds, attack, OFF))
        show(f"{attack.title}; guard on", measure(options.rounds, attack))
        if name == "far":
            refused = measure(options.rounds, attack, {"large_updates": "refuse"})
            show(f"{attack.title}; refused", refused)
        if name == "quiet":
            for share in (0.3, 0.25):
                bounded = {"max_weight_share": share}
                title = f"{attack.title}; shares of {share:g}"
                show(title, measure(options.rounds, attack, bounded))
    unequal = measure(options.rounds, None, unequal=True)
    show("nobody lies, 25, 3 and 1 steps a round", unequal)
    print("  longest honest update, as a part of its bound:")
    print(f"    {honest.nearest:.3f}, and {unequal.nearest:.3f} of unequal data")


if __name__ == "__main__":
    main()
