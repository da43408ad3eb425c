"""Typed settings: what the cloud owns for a run, and what is local to a node.

`RunConfig` is a run's whole file (`sfl run`, `sfl cloud`); its `settings` travel to every node.
`EdgeConfig` and `DeviceConfig` are node files, holding only what is local to that node.
"""

from sfl.config.aggregation import AggregationSettings
from sfl.config.codec import CodecSettings
from sfl.config.data import DataSettings
from sfl.config.devices import DeviceEntry
from sfl.config.evaluation import EvaluationSettings, Extent
from sfl.config.load import dump_toml, load_device, load_edge, load_run, with_overrides
from sfl.config.model import LoraSettings, ModelSettings
from sfl.config.network import NetworkSettings
from sfl.config.node import (
    CloudNode,
    ConsentSettings,
    DeviceConfig,
    EdgeConfig,
    LocalDevice,
    MetricsSettings,
    TlsSettings,
)
from sfl.config.planner import PlannerSettings
from sfl.config.recovery import RecoverySettings
from sfl.config.run import RunConfig, RunSettings
from sfl.config.sections import RunSection
from sfl.config.training import TrainingSettings

__all__ = [
    "AggregationSettings",
    "CloudNode",
    "CodecSettings",
    "ConsentSettings",
    "DataSettings",
    "DeviceConfig",
    "DeviceEntry",
    "EdgeConfig",
    "EvaluationSettings",
    "Extent",
    "LocalDevice",
    "LoraSettings",
    "MetricsSettings",
    "ModelSettings",
    "NetworkSettings",
    "PlannerSettings",
    "RecoverySettings",
    "RunConfig",
    "RunSection",
    "RunSettings",
    "TlsSettings",
    "TrainingSettings",
    "dump_toml",
    "load_device",
    "load_edge",
    "load_run",
    "with_overrides",
]
