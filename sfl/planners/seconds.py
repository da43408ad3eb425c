"""Seconds of a round by device and choice, which is what most planners weigh."""

from __future__ import annotations

from sfl.cost.step import StepCost, exchange_seconds, step_cost
from sfl.cost.tiers import relayed_seconds
from sfl.planners.decision import Choice
from sfl.planners.state import DeviceState, State, as_chosen


def step_of(state: State, device: DeviceState, choice: Choice) -> StepCost:
    """One step, with the edge at its fastest clock, and the stages behind it."""
    edge = state.edge(choice.edge or device.edge).cost
    cost = as_chosen(device.cost, choice)
    return step_cost(state.workload, cost, edge, *choice.at, state.behind(device, choice))


def exchange_of(state: State, device: DeviceState, choice: Choice) -> float:
    """The parts of its adapter over its link, and over the hops behind its edge."""
    cost, last = as_chosen(device.cost, choice), state.workload.num_layers - choice.tail_layers
    relayed = relayed_seconds(cost, state.behind(device, choice), last)
    return exchange_seconds(cost, *choice.at) + relayed


def own_seconds(state: State, device: DeviceState, choice: Choice) -> float:
    """A round of the device, its link and what is behind its edge, without the edge."""
    step = step_of(state, device, choice)
    exchange = exchange_of(state, device, choice)
    return state.workload.steps * (step.seconds - step.edge) + exchange


def edge_seconds(state: State, device: DeviceState, choice: Choice) -> float:
    """A round's work at the edge, at the choice's clock and share."""
    return state.workload.steps * step_of(state, device, choice).edge / choice.edge_speed


def alone_seconds(state: State, device: DeviceState, choice: Choice) -> float:
    """A round where nobody else is at the edge."""
    return own_seconds(state, device, choice) + edge_seconds(state, device, choice)


def moving_seconds(device: DeviceState, choice: Choice, num_layers: int) -> float:
    """What a change of its cut costs once: moments that travel, blocks that are read."""
    if device.at is None or device.at == choice.at:
        return 0.0
    before, after = _blocks(device.at, num_layers), _blocks(choice.at, num_layers)
    gained, given = len(after - before), len(before - after)
    cost = device.cost
    there = given * cost.moment_bytes / cost.link.up
    back = gained * (cost.moment_bytes / cost.link.down + cost.block_load)
    return there + back


def _blocks(at: tuple[int, int], num_layers: int) -> set[int]:
    """Those of the device."""
    cut_layer, tail_layers = at
    return {*range(cut_layer), *range(num_layers - tail_layers, num_layers)}
