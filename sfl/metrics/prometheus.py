"""Statistics as Prometheus sees them; the only module that knows prometheus_client."""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import (
    Metric as Family,
)
from prometheus_client.registry import Collector

from sfl.config.node import MetricsSettings
from sfl.errors import ConfigError
from sfl.metrics.histogram import Histogram
from sfl.metrics.lock import OPEN, Lock
from sfl.metrics.metric import Metric, MetricType, Sample
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.stats import NodeStats
from sfl.metrics.table import METRICS

log = logging.getLogger(__name__)


def _no_devices() -> Iterable[NodeSnapshot]:
    return ()


class NodeCollector(Collector):
    """The series of one node, and at an edge those of its devices, read when scraped.

    A device's series carry its name as `device`, whether it or its edge shows them. The series of
    an edge or the cloud itself have `device=""`, which to Prometheus is no label. `devices` gives
    the latest snapshot of each device, every name once.
    """

    def __init__(
        self, own: NodeStats, devices: Callable[[], Iterable[NodeSnapshot]] = _no_devices
    ) -> None:
        self._own = own
        self._devices = devices

    def collect(self) -> Iterator[Family]:
        """Every family of the table that some snapshot has samples for."""
        snapshots = [self._own.snapshot(), *self._devices()]
        for metric in METRICS:
            samples = [
                ((_device_label(snapshot), *labels), value)
                for snapshot in snapshots
                if snapshot.kind in metric.nodes
                for labels, value in metric.read(snapshot)
            ]
            if samples:
                yield FAMILIES[metric.type](metric, samples)


class MetricsServer:
    """A running `/metrics` endpoint on its own threads; a context, or `close` it."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread
        self.port: int = server.server_port

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def serve_as_set(settings: MetricsSettings, collector: Collector) -> MetricsServer:
    """Serve `collector` as a node's settings say, and log where. Raises ConfigError."""
    lock = Lock.from_settings(settings)
    server = serve(settings.host, settings.port, collector, lock)
    scheme = "http" if lock.tls is None else "https"
    log.info("metrics at %s://%s:%d/metrics", scheme, settings.host, server.port)
    return server


def serve(host: str, port: int, collector: Collector, lock: Lock = OPEN) -> MetricsServer:
    """Serve `collector` alone on `host:port`; port 0 takes a free one, named by `.port`.

    Raises ConfigError where the address cannot be bound.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    try:
        server = lock.open(host, port, make_wsgi_app(registry))
    except socket.gaierror:
        raise ConfigError(
            "metrics.host", host, "no such address", 'Use "127.0.0.1" or one of this machine.'
        ) from None
    except (OSError, OverflowError) as error:
        raise _bind_error(host, port, error) from None
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    return MetricsServer(server, thread)


def _bind_error(host: str, port: int, error: OSError | OverflowError) -> ConfigError:
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.EADDRINUSE:
        return ConfigError("metrics.port", port, "is in use", "Choose another, or 0 for any.")
    if code == errno.EADDRNOTAVAIL:
        return ConfigError(
            "metrics.host", host, "is not an address of this machine", 'Use "127.0.0.1".'
        )
    return ConfigError("metrics.port", port, f"cannot be bound: {error}", "Choose another, or 0.")


def _device_label(snapshot: NodeSnapshot) -> str:
    return snapshot.name if snapshot.kind == "device" else ""


def _counter(metric: Metric, samples: list[Sample]) -> Family:
    name = metric.name.removesuffix("_total")
    family = CounterMetricFamily(name, metric.help, labels=("device", *metric.labels))
    for labels, value in samples:
        assert not isinstance(value, Histogram)
        family.add_metric(labels, value)
    return family


def _gauge(metric: Metric, samples: list[Sample]) -> Family:
    family = GaugeMetricFamily(metric.name, metric.help, labels=("device", *metric.labels))
    for labels, value in samples:
        assert not isinstance(value, Histogram)
        family.add_metric(labels, value)
    return family


def _histogram(metric: Metric, samples: list[Sample]) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help, labels=("device", *metric.labels))
    for labels, value in samples:
        assert isinstance(value, Histogram)
        family.add_metric(labels, _cumulated(value), value.total)
    return family


def _cumulated(histogram: Histogram) -> list[tuple[str, float]]:
    """Prometheus's buckets: how many were at most so large, up to +Inf."""
    cumulated: list[tuple[str, float]] = []
    below = 0
    for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.buckets, strict=True):
        below += count
        cumulated.append((bound, float(below)))
    return cumulated


FAMILIES: dict[MetricType, Callable[[Metric, list[Sample]], Family]] = {
    "counter": _counter,
    "gauge": _gauge,
    "histogram": _histogram,
    "info": _gauge,  # an info metric is a gauge of 1 in the text format
}
