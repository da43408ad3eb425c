"""What waits at the cloud for an edge that does not read."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import grpc
import pytest

from sfl.errors import ProtocolError
from sfl.rounds import FinishRun
from sfl.transport.cloud.outbox import A_DEVICE, MOST_BYTES, MOST_MESSAGES, Outbox
from sfl.transport.frames.wire import BASE_UPDATE
from sfl.v1 import cloud_pb2, tensor_pb2
from tests.house.cloud import SpokenEdge, cloud_alone

RUNNER = asyncio.Runner()
PIECE = cloud_pb2.CloudMessage(adapter=tensor_pb2.AdapterFrame(data=bytes(1 << 20)))


def start(round_: int, *devices: str, begun: bool = False) -> cloud_pb2.CloudMessage:
    entries = [cloud_pb2.DeviceStart(device=name) for name in devices]
    orders = cloud_pb2.EdgeRoundStart(round=round_, devices=entries, begun=begun)
    return cloud_pb2.CloudMessage(start=orders)


def refusal(text: str = "no") -> cloud_pb2.CloudMessage:
    return cloud_pb2.CloudMessage(admission=cloud_pb2.Admission(device="x", refusal=text))


def is_full(outbox: Outbox) -> bool:
    async def watched() -> None:
        await asyncio.wait_for(outbox.watch(), 0.01)

    try:
        RUNNER.run(watched())
    except TimeoutError:
        return False
    except ProtocolError as error:
        assert "does not read what it is sent" in str(error)
        assert not len(outbox), "nothing of it is kept"
        return True


def taken(outbox: Outbox, count: int) -> None:
    async def take() -> None:
        for _ in range(count):
            await outbox.get()

    RUNNER.run(take())


@pytest.mark.parametrize("devices", [0, 3])
def test_messages_are_counted(devices: int) -> None:
    outbox = Outbox(devices)
    for _ in range(MOST_MESSAGES + A_DEVICE * devices):
        outbox.put(refusal())
    assert not is_full(outbox)
    taken(outbox, 1)
    outbox.put(refusal())
    assert not is_full(outbox)
    outbox.put(refusal())
    assert is_full(outbox)
    outbox.put(refusal())
    assert not len(outbox)


def test_their_bytes_are_counted() -> None:
    outbox = Outbox()
    for _ in range(MOST_BYTES >> 20):
        outbox.put(refusal("x" * (1 << 20)))
    assert is_full(outbox)


def all_of(outbox: Outbox) -> list[cloud_pb2.CloudMessage]:
    async def take() -> list[cloud_pb2.CloudMessage]:
        return [await outbox.get() for _ in range(len(outbox))]

    return RUNNER.run(take())


def admission(device: str) -> cloud_pb2.CloudMessage:
    return cloud_pb2.CloudMessage(admission=cloud_pb2.Admission(device=device))


def test_orders_for_devices_that_are_back_share_one_adapter() -> None:
    outbox = Outbox(50)
    for number in range(50):
        outbox.put(admission(f"d{number}"))
        outbox.put(start(1, f"d{number}"))
        outbox.put(PIECE)
        outbox.put(PIECE)
    assert not is_full(outbox)
    *admitted, orders, one, two = all_of(outbox)
    assert [message.admission.device for message in admitted] == [f"d{n}" for n in range(50)]
    assert {entry.device for entry in orders.start.devices} == {f"d{n}" for n in range(50)}
    assert len(orders.start.devices) == 50 and one == two == PIECE


def test_an_adapter_that_is_on_its_way_is_sent_to_its_end() -> None:
    outbox = Outbox(50)
    for number in range(50):
        outbox.put(start(1, f"d{number}"))
        outbox.put(PIECE)
        outbox.put(PIECE)
        if number == 0:
            taken(outbox, 2)
    assert not is_full(outbox)
    rest, orders, *adapter = all_of(outbox)
    assert rest == PIECE and len(orders.start.devices) == 49 and adapter == [PIECE, PIECE]


def test_orders_from_before_a_device_was_admitted_again_are_void() -> None:
    outbox = Outbox()
    sums = tensor_pb2.AdapterFrame(header=tensor_pb2.AdapterHeader(side=BASE_UPDATE))
    outbox.put(start(1, "a", "b", "c", "d"))
    outbox.put(PIECE)
    outbox.put(cloud_pb2.CloudMessage(adapter=sums))
    outbox.put(admission("a"))
    outbox.put(cloud_pb2.CloudMessage(evict=cloud_pb2.Evict(device="b")))
    outbox.put(start(1, "e", begun=True))
    outbox.put(start(1, "f"))
    outbox.put(PIECE)
    waiting = [message.WhichOneof("body") for message in all_of(outbox)]
    assert waiting == ["adapter", "admission", "evict", "start", "start", "adapter"]
    outbox.put(start(1, "a", "b", "c", "d"))
    outbox.put(admission("a"))
    outbox.put(start(1, "d", "e"))
    (_, orders) = all_of(outbox)
    assert [entry.device for entry in orders.start.devices] == ["d", "e", "b", "c"]


def test_adapters_and_sums_of_any_size_may_wait_for_two_rounds_and_not_three() -> None:
    outbox = Outbox()
    for round_ in range(3):
        for _ in range(100):  # more bytes than other messages may have
            outbox.put(PIECE)  # sums that it lacks
        outbox.put(start(round_))
        if round_ < 2:
            assert not is_full(outbox)
            outbox.put(PIECE)
    assert is_full(outbox)


def test_where_each_device_is_in_a_round_of_its_own_so_many_adapters_may_wait() -> None:
    outbox = Outbox(4, most_rounds=5)
    for _ in range(10):  # they are lost and back again and again
        for number in range(4):
            outbox.put(start(number, f"d{number}"))
            outbox.put(PIECE)
    assert not is_full(outbox)
    assert len(outbox) == 8
    for round_ in range(4, 8):
        outbox.put(start(round_, "d0"))
        outbox.put(PIECE)
    assert is_full(outbox)


def test_an_edge_that_reads_late_and_in_time_is_no_offender() -> None:
    outbox = Outbox()
    for round_ in range(20):
        outbox.put(start(round_))
        for _ in range(5):
            outbox.put(PIECE)
        taken(outbox, 6 if len(outbox) > 6 else 0)  # always a round behind
        assert not is_full(outbox)


@pytest.mark.process
def test_an_edge_that_does_not_read_ends_its_own_part(tmp_path: Path) -> None:
    async def story(cloud: object, address: str) -> None:
        deaf, other = SpokenEdge(address, "deaf"), SpokenEdge(address, "other")
        await deaf.join()
        await other.join()
        for _ in range(100_000):  # each is answered, and it takes no answer
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await deaf.say(join=cloud_pb2.DeviceJoin(device="n" * 100))
            if "deaf" not in cloud.service.streams:  # type: ignore[attr-defined]
                break
        else:
            raise AssertionError("it was never given up")
        await other.hears("heartbeat")
        cloud.driver.do(FinishRun(False, "enough"))  # type: ignore[attr-defined]
        await deaf.close()
        await other.close()

    reason, _ = cloud_alone(
        tmp_path, story, run={"edges": ["deaf", "other"]}, edge={"name": "other"}
    )
    assert reason == "enough"
    summary = json.loads((tmp_path / "runs" / "t" / "summary.json").read_text())
    (fault,) = summary["faults"]
    assert fault["problem"].startswith("edge deaf: it does not read what it is sent: 4129 messages")
