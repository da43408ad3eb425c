"""Links that are slow, narrow, uneven or torn, or that change bits; on either hop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tests.faults.lab import Lab
from tests.faults.setup import IDLE, TWO, Hop, Setup
from tests.house.http2 import Conversation, Passed
from tests.house.proxy import Proxy, Way

Change = Callable[[Proxy], None]
TRIPS = 80
"""More than a run waits for, one after the other."""
LONG = 1.5 * IDLE
"""Seconds for which nothing gets through: longer than the idle timeout."""
AT = (2, 1)
"""Round and step of d0 behind which a link breaks that breaks once."""
EARLIER = (1, 1)
"""The same for what comes with the next round."""
RECOVERS: dict[Hop, tuple[str, str]] = {
    "device": ("d0", ""),
    "cloud": ("cloud", "EdgeReady"),
    "stage": ("d0", ""),
}
"""Whose next work, or event, says that a hop is there again."""
HOPS: dict[Hop, str] = {"device": "device-edge", "cloud": "edge-cloud", "stage": "edge-stage"}


@dataclass
class Weather:
    """What a link is like for a whole run."""

    what: str
    change: Change
    hop: Hop
    setup: Setup = field(default_factory=Setup)

    @property
    def name(self) -> str:
        return f"{HOPS[self.hop]}: {self.what}, {self.setup}"

    def arm(self, lab: Lab) -> None:
        proxy = lab.stand_between(self.hop)
        self.change(proxy)
        lab.in_turn = True
        lab.limit += TRIPS * proxy.trip

    def tend(self, lab: Lab) -> None:
        """Nothing is due."""

    def wrong(self, lab: Lab) -> list[str]:
        """Such a link is used as it is: nobody dials again."""
        count = lab.proxies[self.hop].connections
        expected = self.setup.connections(self.hop)
        return [] if count == expected else [f"{count} connections"]


@dataclass
class Break:
    """What happens to a link once, in the middle of a round; `mend` undoes it after a while."""

    what: str
    strike: Change
    hop: Hop
    setup: Setup = field(default_factory=Setup)
    mend: Change | None = None
    struck: float | None = None

    @property
    def name(self) -> str:
        return f"{HOPS[self.hop]}: {self.what}, {self.setup}"

    def arm(self, lab: Lab) -> None:
        self.struck = None
        lab.stand_between(self.hop)

    def tend(self, lab: Lab) -> None:
        """Strike behind d0's step, and undo it."""
        proxy = lab.proxies[self.hop]
        if self.struck is None:
            if lab.has_taken("d0", *AT):
                self.struck = time.monotonic()
                lab.note_hit(*RECOVERS[self.hop])
                self.strike(proxy)
        elif self.mend is not None and time.monotonic() - self.struck > LONG:
            self.mend(proxy)

    def wrong(self, lab: Lab) -> list[str]:
        """It struck, and the link was made anew."""
        count = lab.proxies[self.hop].connections
        undisturbed = self.setup.connections(self.hop)
        return (
            [] if self.struck and count > undisturbed else [f"{count} connections: it never struck"]
        )


@dataclass
class Torn:
    """A connection is reset in the middle of a message: of the first of its kind in round 2."""

    kind: str
    way: Way
    hop: Hop
    setup: Setup = field(default_factory=Setup)
    after: str = ""
    """What makes such a message come: "reset d0", "stop d0", "stop edge", "start south", or
    "ask d0", which has it ask for another edge."""
    near: str = ""
    """Which edge's way to the cloud that is, where it is not d0's."""
    torn: threading.Event = field(default_factory=threading.Event)
    provoked: bool = False

    @property
    def name(self) -> str:
        up, down = HOPS[self.hop].split("-")
        ends = f"{up} to {down}" if self.way == "up" else f"{down} to {up}"
        return f"cut in {self.kind!r}, {ends}, {self.setup}"

    def arm(self, lab: Lab) -> None:
        self.torn.clear()
        self.provoked = False
        if self.after == "reset d0":
            lab.stand_between("device")
        if self.after == "start south":
            lab.late.add("south")
        if self.near:
            lab.near[self.hop] = self.near

        def tears(passed: Passed) -> bool:
            due = (passed.kind, passed.way) == (self.kind, self.way) and not self.torn.is_set()
            if due and passed.round in (None, 0, 2):
                lab.note_hit(*RECOVERS[self.hop])
                self.torn.set()
                return True
            return False

        lab.stand_between(self.hop, reads=True).watch = lambda: Conversation(tears)

    def tend(self, lab: Lab) -> None:
        """Have the message come, where it does not by itself; and start again who was stopped."""
        if not self.after:
            return
        what, whom = self.after.split()
        at = AT if what in ("reset", "stop") else EARLIER
        if not self.provoked and lab.has_taken("d0", *at):
            self.provoked = True
            self._provoke(lab, what, whom)
        if what == "stop" and lab.nodes[whom].poll() == 130:
            lab.start_again(whom)

    def _provoke(self, lab: Lab, what: str, whom: str) -> None:
        if what == "reset":
            lab.proxies["device"].cut()
        elif what == "start":
            lab.start(whom)
        else:
            kind = signal.SIGTERM if what == "stop" else signal.SIGUSR1
            lab.nodes[whom].send_signal(kind)

    def wrong(self, lab: Lab) -> list[str]:
        return [] if self.torn.is_set() else [f"no {self.kind!r} came"]


def delayed(trip: float) -> Change:
    def change(proxy: Proxy) -> None:
        proxy.trip = trip

    return change


def uneven(seconds: float) -> Change:
    def change(proxy: Proxy) -> None:
        proxy.jitter = seconds

    return change


def narrow(rate: float) -> Change:
    def change(proxy: Proxy) -> None:
        proxy.rate, proxy.piece = rate, 1400

    return change


def sliced(proxy: Proxy) -> None:
    proxy.piece = 1


def blocked(*ways: Way) -> Change:
    def change(proxy: Proxy) -> None:
        proxy.blocked = set(ways)

    return change


def flipped(way: Way) -> Change:
    return lambda proxy: proxy.flip(way, 400)


def setups() -> tuple[Setup, ...]:
    """A topology each, without TLS and with it."""
    return Setup("vanilla"), Setup("u_shaped", tls=True)


def tiers() -> tuple[Setup, ...]:
    """The same with a stage behind the edge."""
    return Setup("three_tier"), Setup("three_tier_u_shaped", tls=True)


def weather() -> list[Weather | Break]:
    """On the hops of two tiers, and on the one to a stage behind the edge."""
    two: tuple[Hop, ...] = ("device", "cloud")
    hops = [(setup, hop) for setup in setups() for hop in two]
    hops += [(setup, "stage") for setup in tiers()]
    kinds: dict[str, Change] = {
        "round trips of 0.2 s": delayed(0.2),
        "round trips of 2 s": delayed(2.0),
        "jitter of 0.3 s": uneven(0.3),
        "100 kB/s": narrow(1e5),
        "single bytes": sliced,
    }
    mend = blocked()
    breaks: dict[str, tuple[Change, Change | None]] = {
        "reset": (Proxy.cut, None),
        "half-open": (blocked("up", "down"), mend),
        "nothing gets up": (blocked("up"), mend),
        "nothing gets down": (blocked("down"), mend),
        "a flipped bit up": (flipped("up"), None),
        "a flipped bit down": (flipped("down"), None),
    }
    found: list[Weather | Break] = []
    for setup, hop in hops:
        found += [Weather(what, change, hop, setup) for what, change in kinds.items()]
        found += [Break(what, strike, hop, setup, undo) for what, (strike, undo) in breaks.items()]
    return found


UP, DOWN = ("up", "down")
TRAINING: dict[Hop, dict[Way, tuple[str, ...]]] = {
    "device": {
        "up": (
            *("hello", "ListFiles request", "FetchFile request", "ready"),
            *("activation of evaluation", "activation of training", "norm"),
            *("adapter", "report", "heartbeat"),
        ),
        "down": (
            *("welcome", "ListFiles answer", "FetchFile answer", "start", "adapter"),
            *("gradient of training", "norm", "heartbeat", "finish"),
        ),
    },
    "cloud": {
        "up": ("hello", "ready", "join", "device_ready", "adapter", "report", "heartbeat"),
        "down": ("settings", "admission", "start", "adapter", "heartbeat", "finish"),
    },
}
"""Messages of every run, in the order in which they first come."""


STAGE: dict[Way, tuple[str, ...]] = {
    "up": (
        *("hello", "start", "adapter", "activation of evaluation", "activation of training"),
        *("norm", "heartbeat", "End request"),
    ),
    "down": (
        *("settings_wanted", "welcome", "start", "gradient of training", "norm", "adapter"),
        *("heartbeat", "End answer"),
    ),
}
"""The same between an edge and the stage behind it."""


def torn_behind() -> list[Torn]:
    """Each kind of message to and from a stage once."""
    found: list[Torn] = []
    for own in tiers():
        setup = Setup(own.topology, clip=True, tls=own.tls)
        found += [Torn(kind, way, "stage", setup) for way, kinds in STAGE.items() for kind in kinds]
    shared = Setup("three_tier", shared=True)
    found += [Torn("together_wanted", DOWN, "stage", shared), Torn("together", UP, "stage", shared)]
    return found


def torn() -> list[Torn]:
    """Each kind of message once in each kind of run."""
    found: list[Torn] = []
    for own in setups():
        setup = Setup(own.topology, clip=True, tls=own.tls)
        for hop, ways in TRAINING.items():
            for way, kinds in ways.items():
                found += [Torn(kind, way, hop, setup) for kind in kinds]
        if setup.topology == "u_shaped":
            found.append(Torn("gradient of training", UP, "device", setup))
            found.append(Torn("activation of training", DOWN, "device", setup))
            found.append(Torn("activation of evaluation", DOWN, "device", setup))
        else:
            found.append(Torn("score of evaluation", DOWN, "device", setup))
        if setup.tls:
            found.append(Torn("proof", UP, "device", setup))
            found.append(Torn("challenge", DOWN, "device", setup))
        found.append(Torn("goodbye", UP, "device", setup, after="stop d0"))
        found.append(Torn("left", UP, "cloud", setup, after="reset d0"))
        found.append(Torn("goodbye", UP, "cloud", setup, after="stop edge"))
    return found


def torn_among_edges() -> list[Torn]:
    """What is said only where there are two edges, or one node cannot take part."""
    found: list[Torn] = []
    for own in setups():
        two = replace(own, edges=TWO)
        sums, near = replace(two, sums=True), replace(two, placement="nearest")
        fails, late = replace(two, failing="south", together=True), replace(two, together=True)
        found += [Torn("held", UP, "cloud", sums), Torn("sum", UP, "cloud", sums)]
        found.append(Torn("reduce", DOWN, "cloud", sums))
        found.append(Torn("hand_over", DOWN, "cloud", two, after="ask d0"))
        found.append(Torn("elsewhere", DOWN, "device", two, after="ask d0"))
        found.append(Torn("edges", DOWN, "device", late, after="start south"))
        found.append(Torn("Probe request", UP, "device", near))
        found.append(Torn("Probe answer", DOWN, "device", near))
        found.append(Torn("failure", UP, "cloud", fails, near="south"))
        found.append(Torn("evict", DOWN, "cloud", replace(own, unlike=True)))
    return found


def broken_among_edges() -> list[Break]:
    """The hop of one of two edges to the stage that both have behind them."""
    return [Break("reset", Proxy.cut, "stage", replace(own, edges=TWO)) for own in tiers()]
