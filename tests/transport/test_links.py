"""Links that are slow, half-open, cut or lying: what ends, what dials again, and what is said."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from device_agent.goodbye import saying_goodbye, words
from device_agent.rejoining import LONGEST_PAUSE, MOST_CORRUPT, MOST_VAIN, Patience
from sfl.errors import (
    Corrupted,
    LinkLost,
    NameInUse,
    PeerUnavailable,
    Refused,
    RunFailed,
    RunIsOver,
)
from sfl.metrics.stats import NodeStats
from sfl.node.certificates.authority import Authority
from sfl.node.certificates.own import OwnCertificate, load_own, settings_in
from sfl.node.process import Terminated
from sfl.transport.bulk.fetch import fetch_model
from sfl.transport.cloud.link import CloudLink
from sfl.transport.device import entrance
from sfl.transport.device import line as device_line
from sfl.transport.device.link import DeviceLink
from sfl.transport.dialling import wait_for_peer, wait_for_peer_aio
from sfl.transport.frames.wire import (
    CLOUD_SESSION,
    EDGE_FETCH_FILE,
    EDGE_LIST_FILES,
    SERVER_OPTIONS,
    client_options,
    generic_handler,
)
from sfl.transport.security.credentials import open_aio_channel, open_channel
from sfl.transport.security.diagnosis import why_refused
from sfl.v1 import cloud_pb2, edge_pb2
from tests.house.edge import NAME, Cloud, House, dialled, played
from tests.house.fleets import fleet
from tests.house.links import joined
from tests.house.nodes import ByHand
from tests.house.proxy import Proxy
from tests.house.tls import give, read_folder, server
from tests.house.waiting import PATIENCE, until, until_async

# -- dialling --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, OwnCertificate]]:
    """A server with an edge's certificate, and a device's own."""
    folder, authority = tmp_path_factory.mktemp("links"), Authority.create()
    edge = give(authority, folder / "edge", "edge", "edge", "127.0.0.1")
    device = settings_in(give(authority, folder / "device", "device", "d0"), "d0")
    with server(read_folder(edge, "edge")) as address:
        yield address, load_own("device.tls", device, "device", "d0")


def connected(address: str, own: OwnCertificate, on_a_loop: bool) -> None:
    def why() -> str | None:
        return why_refused(address, "edge", own)

    async def dial() -> None:
        channel = open_aio_channel("edge", address, False, own, "edge")
        try:
            await wait_for_peer_aio(channel, "it", PATIENCE, why)
        finally:
            await channel.close()

    if on_a_loop:
        asyncio.run(dial())
        return
    with open_channel("edge", address, False, own, "edge") as channel:
        wait_for_peer(channel, "it", PATIENCE, why)


@pytest.mark.process
def test_a_slow_link_is_connected_over_at_once(guarded: tuple[str, OwnCertificate]) -> None:
    """One attempt may take several round trips, and nobody looks why it takes so long."""
    address, own = guarded
    proxies = [Proxy(address, trip) for trip in (0.5, 0.8, 2.0) for _ in range(2)]
    with futures.ThreadPoolExecutor(len(proxies)) as pool:
        for proxy in proxies:
            proxy.__enter__()
        jobs = [
            pool.submit(connected, proxy.address, own, bool(number % 2))
            for number, proxy in enumerate(proxies)
        ]
        for job in jobs:
            job.result(PATIENCE)
        for proxy in proxies:
            proxy.__exit__(None, None, None)
    assert [proxy.connections for proxy in proxies] == [1] * len(proxies)


def test_a_refusal_is_explained_over_a_slow_link(
    guarded: tuple[str, OwnCertificate], tmp_path: Path
) -> None:
    address, _ = guarded
    folder = give(Authority.create(), tmp_path / "other", "device", "d0")
    stranger = load_own("device.tls", settings_in(folder, "d0"), "device", "d0")
    with Proxy(address, 0.5) as proxy, pytest.raises(Refused, match="not issued by the CA"):
        connected(proxy.address, stranger, on_a_loop=False)


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_a_proxy_of_the_environment_is_not_asked_unless_told(
    guarded: tuple[str, OwnCertificate], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    address, own = guarded
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for on_a_loop in (False, True):
        connected(address, own, on_a_loop)
    channel = open_channel("edge", address, False, own, "edge", proxy=True)
    with channel, pytest.raises(PeerUnavailable):
        wait_for_peer(channel, "it", 1.0)


def test_a_half_open_connection_without_heartbeats_is_given_up_too() -> None:
    def quick(options: tuple[tuple[str, int], ...]) -> list[tuple[str, int]]:
        """A second in place of each minute."""
        scaled = ("keepalive_time", "keepalive_timeout", "ping_timeout", "ping_interval")
        return [(n, v // 60 if any(word in n for word in scaled) else v) for n, v in options]

    stuck = threading.Event()
    serving = grpc.server(futures.ThreadPoolExecutor(1), options=quick(SERVER_OPTIONS))
    listing: Any = lambda request, context: stuck.wait(PATIENCE) and edge_pb2.FileList()  # noqa: E731
    serving.add_generic_rpc_handlers((generic_handler("sfl.v1.Edge", {EDGE_LIST_FILES: listing}),))
    address = f"127.0.0.1:{serving.add_insecure_port('127.0.0.1:0')}"
    serving.start()
    try:
        with Proxy(address) as proxy:
            channel = grpc.insecure_channel(proxy.address, options=quick(client_options()))
            wait_for_peer(channel, "it", PATIENCE)
            call: Any = EDGE_LIST_FILES.stub(channel)
            answer = call.future(edge_pb2.FilesRequest(device="d"), timeout=PATIENCE)
            proxy.swallows = True
            with pytest.raises(grpc.RpcError) as caught:
                answer.result()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            channel.close()
    finally:
        stuck.set()
        serving.stop(None)


# -- a device's link -------------------------------------------------------------------------------


def impatient(house: House, idle_timeout: float = 1.0) -> None:
    network = {"idle_timeout": idle_timeout, "heartbeat_interval": 0.2}
    settings = house.settings.model_copy(
        update={"network": house.settings.network.model_copy(update=network)}
    )
    house.base = house.floor.base = replace(house.base, settings=settings)


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith(("link", "fetch"))}


def test_a_broken_link_leaves_no_thread_and_no_connection() -> None:
    async def scene(house: House, cloud: Cloud) -> None:
        with Proxy(house.address) as proxy:
            for number in range(4):
                link = await asyncio.to_thread(joined, proxy.address, NAME, PATIENCE)
                assert len(threads()) == 3
                proxy.cut()
                with pytest.raises(LinkLost):
                    await asyncio.to_thread(link.receive)
                await asyncio.to_thread(link.close)
                assert not threads()
                assert proxy.connections == number + 1  # each dials anew
                await until_async(lambda: not house.service.streams and not house.sessions)

    played(scene)


@pytest.mark.process
def test_a_device_waits_for_an_edge_that_lives_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(entrance, "BEAT", 0.1)
    monkeypatch.setattr(device_line, "GOODBYE", 0.2)  # nobody hears it

    async def scene(house: House, cloud: Cloud) -> None:
        cloud.mute = True
        with Proxy(house.address) as proxy:
            joining = asyncio.create_task(asyncio.to_thread(joined, proxy.address, NAME, 2.5))
            await until_async(lambda: cloud.told == ["join"])
            await asyncio.sleep(3)
            assert not joining.done()  # the edge says that it lives
            proxy.swallows = True
            with pytest.raises(LinkLost, match=r"not a byte for 2\.5 s"):
                await joining
            assert not threads()

    played(scene)


def test_who_waits_to_be_let_in_learns_why_the_run_ended() -> None:
    async def scene(house: House, cloud: Cloud) -> None:
        cloud.mute = True
        joining = asyncio.create_task(asyncio.to_thread(joined, house.address, NAME, PATIENCE))
        await until_async(lambda: cloud.told == ["join"])
        house.service.finish(RunFailed("round 2 closed with 0 devices"))
        with pytest.raises(RunFailed, match="round 2 closed with 0 devices"):
            await joining
        assert not threads()

    played(scene)


@pytest.mark.parametrize("ok", [True, False])
def test_who_was_in_the_run_and_comes_back_after_its_end_is_told_that(ok: bool) -> None:
    async def scene(house: House, cloud: Cloud) -> None:
        with Proxy(house.address) as proxy:
            link = await asyncio.to_thread(joined, proxy.address, NAME, PATIENCE)
            ending = asyncio.create_task(house.follower.dismiss(ok, "every round closed"))
            proxy.cut()
            await asyncio.to_thread(link.close)
        await until_async(lambda: not house.service.streams)
        assert not ending.done() and house.service.is_awaited
        with pytest.raises(RunIsOver if ok else RunFailed):
            await asyncio.to_thread(joined, house.address, NAME, PATIENCE)
        await ending  # at once: nobody else was in it
        assert not house.service.is_awaited
        with pytest.raises(Refused if ok else RunFailed):
            await asyncio.to_thread(joined, house.address, "stranger", PATIENCE)

    played(scene)


def test_a_half_open_link_ends_what_waits_beside_the_stream_too() -> None:
    async def scene(house: House, cloud: Cloud) -> None:
        impatient(house)
        with Proxy(house.address) as proxy:
            link = await asyncio.to_thread(joined, proxy.address, NAME, PATIENCE)
            proxy.swallows = True
            request = edge_pb2.FilesRequest(device=NAME)
            with pytest.raises(grpc.RpcError) as caught:
                await asyncio.to_thread(EDGE_LIST_FILES.stub(link.channel), request)
            assert "not a byte for" in str(link.why(caught.value))
            with pytest.raises(LinkLost, match="not a byte for"):
                await asyncio.to_thread(link.receive)
            await asyncio.to_thread(link.close)

    played(scene)


def test_a_file_of_which_nothing_comes_any_more_is_given_up_and_resumed(tmp_path: Path) -> None:
    data, stuck = os.urandom(1 << 12), threading.Event()

    entry = edge_pb2.FileEntry(
        name="model.safetensors", num_bytes=8192, sha256=hashlib.sha256(data * 2).hexdigest()
    )
    asked: list[int] = []

    def listing(request: edge_pb2.FilesRequest, context: Any) -> edge_pb2.FileList:
        return edge_pb2.FileList(files=[entry])

    def fetch(request: edge_pb2.FileRequest, context: Any) -> Iterator[edge_pb2.FileChunk]:
        asked.append(request.offset)
        yield edge_pb2.FileChunk(data=data)
        if not request.offset:
            stuck.wait(PATIENCE)

    serving = grpc.server(futures.ThreadPoolExecutor(2))
    behaviours = {EDGE_LIST_FILES: listing, EDGE_FETCH_FILE: fetch}
    serving.add_generic_rpc_handlers((generic_handler("sfl.v1.Edge", behaviours),))
    address = f"127.0.0.1:{serving.add_insecure_port('127.0.0.1:0')}"
    serving.start()
    try:
        with open_channel("edge", address, False) as channel:
            stats = NodeStats("d", "device")
            with pytest.raises(LinkLost, match=r"nothing of model\.safetensors for 1 s"):
                fetch_model(channel, "d", tmp_path, stats, 1.0)
            folder = fetch_model(channel, "d", tmp_path, stats, PATIENCE)
        assert (folder / "model.safetensors").read_bytes() == data * 2
        assert asked == [0, len(data)]
    finally:
        stuck.set()
        serving.stop(None)


def test_an_edge_ends_while_the_cloud_owes_it_an_answer() -> None:
    async def scene(house: House, cloud: Cloud) -> None:
        cloud.mute = True
        async with dialled(house):
            await until_async(lambda: cloud.told == ["join"])
        await until_async(lambda: house.service._cleanups)
        # `opened` drains the service, which must not wait for the cloud.

    played(scene)


def test_an_edge_does_not_wait_for_a_cloud_that_says_nothing() -> None:
    stuck = threading.Event()

    def session(requests: Any, context: Any) -> Iterator[cloud_pb2.CloudMessage]:
        stuck.wait(PATIENCE)
        yield from ()

    serving = grpc.server(futures.ThreadPoolExecutor(1))
    serving.add_generic_rpc_handlers((generic_handler("sfl.v1.Cloud", {CLOUD_SESSION: session}),))
    address = f"127.0.0.1:{serving.add_insecure_port('127.0.0.1:0')}"
    serving.start()

    async def join() -> None:
        link = CloudLink(address, "edge", NodeStats("edge", "edge"), insecure=False)
        try:
            await link.join(1.0)
        finally:
            await link.close()

    try:
        with pytest.raises(LinkLost, match="no message within 1 s"):
            asyncio.run(join())
    finally:
        stuck.set()
        serving.stop(None)


# -- no thread ends unseen -------------------------------------------------------------------------


def broken(*_: Any) -> Any:
    raise ValueError("a fault of our own")


@pytest.mark.parametrize("place", ["encoder", "reader", "heartbeat"])
def test_what_ends_a_thread_of_the_link_reaches_who_waits(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    async def scene(house: House, cloud: Cloud) -> None:
        impatient(house, PATIENCE)
        link = await asyncio.to_thread(joined, house.address, NAME, PATIENCE)
        if place == "encoder":
            monkeypatch.setattr(DeviceLink, "_post_frames", broken)
            link._to_encode.put(torch.zeros(1))  # type: ignore[arg-type]
        elif place == "reader":
            monkeypatch.setattr("sfl.transport.device.reader.Reader._on_heartbeat", broken)
        else:
            monkeypatch.setattr(NodeStats, "snapshot", broken)
        with pytest.raises(ValueError, match="a fault of our own"):
            await asyncio.to_thread(link.receive)
        await asyncio.to_thread(link.close)

    played(scene)


# -- why a device leaves, and whether it comes back ------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Terminated(), "SIGTERM"),
        (KeyboardInterrupt(), "interrupted"),
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (RunFailed("round 2 closed with 0 devices"), "round 2 closed with 0 devices"),
        (ValueError("x"), "ValueError: x (a bug"),
    ],
)
def test_a_device_says_what_ended_it(error: BaseException, said: str) -> None:
    class Link:
        reason = ""

        def close(self, reason: str, refused: bool, returns: bool) -> None:
            self.reason, self.returns = reason, returns

    link: Any = Link()
    with pytest.raises(type(error)), saying_goodbye(link):
        raise error
    assert link.reason == words(error)
    assert said in link.reason
    assert link.returns is not isinstance(error, RunFailed) or "out of memory" in said
    with saying_goodbye(link):
        pass
    assert link.reason == "done"


def test_patience_has_an_end() -> None:
    patience = Patience(10.0)
    for _ in range(MOST_VAIN):
        patience.spend(LinkLost("broke"), 0.0)
    with pytest.raises(LinkLost):
        patience.spend(LinkLost("broke"), 0.0)
    patience.taken_in()
    patience.spend(NameInUse("in use"), 0.0)
    patience.spend(NameInUse("in use"), 10.0)
    with pytest.raises(NameInUse):
        patience.spend(NameInUse("in use"), 10.1)
    for _ in range(MOST_CORRUPT):
        patience.taken_in()
        patience.spend(Corrupted("bits"), 0.0)
    with pytest.raises(Corrupted):
        patience.taken_in()
        patience.spend(Corrupted("bits"), 0.0)
    patience.round_done()
    patience.taken_in()
    patience.spend(Corrupted("bits"), 0.0)
    for _ in range(3 * MOST_VAIN):  # a link that breaks later is dialled as often as it takes
        patience.taken_in()
        patience.spend(LinkLost("broke"), 0.0)


def test_who_was_in_a_run_dials_for_as_long_as_that_waits() -> None:
    patience = Patience(10.0)
    with pytest.raises(PeerUnavailable):
        patience.unreached(PeerUnavailable("nobody"), 0.0)
    patience.taken_in(60.0)
    for now in range(100, 161, 4):
        patience.spend(LinkLost("broke"), now)
        patience.unreached(PeerUnavailable("nobody"), now)
    for error in (LinkLost("broke"), PeerUnavailable("nobody")):
        again = patience.spend if isinstance(error, LinkLost) else patience.unreached
        with pytest.raises(type(error)):
            again(error, 160.1)  # type: ignore[arg-type, operator]
    patience.taken_in(60.0)  # and the clock starts anew
    patience.spend(LinkLost("broke"), 200.0)
    patience.unreached(PeerUnavailable("nobody"), 260.0)


def test_pauses_between_dials_grow_and_are_drawn_at_random() -> None:
    patience = Patience(10.0)
    patience.taken_in(1e9)
    for dial in range(1, 10):
        patience.spend(LinkLost("broke"), 0.0)
        drawn = [patience.pause(0.5) for _ in range(200)]
        longest = min(LONGEST_PAUSE, 0.5 * 2**dial)
        assert 0.0 <= min(drawn) < 0.2 * longest and 0.8 * longest < max(drawn) <= longest
    patience.taken_in(1e9)
    assert max(patience.pause(0.5) for _ in range(200)) <= 0.5


class OverProxies(ByHand):
    """Nodes in an environment that names a dead proxy; the first device's link can be disturbed."""

    def environment(self, name: str) -> dict[str, str]:
        return dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), "http://127.0.0.1:9")


def disturb(nodes: ByHand, proxy: Proxy, way: Any) -> None:
    """Flip a bit of what d0 sends or is sent, and wait until it is back."""
    joined = nodes.log("edge").count("device d0 joined")
    proxy.flip(way)
    until(lambda: nodes.log("edge").count("device d0 joined") > joined, f"d0 again, {way}")


@pytest.mark.process
def test_a_run_over_bad_links(tmp_path: Path) -> None:
    """Flipped bits are named and cost a link, not a round; a device says that it got SIGTERM."""
    values = fleet(
        tmp_path,
        run={"rounds": 5, "min_devices": 1},
        codec={"activation": "none", "gradient": "none"},
        training={"local_steps": 30},
        network={"idle_timeout": 8, "heartbeat_interval": 0.5, "rejoin_timeout": 15},
    )
    values["devices"][2]["link"] = {"delay_ms": 20.0}  # the run outlasts the others' comings back
    nodes = OverProxies(tmp_path, values)
    try:
        with Proxy(nodes.edge_address) as proxy:
            direct, nodes.edge_address = nodes.edge_address, proxy.address
            first = nodes.device(0)
            nodes.edge_address = direct
            second, third = nodes.device(1), nodes.device(2)
            until(lambda: nodes.status().get("round", 0) >= 1, "round 1")
            for way in ("up", "down"):
                disturb(nodes, proxy, way)
            until(lambda: nodes.status().get("round", 0) >= 2, "round 2")
            second.send_signal(signal.SIGTERM)
            assert second.wait(PATIENCE) == 130
            outcome = nodes.outcome()
            assert first.wait(PATIENCE) == third.wait(PATIENCE) == 0
        assert proxy.flipped == 2
        assert outcome.code == 0, nodes.log("cloud")
        (fault,) = outcome.summary["faults"]  # who is back in time has lost nothing
        assert fault["node"] == "d1"
        assert fault["problem"] == "SIGTERM; not back within rejoin_timeout (15 s)"
        away = [line for line in nodes.log("cloud").splitlines() if "device d0 is away" in line]
        assert len(away) == 2 and all("bytes changed on the way" in line for line in away), away
        assert "bug" not in nodes.log("edge") + nodes.log("d0") + nodes.log("cloud")
    finally:
        nodes.stop()


def test_files_over_a_link_that_was_closed_meanwhile_are_a_lost_link(tmp_path: Path) -> None:
    """As a device's that stood still for longer than its edge may be silent."""
    channel = grpc.insecure_channel("127.0.0.1:1")
    channel.close()
    with pytest.raises(LinkLost, match="closed"):
        fetch_model(channel, "d0", tmp_path, NodeStats("d0", "device"))
