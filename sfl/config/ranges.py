"""The cuts that a device may have in a run: those that a planner may choose from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from sfl.config.devices import DeviceEntry
from sfl.config.run import RunSettings
from sfl.errors import ConfigError
from sfl.plan import Holder, Plan, Span

At = tuple[int, int]
"""Blocks of the device before and after the edge's."""


def cuts_of(settings: RunSettings, device: str, num_layers: int) -> tuple[At, ...]:
    """The cuts that a device may have in this run, the fewest blocks first; one if none moves."""
    if settings.planner.moves:
        return ways_of(settings, device, num_layers)
    entry = settings.device(device)
    return ((entry.cut_layer, entry.tail_layers),)


def ways_of(settings: RunSettings, device: str, num_layers: int) -> tuple[At, ...]:
    """Every way in a device's ranges to cut a model of so many blocks, the fewest blocks first.

    At least one block is the edge's, and one that of each stage behind it, at one of the places
    that it may have.
    """
    entry = settings.device(device)
    deep = stage_ways(settings, device)
    ways = {
        (cut, tail)
        for cut in _fronts(entry, num_layers)
        for tail in _tails(entry)
        if any(_fits((cut, *stages, num_layers - tail)) for stages in deep)
    }
    return tuple(sorted(ways | {(entry.cut_layer, entry.tail_layers)}))


def stage_ways(settings: RunSettings, device: str) -> tuple[tuple[int, ...], ...]:
    """The blocks before each stage behind a device's edge: all that it may have, its own first."""
    own, given = settings.stage_cuts(device), settings.device(device).stage_cut_range
    if given is None:
        return (own,)
    least, most = given
    return (own, *((cut,) for cut in range(least, most + 1) if (cut,) != own))


def plan_with(settings: RunSettings, device: str, num_layers: int, at: At) -> Plan:
    """A device's plan at one of its ways, with a place of the stage that goes with it. Raises
    ConfigError."""
    return next(_with_stages(settings, device, num_layers, at))


def _with_stages(settings: RunSettings, device: str, num_layers: int, at: At) -> Iterator[Plan]:
    cut, tail = at
    deep = stage_ways(settings, device)
    fitting = [stages for stages in deep if _fits((cut, *stages, num_layers - tail))]
    for stages in fitting or deep[:1]:
        yield settings.plan(device, num_layers, cut, tail, stages)


def _fits(ends: tuple[int, ...]) -> bool:
    """Whether each server has a block at least."""
    return all(begin < end for begin, end in pairwise(ends))


def _fronts(entry: DeviceEntry, num_layers: int) -> range:
    """With 0 blocks a device sends the ids of its tokens: that has to be asked for."""
    least, most = entry.cut_range or (min(1, entry.cut_layer), num_layers - 1)
    return range(least, most + 1)


def _tails(entry: DeviceEntry) -> range:
    least, most = entry.tail_range or (entry.tail_layers, entry.tail_layers)
    return range(least, most + 1)


def check_ranges(settings: RunSettings, num_layers: int) -> None:
    """A model of so many blocks can be cut in every way that was asked for.

    Raises ConfigError, which names the device's range.
    """
    for entry in settings.devices:
        for name, given, most, problem in _bounds(settings, entry, num_layers):
            if given is not None and given[1] > most:
                fix = f"Use [{min(given[0], most)}, {most}] at most."
                raise ConfigError(f"devices.{entry.name}.{name}", list(given), problem, fix)


def _bounds(
    settings: RunSettings, entry: DeviceEntry, num_layers: int
) -> Iterator[tuple[str, At | None, int, str]]:
    """Each range of a device with the most that it may have, and why no more."""
    front, tail = entry.cut_range, entry.tail_range
    if deep := settings.stage_cuts(entry.name):
        given = entry.stage_cut_range
        ends = (deep[-1], deep[0]) if given is None else given
        kept = "and the server before it keeps one at least"
        yield "cut_range", front, ends[1] - 1, f"a stage begins after {ends[1]} blocks, {kept}"
        kept = f"of {num_layers}, and keeps one at least"
        most = num_layers - 1 - ends[0]
        yield "tail_range", tail, most, f"a stage begins after {ends[0]} blocks {kept}"
        most = num_layers - 1 - (tail or (entry.tail_layers,))[0]
        problem = f"the model has {num_layers} blocks, and the stage keeps one at least"
        yield "stage_cut_range", given, most, problem
        return
    problem = f"the model has {num_layers} blocks, and the edge keeps one at least"
    most = num_layers - 1
    yield "cut_range", front, most - (tail or (entry.tail_layers,))[0], problem
    yield "tail_range", tail, most - (front or (min(1, entry.cut_layer),))[0], problem


def plans_of(settings: RunSettings, device: str, num_layers: int) -> tuple[Plan, ...]:
    """The same as plans. Raises ConfigError, which names the device's field."""
    ways = cuts_of(settings, device, num_layers)
    if not settings.planner.moves:
        return tuple(settings.plan(device, num_layers, *at) for at in ways)
    return tuple(plan for at in ways for plan in _with_stages(settings, device, num_layers, at))


def plans_to_fit(
    settings: RunSettings, device: str, told: Plan, least_cut: int = 0
) -> tuple[Plan, ...]:
    """The plan that a device is told, and those that it may join with where that is too large.

    These have `least_cut` blocks at least, the fewest first; there are none where no cut moves.
    """
    if not settings.planner.moves:
        return (told,)
    plans = plans_of(settings, device, told.num_layers)
    return (told, *(plan for plan in plans if plan.cut_layer >= least_cut))


def widest(plans: tuple[Plan, ...]) -> tuple[Span, ...]:
    """What a device holds on its disk: for each of its spans the largest of all plans."""
    by_place = zip(*(plan.device_spans for plan in plans), strict=True)
    return tuple(_around(spans) for spans in by_place)


def _around(spans: tuple[Span, ...]) -> Span:
    first, last = min(span.first for span in spans), max(span.last for span in spans)
    return Span(first, last, spans[0].embedding, spans[0].head)


def largest_span(
    settings: RunSettings, device: str, num_layers: int, holder: Holder = "edge"
) -> Span:
    """The most blocks that a device may leave to a stage server. Raises ConfigError."""
    plans = plans_of(settings, device, num_layers)
    return max((plan.span_of(holder) for plan in plans), key=lambda span: span.num_blocks)
