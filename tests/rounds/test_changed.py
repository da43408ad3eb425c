"""A changed value is what `dataclasses.replace` makes of it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, fields, replace
from typing import Any

import pytest

from sfl.config import RunSettings
from sfl.rounds import RunState
from sfl.rounds.changed import changed
from sfl.rounds.open_round import OpenRound
from sfl.rounds.roster import Roster
from sfl.rounds.state import Phase

SETTINGS = RunSettings.model_validate(
    {"model": {"path": "m"}, "devices": [{"name": "d0", "cut_layer": 1}]}
)
BEGUN = RunState.begin(SETTINGS, 1.0)


@pytest.mark.parametrize("value", [BEGUN, BEGUN.roster, BEGUN.open], ids=lambda v: type(v).__name__)
def test_any_field_is_changed_as_replace_does(value: RunState | Roster | OpenRound) -> None:
    for own in fields(value):
        change: dict[str, Any] = {own.name: "another"}
        after, wanted = changed(value, **change), replace(value, **change)
        assert after == wanted != value and type(after) is type(value)
        assert hash(after) == hash(wanted) and repr(after) == repr(wanted)
    assert changed(value) == value and value == replace(value)


def test_the_value_before_stays_and_neither_can_be_set() -> None:
    after = changed(BEGUN, now=2.0, phase=Phase.OVER)
    assert (BEGUN.now, BEGUN.phase) == (1.0, Phase.WAITING)
    for state in (BEGUN, after):
        with pytest.raises(FrozenInstanceError):
            state.now = 3.0  # type: ignore[misc]


def test_what_is_no_field_is_refused() -> None:
    change: dict[str, Any] = {"nwo": 2.0}
    with pytest.raises(TypeError, match=r"RunState has no such field: \['nwo'\]"):
        changed(BEGUN, **change)


def test_a_class_with_slots_is_refused() -> None:
    @dataclass(frozen=True, slots=True)
    class Slotted:
        one: int

    with pytest.raises(AttributeError):
        changed(Slotted(1), one=2)
