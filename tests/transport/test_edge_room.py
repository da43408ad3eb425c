"""`edge.in_flight`: how many activations lie decoded on an edge, over all of its devices; whose."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import pytest

from sfl.config import CodecSettings
from sfl.rounds.values import DeviceWelcome
from sfl.stage.engine import Engine
from sfl.stage.messages import Key, Kind, Purpose, TensorMessage
from sfl.stage.orders import ORDERS, Waiting
from sfl.stage.orders.slots import Claim, next_slot
from sfl.stage.training import TrainingSession as Session
from sfl.stage.training.vanilla import VanillaGroup
from sfl.transport.device.decode_slots import DecodeSlots
from sfl.transport.device.served import Admitted
from sfl.transport.device.service import EdgeService
from sfl.transport.device.stream_codecs import StreamCodecs
from sfl.transport.device.training import Training
from sfl.transport.frames.envelope import Frame
from sfl.transport.frames.tensors import encode_tensor
from sfl.transport.frames.wire import EDGE_SESSION, WIRE_VERSION
from sfl.v1 import edge_pb2
from tests.house.residents import edge as edge_of
from tests.house.sessions import edge, messages
from tests.house.together import handle_together
from tests.house.waiting import at_hand, until_async

ROOM = 2
ROLES = ("activation", "hidden", "tail_gradient", "gradient")


class Device:
    """A device's end of a stream without a socket: two micro-batches, when it is told to.

    Hidden states it answers with gradients.
    """

    def __init__(self, session: Session, sent: list[TensorMessage]) -> None:
        self.session, self._sent = session, sent
        self.go = asyncio.Event()
        self.heard: list[Any] = []
        self._answers: asyncio.Queue[TensorMessage] = asyncio.Queue()
        self.stream: asyncio.Task[None]

    async def requests(self) -> AsyncIterator[Any]:
        name, settings = self.session.device, self.session.settings
        yield edge_pb2.DeviceMessage(
            hello=edge_pb2.DeviceHello(device=name, wire_version=WIRE_VERSION)
        )
        await self.go.wait()
        cut = StreamCodecs("device", name, settings.run.seed, peer_compiled=True)
        cut.begin_round(settings.codecs(name, 1), 1)
        for message in self._sent:
            for frame in encode_tensor(message, cut.encode(message)):
                yield frame
        while True:  # it stays
            message = await self._answers.get()
            for frame in encode_tensor(message, cut.encode(message)):
                yield frame

    async def write(self, message: Any) -> None:
        self.heard.append(message)
        frame = EDGE_SESSION._codec(1)[1](EDGE_SESSION.response_bytes(message))
        if isinstance(frame, Frame) and frame.header is not None and frame.kind == Kind.ACTIVATION:
            sent = self._sent[frame.header.micro_batch]
            assert sent.rows is not None
            self._answers.put_nowait(replace(sent, kind=Kind.GRADIENT, rows=sent.rows.flip(0)))

    async def abort(self, code: Any, details: str) -> None:
        raise AssertionError(f"{self.session.device}: {details}")


class Floor:
    """An edge whose compute thread stands behind a gate, and its devices."""

    def __init__(
        self,
        sessions: Sequence[Session],
        room: int = ROOM,
        order: str = "first_come",
        together: int = 1,
    ) -> None:
        self.stats = sessions[0].stats
        self.adapter_limit = 4 << 30
        self.engine = Engine(1, ORDERS[order], together)
        self.slots = DecodeSlots(room, ORDERS[order])
        self.service = EdgeService(self.stats, at_hand(self))
        hidden = sessions[0].model.hidden_size
        labelled = sessions[0].settings.run.topology == "vanilla"
        self.devices = {
            session.device: Device(
                session,
                [
                    replace(
                        messages("causal_lm", hidden, 3)[micro],
                        key=Key(Purpose.TRAINING, 1, 0, micro),
                        labels=messages("causal_lm", hidden, 3)[micro].labels if labelled else None,
                        num_micro_batches=2,
                        normalizer=9,
                    )
                    for micro in range(2)
                ],
            )
            for session in sessions
        }

    async def admit(self, name: str, proof: Any, *trips: object) -> Admitted[Training]:
        session, host = self.devices[name].session, cast(Any, self)
        welcome = DeviceWelcome(session.settings, "r", session.assignment)
        serve = partial(Training, name, session, session.settings, host)
        return Admitted(welcome, session.model.hidden_size, serve)

    async def left(self, name: str, reason: Exception) -> None:
        """Nothing is kept here."""

    @property
    def decoded(self) -> int:
        """Activations that were decoded so far."""
        phases = self.stats.phases.snapshot()
        return phases["decode"].count if "decode" in phases else 0

    async def open(self) -> None:
        """Every device's stream, in a round."""
        for name, device in self.devices.items():
            session: Any = self.service._session(device.requests(), device)  # type: ignore[arg-type]
            device.stream = asyncio.create_task(session)
            await until_async(lambda name=name: name in self.service.streams)  # type: ignore[misc]
            codecs = device.session.settings.codecs(name, 1)
            start = replace(device.session.assignment, micro_batches=2, codecs=codecs)
            mine = device.session.adapter.state()
            self.service.streams[name].begin_round(start, mine, {})
            await until_async(lambda device=device: len(device.heard) > 1)  # type: ignore[misc]

    async def busy(self, gate: threading.Event, decoded: int) -> asyncio.Task[bool]:
        """Everything has arrived of one device after the other, while the thread had to do.

        So many activations are decoded, if no more are.
        """
        held = asyncio.create_task(self.engine.run(gate.wait, 60.0))
        for arrived, device in enumerate(self.devices.values(), 1):
            device.go.set()
            await until_async(lambda arrived=arrived: self.stats.queue_depth == 2 * arrived)  # type: ignore[misc]
        await until_async(lambda: self.decoded >= decoded)
        await settled()
        return held

    async def close(self) -> None:
        """End the streams that are left, and the threads."""
        for device in self.devices.values():
            device.stream.cancel()
            with contextlib.suppress(asyncio.CancelledError, AssertionError):
                await device.stream
        await self.service.drain()
        self.engine.close()
        self.service.close()


def three() -> list[Session]:
    """Sessions of d0, d1 and d2 over one base."""
    codec = {"activation": "none", "gradient": "none"}
    return [*edge("llama", "causal_lm", ("d0", "d1", "d2"), codec=codec)]


async def settled() -> None:
    """Long enough for a tiny tensor to be decoded, if anybody were to."""
    for _ in range(50):
        await asyncio.sleep(0.002)


def claims(*held: int) -> list[Claim]:
    """Of devices that arrived one after the other, each with a longer tail than the one before."""
    return [Claim(Waiting(n, f"d{n}", float(n), 9.0 - n), count) for n, count in enumerate(held)]


@pytest.mark.parametrize(
    ("order", "held", "free", "without", "expected"),
    [
        ("first_come", (0, 0, 0), 1, 3, 0),
        ("longest_tail", (0, 0, 0), 1, 3, 2),
        ("fair_share", (0, 0, 0), 1, 3, 2),
        ("longest_tail", (0, 0, 1), 1, 2, 1),  # one of its own before a second of anybody's
        ("longest_tail", (0, 1, 3), 1, 1, 0),
        ("longest_tail", (1, 1, 1), 1, 0, 2),
        ("longest_tail", (1, 1, 1), 1, 1, None),  # that place is another's, who has yet to come
        ("longest_tail", (1, 1, 1), 3, 2, 2),
        ("longest_tail", (0, 0), 0, 2, None),
        ("longest_tail", (1,), 1, 7, 0),  # one computed, one next: the thread does not wait
        ("longest_tail", (2,), 6, 7, None),
        ("longest_tail", (2,), 6, 5, 0),
        ("longest_tail", (1,), 0, 1, None),
        ("longest_tail", (), 4, 3, None),
    ],
)
def test_who_gets_a_place(
    order: str, held: tuple[int, ...], free: int, without: int, expected: int | None
) -> None:
    assert next_slot(ORDERS[order], claims(*held), free, sum(held), without) == expected


class Stream:
    """Asks for slots."""

    def __init__(self, name: str, tail: float, log: list[str]) -> None:
        self.name, self.tail, self._log = name, tail, log

    def waiting(self, number: int) -> Waiting:
        return Waiting(number, self.name, self.tail)

    async def take(self, slots: DecodeSlots, micro: int) -> None:
        await slots.take(self)
        self._log.append(f"{self.name}{micro}")


def test_places_go_by_the_order_come_back_and_those_that_leave_are_forgotten() -> None:
    async def scene() -> list[str]:
        slots, log = DecodeSlots(2, ORDERS["longest_tail"]), list[str]()
        low, mid, top = (Stream(name, n, log) for n, name in enumerate(("low", "mid", "top")))

        def ask(stream: Stream, *micros: int) -> list[asyncio.Task[None]]:
            return [asyncio.create_task(stream.take(slots, micro)) for micro in micros]

        tasks = ask(low, 0, 1, 2)
        await settled()
        assert log == ["low0", "low1"]  # nobody else is open
        waiting = ask(mid, 0) + ask(top, 0, 1)
        await settled()
        slots.give_back(low)
        # Given one, and not awake yet: what comes behind it does not overtake.
        await asyncio.sleep(0)
        waiting += ask(top, 2)
        await settled()
        assert log[2:] == ["top0"]
        waiting[2].cancel()  # top1
        slots.leave(low)
        await settled()
        assert tasks[2].cancelled() and log[3:] == ["mid0"]
        slots.give_back(mid)
        await settled()
        assert log[4:] == ["top2"]  # mid waits for nothing
        slots.give_back(low)  # it has left
        slots.leave(top)
        slots.leave(mid)
        assert (slots._free, slots._taken, slots._streams) == (2, 0, {})
        await asyncio.gather(*tasks, *waiting, return_exceptions=True)
        return log

    assert asyncio.run(scene()) == ["low0", "low1", "top0", "mid0", "top2"]


@pytest.mark.parametrize("order", ["first_come", "longest_tail", "fair_share"])
@pytest.mark.parametrize("room", [8, 4, 2])
def test_an_order_chooses_among_what_has_arrived_decoded_or_not(room: int, order: str) -> None:
    """Of three devices the last to come has the longest tail, and was served least."""
    served: list[str] = []

    async def scene() -> None:
        floor, gate = Floor(three(), room, order), threading.Event()
        try:
            await floor.open()
            for name, device in floor.devices.items():
                last = name == "d2"
                floor.service.streams[name].tensors.turnaround._seconds = 100.0 if last else 0.1
                device.session.served_seconds = 0.0 if last else 100.0
                watch(device.session, served)
            held = await floor.busy(gate, min(room, 6))
            assert floor.decoded == min(room, 6)
            gate.set()
            await held
            await until_async(lambda: floor.stats.queue_depth == 0)
        finally:
            gate.set()
            await floor.close()

    asyncio.run(scene())
    assert sorted(served) == ["d0", "d0", "d1", "d1", "d2", "d2"]
    if order == "first_come":
        assert served[0] == "d0" and served.index("d1") < served.index("d2")
    else:
        # With two places for three devices the first has both before the others come.
        assert served[0] == ("d2" if room > 3 else "d0")
        assert served.index("d2") < served.index("d1")


def test_what_waits_of_several_devices_goes_as_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[list[str]] = []

    def noted(tasks: Any) -> Any:
        batches.append([session.device for session, _ in tasks])
        return handle_together(tasks)

    monkeypatch.setattr(VanillaGroup, "run", lambda group, tasks: noted(tasks))

    async def scene() -> None:
        floor, gate = Floor(three(), room=4, together=3), threading.Event()
        try:
            await floor.open()
            held = await floor.busy(gate, 4)
            gate.set()
            await held
            await until_async(lambda: floor.stats.queue_depth == 0)
            assert [device.session.step for device in floor.devices.values()] == [1, 1, 1]
        finally:
            gate.set()
            await floor.close()

    asyncio.run(scene())
    assert batches[0] == ["d0", "d1", "d2"]  # four places, and six that have come


def watch(session: Session, served: list[str]) -> None:
    """Note when a session is served."""
    handle = session.handle

    def noted(message: Any) -> Any:
        served.append(session.device)
        return handle(message)

    session.handle = noted  # type: ignore[method-assign]


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_one_place_is_enough_for_two_devices_and_changes_no_bit(topology: str) -> None:
    coded = CodecSettings.model_validate(dict.fromkeys(ROLES, "int8"))

    async def scene(room: int, order: str) -> list[dict[str, Any]]:
        sessions = edge_of(None, topology)[:2]
        for session in sessions:
            session.settings = session.settings.model_copy(update={"codec": coded})
        floor, gate = Floor(sessions, room, order), threading.Event()
        try:
            await floor.open()
            held = await floor.busy(gate, 1)
            gate.set()
            await held
            # In the U-shape a gradient comes while the other device's activations have the place.
            await until_async(lambda: all(d.session.step == 1 for d in floor.devices.values()))
            return [device.session.adapter.state() for device in floor.devices.values()]
        finally:
            gate.set()
            await floor.close()

    plain, one = (asyncio.run(scene(*way)) for way in ((8, "first_come"), (1, "longest_tail")))
    for expected, found in zip(plain, one, strict=True):
        assert all(expected[name].tobytes() == found[name].tobytes() for name in expected)
    start = edge_of(None, topology)[0].adapter.state()
    assert any(start[name].tobytes() != one[0][name].tobytes() for name in start)


def test_what_lies_decoded_over_all_devices_is_bounded_and_given_back() -> None:
    async def scene() -> None:
        floor, gate = Floor(three()), threading.Event()
        try:
            await floor.open()
            held = await floor.busy(gate, ROOM)
            assert floor.decoded == ROOM  # of six that have arrived
            first, second, third = floor.devices.values()
            first.stream.cancel()  # both places were its own
            with contextlib.suppress(asyncio.CancelledError, AssertionError):
                await first.stream
            await until_async(lambda: floor.decoded >= 2 * ROOM)
            await settled()
            assert floor.decoded == 2 * ROOM
            gate.set()
            await held
            await until_async(lambda: floor.stats.queue_depth == 0)
            assert floor.decoded == 6
            assert (first.session.step, second.session.step, third.session.step) == (0, 1, 1)
        finally:
            gate.set()
            await floor.close()
        # Every place came back, and no more than there are.
        assert (floor.slots._free, floor.slots._taken, floor.slots._streams) == (ROOM, 0, {})

    asyncio.run(scene())
