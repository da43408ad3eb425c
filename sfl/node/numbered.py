"""Files and folders of rounds, by their numbers: names are no order from round 10,000 on."""

from __future__ import annotations

import re
from pathlib import Path

_NUMBER = re.compile(r"round-(\d+)")


def round_name(round_: int) -> str:
    """What a round's file or folder is called, without an ending."""
    return f"round-{round_:04d}"


def round_of(path: Path | str) -> int:
    """The round that a file or folder is of; -1 where its name is of none."""
    found = _NUMBER.match(Path(path).name)
    return int(found[1]) if found else -1


def of_rounds(folder: Path, ending: str = "") -> list[Path]:
    """What there is, by number."""
    return sorted(folder.glob(f"round-*{ending}"), key=round_of)
