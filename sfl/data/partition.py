"""Sharing one file out over devices, and holding examples out; pure and keyed by the run's seed.

Every way gives disjoint parts that together are the whole file, the same on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TypeVar

from sfl.config import DataSettings
from sfl.data.example import Row
from sfl.data.fields import as_text, is_missing, value_of
from sfl.errors import ConfigError, DataError
from sfl.keys import derive_seed

T = TypeVar("T")

_LEAST = 2  # rows a part should have where there are enough: one to train on, one to hold out


def partition_rows(
    rows: Sequence[Row],
    settings: DataSettings,
    devices: Sequence[str],
    seed: int,
    field: str = "data.train",
    values: Iterable[str] = (),
) -> list[list[Row]]:
    """The part of each of `devices`, in their order; rows keep their order in the file.

    `field` is the setting that the rows came from. `values` are further values of
    `partition_field`, e.g. of the training file when the held-out one is shared out, so that
    both go the same way. Raises DataError for a device left without rows.
    """
    if settings.partition == "field":
        owners = _by_field(rows, settings, devices, values)
    elif settings.partition == "dirichlet":
        owners = _dirichlet(rows, settings, len(devices), seed)
    else:
        owners = _iid(len(rows), len(devices), seed)
    parts: list[list[Row]] = [[] for _ in devices]
    for row, owner in zip(rows, owners, strict=True):
        parts[owner].append(row)
    for name, part in zip(devices, parts, strict=True):
        if not part:
            raise DataError(
                field,
                rows[0].source if rows else None,
                f"its partition leaves device {name} without a row ({len(rows)} rows, "
                f"{len(devices)} devices, data.partition = {settings.partition!r})",
                "Give more rows, or another data.partition or data.partition_field.",
            )
    return parts


def field_values(
    rows: Sequence[Row], field: str, setting: str = "data.partition_field"
) -> list[str]:
    """The value of a field in each row, as text; `setting` is where the field's name came from.

    Raises DataError.
    """
    values = [value_of(row, field, setting) for row in rows]
    for row, value in zip(rows, values, strict=True):
        if is_missing(value):
            raise DataError(
                setting,
                field,
                f"in {row.where} the field is empty (null)",
                "Name a field that every row has, or give the row a value.",
            )
    return [as_text(value) for value in values]


def hold_out(
    rows: Sequence[Row], fraction: float, seed: int, device: str, field: str
) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows held out: `fraction` of them, but at least one of each.

    Nothing is held out where `fraction` is 0. `field` is the setting that the rows came from.
    Raises DataError where there are too few.
    """
    if fraction == 0.0:
        return list(rows), []
    if len(rows) < 2:
        raise DataError(
            field,
            rows[0].source if rows else None,
            f"device {device} has {len(rows)} row, none of which can be held out",
            "Give it more rows, an eval file, or set data.eval_fraction to 0.",
        )
    count = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
    order = _shuffled(len(rows), seed, device, "held-out")
    held = set(order[:count])
    return (
        [row for number, row in enumerate(rows) if number not in held],
        [row for number, row in enumerate(rows) if number in held],
    )


def sample(rows: Sequence[T], most: int, seed: int, device: str) -> list[T]:
    """At most `most` of the rows or examples (all where it is 0), in their order."""
    if not most or len(rows) <= most:
        return list(rows)
    chosen = sorted(_shuffled(len(rows), seed, device, "evaluation sample")[:most])
    return [rows[number] for number in chosen]


def _iid(num_rows: int, num_parts: int, seed: int) -> list[int]:
    """Parts of equal size, to one row."""
    owners = [0] * num_rows
    for place, number in enumerate(_shuffled(num_rows, seed, "partition", "iid")):
        owners[number] = place % num_parts
    return owners


def _by_field(
    rows: Sequence[Row], settings: DataSettings, devices: Sequence[str], more: Iterable[str]
) -> list[int]:
    """Rows go to the device of that name; where no value is a device's name, the values in
    sorted order are dealt out to the devices in turn."""
    if not settings.partition_field:
        raise _needs_field("field", "the field whose value is the device's name, or a group")
    values = field_values(rows, settings.partition_field)
    distinct = sorted({*values, *more})
    names = {name: number for number, name in enumerate(devices)}
    if any(value in names for value in distinct):
        strangers = [value for value in distinct if value not in names]
        if strangers:
            raise DataError(
                "data.partition_field",
                settings.partition_field,
                f"some of its values are devices, but {strangers[0]!r} is none of them",
                f"The devices are {', '.join(devices)}.",
            )
    else:
        names = {value: number % len(devices) for number, value in enumerate(distinct)}
    return [names[value] for value in values]


def _dirichlet(rows: Sequence[Row], settings: DataSettings, num_parts: int, seed: int) -> list[int]:
    """Each class is shared out in proportions drawn from Dir(alpha) (Hsu et al., 1909.06335).

    The proportions depend on the class alone, so a held-out file is skewed as the training file
    is. Parts short of rows are filled up from the largest.
    """
    named = bool(settings.partition_field)
    field = settings.partition_field or settings.label_field
    setting = "data.partition_field" if named else "data.label_field"
    groups: dict[str, list[int]] = {}
    for number, value in enumerate(field_values(rows, field, setting)):
        groups.setdefault(value, []).append(number)

    owners = [0] * len(rows)
    for value in sorted(groups):
        numbers = groups[value]
        bounds = _proportions(settings.dirichlet_alpha, num_parts, seed, value)
        for place, chosen in enumerate(_shuffled(len(numbers), seed, "partition", value)):
            position = (place + 0.5) / len(numbers)
            owners[numbers[chosen]] = sum(position > bound for bound in bounds)
    _fill_up(owners, num_parts)
    return owners


def _proportions(alpha: float, num_parts: int, seed: int, value: str) -> list[float]:
    """Cumulative shares of all parts but the last."""
    source = random.Random(derive_seed(seed, "partition", "dirichlet", value))
    shares = [source.gammavariate(alpha, 1.0) for _ in range(num_parts)]
    total = sum(shares)
    if total == 0.0:  # every draw underflowed: a tiny alpha gives all to one
        shares[source.randrange(num_parts)] = total = 1.0
    return [sum(shares[: number + 1]) / total for number in range(num_parts - 1)]


def _fill_up(owners: list[int], num_parts: int) -> None:
    """Move rows from the largest part to any that has fewer than it should have at least."""
    sizes = [owners.count(part) for part in range(num_parts)]
    least = min(_LEAST, len(owners) // num_parts)
    for part in range(num_parts):
        while sizes[part] < least:
            largest = sizes.index(max(sizes))
            last = len(owners) - 1 - owners[::-1].index(largest)
            owners[last] = part
            sizes[largest] -= 1
            sizes[part] += 1


def _shuffled(count: int, seed: int, *purpose: str) -> list[int]:
    order = list(range(count))
    random.Random(derive_seed(seed, *purpose)).shuffle(order)
    return order


def _needs_field(partition: str, what: str) -> ConfigError:
    return ConfigError(
        "data.partition_field", "", f'data.partition = "{partition}" needs it', f"Name {what}."
    )
