"""Merging the adapters of a round: pure functions of files, numpy only.

A further strategy is one file, and one line in `STRATEGIES`.
"""

from sfl.aggregation.contribution import Contribution, Strategy, verify
from sfl.aggregation.fedavg import FedAvg

STRATEGIES: dict[str, Strategy] = {strategy.name: strategy for strategy in (FedAvg(),)}

__all__ = ["STRATEGIES", "Contribution", "FedAvg", "Strategy", "verify"]
