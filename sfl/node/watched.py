"""Threads whose end somebody sees."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

from sfl.errors import SflError

log = logging.getLogger(__name__)


def beside(name: str, job: Callable[[], None]) -> Future[None]:
    """Run a job on a thread of its own; what it raises is the future's.

    It keeps no process alive that is to end: a disk far away may hang.
    """
    future: Future[None] = Future()

    def run() -> None:
        try:
            job()
        except Exception as error:  # noqa: BLE001 - raised where it is awaited
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def start_watched(
    name: str, work: Callable[[], None], tell: Callable[[Exception], None]
) -> threading.Thread:
    """A daemon thread; what it raises goes to `tell`, on that thread, whatever it is.

    What nobody foresaw is logged with its traceback as well.
    """

    def run() -> None:
        try:
            work()
        except SflError as error:
            tell(error)
        except Exception as error:
            log.exception("thread %s ended", name)
            tell(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
