"""Where `datasets` may keep what it makes of rows, also for a user who has no home directory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


def has_cache() -> bool:
    """Whether there is a lasting place; without a home it would be a folder called `~` here."""
    import datasets

    return not str(datasets.config.HF_DATASETS_CACHE).startswith("~")


@contextmanager
def own_cache() -> Iterator[str | None]:
    """None for the usual place, else a folder that is gone afterwards."""
    if has_cache():
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="sfl-datasets-") as folder:
        yield folder
