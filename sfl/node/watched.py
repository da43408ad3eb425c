"""Threads whose end somebody sees."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sfl.errors import SflError

log = logging.getLogger(__name__)


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
