"""Class numbers of a file that declares its class names, read as those names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sfl.data.malformed import Malformed


def class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Class names by field, as `datasets` writes features down; of fields within fields too
    (`answer.label`). Names that say no more than the numbers are left out."""
    found = {}
    for name, feature in features.items():
        if not isinstance(feature, Mapping):
            continue
        if feature.get("_type") == "ClassLabel":
            names = [str(one) for one in feature["names"]]
            if names != [str(number) for number in range(len(names))]:
                found[name] = names
        elif "_type" not in feature:
            found |= {f"{name}.{inner}": names for inner, names in class_names(feature).items()}
    return found


def name_classes(
    values: dict[str, Any], classes: Mapping[str, Sequence[str]], place: str
) -> dict[str, Any]:
    """`values` with every class number replaced by its name; -1, which means none, by None.

    `classes` has the names by field. Raises Malformed for a number that has no name.
    """
    for field, names in classes.items():
        *outer, last = [field] if field in values else field.split(".")
        owner: Any = values
        for part in outer:
            owner = owner.get(part) if isinstance(owner, dict) else None
        number = owner.get(last) if isinstance(owner, dict) else None
        if isinstance(number, float) and number.is_integer():
            number = int(number)  # a column with gaps
        if not isinstance(number, int):
            continue
        if number >= len(names) or number < -1:
            raise Malformed(
                f"{place} has {field} {number}, but the file names {len(names)} classes only"
            )
        owner[last] = names[number] if number >= 0 else None
    return values
