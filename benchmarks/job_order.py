"""What `edge.order` does to the time of a round, measured at a real edge and foretold by a model.

    python benchmarks/job_order.py                              # 10 minutes on 2 cores
    python benchmarks/job_order.py --loads 1 --rounds 3 --steps 6    # 3 minutes
    python benchmarks/job_order.py --real                            # 5 minutes

Six devices as in 2503.13819: cuts 1, 1, 2, 2, 3, 3, speeds of Jetson Nano to M3, 100 Mbit/s each
(sfl's own shaper). The devices are emulated, since two cores have no room for six: they speak the
real protocol over real sockets, and sleep what their blocks would take; cloud and edge are real
processes and the edge really computes. A load of 1 makes the slowest device's own time of a step
(blocks and link) equal to what the edge computes for all devices in one; below 1 the edge is the
bottleneck, above it the device. Beside each time stands that of the pure scheduling model
(`benchmarks/schedule.py`), which knows all durations; what the edge computed for in that very run,
over the bare loop's time for the same, is `edge x`, and the model is told. No order can be faster
than its bound.

With `--real` four real devices train beside a real edge instead, heterogeneous by their cuts, their
limits of threads and their links; the orders take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import tomli_w

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.light import LightDevice, Pace, Played, Served, Shape, bare, play
from benchmarks.runs import run
from benchmarks.schedule import Job, at_speed, best, ends_of, least
from benchmarks.throughput import full_length, make_model, make_texts
from sfl.node.process import quiet_environment
from sfl.stage.orders import ORDERS

DEVICES = {
    "nano": (1, 0.472),
    "tx2": (1, 1.33),
    "8s-gen3": (2, 1.689),
    "8-gen3": (2, 2.774),
    "a17": (3, 2.147),
    "m3": (3, 3.533),
}
"""Cut and TFLOPS, from the paper."""
REAL = {
    "phone": (1, 1, 25.0),
    "board": (3, 1, 50.0),
    "tablet": (1, 2, 100.0),
    "laptop": (2, 2, 100.0),
}
"""Cut, threads and Mbit/s of real devices."""
TURNS = 2


def settings(
    model: Path, shape: Shape, steps: int, rounds: int, mbit: float, cuts: dict[str, int]
) -> dict[str, Any]:
    """A run in which every device has a link of its own."""
    link = {"up_mbit": mbit, "down_mbit": mbit}
    return {
        "run": {"rounds": rounds},
        "model": {"path": str(model), "max_length": shape.length},
        "training": {
            "batch_size": shape.batch,
            "local_steps": steps,
            "computation": "lean",
        },
        "codec": {"activation": "none", "gradient": "none"},
        "network": {"heartbeat_interval": 2.0, "join_timeout": 300.0},
        "devices": [{"name": name, "cut_layer": cut, "link": link} for name, cut in cuts.items()],
    }


def jobs_of(shape: Shape, served: dict[str, Served], mbit: float, load: float) -> list[Job]:
    """The six devices' steps, the slowest of which takes `load` times the edge's sum."""
    link = shape.wire_bytes * 8e-6 / mbit
    edge = sum(own.seconds for own in served.values())
    work = {name: cut / tflops for name, (cut, tflops) in DEVICES.items()}
    scale = max(0.0, load * edge - 2 * link) / max(work.values())
    share = {name: own.forward / own.seconds for name, own in served.items()}
    return [
        Job(
            name,
            forward=scale * work[name] * share[name],
            up=link,
            serve=served[name].seconds,
            down=link,
            backward=scale * work[name] * (1.0 - share[name]),
            serve_forward=served[name].forward,
        )
        for name in DEVICES
    ]


def finishing(played: Played) -> dict[str, float]:
    """Medians over rounds of when each device was done; the first round, which learns, is left
    out."""
    rounds = list(zip(*(device.rounds for device in played.devices), strict=True))
    rounds = rounds[1:] or rounds
    ends: dict[str, float] = {}
    for number, device in enumerate(played.devices):
        own = [row[number].ended - min(other.began for other in row) for row in rounds]
        ends[device.name] = median(own)
    return ends


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds until each device is done, and the edge's computing over that of a bare loop."""

    ends: dict[str, float]
    factor: float


def measure(
    folder: Path, values: dict[str, Any], shape: Shape, jobs: Sequence[Job], edge: dict[str, Any]
) -> Measured:
    """A run of the six at a real edge."""
    devices = [LightDevice(job.name, shape, Pace(job.forward, job.backward)) for job in jobs]
    played = play(folder, values, edge, devices)
    phases = played.summary.edges[0].phases
    computed = sum(phases.get(name, 0.0) for name in ("forward", "backward", "step"))
    steps = values["run"]["rounds"] * values["training"]["local_steps"]
    return Measured(finishing(played), computed / (steps * sum(job.serve for job in jobs)))


def real(folder: Path, model: Path, shape: Shape, given: argparse.Namespace) -> None:
    """Rounds of real devices under every order, by turns."""
    make_texts(folder / "texts.jsonl", 400)
    cuts = {name: cut for name, (cut, _, _) in REAL.items()}
    values = settings(model, shape, given.steps, given.rounds, given.mbit, cuts)
    values["data"] = {
        "train": str(folder / "texts.jsonl"),
        "eval_fraction": 0.02,
        **full_length(),
    }
    for entry in values["devices"]:
        _, threads, mbit = REAL[entry["name"]]
        entry |= {"threads": threads, "link": {"up_mbit": mbit, "down_mbit": mbit}}
    (folder / "run.toml").write_text(tomli_w.dumps(values))
    what = ", ".join(f"{n} cut {c}, {t} thread(s), {m:g} Mbit/s" for n, (c, t, m) in REAL.items())
    print(
        f"\nreal devices: {what}; edge {given.threads} thread(s); seconds of rounds after the first"
    )
    seconds: dict[str, list[float]] = {order: [] for order in ORDERS}
    for turn in range(TURNS):
        for order in ORDERS:
            edge = [f"edge.order={order!r}", f"edge.threads={given.threads}"]
            run(folder / "run.toml", folder, f"{order}-{turn}", edge)
            lines = (folder / f"{order}-{turn}" / "metrics.jsonl").read_text().splitlines()
            records = [json.loads(line) for line in lines]
            own = [r["seconds"] for r in records if r["kind"] == "cloud" and r["round"] > 1]
            seconds[order] += own
            print(f"  {order:13}" + "".join(f"{s:8.2f}" for s in own), flush=True)
    first = mean(seconds["first_come"])
    for order, own in seconds.items():
        print(f"  {order:13} mean {mean(own):6.2f} s, / first {mean(own) / first:.3f}")


def main() -> None:
    """Every load, every order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--loads", nargs="+", type=float, default=[0.5, 1.0, 2.0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=4, help="the first is not counted")
    parser.add_argument("--mbit", type=float, default=100.0)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=max(1, cores - 1))
    parser.add_argument("--real", action="store_true", help="real devices, no emulated ones")
    given = parser.parse_args()
    quiet_environment()
    shape = Shape(given.batch, given.length, given.hidden, 2048, per_token=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = folder / "model"
        make_model(model, given.hidden, given.layers, shape.classes)
        if given.real:
            real(folder, model, shape, given)
            return
        cuts = {name: cut for name, (cut, _) in DEVICES.items()}
        values = settings(model, shape, given.steps, given.rounds, given.mbit, cuts)
        for load in given.loads:
            # Measured anew each time, since the model knows only what it is told.
            served = bare(values, shape, given.threads, 2 * given.steps)
            jobs = jobs_of(shape, served, given.mbit, load)
            show_case(load, jobs, given)
            measured = {
                order: measure(
                    folder / f"{load}-{order}",
                    values,
                    shape,
                    jobs,
                    {"threads": given.threads, "order": order},
                )
                for order in ORDERS
            }
            show(measured, jobs, given.steps)


def show_case(load: float, jobs: Sequence[Job], given: Any) -> None:
    """What is given: each device's step."""
    edge = sum(job.serve for job in jobs)
    print(
        f"\nload {load:g}: the edge computes {1e3 * edge:.0f} ms for one step of all six, on "
        f"{given.threads} thread(s); {given.steps} steps a round, {given.mbit:g} Mbit/s"
    )
    print(
        "  emulated devices (slept + link, ms a step): "
        + ", ".join(f"{job.name} {1e3 * job.own:.0f}" for job in jobs),
        flush=True,
    )


def show(measured: dict[str, Measured], jobs: Sequence[Job], steps: int) -> None:
    """Rounds, ratios, and each device's end, measured and foretold."""
    names = "".join(f"{job.name:>9}" for job in jobs)
    print(
        f"  {'':13}{'round s':>9}{'/ first':>9}{'edge x':>8}{'model s':>9}{'/ first':>9}   ends, s:"
        f"{names}"
    )
    foretold = {
        order: max(ends_of(at_speed(jobs, own.factor), order, steps).values())
        for order, own in measured.items()
    }
    # Ratios of the model alone are at one speed.
    alone = {order: max(ends_of(jobs, order, steps).values()) for order in measured}
    first = max(measured["first_come"].ends.values())
    for order, own in measured.items():
        took = max(own.ends.values())
        cells = "".join(f"{own.ends[job.name]:9.2f}" for job in jobs)
        print(
            f"  {order:13}{took:9.2f}{took / first:9.3f}{own.factor:8.2f}{foretold[order]:9.2f}"
            f"{alone[order] / alone['first_come']:9.3f}           {cells}"
        )
    bound, one = least(jobs, steps), best(jobs)
    single = ", ".join(
        f"{order} {max(ends_of(jobs, order, 1).values()) / one:.3f}" for order in measured
    )
    print(
        f"  bound of the model {bound:.2f} s; a single step, over the best of all orders: {single}",
        flush=True,
    )


if __name__ == "__main__":
    main()
