"""The part of a report that shows what its planner did: cuts, and seconds foretold and measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from sfl.report import text
from sfl.report.charts import Line, line_chart, line_legend, series_style
from sfl.report.markup import Markup, element
from sfl.report.page import table
from sfl.report.planned import At, PlanSummary
from sfl.report.summary import RunSummary

SHOWN = 32
"""Devices that have a line of their own: after these the styles repeat."""
NAMED = 8
FORETOLD, MEASURED = series_style(0), series_style(1)


def plan_section(summary: RunSummary) -> tuple[Markup, ...]:
    """Nothing where the run had no planner."""
    if not summary.plans:
        return ()
    lines = _cut_lines(summary)
    cards = [_seconds_card(summary.plans)]
    legend = []
    if lines:
        chart = line_chart("Blocks of each device by round", lines, text.short)
        heading = element("h3", "Blocks at the front of each device")
        cards.insert(0, element("div", heading, chart, class_="card"))
        legend = [line_legend([(line.name, line.style) for line in lines])]
    return (
        element(
            "section",
            element("h2", "Plan"),
            element("p", _lead(summary.plans), class_="lead"),
            *legend,
            element("div", *cards, class_="charts"),
            _decisions(summary.plans),
            class_="section",
        ),
    )


def _lead(plans: Sequence[PlanSummary]) -> str:
    first, moves = plans[0], sum(len(plan.moved) for plan in plans)
    if first.advice:
        return (
            f"Advice of the planner {first.policy}: no cut was moved, and {moves} moves were "
            "advised. Each round's advice counts from the cuts that the devices had."
        )
    errors = [
        abs(plan.foretold / plan.measured - 1.0)
        for plan in plans
        if plan.measured and "guess" not in plan.note
    ]
    told = ""
    if errors:
        middle = text.percent(sorted(errors)[len(errors) // 2])
        told = f" In the median what it foretold was off by {middle}."
    return f"The planner {first.policy} made {len(plans)} decisions and {moves} moves.{told}"


def _cut_lines(summary: RunSummary) -> list[Line]:
    """One for each device, with a step where its cut moves."""
    last = max(1, summary.rounds)
    return [
        Line(device.name, series_style(index), list(_steps(device.cuts, last)))
        for index, device in enumerate(summary.devices[:SHOWN])
        if device.cuts
    ]


def _steps(cuts: Sequence[At], last: int) -> Iterator[tuple[int, float]]:
    """A point for each round."""
    for (first, cut, _), (end, _, _) in pairwise([*cuts, (last + 1, 0, 0)]):
        for round_ in range(first, end):
            yield round_, float(cut)


def _seconds_card(plans: Sequence[PlanSummary]) -> Markup:
    measured = [(p.round, math.nan if p.measured is None else p.measured) for p in plans]
    lines = [
        Line("foretold", FORETOLD, [(plan.round, plan.foretold) for plan in plans]),
        Line("measured", MEASURED, measured),
    ]
    return element(
        "div",
        element("h3", "Training of the device that a round waits for (seconds)"),
        line_legend([(line.name, line.style) for line in lines]),
        line_chart("Seconds foretold and measured by round", lines, text.short),
        class_="card",
    )


def _decisions(plans: Sequence[PlanSummary]) -> Markup:
    headings = ("round", "foretold", "measured", "waits for", "gain", "moved", "left out", "why")
    card = element("div", table(headings, list(map(_cells, plans))), class_="card scroll")
    return element("details", element("summary", "Every decision"), card)


def _cells(plan: PlanSummary) -> tuple[str, ...]:
    return (
        str(plan.round),
        text.duration(plan.foretold),
        "–" if plan.measured is None else text.duration(plan.measured),
        plan.slowest or "–",
        text.percent(plan.gain),
        named(plan.moved),
        named(plan.out),
        plan.note or "–",
    )


def named(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = len(names) - NAMED
    shown = ", ".join(names[:NAMED]) or "–"
    return f"{shown} and {more} more" if more > 0 else shown
