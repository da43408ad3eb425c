"""A mistyped path may also be a name on the hub: what is here that was perhaps meant."""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from sfl.errors import DataError, ModelError, SflError
from sfl.node.paths import nothing_there

_PLACES = (".path", ".train", ".eval", ".model", "--model", "--data")
"""Ends of the settings and options that name a file, a folder, or something on the hub."""
_MOST = 10_000  # entries of a folder that are looked at
_ALIKE = 0.7


def perhaps_meant(name: str, folders: Sequence[Path]) -> str:
    """A question, with a space behind it, where something of nearly that name is in one of the
    folders; else nothing."""
    for folder in dict.fromkeys(folders):
        near = _nearest(Path(os.path.expanduser(name)), folder)  # noqa: PTH111 - no home, no error
        if near is not None:
            shown = near.relative_to(folder) if near.is_relative_to(folder) else near
            return f"Did you mean {str(shown)!r}? "
    return ""


def pointed(error: SflError, folders: Sequence[Path]) -> SflError:
    """The error with what was perhaps meant, where it is of a place where nothing is."""
    if not isinstance(error, DataError | ModelError) or not error.field.endswith(_PLACES):
        return error
    if not isinstance(error.value, str) or not nothing_there(Path(error.value)):
        return error
    hint = perhaps_meant(error.value, folders)
    return type(error)(error.field, error.value, error.problem, hint + error.fix)


def _nearest(name: Path, folder: Path) -> Path | None:
    """By each part of the name, one after the other."""
    found = folder
    for part in name.parts:
        if part in ("..", os.sep) or (found / part).exists():
            found = found / part
            continue
        try:
            names = [entry.name for entry in itertools.islice(found.iterdir(), _MOST)]
        except OSError:
            return None
        near = difflib.get_close_matches(part, names, n=1, cutoff=_ALIKE)
        if not near:
            return None
        found = found / near[0]
    return found
