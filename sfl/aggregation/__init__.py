"""Merging the adapters of a round: pure functions of files, numpy only.

A further strategy is one file, a line in `STRATEGIES` and in its type, and its name in
`AggregationSettings`.
"""

from collections.abc import Callable
from typing import TypedDict

from sfl.aggregation.contribution import Contribution, verify
from sfl.aggregation.fedadam import FedAdam
from sfl.aggregation.fedavg import FedAvg
from sfl.aggregation.fedavgm import FedAvgM
from sfl.aggregation.fedprox import FedProx
from sfl.aggregation.fedyogi import FedYogi
from sfl.aggregation.ffa_lora import FfaLora
from sfl.aggregation.flexlora import FlexLora
from sfl.aggregation.flora import Flora
from sfl.aggregation.krum import Krum
from sfl.aggregation.median import Median
from sfl.aggregation.multi_krum import MultiKrum
from sfl.aggregation.strategy import Strategy
from sfl.aggregation.trimmed_mean import TrimmedMean
from sfl.config import AggregationSettings, LoraSettings

Make = Callable[[AggregationSettings, LoraSettings], Strategy]


class Strategies(TypedDict):
    """One for each `aggregation.strategy`; the type checker holds the two together."""

    fedavg: Make
    fedprox: Make
    fedavgm: Make
    fedadam: Make
    fedyogi: Make
    ffa_lora: Make
    flexlora: Make
    flora: Make
    median: Make
    trimmed_mean: Make
    krum: Make
    multi_krum: Make


STRATEGIES: Strategies = {
    "fedavg": lambda options, lora: FedAvg(),
    "fedprox": lambda options, lora: FedProx(),
    "fedavgm": lambda options, lora: FedAvgM(_step(options), options.momentum),
    "fedadam": lambda options, lora: FedAdam(_step(options), options.betas, options.tau),
    "fedyogi": lambda options, lora: FedYogi(_step(options), options.betas, options.tau),
    "ffa_lora": lambda options, lora: FfaLora(),
    "flexlora": lambda options, lora: FlexLora(lora.alpha / lora.rank, options.rank_partitioned),
    "flora": lambda options, lora: Flora(lora.rank),
    "median": lambda options, lora: Median(),
    "trimmed_mean": lambda options, lora: TrimmedMean(options.trim_fraction),
    "krum": lambda options, lora: Krum(options.byzantine),
    "multi_krum": lambda options, lora: MultiKrum(options.byzantine, options.selected),
}


def _step(options: AggregationSettings) -> float:
    step = options.server_step
    assert step is not None, "the strategy has one"
    return step


def make_strategy(options: AggregationSettings, lora: LoraSettings) -> Strategy:
    """The strategy of a run's settings, remembering nothing yet."""
    return STRATEGIES[options.strategy](options, lora)


__all__ = ["STRATEGIES", "Contribution", "Strategy", "make_strategy", "verify"]
