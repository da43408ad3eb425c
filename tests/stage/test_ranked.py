"""An edge serves devices as a planner has ranked them; who is not ranked comes last."""

from __future__ import annotations

from sfl.stage.orders import ORDERS, Waiting
from sfl.stage.orders.ranked import ranked

WAITING = [Waiting(1, "a"), Waiting(2, "b"), Waiting(3, "c"), Waiting(4, "b")]


def served(devices: tuple[str, ...]) -> list[tuple[str, int]]:
    order, left, found = ranked(devices, ORDERS["first_come"]), list(WAITING), []
    while left:
        job = left.pop(order.choose(left))
        found.append((job.device, job.number))
    return found


def test_the_first_in_rank_goes_first_and_a_device_keeps_its_own_order() -> None:
    assert served(("c", "b")) == [("c", 3), ("b", 2), ("b", 4), ("a", 1)]


def test_without_a_plan_the_usual_order_holds() -> None:
    assert served(()) == [("a", 1), ("b", 2), ("c", 3), ("b", 4)]
    assert ranked((), ORDERS["longest_tail"]) is ORDERS["longest_tail"]
