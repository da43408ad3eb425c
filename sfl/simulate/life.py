"""A device's life: it joins, loads, works on rounds, fails and comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfl.rounds import Cause, DeviceJoined, DeviceLost, DeviceReady, Event
from sfl.rounds.values import DeviceFacts, Point
from sfl.simulate.chance import Chance
from sfl.simulate.events import Act, Events
from sfl.simulate.fleet import Specimen
from sfl.simulate.floor import Floor
from sfl.simulate.rounds import Order
from sfl.simulate.worker import Worker

if TYPE_CHECKING:
    from sfl.simulate.cloud import Cloud

PAUSE = 1.0
"""Seconds until a device dials again that was turned away."""
KEPT = 2
"""Ends of rounds, and steps within one, that a device has snapshots of."""
HOUR = 3600.0


class Life:
    """One device between its beginning and the run's end.

    `there`: its edge takes it for connected. `loaded`: it has model and data in memory.
    """

    __slots__ = (
        "_chance",
        "_cloud",
        "_dialled",
        "_draws",
        "_events",
        "_gone",
        "_order",
        "_speed",
        "alive",
        "done",
        "loaded",
        "own",
        "points",
        "there",
        "working",
    )

    def __init__(self, own: Specimen, worker: Worker, cloud: Cloud, events: Events) -> None:
        self.own = own
        self.working = worker
        self.alive = True
        self.there = False
        self.loaded = False
        self.done = False
        """It was told that it is not wanted any more."""
        self.points: tuple[Point, ...] = ()
        self._cloud = cloud
        self._events = events
        self._chance = Chance(cloud.settings.run.seed, "simulate", own.name, "failures")
        self._draws = 0
        self._dialled = 0
        self._gone = 0
        self._speed = Chance(cloud.settings.run.seed, "simulate", own.name, "jitter")
        self._order: Order | None = None

    @property
    def name(self) -> str:
        """Of the device."""
        return self.own.name

    # -- coming ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """The run begins for it."""
        if self.own.fits:
            self.dial()
            self._fail_later()

    def dial(self) -> None:
        """It asks to take part, if it is able to."""
        if self.alive and not self.done and not self.there:
            self.there = True
            self._dialled += 1
            self._tell_later(DeviceJoined(self.name, self.working.edge.name))

    def welcomed(self) -> None:
        """It may take part, once it has read what it needs."""
        seconds = 0.0 if self.loaded else self.own.kind.load_seconds
        way = self._cloud.latency + self.own.latency
        self._later(2 * way + seconds, self._ready, self._dialled)

    def _ready(self, dialled: int) -> None:
        if dialled == self._dialled and self.there:
            self.loaded = True
            self._cloud.happened(self._as_ready())

    def _as_ready(self) -> DeviceReady:
        stated = self._cloud.stated
        tokens = stated.examples * self._cloud.batch.length
        facts = DeviceFacts(
            stated.examples, stated.eval_examples, num_tokens=tokens, num_tokens_kept=tokens
        )
        return DeviceReady(self.name, stated.examples, facts=facts, points=self.points)

    def refused(self, in_use: bool) -> None:
        """It may not take part, or not yet."""
        self.there = False
        if in_use:
            self._later(PAUSE, self.dial)
        else:
            self.done = True

    def evicted(self, final: bool) -> None:
        """Its stream is closed."""
        self._keep_steps()
        self.working.stop()
        self._order = None
        self.there = False
        self.done = self.done or final
        if not final:
            self._later(PAUSE, self.dial)

    def handed_over(self, to: Floor) -> None:
        """It goes to that edge, and joins there."""
        self.working.stop()
        self._order = None
        self.there = False
        self.working.edge = to
        self._later(self.own.latency, self.dial)

    # -- its rounds -----------------------------------------------------------------------------

    def slower(self, round_: int) -> float:
        """How many times as long it computes in a round."""
        return self._speed.factor(round_, self.own.kind.jitter)

    def begins(self, order: Order) -> None:
        """It goes on from a point: of those after it nothing is left."""
        self._order = order
        self.points = tuple(own for own in self.points if own <= order.after)

    def ended(self, order: Order) -> None:
        """Its part is delivered; both sides have a snapshot of the end."""
        if order.steps.count:
            self._remember(order.point(order.steps.count))
        self._order = None

    def _remember(self, point: Point) -> None:
        if self._cloud.settings.recovery.snapshots:
            ends = [own for own in self.points if own.round < point.round]
            within = [own for own in self.points if own.round == point.round and own < point]
            over = point.step == self._last(point)
            older = (*ends[-1:],) if over else (*ends[-KEPT:], *within[-1:])
            self.points = (*older, point)

    def _last(self, point: Point) -> int:
        order = self._order
        return order.steps.count if order is not None and order.round == point.round else -1

    def _keep_steps(self) -> None:
        """What it wrote down within the round that it is in."""
        order, every = self._order, self._cloud.settings.recovery.snapshot_steps
        if order is None or not every:
            return
        done = order.first + self.working.steps_done
        step = done - done % every
        if order.first < step < order.steps.count:
            self._remember(order.point(step))

    # -- failing --------------------------------------------------------------------------------

    def _fail_later(self) -> None:
        """Each kind of failure is drawn for the time that it is up now."""
        failures = self.own.kind.failures
        self._gone += 1
        for hours, act in (
            (failures.crash_hours, self._crash),
            (failures.break_hours, self._break),
        ):
            if hours is not None:
                self._later(HOUR * hours * self._draw(), act, self._gone)

    def _draw(self) -> float:
        self._draws += 1
        return self._chance.exponential(self._draws)

    def _crash(self, gone: int) -> None:
        """The process dies; its edge sees that at once."""
        if gone != self._gone or self._cloud.over:
            return
        self.alive = self.loaded = False
        self._keep_steps()
        self._leave("its process ended", "link")
        self._later(self.own.kind.failures.restart_seconds * self._draw(), self._return)

    def _break(self, gone: int) -> None:
        """The link is gone; its edge sees that when it was silent for too long."""
        if gone != self._gone or self._cloud.over:
            return
        seconds = self.own.kind.failures.break_seconds * self._draw()
        patience = self._cloud.settings.network.idle_timeout
        if seconds < patience:
            self.working.hold(self._events.now, self._events.now + seconds)
            self._fail_later()
            return
        self.alive = False
        self._keep_steps()
        self.working.stop()
        self._later(patience, self._silent, patience, self._dialled)
        self._later(seconds, self._return)

    def _silent(self, patience: float, dialled: int) -> None:
        if dialled == self._dialled:
            self._leave(f"nothing came for {patience:g} s", "silence")

    def _leave(self, reason: str, cause: Cause) -> None:
        self.working.stop()
        if self.there:
            self.there = False
            self.working.meter.losses += 1
            self._tell_later(DeviceLost(self.name, reason, cause))

    def _return(self) -> None:
        if not self._cloud.over:
            self.alive = True
            self.dial()
            self._fail_later()

    def _tell_later(self, event: Event) -> None:
        self._later(self._cloud.latency, self._cloud.happened, event)

    def _later(self, seconds: float, act: Act, *what: object) -> None:
        """Its edge runs no further ahead than to that time."""
        self.working.edge.at(self._events.now + seconds, self.own.place, act, *what)
