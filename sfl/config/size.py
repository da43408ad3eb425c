"""Sizes of memory as people write them."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveInt

UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
MOST = 2**63 - 1
"""Bytes that a process can address, and more."""


def read_size(value: Any) -> Any:
    """`512MB`, `1.5GiB` or plain bytes, in bytes. Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError("not a size; write e.g. 512MB or 2GB")
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?i?)b?", value.strip().lower())
    if match is None or match[2] not in UNITS:
        raise ValueError("not a size; write e.g. 512MB or 2GB")
    size = float(match[1]) * UNITS[match[2]]
    if size > MOST:
        raise ValueError("more than any machine has; write e.g. 512MB or 2GB")
    return int(size)


Size = Annotated[PositiveInt, Field(le=MOST), BeforeValidator(read_size)]
"""Bytes."""


def size(count: float) -> str:
    """Bytes for people: 1.5 GB is 1.5e9."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return (
                f"{count / scale:.3g} {unit}"
                if count < 1e3 * scale
                else f"{count / scale:,.0f} {unit}"
            )
    return f"{count:.0f} B"
