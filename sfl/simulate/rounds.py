"""What a device does in a round: the adapter comes, steps, the adapter goes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sfl.config import Extent, RunSettings
from sfl.cost.step import exchange_bytes
from sfl.cost.tiers import Behind
from sfl.cost.values import DeviceCost, Workload
from sfl.plan import U_SHAPED
from sfl.planners.decision import Choice
from sfl.planners.state import as_chosen
from sfl.rounds.values import Point, Steps
from sfl.simulate.bursts import Burst, evaluation, training
from sfl.simulate.fleet import Fleet, Specimen

At = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Order:
    """A device's part in a round, as the coordinator has ordered it."""

    round: int
    steps: Steps
    evaluate: Extent
    after: Point
    lineage: int
    choice: Choice | None = None

    @property
    def first(self) -> int:
        """Steps of the round that it has behind it."""
        return self.after.step if self.after.round == self.round else 0

    def point(self, step: int) -> Point:
        """Where device and edge are after so many steps."""
        return Point(self.round, step, self.lineage)


@dataclass(frozen=True, slots=True)
class Part:
    """What an order comes to: bursts with how often each, bytes of the adapter each way."""

    bursts: tuple[tuple[Burst, int], ...]
    exchange: float
    at: At
    share: float
    edge_speed: float
    beside: bool


class Parts:
    """Makes them; what does not change from round to round is made once."""

    def __init__(self, fleet: Fleet, settings: RunSettings) -> None:
        self._fleet = fleet
        self._settings = settings
        batch, shape = fleet.batch, fleet.shape
        self.workload = Workload(
            shape.num_layers,
            shape.hidden_size,
            batch.tokens,
            u_shaped=settings.run.topology in U_SHAPED,
            weights=shape.weights(batch, settings.lora.rank),
        )
        self._made: dict[tuple[str, At, int], Burst] = {}

    def of(self, own: Specimen, order: Order, settings: RunSettings) -> Part:
        """A device's part in a round."""
        choice = order.choice
        at = self.at(own, choice)
        cost = own.cost if choice is None else as_chosen(own.cost, choice)
        pieces = settings.training.micro_batches
        count = 1 if pieces == "auto" else pieces
        bursts: list[tuple[Burst, int]] = []
        if (scored := self._evaluation(own, order.evaluate, at, settings)) is not None:
            bursts.append((scored, 1))
        bursts.append((self.step(own, cost, at, count, settings), order.steps.count - order.first))
        return Part(
            tuple(bursts),
            exchange_bytes(own.cost, *at),
            at,
            1.0 if choice is None else choice.share,
            1.0 if choice is None else choice.edge_speed,
            choice is not None and choice.edge_share is not None,
        )

    def at(self, own: Specimen, choice: Choice | None) -> At:
        """The device's blocks before and after the edge's."""
        entry = self._settings.device(own.name)
        return (entry.cut_layer, entry.tail_layers) if choice is None else choice.at

    def behind(self, own: Specimen) -> Behind:
        """The stages behind a device's edge."""
        return Behind(self._fleet.stages, self._settings.stage_cuts(own.name))

    def step(
        self, own: Specimen, cost: DeviceCost, at: At, count: int, settings: RunSettings
    ) -> Burst:
        """A training step in so many micro-batches."""
        key, known = (own.name, at, count), cost is own.cost
        if known and (made := self._made.get(key)) is not None:
            return made
        behind = self.behind(own)
        way = own.latency + sum(hop.latency for hop in behind.hops)
        norms = 0.0 if settings.training.max_grad_norm is None else 2.0 * way
        load = replace(self.workload, micro_batches=count, window=settings.network.credits)
        burst = training(load, cost, self._fleet.edge_cost, at, norms, behind)
        if known:
            self._made[key] = burst
        return burst

    def _evaluation(
        self, own: Specimen, extent: Extent, at: At, settings: RunSettings
    ) -> Burst | None:
        count = self._scored(extent, settings)
        if not count:
            return None
        batches = count / settings.training.batch_size
        load = replace(self.workload, window=settings.network.credits)
        edge = self._fleet.edge_cost
        bits, behind = own.evaluation_bits, self.behind(own)
        return evaluation(load, own.cost, edge, at, batches, bits, behind)

    def _scored(self, extent: Extent, settings: RunSettings) -> int:
        """Examples."""
        every, most = self._fleet.settings.eval_examples, settings.evaluation.max_examples
        sample = min(every, most) if most else every
        if extent == "none":
            return 0
        return every if extent == "all" and settings.evaluation.full else sample
