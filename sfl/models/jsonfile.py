"""The small JSON files of a model folder, as other people's programs have written them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sfl.errors import ModelError
from sfl.node.paths import amiss, nothing_there
from sfl.node.textfile import NotText, refuse_pointer

FIELD = "model.path"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, with or without a byte order mark.

    Raises FileNotFoundError, and ModelError for what is not an object in UTF-8.
    """
    if (wrong := amiss(path, "file")) and not nothing_there(path):
        raise _broken(path, wrong)  # to read a pipe would be to wait for it
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _broken(path, f"it cannot be read ({error.strerror})") from None
    check_fetched(path, data)
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ModelError(FIELD, str(path), "not UTF-8", "Save it as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise _broken(path, f"a JSON {type(content).__name__}, not an object")
    return content


def check_fetched(path: Path, beginning: bytes) -> None:
    """Raise ModelError where `beginning` of the file is a Git LFS pointer's."""
    try:
        refuse_pointer(beginning)
    except NotText as found:
        fix = f"Run `git lfs pull` in {path.parent}, or fetch the model again."
        raise ModelError(FIELD, str(path), found.problem, fix) from None


def _broken(path: Path, problem: str) -> ModelError:
    return ModelError(FIELD, str(path), problem, "Fetch the model again.")
