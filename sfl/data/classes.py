"""Class numbers of a file that declares its class names, read as those names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sfl.data.malformed import Malformed


def name_classes(
    values: dict[str, Any], classes: Mapping[str, Sequence[str]], place: str
) -> dict[str, Any]:
    """`values` with every class number replaced by its name; -1, which means none, by None.

    `classes` has the names by column. Raises Malformed for a number that has no name.
    """
    for column, names in classes.items():
        number = values.get(column)
        if not isinstance(number, int):
            continue
        if number >= len(names) or number < -1:
            raise Malformed(
                f"{place} has {column} {number}, but the file names {len(names)} classes only"
            )
        values[column] = names[number] if number >= 0 else None
    return values


def tell_something(names: Sequence[str]) -> bool:
    """Whether these names say more than the numbers do."""
    return list(names) != [str(number) for number in range(len(names))]
