"""One edge under 1 to 64 devices: tokens/s, latency, queue and memory, beside the bare computation.

    python benchmarks/many_devices.py                                          # 20 minutes, 2 cores
    python benchmarks/many_devices.py --devices 1 4 --messages 32 --shapes 4x32    # 2 minutes
    python benchmarks/many_devices.py --device cuda --hidden 2048 --layers 16 --shapes 8x128

A real cloud and a real edge, and light devices (`benchmarks/light.py`) over sockets of their own:
they send ready-made activations as fast as `--in-flight` allows, so the edge is what is measured.
The reference is the same computation in a bare loop, `session.handle` in one process without gRPC,
for as many sessions as the last row has, before and after all runs. Once the compute thread is
never idle, further devices can only wait: tokens/s must stay where they are and latency must grow
with the number of devices. Everything is run with `edge.batch_devices` 1 and 4, all devices having
the same cut, and for two shapes of a batch, sequences x tokens: batching over devices pays where
one device's batch is too small to fill the core. The model is random, of `--dtype`, computation
lean; the edge computes on `--device` with `--threads`, which by default leaves a core to devices
and sockets.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.light import LightDevice, Played, Shape, bare, each, percentile, play
from benchmarks.throughput import make_model
from sfl.node.process import quiet_environment

MB = 1e6


@dataclass(frozen=True, slots=True)
class Result:
    """One run; seconds, bytes and jobs."""

    rate: float
    p50: float
    p99: float
    queue_mean: float
    queue_most: float
    peak: int


def settings(model: Path, shape: Shape, devices: int, steps: int, given: Any) -> dict[str, Any]:
    """A run of one round in which every device has the same cut."""
    names = [f"device-{number:02}" for number in range(devices)]
    return {
        "run": {"rounds": 1},
        "model": {"path": str(model), "max_length": shape.length, "dtype": given.dtype},
        "training": {
            "batch_size": shape.batch,
            "local_steps": steps,
            "computation": "lean",
        },
        "codec": {"activation": given.codec, "gradient": given.codec},
        "network": {
            "credits": given.in_flight,
            "heartbeat_interval": 5.0,
            "join_timeout": 300.0,
        },
        "devices": each(names, lambda _: {"cut_layer": 1}),
    }


def measure(folder: Path, values: dict[str, Any], shape: Shape, batch: int, given: Any) -> Result:
    """One run, from when every device has had its first answer to when the first one has all."""
    devices = [
        LightDevice(entry["name"], shape, in_flight=given.in_flight) for entry in values["devices"]
    ]
    edge = {"threads": given.threads, "batch_devices": batch, "device": given.device}
    return conclude(play(folder, values, edge, devices), shape)


def conclude(played: Played, shape: Shape) -> Result:
    """Rate and latency in the time in which all devices were at work."""
    turns = [device.rounds[0].turns for device in played.devices]
    begin = max(own[0][1] for own in turns)
    end = min(own[-1][1] for own in turns)
    inside = [turn for own in turns for turn in own if begin < turn[1] <= end]
    latencies = [answered - sent for sent, answered in inside]
    queue = played.queue or (0.0,)
    return Result(
        rate=len(inside) * shape.tokens / (end - begin),
        p50=percentile(latencies, 0.5),
        p99=percentile(latencies, 0.99),
        queue_mean=mean(queue),
        queue_most=max(queue),
        peak=played.summary.edges[0].peak_rss_bytes,
    )


def bare_rate(model: Path, shape: Shape, devices: int, together: int, given: Any) -> float:
    """Tokens/s of the bare loop."""
    steps = max(4, given.messages // devices)
    values = settings(model, shape, devices, steps, given)
    served = bare(values, shape, given.threads, steps, together, given.device)
    return shape.tokens / mean(own.seconds for own in served.values())


def main() -> None:
    """Every shape, with and without batching, for every number of devices."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--together", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--messages", type=int, default=256, help="of all devices, about")
    parser.add_argument("--in-flight", type=int, default=2, help="steps of one device")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--shapes", nargs="+", default=["4x32", "1x16"], metavar="BATCHxLENGTH")
    parser.add_argument("--codec", default="none", help="of activations and gradients")
    parser.add_argument("--device", default="cpu", help="the edge's: cpu, cuda")
    parser.add_argument("--dtype", default="float32", help="model.dtype")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=max(1, cores - 1))
    given = parser.parse_args()
    quiet_environment()
    print(
        f"hidden {given.hidden}, {given.layers} layers, vocabulary {given.vocabulary}, "
        f"{given.in_flight} in flight a device, codec {given.codec}, {given.dtype}, edge on "
        f"{given.device} with {given.threads} of {cores} cores"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = folder / "model"
        make_model(model, given.hidden, given.layers, given.vocabulary, given.device)
        for text in given.shapes:
            batch, length = map(int, text.split("x"))
            shape = Shape(batch, length, given.hidden, given.vocabulary, per_token=True)
            compare(folder, model, shape, given)


def compare(folder: Path, model: Path, shape: Shape, given: Any) -> None:
    """One shape: a table, and its ratios."""
    results: dict[tuple[int, int], Result] = {}
    most = max(given.devices)
    rates = [{n: bare_rate(model, shape, most, n, given) for n in given.together}]
    print(f"\nbatches of {shape.batch} x {shape.length} tokens")
    head = f"{'devices':>8}{'together':>10}{'tokens/s':>11}{'p50 ms':>9}{'p99 ms':>9}"
    print(f"{head}{'queue mean':>12}{'most':>6}{'peak MB':>9}", flush=True)
    for together in given.together:
        for count in given.devices:
            steps = max(6, given.messages // count)
            values = settings(model, shape, count, steps, given)
            place = folder / f"{shape.batch}x{shape.length}-{together}-{count}"
            own = measure(place, values, shape, together, given)
            results[together, count] = own
            print(
                f"{count:8}{together:10}{own.rate:11,.0f}{1e3 * own.p50:9.0f}"
                f"{1e3 * own.p99:9.0f}{own.queue_mean:12.1f}{own.queue_most:6.0f}"
                f"{own.peak / MB:9,.0f}",
                flush=True,
            )
    rates.append({n: bare_rate(model, shape, most, n, given) for n in given.together})
    show_ratios(results, rates, given)


def show_ratios(
    results: dict[tuple[int, int], Result], rates: list[dict[int, float]], given: Any
) -> None:
    """Ours over the bare loop, the most devices over the best, batched over one at a time."""
    print()
    reference = {n: mean(rate[n] for rate in rates) for n in given.together}
    for together in given.together:
        before, after = (rate[together] for rate in rates)
        own = {count: results[together, count] for count in given.devices}
        best, most = max(own, key=lambda count: own[count].rate), max(own)
        print(
            f"together {together}: bare loop {reference[together]:,.0f} tokens/s (before "
            f"{before:,.0f}, after {after:,.0f})\n"
            f"  edge / bare loop: "
            + ", ".join(
                f"{own[count].rate / reference[together]:.2f} ({count})" for count in given.devices
            )
            + f"\n  flat after saturation: {most} devices / best ({best}) = "
            f"{own[most].rate / own[best].rate:.2f}"
        )
        few = min(own)
        if most > few:
            slope = (own[most].peak - own[few].peak) / (most - few)
            print(f"  memory: {slope / MB:.1f} MB for each further device")
    for together in given.together[1:]:
        first = given.together[0]
        print(
            f"together {together} / {first}: "
            + ", ".join(
                f"{results[together, count].rate / results[first, count].rate:.2f} ({count})"
                for count in given.devices
            )
            + f"; of the bare loops {reference[together] / reference[first]:.2f}"
        )


if __name__ == "__main__":
    main()
