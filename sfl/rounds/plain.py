"""A run's state, events and facts as JSON and back, to the bit: floats, infinities, bytes too."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, Literal, TypeVar, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import from_json

from sfl.errors import SflError
from sfl.rounds.messages import Event, Fact
from sfl.rounds.state import RunState

VERSION: Literal[1] = 1
"""Of this form. Who changes a state or an event so that an old one can't be read counts it up."""

T = TypeVar("T")


class NotReadable(SflError):
    """What is to be read is no state or event, or of another version."""


@dataclass(frozen=True, slots=True)
class Envelope(Generic[T]):
    """What is inside, of which kind and in which version."""

    version: Literal[1]
    kind: str
    value: T

    __pydantic_config__ = ConfigDict(
        ser_json_inf_nan="strings", ser_json_bytes="base64", val_json_bytes="base64"
    )


_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (RunState, *get_args(Event), *get_args(Fact))
}


def to_json(value: RunState | Event | Fact) -> bytes:
    """As JSON on one line."""
    kind = type(value).__name__
    return _adapter(kind).serializer.to_json(Envelope(VERSION, kind, value))


def state_from_json(text: bytes) -> RunState:
    """The state that was written. Raises NotReadable."""
    value = _from_json(text)
    if not isinstance(value, RunState):
        raise NotReadable(f"a run's state was expected, not {type(value).__name__}")
    return value


def event_from_json(text: bytes) -> Event | Fact:
    """The event or fact that was written. Raises NotReadable."""
    value = _from_json(text)
    if isinstance(value, RunState):
        raise NotReadable("an event was expected, not a run's state")
    event: Event | Fact = value
    return event


def _from_json(text: bytes) -> Any:
    try:
        kind = str(from_json(text)["kind"])
        if kind not in _KINDS:
            raise NotReadable(f"{kind!r} is neither a run's state nor an event")
        return _adapter(kind).validate_json(text).value
    except (ValidationError, ValueError, LookupError, TypeError) as error:
        raise NotReadable(f"it is no state and no event of version {VERSION}: {error}") from error


@cache
def _adapter(kind: str) -> TypeAdapter[Envelope[Any]]:
    """Built where it is first needed: building all of them takes a while."""
    inside: Any = _KINDS[kind]
    return TypeAdapter(Envelope[inside])
