"""Which waiting job an edge takes next: pure decisions over what is known of each.

A further order is one file, and one line in `ORDERS`.
"""

from sfl.orders.fair_share import FairShare
from sfl.orders.first_come import FirstCome
from sfl.orders.longest_tail import LongestTail
from sfl.orders.waiting import Order, Waiting

ORDERS: dict[str, Order] = {
    order.name: order for order in (FirstCome(), LongestTail(), FairShare())
}

__all__ = ["ORDERS", "FairShare", "FirstCome", "LongestTail", "Order", "Waiting"]
