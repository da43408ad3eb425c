"""What settings and nodes have to know of each strategy, without the arrays that it works on."""

from __future__ import annotations

from dataclasses import dataclass

from sfl.node.plugins import Registry


@dataclass(frozen=True, slots=True)
class Traits:
    """A strategy's facts. `implementation` is `module:Class`, imported where rounds are merged."""

    implementation: str
    reads: tuple[str, ...] = ()
    """Options of `[aggregation]` that only some strategies read, and this one does."""
    server_step: float | None = None
    """Default of `server_learning_rate`; None where the strategy has no step of its own."""
    fewest: int = 1
    """Fewest adapters that it keeps its promise with, where `byzantine` is 0."""
    fewest_more: int = 0
    """So many more for each of the `byzantine` devices."""
    freezes_a: bool = False
    """Every A keeps its first values, and is not sent."""
    mixes_ranks: bool = False
    """Devices may have unequal ranks."""
    changes_basis: bool = False
    """Components are others after a round, so that moments lose their meaning."""
    folds: bool = False
    """A round's sum goes into every base for good, and LoRA starts afresh over it."""
    proximal: bool = False
    """Devices and edge add a proximal term of weight `mu`."""
    weighted_sum: bool = False
    """It asks no more of a round than `sum_k n_k w_k` and `sum_k n_k`, which edges may make for it;
    its class is a `MeanStrategy`."""


_HERE = "sfl.aggregation"
_ADAPTIVE = ("server_learning_rate", "betas", "tau")

_BUILT_IN = {
    "fedavg": Traits(f"{_HERE}.fedavg:FedAvg", weighted_sum=True),
    "fedprox": Traits(f"{_HERE}.fedprox:FedProx", reads=("mu",), proximal=True, weighted_sum=True),
    "fedavgm": Traits(
        f"{_HERE}.fedavgm:FedAvgM",
        reads=("server_learning_rate", "momentum"),
        server_step=1.0,
        weighted_sum=True,
    ),
    "fedadam": Traits(
        f"{_HERE}.fedadam:FedAdam", reads=_ADAPTIVE, server_step=0.002, weighted_sum=True
    ),
    "fedyogi": Traits(
        f"{_HERE}.fedyogi:FedYogi", reads=_ADAPTIVE, server_step=0.002, weighted_sum=True
    ),
    "ffa_lora": Traits(f"{_HERE}.ffa_lora:FfaLora", freezes_a=True, weighted_sum=True),
    "flexlora": Traits(
        f"{_HERE}.flexlora:FlexLora",
        reads=("rank_partitioned",),
        mixes_ranks=True,
        changes_basis=True,
    ),
    "flora": Traits(f"{_HERE}.flora:Flora", mixes_ranks=True, changes_basis=True, folds=True),
    "median": Traits(f"{_HERE}.median:Median", fewest=3),
    "trimmed_mean": Traits(f"{_HERE}.trimmed_mean:TrimmedMean", reads=("trim_fraction",), fewest=3),
    "krum": Traits(f"{_HERE}.krum:Krum", reads=("byzantine",), fewest=3, fewest_more=2),
    "multi_krum": Traits(
        f"{_HERE}.multi_krum:MultiKrum",
        reads=("byzantine", "selected"),
        fewest=3,
        fewest_more=2,
    ),
}
"""A further strategy is one file, and one line here."""

STRATEGIES = Registry("sfl.strategies", Traits, _BUILT_IN)
"""By the name in `aggregation.strategy`; packages may bring more."""
