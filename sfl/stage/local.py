"""The link's in-process twin: a device and its edge session in one process, no wire."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from sfl.stage.messages import GradientNorm, Message, TensorMessage
from sfl.stage.session import Reply, Session


class LocalLink:
    """Hands each message straight to a session; its replies wait their turn.

    Tensors are cloned, as they are when they come off a wire: both ends own what they hold.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._replies: deque[Reply] = deque()

    def send(self, message: TensorMessage | GradientNorm) -> None:
        """Have the session do the work at once."""
        self._replies.extend(self._session.handle(_owned(message)))

    def receive(self) -> Message:
        """The oldest reply that was not taken yet."""
        return _owned(self._replies.popleft())


def _owned(message: Reply) -> Reply:
    if isinstance(message, GradientNorm) or message.rows is None:
        return message
    return replace(message, rows=message.rows.clone())
