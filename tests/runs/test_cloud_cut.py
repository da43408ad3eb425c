"""The link between edge and cloud breaks at any message of a run, and the adapter is the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_server.host import DeviceHost
from sfl.node.certificates.authority import Authority
from sfl.node.certificates.identity import Role
from sfl.node.certificates.own import OwnCertificate, load_own, settings_in
from sfl.transport import dialling
from sfl.transport.frames import chunks
from tests.house.cuts import Cuts, CutTwin
from tests.house.federation import Outcome, finished
from tests.house.fleets import completions, device, fleet, settings, tiny
from tests.house.reference import adapter, assert_same_bits
from tests.house.tls import give
from tests.house.twin import Twin
from tests.house.waiting import until

pytestmark = pytest.mark.process  # each takes seconds

APART = 17
"""Messages between two breaks of a link: more than it takes to join again."""


def values(folder: Path, topology: str) -> dict[str, Any]:
    found = settings(tiny("llama"), run={"topology": topology}, training={"local_steps": 2})
    tail = {"tail_layers": 1} if topology == "u_shaped" else {}
    found["devices"] = [
        device(name, completions(folder / f"{name}.jsonl", seed), 1, **tail)
        for name, seed in (("a", 1), ("b", 2))
    ]
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses, and parts of several frames, so that they break in the middle."""
    monkeypatch.setattr(dialling, "SHORTEST_PAUSE", 0.01)
    monkeypatch.setattr(dialling, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(chunks, "FRAME_BYTES", 12_000)


def cut(folder: Path, topology: str, cuts: Cuts) -> Outcome:
    folder.mkdir(exist_ok=True, parents=True)
    return CutTwin(folder, values(folder, topology), cuts).run()


Whole = Callable[[str], tuple[dict[str, np.ndarray], list[str]]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The adapter of a run by its topology, and its messages between edge and cloud."""

    @cache
    def whole(topology: str) -> tuple[dict[str, np.ndarray], list[str]]:
        cuts = Cuts()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chunks, "FRAME_BYTES", 12_000)
            outcome = finished(cut(tmp_path_factory.mktemp(topology), topology, cuts))
        return adapter(outcome), cuts.bodies

    return whole


@pytest.mark.parametrize("later", [False, True], ids=["lost", "arrived"])
@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_a_link_to_the_cloud_that_breaks_at_any_message_changes_no_bit(
    tmp_path: Path, undisturbed: Whole, topology: str, later: bool
) -> None:
    expected, bodies = undisturbed(topology)
    assert {"settings", "admission", "start", "adapter", "report", "finish"} <= set(bodies)
    broken: set[str] = set()
    for first in range(3 + later, 3 + APART, 2):
        # Several in one run, far enough from each other that it comes on in between.
        cuts = Cuts(lambda number, at=first: number in range(at, at + 3 * APART, APART), later)
        outcome = finished(cut(tmp_path / str(first), topology, cuts))
        assert len(cuts.done) >= 2
        broken |= set(cuts.done)
        assert_same_bits(adapter(outcome), expected)
        assert outcome.summary["rounds"] == 2
        assert "joined the cloud again" in outcome.logs()
    assert {"join", "device_ready", "adapter"} <= broken


def adapter_bytes(twin: Twin) -> int:
    """Of adapters that the cloud has sent its edge."""
    return twin.servers["edge"].stats.snapshot().bytes.down["adapter"]


def test_many_devices_of_an_edge_go_on_and_their_adapter_is_not_sent_again(tmp_path: Path) -> None:
    def one(name: str) -> Twin:
        (tmp_path / name).mkdir()
        values = fleet(tmp_path / name, 8, run={"rounds": 2}, training={"local_steps": 4})
        return Twin(tmp_path / name, values)

    whole, broken = one("whole"), one("broken")
    expected = finished(whole.run())
    for round_, steps in ((1, 1), (1, 3), (2, 2)):
        broken.at(
            "d3",
            round_,
            steps,
            lambda name: broken.loop.call_soon_threadsafe(broken.channels["edge"].cut),
        )
    outcome = finished(broken.run())
    assert_same_bits(adapter(outcome), adapter(expected))
    assert outcome.logs().count("joined the cloud again") == 3
    assert adapter_bytes(broken) == adapter_bytes(whole)


def test_an_edge_that_loses_the_last_word_comes_back_for_it(
    tmp_path: Path, undisturbed: Whole
) -> None:
    expected, bodies = undisturbed("vanilla")
    last = len(bodies) - bodies[::-1].index("report")
    cuts = Cuts(lambda number: number == last)
    outcome = finished(cut(tmp_path, "vanilla", cuts))
    assert cuts.done == ["report"]
    assert_same_bits(adapter(outcome), expected)
    assert "run is over" not in outcome.logs()


class Signed(Twin):
    """Devices sign what they deliver."""

    @cached_property
    def authority(self) -> Authority:
        return Authority.init(self.folder / "ca")[0]

    def certificate(self, role: Role, name: str) -> OwnCertificate | None:
        folder = self.folder / "certs" / name
        if not folder.exists():
            give(self.authority, folder, role, name, *(() if role == "device" else ("127.0.0.1",)))
        return load_own("tls", settings_in(folder, name), role, name)


def lost_after_its_round(
    folder: Path, kind: type[Twin], back: bool, round_: int
) -> tuple[Outcome, list[int]]:
    """A device is through with a round while the cloud is away, and is lost; it comes `back` to
    its edge before the cloud does, or after. Steps of that round that it takes once more."""
    folder.mkdir()
    twin, again = kind(folder, fleet(folder, 2, training={"local_steps": 4})), list[int]()
    for name in ("d0", "d1"):
        twin.at(name, round_, 2, twin.hold)

    def host() -> DeviceHost:
        return twin.servers["edge"]._opened.result()

    def delivered() -> bool:
        delivery = host().deliveries.of("d0")
        return delivery is not None and delivery.told.round == round_ and delivery.complete

    def waits_behind_it() -> bool:
        return any("device d0" in wait.words for wait in host().stats.waits.all())

    async def story(twin: Twin) -> None:
        await twin.until(lambda: twin.held == {"d0", "d1"})
        twin.services.stop("cloud")
        twin.release("d0")
        await twin.until(delivered)
        assert "d0" not in twin.done()
        twin.lose("d0")
        await twin.until(lambda: "d0" in twin.ended)
        for step in range(4):
            twin.at("d0", round_, step, lambda _, step=step: again.append(step))
        if back:
            twin.start_device("d0")
            await twin.until(waits_behind_it)
        twin.services.serve("cloud", twin.cloud.service.handler(twin.cloud.host))
        await twin.until(lambda: "d0" in twin.done())
        if not back:
            twin.start_device("d0")
        twin.release("d1")

    return finished(twin.run(story)), again


@pytest.mark.parametrize("round_", [1, 2])
@pytest.mark.parametrize("kind", [Twin, Signed])
@pytest.mark.parametrize("back", [False, True], ids=["later", "sooner"])
def test_what_a_device_delivered_outlives_it_while_the_cloud_is_away(
    tmp_path: Path, back: bool, kind: type[Twin], round_: int
) -> None:
    (tmp_path / "whole").mkdir()
    values = fleet(tmp_path / "whole", 2, training={"local_steps": 4})
    expected = finished(Twin(tmp_path / "whole", values).run())
    outcome, again = lost_after_its_round(tmp_path / "lost", kind, back, round_)
    assert again == [] and outcome.summary["faults"] == []
    assert "not signed" not in outcome.logs() and "afresh" not in outcome.logs()
    assert_same_bits(adapter(outcome), adapter(expected))


def test_breaks_of_a_moment_are_never_too_many(tmp_path: Path) -> None:
    """What the edge has kept is not done again, so that nobody was lost in vain."""

    def one(name: str) -> Twin:
        (tmp_path / name).mkdir()
        values = fleet(tmp_path / name, 2, run={"rounds": 1}, training={"local_steps": 20})
        return Twin(tmp_path / name, values)

    whole, broken = one("whole"), one("broken")
    expected = finished(whole.run())

    def there() -> bool:
        devices = broken.cloud.coordinator.devices
        return len(devices) == 2 and all(own.ready for own in devices.values())

    def cut(name: str) -> None:
        link = broken.servers["edge"].cloud
        before = link.stream
        broken.loop.call_soon_threadsafe(broken.channels["edge"].cut)
        until(lambda: link.stream not in (before, None) and there(), "the edge again")

    for step in range(2, 15):
        broken.at("d0", 1, step, cut)
    outcome = finished(broken.run())
    assert outcome.logs().count("joined the cloud again") == 13
    assert outcome.summary["faults"] == []
    assert_same_bits(adapter(outcome), adapter(expected))
