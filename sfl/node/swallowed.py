"""Ctrl-C and SIGTERM that strike amid a library's callbacks, and come out as its own error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Raises KeyboardInterrupt in place of an exception that was made out of one.

    A compiled library does so where it reports what its callback raised: pydantic's serializer
    does. An error of a clean-up after Ctrl-C stays what it is.
    """
    try:
        yield
    except Exception as error:
        if (cause := _interrupt_behind(error)) is not None:
            raise cause from None
        raise


def _interrupt_behind(error: BaseException) -> KeyboardInterrupt | None:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, KeyboardInterrupt):
            return cause
        seen.add(id(cause))
        cause = cause.__cause__
    return None
