"""A map that is a value: changed it is another one, and both share what did not change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any, TypeVar, get_args

from immutables import Map
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

K = TypeVar("K")
V = TypeVar("V")


class Ordered(Mapping[K, V]):
    """In the order in which keys first came, as a dict is. Nobody sets its fields.

    A change costs O(log n); so does a look. Walking through it costs O(n log n).
    """

    __slots__ = ("entries", "next_place")

    def __init__(self, entries: Map[K, tuple[int, V]] | None = None, next_place: int = 0) -> None:
        self.entries: Map[K, tuple[int, V]] = Map() if entries is None else entries
        """Each key's place in the order, and its value."""
        self.next_place = next_place

    @classmethod
    def of(cls, items: Iterable[tuple[K, V]]) -> Ordered[K, V]:
        """These keys and values, in this order."""
        entries = {key: (place, value) for place, (key, value) in enumerate(items)}
        return cls(Map(entries), len(entries))

    def put(self, key: K, value: V) -> Ordered[K, V]:
        """With this value; a key that is there keeps its place."""
        place = self.next_place
        if (known := self.entries.get(key)) is not None:
            return Ordered(self.entries.set(key, (known[0], value)), place)
        return Ordered(self.entries.set(key, (place, value)), place + 1)

    def without(self, key: K) -> Ordered[K, V]:
        """Without this key, if it is there."""
        if key not in self.entries:
            return self
        return Ordered(self.entries.delete(key), self.next_place)

    def __getitem__(self, key: K) -> V:
        return self.entries[key][1]

    def __contains__(self, key: object) -> bool:
        return key in self.entries

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[K]:
        return (key for key, _, _ in self.rows())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ordered):
            return NotImplemented
        return self.next_place == other.next_place and bool(self.entries == other.entries)

    def __hash__(self) -> int:
        return hash((self.entries, self.next_place))

    def __repr__(self) -> str:
        return f"Ordered({self.rows()!r}, {self.next_place})"

    def rows(self) -> list[tuple[K, int, V]]:
        """Key, place and value, by place."""
        rows = [(key, place, value) for key, (place, value) in self.entries.items()]
        return sorted(rows, key=itemgetter(1))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """As JSON: the next place, and the rows."""
        key, value = get_args(source)
        row: Any = tuple[key, int, value]  # type: ignore[valid-type]
        plain = handler.generate_schema(tuple[int, list[row]])
        return core_schema.json_or_python_schema(
            core_schema.no_info_after_validator_function(_from_plain, plain),
            core_schema.is_instance_schema(cls),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda own: (own.next_place, own.rows()), return_schema=plain
            ),
        )


def _from_plain(plain: tuple[int, list[tuple[K, int, V]]]) -> Ordered[K, V]:
    next_place, rows = plain
    return Ordered(Map({key: (place, value) for key, place, value in rows}), next_place)
