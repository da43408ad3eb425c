"""What an edge's conversations hold, for its statistics; read from any thread."""

from __future__ import annotations

from collections import Counter

from sfl.metrics.serving import Held, Standing
from sfl.stage.serving.conversation import Conversation
from sfl.stage.serving.conversations import Conversations


def held_by(conversations: Conversations, kv_budget: int) -> Held:
    """All of them at one moment, about: the compute thread goes on meanwhile."""
    return Held(
        conversations=Counter(map(_standing, conversations.every())),
        leavings={"spilled": conversations.spilled, "forgotten": conversations.forgotten},
        kv_bytes=conversations.base.pool.nbytes,
        kv_budget=kv_budget,
    )


def _standing(one: Conversation) -> Standing:
    if one.pending:
        return "active"
    if one.cache.num_pages:
        return "idle"
    return "forgotten" if one.spilled is None else "spilled"
