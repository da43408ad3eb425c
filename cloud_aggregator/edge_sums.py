"""Sums that edges make: what each is asked for, and whether what it sends can be that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cloud_aggregator.effective import EffectiveConfig
from sfl.aggregation.contribution import Array, Contribution, Shapes
from sfl.aggregation.examine import Examined
from sfl.aggregation.strategy import Strategy
from sfl.aggregation.sums import EdgeSum, Total, groups, total
from sfl.errors import ProtocolError
from sfl.rounds import Aggregate, Reduce
from sfl.rounds.values import Share, SumOrder
from sfl.transport.cloud.spool import Spool

ROUNDING = 2.0**-22
"""Of float32, over all values that were shortened, as a part of their length."""


@dataclass(frozen=True, slots=True)
class Due:
    """A sum stands for so many examples; its mean is at most so far from the round's adapter, where
    lengths are measured."""

    weight: int
    furthest: float


class EdgeSums:
    """Those of one run. What an edge sends is held against the lengths that it has told.

    The mean over devices has changed no more than they have, in their mean: the triangle
    inequality. So an edge that adds up something else gains nothing over its devices.
    """

    def __init__(
        self,
        config: EffectiveConfig,
        strategy: Strategy,
        values: Callable[[], Mapping[str, Array]],
        spool: Spool,
    ) -> None:
        """`values` are those of the latest adapter."""
        self._config = config
        self._strategy = strategy
        self._values = values
        self._spool = spool
        self._due: dict[tuple[int, int, str], Due] = {}

    @property
    def shapes(self) -> Shapes:
        """Of what devices send, where all send the same."""
        return self._strategy.shapes(_NOBODY, self._values())

    def ask(self, command: Reduce, examined: Examined) -> dict[str, SumOrder]:
        """What each edge of an order is told, by what was found of its devices' updates."""
        found = groups(examined.contributions)
        # What was asked for in a round that is over comes no more, or counts for nothing.
        self._due = {key: due for key, due in self._due.items() if key[0] >= command.round}
        orders: dict[str, SumOrder] = {}
        for edge in command.edges:
            shares = {one.device: _share(one) for one in found[edge]}
            self._due[command.round, command.number, edge] = _due(shares, examined.norms)
            orders[edge] = SumOrder(command.round, command.number, shares)
        return orders

    def check(self, edge: str, round_: int, number: int) -> None:
        """Look at a sum in the spool. Raises ProtocolError where it cannot be what was asked."""
        due = self._due.pop((round_, number, edge), Due(1, math.inf))
        own = EdgeSum(edge, due.weight, self._spool.sum_path(round_, edge, number))
        start = self._strategy.start(_NOBODY, self._values(), self._config.current.run.seed, round_)
        length = own.change(start)
        slack = ROUNDING * (due.furthest + _norm(start))
        if length > due.furthest + slack:
            raise ProtocolError(
                f"sum of edge {edge}: its mean has changed by {length:.4g}, and the updates in it "
                f"by {due.furthest:.4g} at most"
            )

    def total(self, command: Aggregate, devices: Sequence[Contribution]) -> Total:
        """Over all edges, in the order in which the cloud itself would add. Raises
        ProtocolError."""
        return total(self._parts(command, devices), self.shapes)

    def _parts(self, command: Aggregate, devices: Sequence[Contribution]) -> Iterator[EdgeSum]:
        for edge, own in groups(devices).items():
            file = self._spool.sum_path(command.round, edge, command.number)
            yield EdgeSum(edge, sum(one.weight for one in own), file)


_NOBODY = Contribution("", 1)


def _share(one: Contribution) -> Share:
    return Share(one.num_examples, 1.0 if one.shortened is None else one.shortened.factor)


def _due(shares: Mapping[str, Share], norms: Mapping[str, float]) -> Due:
    weight = sum(own.weight for own in shares.values())
    if not norms:
        return Due(weight, math.inf)
    changes = (own.weight * own.factor * norms[name] for name, own in shares.items())
    return Due(weight, math.fsum(changes) / weight)


def _norm(values: Mapping[str, Array]) -> float:
    squared = (float(np.square(array.astype(np.float64)).sum()) for array in values.values())
    return math.sqrt(math.fsum(squared))
