"""Which cut a training tensor crosses, counted at the device: values, and bytes on the wire."""

from __future__ import annotations

from sfl.cost.shown import Crossing
from sfl.metrics.costs import CrossedCount, purpose_of
from sfl.metrics.snapshot import Direction
from sfl.plan import Plan, Toward
from sfl.stage.messages import TensorMessage

_ROLES: dict[tuple[Direction, Toward], Crossing] = {
    ("up", Toward.LOSS): "activation",
    ("down", Toward.INPUT): "gradient",
    ("down", Toward.LOSS): "hidden",
    ("up", Toward.INPUT): "tail_gradient",
}


def note(
    count: CrossedCount, message: TensorMessage, plan: Plan, way: Direction, num_bytes: int
) -> None:
    """Count a tensor of so many bytes, if it is one of training."""
    if message.rows is None or purpose_of(message.key) != "training":
        return
    role = _ROLES[way, message.kind.toward]
    tail = 0 if plan.tail is None else plan.tail.num_blocks
    index = tail if role in ("hidden", "tail_gradient") else plan.cut_layer
    count.add(role, index, message.rows.numel(), num_bytes)
