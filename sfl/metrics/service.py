"""A service of runs as Prometheus sees it: what waits, what is under way, and who is attached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class ServiceFigures:
    """A service at one moment."""

    runs: Mapping[str, int] = field(default_factory=dict)
    """How many have not ended, by state."""
    ended: Mapping[str, int] = field(default_factory=dict)
    """How many have ended since it started, by state."""
    agents: Mapping[str, int] = field(default_factory=dict)
    """How many are attached, by role."""
    waiting_since: Mapping[str, float] = field(default_factory=dict)
    """Runs that wait, each with the Unix seconds since when."""


@dataclass(frozen=True, slots=True)
class ServiceMetric:
    """One family of series, with one label."""

    name: str
    help: str
    label: str
    read: Callable[[ServiceFigures], Mapping[str, float]]
    counter: bool = False

    def family(self, figures: ServiceFigures) -> Family:
        """Its series."""
        kind = CounterMetricFamily if self.counter else GaugeMetricFamily
        family: Family = kind(self.name.removesuffix("_total"), self.help, labels=(self.label,))
        for value, number in self.read(figures).items():
            family.add_metric((value,), number)  # type: ignore[attr-defined]
        return family


SERVICE_METRICS = (
    ServiceMetric("sfl_service_runs", "Runs that have not ended.", "state", lambda f: f.runs),
    ServiceMetric(
        "sfl_service_runs_ended_total",
        "Runs that have ended since the service started.",
        "state",
        lambda f: f.ended,
        counter=True,
    ),
    ServiceMetric("sfl_service_agents", "Agents that are attached.", "role", lambda f: f.agents),
    ServiceMetric(
        "sfl_service_waiting_since_timestamp_seconds",
        "Since when a run in the queue waits for what it waits for now.",
        "run",
        lambda f: f.waiting_since,
    ),
)


class ServiceCollector(Collector):
    """Reads a service when it is scraped, on the scraper's thread."""

    def __init__(self, figures: Callable[[], ServiceFigures]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Family]:
        """Every family."""
        figures = self._figures()
        for metric in SERVICE_METRICS:
            yield metric.family(figures)
