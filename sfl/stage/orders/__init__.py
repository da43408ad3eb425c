"""Which waiting job an edge takes next: pure decisions over what is known of each.

A further order is one file, and one line in `ORDERS`.
"""

from sfl.node.plugins import Registry
from sfl.stage.orders.fair_share import FairShare
from sfl.stage.orders.first_come import FirstCome
from sfl.stage.orders.longest_tail import LongestTail
from sfl.stage.orders.waiting import Order, Waiting

ORDERS: Registry[Order] = Registry(
    "sfl.orders",
    Order,
    {order.name: order for order in (FirstCome(), LongestTail(), FairShare())},
)
"""By the name in `edge.order`; packages may bring more."""

__all__ = ["ORDERS", "FairShare", "FirstCome", "LongestTail", "Order", "Waiting"]
