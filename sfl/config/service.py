"""What a service of runs is told at its start: `sfl cloud --set service.key=value`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import NonNegativeInt, PositiveInt

from sfl.config.base import Section
from sfl.config.load import tables_of, validated
from sfl.config.node import (
    ArtifactsUrl,
    JournalUrl,
    MetricsSettings,
    TlsSettings,
    TracingSettings,
)


class ServiceSettings(Section):
    """`sfl cloud` without a run: a service that queues runs (docs/service.md)."""

    listen: str = "127.0.0.1:7000"
    """`host:port` that operators and agents connect to. Each run's cloud listens on the same host,
    at a port of its own."""
    max_runs: PositiveInt = 2
    """Most runs under way at once. The others wait in the queue."""
    restarts: NonNegativeInt = 3
    """How often a node of a run is started again, if it was killed or failed."""
    tls: TlsSettings | None = None
    """The service's certificate, of role `cloud`. Each run's cloud uses it too."""
    journal: JournalUrl = ""
    """The `cloud.journal` of every run (docs/storage.md). Who submits a run cannot choose it."""
    artifacts: ArtifactsUrl = ""
    """The `cloud.artifacts` of every run. Who submits a run cannot choose it."""
    tracing: TracingSettings = TracingSettings()
    """The `cloud.tracing` of every run. Who submits a run cannot choose it."""
    metrics: MetricsSettings = MetricsSettings()
    """Prometheus endpoint of the service. Each run's cloud has one of its own."""


def load_service(overrides: Iterable[str] = ()) -> ServiceSettings:
    """Settings of a service. Raises ConfigError."""
    section = tables_of("service", overrides)
    folder = Path.cwd()
    if isinstance(tls := section.get("tls"), dict):
        section["tls"] = {key: str(folder / str(path)) for key, path in tls.items()}
    return validated(ServiceSettings, section, "service.")
