"""An edge that comes back to its cloud: pauses, names, signatures, and what is told again."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest

from edge_server.deliveries import Deliveries
from edge_server.joining import Joining
from sfl.config import RunSettings
from sfl.errors import (
    Corrupted,
    LinkLost,
    NameInUse,
    PeerUnavailable,
    Refused,
    RunFailed,
    SflError,
)
from sfl.metrics.waits import Waits
from sfl.rounds.assignment import assign
from sfl.rounds.values import (
    BEGINNING,
    Assignment,
    EdgeBase,
    Point,
    RoundReport,
    Steps,
    UpdateHeader,
)
from sfl.transport import dialling
from sfl.transport.dialling import Absence, Pauses

RUN = RunSettings.model_validate({"model": {"path": "m"}, "devices": [{"name": "d"}]})


def told(round_: int, after: Point = BEGINNING) -> Assignment:
    return assign(RUN, EdgeBase(4), "d", round_, steps=Steps(2, 0, 4), after=after)


class Cloud:
    """What went out, on which stream."""

    def __init__(self) -> None:
        self.peer = "cloud"
        self.stream: Any = object()
        self.said: list[str] = []

    def post(self, word: Any) -> None:
        self.said.append(type(word).__name__)

    def post_messages(self, messages: Any) -> None:
        self.said += [message.WhichOneof("body") for message in messages]


def part(side: str, round_: int = 1) -> tuple[UpdateHeader, bytes]:
    return UpdateHeader(round_, "d", side, 2, 1.0), b"x" * 10


def test_what_is_delivered_while_the_cloud_is_away_is_told_once_it_asks() -> None:
    async def story() -> None:
        cloud = Cloud()
        deliveries = Deliveries(cloud, Waits())  # type: ignore[arg-type]
        deliveries.begin("d", told(1))
        await deliveries.part(*part("device"))
        assert cloud.said == ["adapter"]
        cloud.stream = object()  # another one: it has not asked yet
        cloud.said.clear()
        await deliveries.part(*part("edge"))
        deliveries.report(RoundReport(1, "d"))
        assert cloud.said == []
        own = deliveries.of("d")
        assert own is not None and own.complete and own.points == (Point(1, 2),)
        assert own.is_of(told(1, after=Point(0, 3))) and not own.is_of(told(2))
        await deliveries.tell_again("d")
        assert sorted(cloud.said) == ["adapter", "adapter", "report"]
        deliveries.begin("d", told(2, after=Point(1, 2)))
        deliveries.forget("d")
        await deliveries.part(*part("edge", 2))
        assert len(cloud.said) == 3

    asyncio.run(story())


def test_of_a_device_that_has_left_nothing_is_told_again() -> None:
    async def story() -> None:
        cloud = Cloud()
        deliveries = Deliveries(cloud, Waits())  # type: ignore[arg-type]
        deliveries.begin("d", told(1))
        deliveries.forget("d")
        await deliveries.tell_again("d")
        assert cloud.said == []
        # But all that it delivered while the cloud was away.
        deliveries.begin("d", told(1))
        cloud.stream = None
        await deliveries.part(*part("device"))
        await deliveries.part(*part("edge"))
        deliveries.report(RoundReport(1, "d"))
        assert deliveries.is_due("d")
        cloud.stream = object()
        await deliveries.tell_again("d")
        assert sorted(cloud.said) == ["adapter", "adapter", "report"]
        assert not deliveries.is_due("d")

    asyncio.run(story())


def test_what_is_told_again_to_a_stream_that_breaks_meanwhile_goes_nowhere() -> None:
    async def story() -> None:
        cloud = Cloud()
        deliveries = Deliveries(cloud, Waits())  # type: ignore[arg-type]
        deliveries.begin("d", told(1))
        await deliveries.part(*part("device"))
        cloud.said.clear()
        cloud.stream = object()
        telling = asyncio.create_task(deliveries.tell_again("d"))
        await asyncio.sleep(0)
        cloud.stream = None
        await telling
        assert cloud.said == []

    asyncio.run(story())


def test_pauses_grow_to_a_bound_and_begin_anew_after_a_link_that_lasted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bounds: list[float] = []
    monkeypatch.setattr(
        "sfl.transport.dialling.random.uniform", lambda low, high: bounds.append(high) or high
    )
    pauses = Pauses()
    for _ in range(7):
        pauses.next()
    assert bounds == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    pauses.lasted(1.0)
    assert pauses.next() == 5.0
    pauses.lasted(dialling.LASTED)
    assert pauses.next() == 0.2


def test_a_peer_that_stays_away_is_given_up_with_the_reason() -> None:
    absence = Absence("cloud", 60.0, "it broke")
    absence.go_on()
    absence.began -= 61.0
    with pytest.raises(PeerUnavailable, match="it broke; not back within rejoin_timeout"):
        absence.go_on()


def welcome(seconds: float = 5.0, run_key: str = "k") -> Any:
    said = MagicMock(run_id="r", run_key=run_key)
    said.settings.network.rejoin_timeout = seconds
    return said


def again(lost: SflError, seconds: float, *found: Any) -> Any:
    link = MagicMock(peer="cloud", join_again=AsyncMock(side_effect=found))
    return asyncio.run(Joining(link, Waits()).again(lost, welcome(seconds), 1))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "SHORTEST_PAUSE", 0.001)


@pytest.mark.usefixtures("quick")
def test_what_may_be_over_is_tried_again_and_nothing_else() -> None:
    there = MagicMock(welcome=welcome())
    errors = (PeerUnavailable("nobody"), NameInUse("e is connected"), LinkLost("broke"))
    assert again(LinkLost("broke"), 5.0, *errors, there) is there
    for lost, seconds in ((Refused("no"), 5.0), (RunFailed("over"), 5.0), (LinkLost("b"), 0.0)):
        with pytest.raises(type(lost)):
            again(lost, seconds, there)
    with pytest.raises(Refused, match="not you"):
        again(LinkLost("broke"), 5.0, Refused("not you"))
    with pytest.raises(RunFailed, match="the cloud is in another run"):
        again(LinkLost("broke"), 5.0, MagicMock(welcome=welcome(run_key="other")))


@pytest.mark.usefixtures("quick")
def test_a_link_that_changes_bytes_again_and_again_is_given_up_with_the_reason() -> None:
    there = MagicMock(welcome=welcome())
    link = MagicMock(peer="cloud", join_again=AsyncMock(return_value=there))
    joining = Joining(link, Waits())

    async def broken(count: int, round_: int) -> None:
        for _ in range(count):
            lost = Corrupted("cloud: bytes changed on the way")
            assert await joining.again(lost, welcome(), round_) is there

    asyncio.run(broken(dialling.MOST_CORRUPT, 1))
    asyncio.run(broken(dialling.MOST_CORRUPT, 2))  # each round begins anew
    given_up = r"bytes changed on the way; 6 links to it ended so in round 2: no further one"
    with pytest.raises(Corrupted, match=given_up):
        asyncio.run(broken(1, 2))
