"""A simulated fleet as a real run's records have one: what was not simulated is left out.

Nothing was learned, so no loss and no score is told. Times are those of the virtual clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sfl.metrics.snapshot import ByteTotals, NodeKind, NodeSnapshot
from sfl.rounds.messages import NodeHeard
from sfl.rounds.values import RoundReport
from sfl.simulate.ledger import Outcome
from sfl.simulate.rounds import Order
from sfl.simulate.worker import Worker

VALUE_BYTES = 4
"""Of what is sent uncompressed."""


@dataclass(frozen=True, slots=True)
class Teller:
    """Makes reports of nodes; `tokens` and `values` are those of one step's batch.

    `each`: devices report every round. Of a large fleet that would be millions of lines.
    """

    tokens: int
    values: int
    each: bool = True

    def servers(self, round_: int) -> tuple[str, ...]:
        """That the cloud has closed a round."""
        return (NodeSnapshot("cloud", "cloud", round=round_).to_json(),)

    def report(self, worker: Worker, order: Order, seconds: float) -> RoundReport | None:
        """A device's round. Its loss is not known."""
        if not self.each:
            return None
        count = order.steps.count
        return RoundReport(
            order.round,
            worker.own.name,
            num_steps=count,
            train_loss=math.nan,
            num_tokens=count * self.tokens,
            train_seconds=seconds if count else 0.0,
            snapshot=self.snapshot(worker, order.round).to_json(),
        )

    def snapshot(self, worker: Worker, round_: int = 0) -> NodeSnapshot:
        """A device's sums so far."""
        meter = worker.meter
        raw = VALUE_BYTES * self.values * meter.steps
        return NodeSnapshot(
            worker.own.name,
            "device",
            round=round_,
            steps_total=meter.steps,
            tokens=self.tokens * meter.steps,
            faults=meter.losses,
            bytes=ByteTotals(
                {
                    "activation": round(meter.trained_up),
                    "evaluation": round(meter.scored_up),
                    "adapter": round(meter.adapter_up),
                },
                {
                    "gradient": round(meter.trained_down),
                    "evaluation": round(meter.scored_down),
                    "adapter": round(meter.adapter_down),
                },
                {"activation": raw},
                {"gradient": raw},
            ),
        )

    def last_words(self, workers: Iterable[Worker], outcome: Outcome) -> Iterator[NodeHeard]:
        """What every node had counted in the end; who never took part is not heard of."""
        for worker in workers:
            if worker.meter.rounds or worker.meter.losses:
                yield _heard("device", self.snapshot(worker))
        for edge in outcome.edges:
            yield _heard("edge", NodeSnapshot(edge.name, "edge"))
        yield _heard("cloud", NodeSnapshot("cloud", "cloud"))


def _heard(kind: NodeKind, snapshot: NodeSnapshot) -> NodeHeard:
    return NodeHeard(kind, snapshot.name, snapshot.to_json())
