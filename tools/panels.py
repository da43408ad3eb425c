"""What Grafana's dashboards are made of, and what their expressions are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["timeseries", "stat", "table", "bargauge"]


@dataclass(frozen=True, slots=True)
class Query:
    """One expression, and what its series are called in the legend."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture; `unit` is Grafana's name of it."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 12
    height: int = 8
    stacked: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at a dashboard's head: the values of `label` in `series`."""

    name: str
    series: str
    label: str
    many: bool = True


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One file."""

    uid: str
    title: str
    variables: tuple[Variable, ...]
    panels: tuple[Panel, ...]


def panel(title: str, expr: str, legend: str = "", unit: str = "short", **more: Any) -> Panel:
    """A picture of one expression."""
    return Panel(title, (Query(expr, legend),), unit, **more)


def number(title: str, expr: str, unit: str = "short") -> Panel:
    """The latest value alone."""
    return panel(title, expr, "", unit, kind="stat", width=4, height=4)


RUN = Variable("run", "sfl_round", "run")
DEVICES = Variable("device", "sfl_step", "device")
DEVICE = Variable("device", "sfl_step", "device", many=False)
EDGE = Variable("edge", 'up{job="sfl-edge"}', "instance")

ALL = 'run=~"$run"'
ON_DEVICE = 'run=~"$run", device=~"$device", device!=""'
OF_EDGE = 'run=~"$run", job="sfl-edge", instance=~"$edge", device=""'
RATE = "[$__rate_interval]"
