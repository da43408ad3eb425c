"""One device at work: bursts of micro-batches, one after another, until its round is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sfl.simulate.bursts import Burst
from sfl.simulate.fleet import Specimen
from sfl.simulate.floor import Floor
from sfl.simulate.meter import Meter
from sfl.stage.orders import Waiting
from sfl.transport.shaper import Shaper

LEAST = 0.01
"""Of a link that heartbeats leave to all else, however slow it is."""
Done = Callable[["Worker", float], None]
"""Told when the last burst is over, and at what time."""


class Worker:
    """What a device does now. `life` tells one attempt from the next: what is left of an earlier
    one is nobody's business.

    `held_until`: its link is gone until then, and the stream survives.
    """

    __slots__ = (
        "_burst",
        "_cpu",
        "_done",
        "_down",
        "_held_from",
        "_landed",
        "_launched",
        "_left",
        "_times",
        "_up",
        "beside",
        "edge",
        "held_until",
        "life",
        "meter",
        "moved",
        "own",
        "served",
        "share",
        "slower",
        "speed",
        "steps_done",
    )

    def __init__(self, own: Specimen, edge: Floor) -> None:
        self.own = own
        self.edge = edge
        self.meter = Meter()
        self.life = 0
        self.held_until = self._held_from = 0.0
        self.served = 0.0
        """Seconds that its edge has served it in this round."""
        self.moved = 0
        """Messages that its edge has seen of it."""
        self.steps_done = 0
        """Of its present attempt."""
        self.slower = 1.0
        self.speed = 1.0
        """Of the edge for it, as a share of its fastest."""
        self.beside = False
        self.share = 1.0
        """Of its link that is its own."""
        self._up, self._down = Shaper(1.0, own.latency), Shaper(1.0, own.latency)
        self._tune(0.0)
        self._cpu = 0.0
        self._left: list[tuple[Burst, int]] = []
        self._burst: Burst | None = None
        self._times = 0
        """Of this burst that are still to be begun."""
        self._launched = self._landed = 0
        self._done: Done | None = None

    # -- what it is told ------------------------------------------------------------------------

    def begin(self, bursts: Sequence[tuple[Burst, int]], at: float, done: Done) -> None:
        """From that time on: each burst so many times, in this order; then `done`, at the end."""
        self._left = [own for own in reversed(bursts) if own[1]]
        self._done = done
        self.served = 0.0
        self.steps_done = 0
        self._times = 0
        self._next(at)
        self.edge.go_later()

    def stop(self) -> None:
        """What is under way comes to nothing."""
        self.life += 1
        self._burst, self._done = None, None

    def hold(self, since: float, until: float) -> None:
        """The link is gone until then; what is on its way comes so much later."""
        self._held_from, self.held_until = since, until

    def resumed(self, due: float) -> float:
        """When something arrives that would have been here while the link was gone."""
        return self.held_until + (due - self._held_from)

    def send(self, at: float, num_bytes: float) -> float:
        """A message that is ready then; when its edge has it."""
        self._tune(at)
        self.meter.sent(num_bytes, self._up.megabits)
        return self._up.admit(at, num_bytes)[1]

    def receive(self, at: float, num_bytes: float) -> float:
        """A message that leaves its edge then; when it is here."""
        self._tune(at)
        self.meter.received(num_bytes, self._down.megabits)
        return self._down.admit(at, num_bytes)[1]

    def _tune(self, now: float) -> None:
        """The link is as it is at that time, and a part of it is the device's."""
        up, down = self.own.channel.rates(now)
        left = max(LEAST * up, self.share * up - self.own.control)
        self._up.megabits, self._down.megabits = left, self.share * down

    # -- at work --------------------------------------------------------------------------------

    def _next(self, now: float) -> None:
        """The same burst again, another one, or the end."""
        if not self._times:
            if not self._left:
                self._finish(now)
                return
            self._burst, self._times = self._left.pop()
        self._times -= 1
        burst = self._burst
        assert burst is not None
        if not self.own.channel.steady:
            self._tune(now)
        self._launched = self._landed = 0
        self._cpu = now
        self._launch(burst)
        while self._launched < burst.in_flight:
            self._launch(burst)

    def _launch(self, burst: Burst) -> None:
        """One more micro-batch, as soon as the device has computed it."""
        self._launched += 1
        self._cpu = cpu = self._cpu + self.slower * burst.forward
        first = burst.stretches[0]
        sent = self._up.admit(cpu + first.encode, first.bytes_up)[1]
        self.edge.arrives(sent + first.decode, self, 0)

    def served_at(self, stop: int, end: float) -> None:
        """A job is done at that time: it goes on, or the edge has an answer."""
        burst = self._burst
        assert burst is not None
        own = burst.stops[stop]
        if own.onward is not None:
            self.edge.arrives(end + own.onward, self, stop + 1)
            return
        self.moved += 2
        stretch = own.stretch
        now = burst.stretches[stretch]
        here = self._down.admit(end + now.encode_back, now.bytes_down)[1] + now.decode_back
        cpu = here if here > self._cpu else self._cpu
        if stretch < burst.last:
            following = burst.stretches[stretch + 1]
            self._cpu = cpu = cpu + self.slower * following.device
            sent = self._up.admit(cpu + following.encode, following.bytes_up)[1]
            self.edge.arrives(sent + following.decode, self, stop + 1)
            return
        self._cpu = cpu = cpu + self.slower * burst.backward
        self._landed += 1
        if self._launched < burst.count:
            self._launch(burst)
        elif self._landed == burst.count:
            self.meter.did(burst, self.slower, self._up.megabits, self._down.megabits)
            self.steps_done += burst.trains
            self._next(cpu + burst.after)

    def _finish(self, now: float) -> None:
        self._burst = None
        self.edge.at(now, self.own.place, self._ended, self.life, now)

    def _ended(self, life: int, now: float) -> None:
        if life == self.life and self._done is not None:
            self._done(self, now)

    # -- as its edge sees it --------------------------------------------------------------------

    def served_seconds(self, stop: int) -> float:
        """What the edge takes for a job."""
        burst = self._burst
        assert burst is not None
        return burst.stops[stop].seconds / self.speed

    def behind(self, stop: int) -> tuple[int, float]:
        """The station of a job and its seconds, where it is not at the edge (station 0)."""
        burst = self._burst
        assert burst is not None
        own = burst.stops[stop]
        return own.station, own.seconds

    def waiting(self, number: int) -> Waiting:
        """A job of it that waits; the rest of its round alone comes after the answer."""
        return Waiting(number, self.own.name, self._tail(), self.served)

    def _tail(self) -> float:
        if self._burst is None:
            return 0.0
        rest = self._times + sum(times for _, times in self._left)
        return (1 + rest) * self._alone(self._burst)

    def _alone(self, burst: Burst) -> float:
        """Seconds of a burst without the edge."""
        sent = burst.bytes_up * 8e-6 / self._up.megabits
        sent += burst.bytes_down * 8e-6 / self._down.megabits
        ways = 2 * len(burst.stretches) * burst.count * self.own.latency
        return self.slower * burst.device + burst.coding + sent + ways
