"""One of many identities issued beforehand, taken by whoever comes first.

For replicas of one container, which know nothing that sets them apart. The folder of the identity
is locked, by flock(2): that needs no right to write there, and the kernel lets go when the process
ends, however it ends. All replicas must run on one machine; network file systems are not for this.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from sfl.errors import ConfigError
from sfl.node.certificates.identity import NAME


@contextlib.contextmanager
def claim_identity(pool: Path) -> Iterator[Path]:
    """The first folder POOL/NAME with a NAME.key that nobody else has, kept until the end.

    `sfl ca bundle --out POOL` writes such folders. Numbers in names count as numbers. Raises
    ConfigError where there is none, or none is free.
    """
    folders = sorted((path.parent for path in pool.glob("*/*.key") if _is_own(path)), key=_order)
    if not folders:
        raise ConfigError(
            "--claim", str(pool), "has no identity in it", f"Issue some: sfl ca bundle --out {pool}"
        )
    for folder in folders:
        handle = os.open(folder, os.O_RDONLY)
        try:
            if _lock(handle):
                yield folder
                return
        finally:
            os.close(handle)
    raise ConfigError(
        "--claim",
        str(pool),
        f"all {len(folders)} identities are taken",
        "Start fewer replicas, or issue more identities (and name them in the run's devices).",
    )


def _is_own(key: Path) -> bool:
    """Whether a key is in the folder of its name, as `sfl ca` writes it."""
    return key.stem == key.parent.name and NAME.fullmatch(key.stem) is not None


def _order(folder: Path) -> tuple[str, int, str]:
    """device-2 before device-10."""
    stem = folder.name.rstrip("0123456789")
    return stem, int(folder.name[len(stem) :] or -1), folder.name


def _lock(handle: int) -> bool:
    """Take the folder, if it is free."""
    if sys.platform == "win32":
        raise ConfigError("--claim", "", "is not available on Windows", "Give device.name.")
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
