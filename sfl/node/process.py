"""What the three node processes share at their start and end: threads, signals, exit codes.

Imported before torch, since OpenMP reads its settings when torch is loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

from sfl.errors import Bug, RunFailed, SflError
from sfl.node import machine
from sfl.node.causes import foreseen
from sfl.node.swallowed import heard

log = logging.getLogger("sfl")

# Options of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8

SPIN = {
    # Waiting OpenMP threads that spin for long steal the cores of whoever works, and threads that
    # never spin sleep and wake at each of some thousand barriers a step. So: a fraction of a
    # millisecond.
    "GOMP_SPINCOUNT": "4000",
    "KMP_BLOCKTIME": "0",
}

QUIET_THREADS = {
    "TOKENIZERS_PARALLELISM": "false",
    # numpy only sums adapters; without its own threads a process can be forked after imports.
    "OPENBLAS_NUM_THREADS": "1",
    # A malloc arena per gRPC thread costs hundreds of MB.
    "MALLOC_ARENA_MAX": "2",
}

TLS_1_3 = {
    # gRPC takes TLS 1.2 too, and has no setting against it. Its ciphers are set here, before it is
    # imported, to one for RSA certificates, and ours are on curves; TLS 1.3 has a list of its own.
    "GRPC_SSL_CIPHER_SUITES": "ECDHE-RSA-AES128-GCM-SHA256",
}


WITH_PARENT = "SFL_WITH_PARENT"
"""Set where a process is to end with the one that holds the other end of its standard input."""

SIGTERM = "SIGTERM"
"""What a loop's task is cancelled with where that was it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: it ends a process as Ctrl-C does, but a peer is told which of the two it was."""


def quiet_environment() -> None:
    """Set what must be set before torch and grpc are imported; what the user has set stays."""
    spin = {} if "OMP_WAIT_POLICY" in os.environ else SPIN
    for name, value in (spin | QUIET_THREADS | TLS_1_3).items():
        os.environ.setdefault(name, value)


def keep_heap() -> None:
    """Let glibc keep and reuse freed memory, in one arena; other C libraries stay as they are.

    By default every large tensor is mapped anew and its pages are zeroed again; a kept heap is
    faster, for some more resident memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for option, value in (
        (_MMAP_THRESHOLD, 1 << 30),
        (_TRIM_THRESHOLD, (1 << 31) - 1),
        (_ARENA_MAX, 1),
    ):
        mallopt(option, value)


def return_memory() -> bool:
    """Let freed tensors of 1 MB and more go back to the system at once; whether that can be had.

    The opposite of `keep_heap`: resident memory is what is in use, and the system clears pages
    anew in every step. Before torch is imported, since MKL too keeps buffers unless told not to.
    """
    os.environ.setdefault("MKL_DISABLE_FAST_MM", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 1 << 20) and mallopt(_ARENA_MAX, 1))


def trim_heap() -> None:
    """Give what a kept heap does not use back to the system; for a pause, not for every step."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def cores() -> int:
    """Cores this process may use, by affinity and by its cgroup's quota."""
    return machine.cores().usable


def run_node(
    body: Callable[[], None], error_file: Path | None = None, supervised: bool = False
) -> int:
    """Run a node's main; its exit code. A user's mistake is one line, not a traceback.

    SIGTERM ends like Ctrl-C. `error_file` gets the reason, for whoever started this process. With
    `supervised` the end of a run that has failed is 0: nothing is to be started again.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    if os.environ.pop(WITH_PARENT, None):
        threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    try:
        with heard():
            body()
    except KeyboardInterrupt:
        log.info("interrupted")
        return 130
    except SflError as error:
        _leave(str(error), error_file)
        return 0 if supervised and type(error) is RunFailed else error.exit_code
    except Exception as error:
        if (known := foreseen(error)) is not None:
            _leave(str(known), error_file)
            return known.exit_code
        log.exception("this is a bug in sfl")
        _leave(f"{type(error).__name__}: {error} (a bug; the log has its traceback)", error_file)
        return Bug.exit_code
    return 0


def run_loop(serve: Coroutine[object, object, None]) -> None:
    """`asyncio.run`, where SIGTERM too cancels what runs. Raises KeyboardInterrupt then.

    An exception out of a signal handler would strike wherever the loop's thread happens to be:
    inside gRPC's callbacks it is swallowed, with an event of theirs that somebody waits for.
    """

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel, SIGTERM)
        await serve

    try:
        asyncio.run(main())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


@contextlib.contextmanager
def undisturbed(*, hear_later: bool) -> Iterator[None]:
    """Neither Ctrl-C nor SIGTERM strikes in here, which must therefore end by itself, and soon.

    With `hear_later` they strike behind it; else they are forgotten, as is right where one of them
    is why this is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # they strike in the main thread only
        return
    heard: list[int] = []
    # A handler, and not SIG_IGN, which processes that are started meanwhile would inherit.
    before = {
        number: signal.signal(number, lambda number, frame: heard.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if hear_later and heard:
        signal.raise_signal(heard[0])


def _leave(reason: str, error_file: Path | None) -> None:
    log.error("%s", reason)
    if error_file is not None:
        with contextlib.suppress(OSError):  # its disk may be what ended this node
            error_file.write_text(reason + "\n", encoding="utf-8", errors="backslashreplace")


def _end_with_parent() -> None:
    """A pipe ends with whoever could write to it, however that process ends."""
    with contextlib.suppress(OSError):
        while os.read(0, 1 << 10):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def _interrupt(signum: int, frame: object) -> None:
    raise Terminated
