"""The pure scheduling model of an edge: one machine, jobs with known arrivals and tails.

A device's step is forward, link up, the edge, link down, backward; the next follows at once.
Orders are the edge's own (`sfl/stage/orders`), told the tails an edge would have measured. With one
step it is
`1 | r_j, q_j | Cmax`, scheduling with release and delivery times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from sfl.config.simulate import DeviceClass
from sfl.cost.values import DeviceCost, LinkCost, NodeCost, PassCost
from sfl.simulate.bursts import Burst, Stretch
from sfl.simulate.channel import Wire
from sfl.simulate.events import Events
from sfl.simulate.fleet import Specimen
from sfl.simulate.floor import Floor
from sfl.simulate.worker import Worker
from sfl.stage.orders import ORDERS


@dataclass(frozen=True, slots=True)
class Job:
    """Seconds of each part of a device's step; `serve_forward` is the forward's part of `serve`."""

    name: str
    forward: float
    up: float
    serve: float
    down: float
    backward: float
    serve_forward: float = 0.0

    @property
    def head(self) -> float:
        """From a step's beginning to its arrival at the edge (a)."""
        return self.forward + self.up

    @property
    def tail(self) -> float:
        """From the edge's answer to the step's end (q)."""
        return self.down + self.backward

    @property
    def own(self) -> float:
        """What a step takes besides the edge."""
        return self.head + self.tail


def at_speed(jobs: Sequence[Job], factor: float) -> list[Job]:
    """The same devices at an edge that takes `factor` times as long."""
    return [
        replace(job, serve=factor * job.serve, serve_forward=factor * job.serve_forward)
        for job in jobs
    ]


def ends_of(jobs: Sequence[Job], order: str, steps: int) -> dict[str, float]:
    """When each device has done its `steps`, in seconds from the round's beginning.

    By the simulator's edge (`sfl/simulate/floor.py`), under the edge's own order.
    """
    events, ends = Events(), dict[str, float]()
    edge = Floor("edge", ORDERS[order], events)

    def done(worker: Worker, now: float) -> None:
        ends[worker.own.name] = now

    for place, job in enumerate(jobs):
        lap = Stretch(job.forward, 0.0, job.serve, 0.0, encode=job.up, decode_back=job.down)
        burst = Burst(1, 1, (lap,), job.backward)
        Worker(_device(job.name, place), edge).begin(((burst, steps),), 0.0, done)
    while events.next():
        pass
    return ends


def _device(name: str, place: int) -> Specimen:
    """One whose times are all stated."""
    cost = DeviceCost(NodeCost(PassCost()), LinkCost(1.0, 1.0))
    kind = DeviceClass(name="stated", tflops=1.0)
    return Specimen(name, place, kind, "edge", cost, Wire(1.0, 1.0), 0.0, 32.0, fits=True)


def least(jobs: Sequence[Job], steps: int) -> float:
    """No order can be faster: neither the edge nor any device is ever late."""
    edge = steps * sum(job.serve for job in jobs)
    around = min(job.head for job in jobs) + min(job.tail for job in jobs)
    return max(edge + around, max(steps * (job.own + job.serve) for job in jobs))


def best(jobs: Sequence[Job]) -> float:
    """The shortest single step over all orders, by trying them."""

    def length(chosen: Sequence[Job]) -> float:
        now, end = 0.0, 0.0
        for job in chosen:
            now = max(now, job.head) + job.serve
            end = max(end, now + job.tail)
        return end

    return min(length(chosen) for chosen in permutations(jobs))


def splitfed(jobs: Sequence[Job]) -> float:
    """A step with a barrier: all forwards as they come, then all backwards."""
    now = 0.0
    for job in sorted(jobs, key=lambda job: job.head):
        now = max(now, job.head) + job.serve_forward
    end = 0.0
    for job in sorted(jobs, key=lambda job: job.head):
        now += job.serve - job.serve_forward
        end = max(end, now + job.tail)
    return end


def sequential(jobs: Sequence[Job]) -> float:
    """A step of every device, one device after another."""
    return sum(job.own + job.serve for job in jobs)
