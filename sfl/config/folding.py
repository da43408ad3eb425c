"""Which bases take what a folding strategy adds to them."""

from __future__ import annotations

from sfl.config.node import Dtype, EdgeConfig, LocalDevice

FOLDING_DTYPES: tuple[Dtype | None, ...] = ("float32", "autocast", None)
"""Settings of a base that a small change can be added to."""
NEEDS_FLOAT32 = "flora adds every round's sum to the base, which only float32 weights can take"
GIVE_FLOAT32 = 'use "float32" or "autocast", not quantised, or strategy "flexlora"'
MOVES_THE_BASE = "every round's sum is added to the base, under the conversations that it serves"


def cannot_fold(own: EdgeConfig | LocalDevice) -> str | None:
    """The setting by which a node's base cannot take what a folding strategy adds, if any."""
    if own.quantised not in ("none", "auto"):  # auto never quantises what is to be folded into
        return "quantised"
    return None if own.dtype in FOLDING_DTYPES else "dtype"
