"""Values cross the wire and come back as they were: one pair of functions for each message."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfl.config import RunSettings
from sfl.config.codec import RoleCodecs
from sfl.errors import Elsewhere, ProtocolError
from sfl.plan import HOLDERS, Held, Plan, Span
from sfl.planners.told import Cut
from sfl.rounds.assignment import assign
from sfl.rounds.messages import DeviceLost, Evict, FinishRun
from sfl.rounds.values import (
    Admission,
    Assignment,
    Challenge,
    DeviceFacts,
    DeviceWelcome,
    EdgeBase,
    EdgeFacts,
    EdgeOrders,
    EdgeWelcome,
    HeldUpdate,
    Length,
    Point,
    Proof,
    RoundReport,
    Score,
    Share,
    Signature,
    Steps,
    SumOrder,
    UpdateHeader,
)
from sfl.transport.bulk.files import FileEntry, from_listing, to_listing
from sfl.transport.cloud import words as hop
from sfl.transport.cloud.sums import from_held, to_held
from sfl.transport.cloud.words import (
    Beat,
    DeviceIsReady,
    DeviceJoin,
    EdgeFailed,
    EdgeStopped,
    GlobalPart,
    GoElsewhere,
)
from sfl.transport.frames import words
from sfl.transport.frames.chunks import AdapterAssembly
from sfl.transport.frames.whereabouts import from_edges, from_round_trips, to_edges
from sfl.v1 import cloud_pb2, edge_pb2, tensor_pb2

RUN = RunSettings.model_validate({"model": {"path": "m"}, "devices": [{"name": "d"}]})
OWN = assign(RUN, EdgeBase(4), "d", 2, steps=Steps(3, 4, 7), evaluate="all", rehearse=(1, 2))

small = st.integers(0, 2**31 - 1)
point = st.builds(Point, small, small)
large = st.integers(0, 2**64 - 1)
number = st.floats(allow_nan=False)
data = st.binary(max_size=40)
text = st.text(st.characters(codec="utf-8"), max_size=20)
line = st.text("abc é", min_size=1).map(str.strip).filter(bool)  # a reason is one line
score = st.builds(Score, number, large, large, large)
signature = st.none() | st.builds(Signature, large, data)
node = st.from_regex(r"[a-z][a-z0-9-]{0,9}", fullmatch=True)
address = st.just("") | st.from_regex(r"[a-z0-9.]{1,12}:[0-9]{1,5}", fullmatch=True)
edges = st.dictionaries(node, address, max_size=3)
trips = st.dictionaries(node, st.floats(0.0, 3600.0), max_size=3)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any whole model, whoever holds its spans."""
    cuts = sorted(draw(st.lists(st.integers(0, 1 << 16), min_size=1, max_size=16)))
    spans = itertools.pairwise([0, *cuts])
    last = len(cuts) - 1
    return Plan(
        tuple(
            Held(
                Span(first, end, embedding=place == 0, head=place == last),
                draw(st.sampled_from(HOLDERS)),
            )
            for place, (first, end) in enumerate(spans)
        )
    )


assignment = st.builds(
    Assignment,
    round=small,
    evaluate=st.sampled_from(["none", "sample", "all"]),
    steps=st.builds(Steps, small, small, small),
    plan=plans(),
    rank=small,
    scaling=number,
    credits=small,
    micro_batches=small,
    rehearse=st.lists(small, max_size=4).map(tuple),
    after=point,
    together=st.lists(text, max_size=2).map(tuple),
    codecs=st.builds(
        RoleCodecs,
        activation=text,
        gradient=text,
        hidden=text,
        tail_gradient=text,
        evaluation=text,
        adapter=text,
    ),
)
cut = st.builds(Cut, st.integers(0, 1 << 16), st.integers(0, 3), st.integers(0, 1 << 60))
facts = st.builds(
    DeviceFacts,
    *[large] * 7,
    *[text] * 4,
    st.lists(point, max_size=words.MOST_POINTS).map(tuple),
    st.lists(cut, max_size=4, unique_by=lambda own: own.at).map(tuple),
    st.none() | st.integers(1, 1 << 60),
    signature,
)
report = st.builds(
    RoundReport,
    small,
    text,
    small,
    number,
    large,
    number,
    score,
    score,
    number,
    text,
    text,
    text,
    text,
    st.lists(number, max_size=4).map(tuple),
    trips,
    st.just("") | node,
    signature,
)
proof = st.builds(Proof, data, data, data)
header = st.builds(UpdateHeader, small, text, text, small, number, large, signature)
size = st.floats(0, 1e15)
length = st.builds(Length, size, size, large)
held = st.builds(HeldUpdate, text, st.lists(header).map(tuple), data, st.none() | length)
listing = st.lists(st.builds(FileEntry, text, large, text), max_size=4).map(tuple)

PAIRS: list[tuple[str, st.SearchStrategy[Any], Callable[[Any], Any], Callable[[Any], Any]]] = [
    ("score", score, words.to_score, words.from_score),
    ("challenge", st.builds(Challenge, text, text, data), words.to_challenge, words.from_challenge),
    ("proof", proof, words.to_proof, words.from_proof),
    (
        "welcome",
        st.builds(
            DeviceWelcome,
            st.just(RUN),
            st.sampled_from(["", "r-1"]),
            assignment,
            st.booleans(),
            st.just(""),
            node,
            edges,
        ),
        words.to_welcome,
        lambda said: words.from_welcome(said, "d"),
    ),
    ("device facts", facts, words.to_device_facts, words.from_device_facts),
    ("report", report, words.to_report, words.from_report),
    (
        "update header",
        header,
        words.to_update_header,
        words.from_update_header,
    ),
    ("held update", held, to_held, from_held),
    ("assignment", assignment, words.to_assignment, words.from_assignment),
    (
        "edge facts",
        st.builds(
            EdgeFacts, text, address, data, small, st.dictionaries(text, small, max_size=3), text
        ),
        hop.to_edge_facts,
        hop.from_edge_facts,
    ),
    (
        "left",
        st.builds(
            DeviceLost, text, line, st.sampled_from(["link", "silence", "offence", "adapter"])
        ),
        hop.to_left,
        hop.from_left,
    ),
    (
        "edge welcome",
        st.builds(EdgeWelcome, st.just(RUN), text, data),
        hop.to_edge_welcome,
        hop.from_edge_welcome,
    ),
    (
        "admission",
        st.builds(Admission, text, line, st.booleans(), edges=edges)
        | st.builds(Admission, text, st.just(""), st.just(False), assignment, edges),
        hop.to_admission,
        hop.from_admission,
    ),
    (
        "orders",
        st.builds(EdgeOrders, small, st.dictionaries(text, assignment, max_size=3), edges=edges),
        hop.to_orders,
        hop.from_orders,
    ),
    (
        "edges",
        edges,
        lambda own: edge_pb2.Edges(edges=to_edges(own)),
        lambda said: from_edges(said.edges),
    ),
    ("evict", st.builds(Evict, text, line, st.booleans()), hop.to_evict, hop.from_evict),
    ("listing", listing, to_listing, from_listing),
]


@pytest.mark.parametrize(
    ("value", "to", "back"), [pair[1:] for pair in PAIRS], ids=[pair[0] for pair in PAIRS]
)
@given(drawn=st.data())
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_value_comes_back_as_it_was(
    value: st.SearchStrategy[Any],
    to: Callable[[Any], Any],
    back: Callable[[Any], Any],
    drawn: st.DataObject,
) -> None:
    said = drawn.draw(value)
    message = to(said)
    assert back(type(message).FromString(message.SerializeToString())) == said


@pytest.mark.parametrize(
    ("cuts", "memory"),
    [
        ([(1, 0, 5), (1, 0, 6)], 0),
        ([((1 << 16) + 1, 0, 5)], 0),
        ([(1, (1 << 16) + 1, 5)], 0),
        ([(1, 0, (1 << 60) + 1)], 0),
        ([(number, 0, 5) for number in range(words.MOST_CUTS + 1)], 0),
        ([], (1 << 60) + 1),
    ],
)
def test_cuts_that_no_device_has_are_refused(cuts: list[tuple[int, int, int]], memory: int) -> None:
    told = [
        edge_pb2.LegalCut(cut_layer=cut, tail_layers=tail, memory=needed)
        for cut, tail, needed in cuts
    ]
    with pytest.raises(ProtocolError, match="is allowed"):
        words.from_device_facts(edge_pb2.DeviceReady(cuts=told, memory=memory))


@given(drawn=st.data())
@settings(max_examples=50, deadline=None)
def test_what_a_device_signed_is_passed_on_to_the_byte(drawn: st.DataObject) -> None:
    for value, to, back in (
        (facts, words.to_device_facts, words.from_device_facts),
        (report, words.to_report, words.from_report),
    ):
        said = to(drawn.draw(value))
        data = said.SerializeToString(deterministic=True)
        again = to(back(type(said).FromString(data)))
        assert again.SerializeToString(deterministic=True) == data


@pytest.mark.parametrize(
    ("word", "body"),
    [
        (DeviceJoin("d", Proof()), "join"),
        (DeviceJoin("d", Proof(), {"north": 0.02}), "join"),
        (EdgeFacts("{}"), "ready"),
        (DeviceIsReady("d", DeviceFacts(1), (Point(1, 2, 3),), Point(2, 0, 3)), "device_ready"),
        (DeviceLost("d", "why"), "left"),
        (RoundReport(1, "d"), "report"),
        (HeldUpdate("d", (UpdateHeader(1, "d", "edge"),)), "held"),
        (Beat("{}", ["{}"]), "heartbeat"),
        (EdgeFailed("why"), "failure"),
        (EdgeStopped("why"), "goodbye"),
    ],
)
def test_each_word_of_an_edge_has_its_message(word: hop.EdgeWord, body: str) -> None:
    message = hop.to_edge_report(word)
    assert message.WhichOneof("body") == body
    bodies = cloud_pb2.EdgeReportMessage.DESCRIPTOR.oneofs_by_name["body"].fields
    assert {field.name for field in bodies} == {
        "hello", "join", "ready", "device_ready", "left", "adapter", "report", "heartbeat",
        "failure", "goodbye", "held", "sum",
    }  # fmt: skip


@pytest.mark.parametrize(
    "word",
    [
        EdgeWelcome(RUN, "r", b"x"),
        Admission("d", "no", in_use=True),
        Admission("d", assignment=OWN),
        EdgeOrders(2, {"d": OWN}),
        EdgeOrders(2, {"d": OWN}, begun=True),
        EdgeOrders(2, dict.fromkeys("ab", replace(OWN, together=("a", "b")))),
        EdgeOrders(2, {"a": OWN, "b": replace(OWN, together=("b",))}),
        SumOrder(3, 2, {"a": Share(7), "b": Share(1 << 40, 0.125)}),
        EdgeOrders(2, {"d": OWN}, edges={"north": "10.0.0.5:7001", "south": ""}),
        Admission("d", "it is to be at edge north", edges={"north": ""}),
        Evict("d", "why", final=True),
        FinishRun(ok=False, reason="why"),
    ],
)
def test_what_the_cloud_tells_comes_back_as_it_was(word: hop.CloudWord) -> None:
    (message,) = hop.to_cloud_messages(word)
    again = cloud_pb2.CloudMessage.FromString(message.SerializeToString())
    assert hop.from_cloud_message(again) == word


def test_who_share_an_adapter_are_named_once_in_a_round_s_orders() -> None:
    """A list in each device's part would be the square of them: 1,000 took 14.6 of 8 MiB."""
    names = tuple(f"device-{number:05}" for number in range(1000))
    one = replace(OWN, together=names)
    (message,) = hop.to_cloud_messages(EdgeOrders(2, dict.fromkeys(names, one)))
    alone = EdgeOrders(2, dict.fromkeys(names, replace(OWN, together=())))
    (bare,) = hop.to_cloud_messages(alone)
    assert message.ByteSize() - bare.ByteSize() < 20 * len(names)


@pytest.mark.parametrize("base_update", [False, True])
def test_an_adapter_of_the_clouds_comes_back_whole(base_update: bool) -> None:
    payload = bytes(range(256)) * (1 << 13)
    assembly, whole = AdapterAssembly(len(payload)), None
    for message in hop.to_cloud_messages(GlobalPart(7, payload, base_update)):
        assert whole is None
        whole = assembly.add(message.adapter)
    assert whole is not None
    assert (whole[0].round, whole[0].side) == (7, "stack" if base_update else "")
    assert bytes(whole[1]) == payload


def test_what_is_no_value_is_refused() -> None:
    with pytest.raises(ProtocolError, match="codecs of a round"):
        said = words.to_assignment(OWN)
        said.codecs = "{}"
        words.from_assignment(said)
    with pytest.raises(ProtocolError, match="an empty message from the cloud was not expected"):
        hop.from_cloud_message(cloud_pb2.CloudMessage())
    with pytest.raises(ProtocolError, match="the run's settings"):
        hop.from_edge_welcome(cloud_pb2.Settings(settings="{}"))


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (cloud_pb2.Share(device="d", weight=0, factor=1), "weight of an update = 0"),
        (cloud_pb2.Share(device="d", weight=1, factor=1.5), "factor of an update = 1.5"),
        (cloud_pb2.Share(device="d", weight=1, factor=float("nan")), "factor of an update = nan"),
    ],
)
def test_a_share_of_a_sum_that_nobody_has_is_refused(share: cloud_pb2.Share, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        hop.from_cloud_message(
            cloud_pb2.CloudMessage(reduce=cloud_pb2.Reduce(round=1, number=1, shares=[share]))
        )


@pytest.mark.parametrize("norm", [-1.0, float("inf"), float("nan")])
def test_a_length_that_no_update_has_is_refused(norm: float) -> None:
    length = cloud_pb2.Length(norm=norm, start=1, values=3)
    with pytest.raises(ProtocolError, match="norm of an update"):
        from_held(cloud_pb2.HeldUpdate(device="d", length=length))


def test_where_a_device_is_to_go_comes_back_as_it_was() -> None:
    word = GoElsewhere("d", Elsewhere("it goes to north", {"north": "10.0.0.5:7001"}))
    (message,) = hop.to_cloud_messages(word)
    back = hop.from_cloud_message(message)
    assert isinstance(back, GoElsewhere)
    assert (back.device, str(back.to), back.to.edges) == ("d", str(word.to), word.to.edges)


@pytest.mark.parametrize(
    ("name", "address"), [("no name!", ""), ("north", "a" * 301), ("north", "a\nb:1"), ("", "")]
)
def test_what_is_no_edge_is_refused(name: str, address: str) -> None:
    with pytest.raises(ProtocolError):
        from_edges([edge_pb2.EdgeAt(edge=name, address=address)])


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 3601.0])
def test_what_is_no_round_trip_is_refused(seconds: float) -> None:
    with pytest.raises(ProtocolError):
        from_round_trips([tensor_pb2.RoundTrip(edge="north", seconds=seconds)])


def test_settings_hold_a_thousand_devices_in_little_room_and_all_that_was_set() -> None:
    odd = {
        "name": "odd",
        "cut_layer": 2,
        "rank": 4,
        "optional": True,
        "codec": {"activation": "int8"},
        "link": {"up_mbit": 3.5},
    }
    many = [{"name": f"device-{number:04}", "cut_layer": 1} for number in range(1000)]
    run = RunSettings.model_validate(
        {"model": {"path": "m"}, "aggregation": {"strategy": "flora"}, "devices": [odd, *many]}
    )
    text = words.to_settings(run)
    assert RunSettings.model_validate_json(text) == run
    assert len(text) < 50 * len(run.devices)
    welcome = DeviceWelcome(run, "id", assign(run, EdgeBase(4), "odd"))
    assert words.from_welcome(words.to_welcome(welcome), "odd").settings == run
