"""How a round's adapters become the next global adapter."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from sfl.aggregation.traits import STRATEGIES, Traits
from sfl.config.asynchronous import StalenessSettings
from sfl.config.base import Fraction, OneOf


class AggregationSettings(StalenessSettings):
    """How the adapters of a round become the next global adapter (docs/aggregation.md)."""

    strategy: Annotated[str, OneOf(STRATEGIES)] = "fedavg"
    """The rule. `flexlora` and `flora` accept devices of different ranks."""
    mu: NonNegativeFloat = 0.01
    """`fedprox`: weight of the pull back to the round's global adapter."""
    server_learning_rate: PositiveFloat | None = None
    """The cloud's step, for `fedavgm` (default 1), `fedadam` and `fedyogi` (default 0.002)."""
    momentum: Fraction = 0.9
    """`fedavgm`: share of the last step that is applied again."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    """`fedadam`, `fedyogi`: decay rates of the cloud's two moments."""
    tau: PositiveFloat = 1e-3
    """`fedadam`, `fedyogi`: added to the root of the second moment. A small value adapts more."""
    trim_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.2
    """`trimmed_mean`: share of the devices that are left out at each end, rounded up."""
    byzantine: NonNegativeInt = 1
    """`krum`, `multi_krum`: number of devices that may send anything. Needs 2 x this + 3
    devices."""
    selected: PositiveInt | None = None
    """`multi_krum`: number of devices that are averaged. Default: those that took part, less
    `byzantine` + 2."""
    rank_partitioned: bool = False
    """`flexlora`: weigh each component only among the devices whose rank reaches it. Devices of
    smaller rank then do not shrink it (docs/aggregation.md)."""
    sums: Literal["flat", "by_edge", "at_edges"] = "flat"
    """Who takes weighted sums. `flat`: the cloud, over all devices. `by_edge`: the cloud, over each
    edge's devices, then over the edges. `at_edges`: each edge over its own devices, so that the
    cloud gets one sum from it. The last two give the same bits, and equal `flat` to rounding.
    They need a strategy that is a weighted sum (docs/aggregation.md)."""
    max_update_norm: PositiveFloat | Literal["auto", "off"] = "auto"
    """Longest change of the adapter that counts, as a Euclidean norm. `auto`: five times the median
    of this round's other devices, but at most as far as AdamW can go in the round's steps. `off`:
    nothing is measured."""
    large_updates: Literal["auto", "refuse", "clip"] = "auto"
    """What happens to an update beyond `max_update_norm`. `refuse`: the device is left out of the
    round, with a strike, as long as enough others remain. `clip`: the update counts, shortened to
    the bound. `auto`: `refuse` for an update beyond your own number or further than AdamW can go,
    otherwise `clip`. An honest device with data that the others never saw also moves much further
    than they do."""
    max_examples: PositiveInt = 10_000_000
    """Most training examples that a device may claim. The number is its weight, and decides its
    steps. A device that claims more is refused at the door. It may hold out as many again."""
    max_weight_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Largest share of a round's weights for one device, whatever number of examples it claims. 1:
    no bound. Strategies that count every device once do not need it."""
    max_parameters: PositiveInt = 1 << 28
    """Most values in an adapter, where the cloud has no copy of the model to check. Edges that
    state more are refused. The cloud keeps 4 bytes of each value."""
    strikes: PositiveInt = 3
    """Number of offences after which a device is out of the run for good. An offence is a refused
    update, a message that breaks the contract, or silence until a timeout (docs/aggregation.md)."""

    @model_validator(mode="after")
    def _options_are_read(self) -> Self:
        for name, field in type(self).model_fields.items():
            built_in = STRATEGIES.built_in.items()
            readers = [kind for kind, traits in built_in if name in traits.reads]
            ours = not readers or name in self.traits.reads
            if not ours and getattr(self, name) != field.default:
                raise ValueError(
                    f"{name}: strategy {self.strategy!r} does not read it; leave it out, or use "
                    f"{' or '.join(readers)}"
                )
        return self

    @model_validator(mode="after")
    def _sums_can_be_taken(self) -> Self:
        if self.sums == "flat" or self.traits.weighted_sum:
            return self
        able = [name for name, traits in STRATEGIES.built_in.items() if traits.weighted_sum]
        problem = f"strategy {self.strategy!r} needs each device's update by itself"
        fix = f'leave it at "flat", or use strategy {" or ".join(able)}'
        raise ValueError(f"sums = {self.sums!r}: {problem}; {fix}")

    @property
    def traits(self) -> Traits:
        """What the strategy asks of settings and nodes."""
        return STRATEGIES[self.strategy]

    @property
    def fewest_devices(self) -> int:
        """Fewest adapters that the strategy keeps its promise with."""
        return self.traits.fewest + self.traits.fewest_more * self.byzantine

    @property
    def server_step(self) -> float | None:
        """`server_learning_rate` or its default; None where the strategy has none."""
        return self.server_learning_rate or self.traits.server_step

    @property
    def proximal(self) -> float:
        """Weight of the devices' and the edge's proximal term."""
        return self.mu if self.traits.proximal else 0.0
