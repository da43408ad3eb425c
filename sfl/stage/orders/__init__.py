"""Which waiting job an edge takes next: pure decisions over what is known of each.

A further order is one file, a line in `ORDERS` and in its type, and its name in `edge.order`.
"""

from typing import TypedDict

from sfl.stage.orders.fair_share import FairShare
from sfl.stage.orders.first_come import FirstCome
from sfl.stage.orders.longest_tail import LongestTail
from sfl.stage.orders.waiting import Order, Waiting


class Orders(TypedDict):
    """One for each name that `edge.order` can have; the type checker holds the two together."""

    first_come: Order
    longest_tail: Order
    fair_share: Order


ORDERS: Orders = {
    "first_come": FirstCome(),
    "longest_tail": LongestTail(),
    "fair_share": FairShare(),
}

__all__ = ["ORDERS", "FairShare", "FirstCome", "LongestTail", "Order", "Waiting"]
