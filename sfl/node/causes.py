"""What ends a node unforeseen, in a user's words: its disk, its memory, or a bug of ours."""

from __future__ import annotations

import errno
import logging
import os
import re
from pathlib import Path

from sfl.errors import Bug, DiskError, OutOfMemory, SflError

log = logging.getLogger("sfl")

_ROOM = "Make room there."
_DISK = {
    errno.ENOSPC: ("its disk is full", _ROOM),
    errno.EDQUOT: ("the quota of its disk is used up", _ROOM),
    errno.EFBIG: ("its file system does not allow so large a file", "Use another disk."),
    errno.EROFS: ("its disk is read-only", "Make it writable."),
    errno.EACCES: ("it cannot be written", "Give it to this user."),
    errno.EPERM: ("it cannot be written", "Give it to this user."),
    errno.EIO: ("its disk fails", "Check the kernel's log."),
    errno.ENOENT: ("it has disappeared", "Leave it in place during a run."),
    errno.ENOTDIR: ("it has disappeared", "Leave it in place during a run."),
    errno.ENODEV: ("its disk has disappeared", "Leave it mounted during a run."),
    errno.ENXIO: ("its disk has disappeared", "Leave it mounted during a run."),
    errno.ESTALE: ("its disk has disappeared", "Leave it mounted during a run."),
    errno.ENAMETOOLONG: ("a name in it is too long", "Shorten it."),
    errno.EMFILE: ("this process has too many files open", "Raise `ulimit -n`."),
    errno.ENFILE: ("this machine has too many files open", "Raise fs.file-max."),
}
_OF_FILES_ALONE = _DISK.keys() - {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR}
"""Errors that also tell of a file where none is named."""

_RUST = re.compile(r"\(os error (\d+)\)")  # how safetensors words what the system said
_MEMORY = re.compile(
    "can't allocate memory|cannot allocate memory|out of memory|std::bad_alloc|"
    "can't start new thread|unable to mmap|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)


_LESS = (
    "Lower training.batch_size or model.max_length, raise micro_batches, or give this node more "
    "memory (docs/memory.md)."
)


def disk_error(folder: str | Path, error: OSError, setting: str = "") -> SflError:
    """What the system said of a file in `folder`; `setting` is where the folder was named."""
    code = error.errno
    if code == errno.ENOMEM:
        return OutOfMemory(f"out of memory: {error.strerror}. {_LESS}")
    said = error.strerror or str(error)
    problem, fix = _DISK.get(code or 0, ("it cannot be written or read", "Use another folder."))
    named = f"{folder} ({setting})" if setting else str(folder)
    return DiskError(f"{named}: {problem} ({said}). {fix}")


def foreseen(error: BaseException) -> SflError | None:
    """An exception as one of ours, where it tells of disk or memory; None for what is a bug."""
    if isinstance(error, SflError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory("out of memory" + (f": {error}" if str(error) else "") + f". {_LESS}")
    if isinstance(error, OSError):
        return _of_system(error)
    text = str(error)
    if (told := _RUST.search(text)) is not None:
        code = int(told[1])
        return _of_system(OSError(code, os.strerror(code)))
    if isinstance(error, RuntimeError) and _MEMORY.search(text):
        return OutOfMemory(f"out of memory: {text.strip().splitlines()[0]:.200}. {_LESS}")
    return None


def in_words(error: BaseException) -> str:
    """An exception as the reason of an end, for those who do not handle it themselves."""
    known = foreseen(error)
    return str(known) if known is not None else _bug(error)


def cause_of(error: BaseException) -> SflError:
    """An exception as one of ours; what nobody foresaw is logged with its traceback."""
    known = foreseen(error)
    if known is not None:
        return known
    log.error("this is a bug in sfl", exc_info=error)
    return Bug(_bug(error))


def another_may_help(error: BaseException) -> bool:
    """Whether another process of the same node may get further than one that ended so."""
    return isinstance(error, Bug | OutOfMemory)


def _bug(error: BaseException) -> str:
    return f"{type(error).__name__}: {error} (a bug; the log has more)"


def _of_system(error: OSError) -> SflError | None:
    if error.errno == errno.ENOMEM:
        return OutOfMemory(f"out of memory: {error.strerror}. {_LESS}")
    if error.errno not in _DISK:
        return None
    if error.filename is not None:
        return disk_error(Path(os.fsdecode(error.filename)).parent, error)
    return disk_error("a folder of this node", error) if error.errno in _OF_FILES_ALONE else None
