"""What is local to one node: addresses, data, limits. Nothing here changes a run's arithmetic
but `threads`, which the effective config fixes before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from sfl.config.base import Section

Threads = PositiveInt | Literal["auto"]


class MetricsSettings(Section):
    """Where a node serves `/metrics` for Prometheus."""

    enabled: bool = True
    """Serve `/metrics` at all."""
    host: str = "127.0.0.1"
    """Address to bind: loopback, or a LAN address to let a Prometheus elsewhere scrape."""
    port: NonNegativeInt = 0
    """TCP port; 0 takes a free one and logs it."""


class CloudNode(Section):
    """The cloud process."""

    listen: str = "127.0.0.1:0"
    """`host:port` that edges dial; port 0 takes a free one."""
    metrics: MetricsSettings = MetricsSettings()
    """Prometheus endpoint of the cloud."""


class EdgeConfig(Section):
    """An edge server: one frozen base shared by all of its devices."""

    name: str = Field(default="edge", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of this edge, unique in the run."""
    listen: str = "127.0.0.1:0"
    """`host:port` that devices dial; port 0 takes a free one."""
    cloud: str = ""
    """`host:port` of the cloud."""
    model: str | None = None
    """Model folder or hub name on this machine; the run's `model.path` where it is not given."""
    threads: Threads = "auto"
    """Torch threads of the compute thread; `auto`: all cores. Changes bits, so it is recorded."""
    connect_timeout: PositiveFloat = 60.0
    """Seconds to go on trying to reach the cloud; 15 under `sfl run`, unless given."""
    metrics: MetricsSettings = MetricsSettings()
    """Prometheus endpoint of the edge; it also shows its devices' series."""


class LocalDevice(Section):
    """What only a device knows: its data, its caches, its limits."""

    train: Path | str | None = None
    """Training data: a JSONL, CSV, TSV, text or Parquet file, or a Hugging Face dataset."""
    eval: Path | str | None = None
    """Held-out data of this device; without it `data.eval_fraction` of `train` is held out."""
    model: str | None = None
    """Model folder on this device; without it the span's weights come from the edge."""
    cache_dir: Path = Path("~/.cache/sfl")
    """Where weights and the tokenizer received from an edge are kept, by content hash."""
    threads: Threads = "auto"
    """Torch threads; `auto`: the machine's cores, shared out under `sfl run`."""
    connect_timeout: PositiveFloat = 60.0
    """Seconds to go on trying to reach the edge; 15 under `sfl run`, unless given."""
    metrics: MetricsSettings = MetricsSettings(enabled=False)
    """Prometheus endpoint of the device: off, since its edge shows its series."""


class DeviceConfig(LocalDevice):
    """A device agent's own file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of this device, one of the run's `[[devices]]`."""
    edge: str = ""
    """`host:port` of its edge."""
