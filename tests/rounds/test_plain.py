"""State and events become JSON and come back as they were."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfl.plan import HOLDERS, Holder
from sfl.planners.decision import Choice
from sfl.rounds import (
    AdapterReady,
    Event,
    Fact,
    Planned,
    Progress,
    RunState,
    Settle,
    Tick,
    UpdatesRefused,
)
from sfl.rounds.agreement import Agreement
from sfl.rounds.ordered import Ordered
from sfl.rounds.plain import NotReadable, event_from_json, state_from_json, to_json


def ordered(kind: type[Ordered[Any, Any]]) -> st.SearchStrategy[Ordered[Any, Any]]:
    """Maps that have been changed before."""
    key, value = get_args(kind)
    items = st.lists(st.tuples(st.from_type(key), st.from_type(value)), max_size=4)
    return st.builds(made, items, st.booleans())


def made(items: list[tuple[Any, Any]], dropped: bool) -> Ordered[Any, Any]:
    values = Ordered[Any, Any]()
    for key, value in items:
        values = values.put(key, value)
    return values.without(items[0][0]) if items and dropped else values


def agreement(kind: type[Agreement[Any]]) -> st.SearchStrategy[Agreement[Any]]:
    """Something that peers have said."""
    (what,) = get_args(kind)
    said = st.lists(st.tuples(st.text(max_size=2), st.from_type(what)), max_size=5)
    return st.builds(agreed, st.integers(1, 6), said)


def agreed(num_peers: int, said: list[tuple[str, Any]]) -> Agreement[Any]:
    agreement: Agreement[Any] = Agreement(num_peers)
    for peer, what in said:
        agreement = agreement.say(peer, what)
    return agreement


def plain_dict(kind: type[Mapping[Any, Any]]) -> st.SearchStrategy[dict[Any, Any]]:
    """Of the mappings that there are, the one that events have."""
    key, value = get_args(kind)
    return st.dictionaries(st.from_type(key), st.from_type(value), max_size=3)


st.register_type_strategy(Mapping, plain_dict)
st.register_type_strategy(Ordered, ordered)
st.register_type_strategy(Agreement, agreement)
NUMBERS = st.dictionaries(st.text(), st.floats())
TEXTS = st.dictionaries(st.text(), st.text())
st.register_type_strategy(UpdatesRefused, st.builds(UpdatesRefused, st.integers(), TEXTS))
st.register_type_strategy(AdapterReady, st.builds(AdapterReady, st.integers(), norms=NUMBERS))
CHOICES = st.dictionaries(st.text(), st.from_type(Choice))
REMEMBERED = st.dictionaries(st.text(), NUMBERS, max_size=2)
PLANNED = st.builds(
    Planned, st.integers(), CHOICES, st.lists(st.text()).map(tuple), REMEMBERED, unfit=TEXTS
)
st.register_type_strategy(Planned, PLANNED)
TIMES = st.dictionaries(st.integers(), st.floats())
st.register_type_strategy(Settle, st.builds(Settle, st.integers(), TIMES, TEXTS))
STEPS: st.SearchStrategy[dict[Holder, int]]
STEPS = st.dictionaries(st.sampled_from(HOLDERS), st.integers())
PARTS = st.builds(Progress, final_steps=STEPS)
st.register_type_strategy(Progress, PARTS)


@pytest.mark.parametrize("kind", [*get_args(Event), *get_args(Fact)])
def test_every_event_comes_back(kind: type[Event | Fact]) -> None:
    @given(st.from_type(kind))
    def comes_back(event: Event | Fact) -> None:
        text = to_json(event)
        back = event_from_json(text)
        assert repr(back) == repr(event) and to_json(back) == text  # NaN is not equal to itself
        assert back == event or "nan" in repr(event)
        assert json.loads(text)["version"] == 1 and b"\n" not in text

    comes_back()


@given(st.from_type(RunState))
def test_a_state_comes_back(state: RunState) -> None:
    back = state_from_json(to_json(state))
    assert back == state or "nan" in repr(state)
    assert repr(back) == repr(state)


def test_what_is_no_event_is_said() -> None:
    for text in (b"", b"[]", b"{}", b'{"version":2,"kind":"Tick","value":{}}', b'{"kind":"Nap"}'):
        with pytest.raises(NotReadable):
            event_from_json(text)
    with pytest.raises(NotReadable):
        state_from_json(to_json(Tick()))


def test_a_kind_is_read_by_all_its_fields() -> None:
    """An event that lost a field is told, not filled with what is usual."""
    for kind in get_args(Event):
        required = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
        if required:
            with pytest.raises(NotReadable):
                event_from_json(b'{"version":1,"kind":"%s","value":{}}' % kind.__name__.encode())
