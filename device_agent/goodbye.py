"""Why a device leaves, in the words that its edge, and so the run's records, get."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sfl.errors import AdapterRefused, Bug, Elsewhere, LinkLost, OutOfMemory, SflError
from sfl.node.causes import foreseen
from sfl.node.process import Terminated
from sfl.node.text import plain
from sfl.transport.device.line import Line

DONE = "done"
RETURNING = (LinkLost, OutOfMemory, Bug, Elsewhere)
"""What may be over for the next process, or link, of the device."""


@contextlib.contextmanager
def saying_goodbye(line: Line) -> Iterator[None]:
    """Close the line at the end, and say what ended it; "done" only where nothing did."""
    reason, refused, returns = DONE, False, False
    try:
        yield
    except BaseException as error:
        reason, refused = words(error), isinstance(error, AdapterRefused)
        returns = may_return(error)
        raise
    finally:
        line.close(reason, refused, returns)


def may_return(error: BaseException) -> bool:
    """Whether a device that ends with this may be started again, and then go on.

    What it says of itself, its data or its part in the run would be the same then.
    """
    return not isinstance(error, SflError) or isinstance(error, RETURNING)


def words(error: BaseException) -> str:
    """What ended a device, in one line."""
    if isinstance(error, Terminated):
        return "SIGTERM"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    known = foreseen(error)
    if known is not None:
        return plain(str(known))  # it may repeat a whole row
    return f"{type(error).__name__}: {error} (a bug; the device's log has its traceback)"
