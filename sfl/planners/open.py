"""OPEN (2403.05158): cuts and shares of the edge, within a budget of energy in the long run.

A queue holds what was used above the budget so far. Each round makes small

    delay_value * mean delay + queue * energy,

so that delay counts for all while energy is within its budget, and for less the more is overdrawn
(drift plus penalty). The queue would have to fill before a budget is kept, and what it holds in the
end is overdrawn. So to the queue is added what it would come to: the price of a joule at which a
round takes just its budget, the mean over the first rounds (a place-holder backlog; Huang and
Neely, 2010). The edge's capacity has a price, at which each device's cut and share are its
own affair. The price is found by bisection. One sweep of single changes then closes most of what
is left between that and the optimum, where devices are few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt

from sfl.cost.step import device_energy
from sfl.planners.decision import Choice
from sfl.planners.fitting import least_that_fits
from sfl.planners.planner import Planner, Proposal
from sfl.planners.seconds import exchange_of, step_of
from sfl.planners.state import DeviceState, State
from sfl.planners.told import Cut

QUEUE = "energy"
"""The table of joules overdrawn so far, and of the price that is added to them."""
LOOKED_AT = 20
"""Rounds that the added price is the mean of."""
ROUGH = 16
"""Halvings that are enough for it."""
SAMPLED = 16
"""Devices of a large fleet that it is found with."""
LEAST_SHARE = 1e-6
SWEPT = 200
"""Cuts of all devices together up to which single changes are tried."""


@dataclass(frozen=True, slots=True)
class _Option:
    """One cut of one device: seconds and joules without the edge, and the edge's whole seconds."""

    cut: Cut
    own: float
    joules: float
    work: float


@dataclass(frozen=True, slots=True)
class _Prices:
    """What a second of one device, a joule, and the edge's watts count for."""

    second: float
    joule: float
    watts: float

    def cost(self, option: _Option, share: float) -> float:
        """Of one device's round."""
        delay = option.own + option.work / share
        return self.second * delay + self.joule * self.energy(option, share)

    def energy(self, option: _Option, share: float) -> float:
        """Joules of the device, and of the edge for it."""
        return option.joules + self.watts * share * share * option.work

    def share(self, work: float, capacity: float) -> float:
        """The best share where capacity has that price: the root of a cubic, from above."""
        cubic, square, constant = 2.0 * self.joule * self.watts * work, capacity, self.second * work
        bounds = [1.0]
        if cubic > 0.0:
            bounds.append((constant / cubic) ** (1.0 / 3.0))
        if square > 0.0:
            bounds.append(sqrt(constant / square))
        share = min(bounds)
        for _ in range(12):
            value = (cubic * share + square) * share * share - constant
            if value <= 0.0:
                break
            share -= value / ((3.0 * cubic * share + 2.0 * square) * share)
        return max(share, LEAST_SHARE)


def propose(state: State) -> Proposal:
    """The least of delay and overdrawn energy, edge by edge."""
    chosen: dict[str, Choice] = {}
    for name, devices in state.at_edges().items():
        prices = _prices(state, name)
        options = [_options(state, device) for device in devices]
        picked = _swept(prices, options)
        shares = _shares(prices, picked)
        for device, option, share in zip(devices, picked, shares, strict=True):
            choice = device.choice(option.cut)
            chosen[device.name] = replace(choice, edge_clock=share, edge_share=1.0)
    return Proposal(chosen, _after(state, chosen))


def drift_plus_penalty(state: State, choices: Mapping[str, Choice]) -> float:
    """What `open` makes small."""
    return sum(prices.cost(option, share) for prices, option, share in _each(state, choices))


def round_energy(state: State, choices: Mapping[str, Choice]) -> float:
    """Joules of all nodes in a round."""
    return sum(prices.energy(option, share) for prices, option, share in _each(state, choices))


def _each(state: State, choices: Mapping[str, Choice]) -> Iterator[tuple[_Prices, _Option, float]]:
    """What each device's choice is made of."""
    prices = {edge.name: _prices(state, edge.name) for edge in state.edges}
    for device in state.able:
        choice = choices[device.name]
        cut = next(cut for cut in device.legal if cut.at == choice.at)
        yield prices[device.edge], _option(state, device, cut), choice.edge_clock


def queue(state: State) -> float:
    """Joules above the budget so far."""
    return state.memory.get(QUEUE, {}).get("queue", 0.0)


def added(state: State) -> float:
    """What a joule counts for beside the queue."""
    if state.aims.energy is None:
        return 0.0
    known = state.memory.get(QUEUE, {})
    return known["added"] if known.get("rounds") else budget_price(state)


def _after(state: State, choices: Mapping[str, Choice]) -> dict[str, dict[str, float]]:
    if state.aims.energy is None:
        return {QUEUE: {"queue": 0.0}}
    over = queue(state) + round_energy(state, choices) - state.aims.energy
    rounds, mean = state.memory.get(QUEUE, {}).get("rounds", 0.0), added(state)
    if 0 < rounds < LOOKED_AT:
        mean += (budget_price(state) - mean) / (rounds + 1.0)
    return {QUEUE: {"queue": max(0.0, over), "added": mean, "rounds": rounds + 1.0}}


def budget_price(state: State) -> float:
    """The price of a joule at which this round would take just its budget; 0 where it does anyway.

    Of a large fleet some devices stand for all.
    """
    budget = state.aims.energy
    if budget is None or not state.able:
        return 0.0
    every = -(-len(state.able) // SAMPLED)
    edges = [
        (_prices_at(state, name, 0.0), [_options(state, device) for device in devices[::every]])
        for name, devices in state.at_edges().items()
    ]

    def used(price: float) -> float:
        """Of the budget."""
        joules = 0.0
        for own, options in edges:
            prices = replace(own, joule=price)
            for option, share in _roughly(prices, options, every):
                joules += prices.energy(option, share)
        return every * joules / budget

    fits = used(0.0) <= 1.0
    return 0.0 if fits else least_that_fits(used, 0.0, state.aims.delay_value, ROUGH)


def _roughly(
    prices: _Prices, options: Sequence[Sequence[_Option]], every: int
) -> list[tuple[_Option, float]]:
    """Cuts and shares of devices that each stand for so many."""

    def pick(capacity: float) -> list[tuple[_Option, float]]:
        return [_cheapest(prices, own, capacity) for own in options]

    def used(capacity: float) -> float:
        return every * sum(share for _, share in pick(capacity))

    return pick(0.0 if used(0.0) <= 1.0 else least_that_fits(used, 0.0, 1.0, ROUGH))


def _prices(state: State, edge: str) -> _Prices:
    return _prices_at(state, edge, queue(state) + added(state))


def _prices_at(state: State, edge: str, joule: float) -> _Prices:
    second = state.aims.delay_value / max(1, len(state.able))
    return _Prices(second, joule, state.edge(edge).cost.clock.watts)


def _options(state: State, device: DeviceState) -> list[_Option]:
    return [_option(state, device, cut) for cut in device.legal]


def _option(state: State, device: DeviceState, cut: Cut) -> _Option:
    choice, steps = device.choice(cut), state.workload.steps
    step = step_of(state, device, choice)
    return _Option(
        cut,
        steps * (step.seconds - step.edge) + exchange_of(state, device, choice),
        steps * device_energy(step, device.cost).joules,
        steps * step.edge,
    )


def _swept(prices: _Prices, options: Sequence[Sequence[_Option]]) -> list[_Option]:
    """The cuts at the right price; then the best single change of each device in turn."""
    picked = _priced(prices, options)
    if sum(len(own) for own in options) > SWEPT:
        return picked
    best = _total(prices, picked)
    for number, own in enumerate(options):
        for option in own:
            tried = [*picked[:number], option, *picked[number + 1 :]]
            value = _total(prices, tried)
            if value < best * (1 - 1e-12):
                best, picked = value, tried
    return picked


def _total(prices: _Prices, picked: Sequence[_Option]) -> float:
    shares = _shares(prices, picked)
    return sum(prices.cost(one, share) for one, share in zip(picked, shares, strict=True))


def _priced(prices: _Prices, options: Sequence[Sequence[_Option]]) -> list[_Option]:
    """Each device's best cut, at the price at which all shares fit."""

    def pick(capacity: float) -> list[tuple[_Option, float]]:
        return [_cheapest(prices, own, capacity) for own in options]

    return [option for option, _ in pick(_price(prices, pick))]


def _cheapest(
    prices: _Prices, options: Sequence[_Option], capacity: float
) -> tuple[_Option, float]:
    best, found = inf, (options[0], 1.0)
    for option in options:
        share = prices.share(option.work, capacity)
        value = prices.cost(option, share) + capacity * share
        if value < best:
            best, found = value, (option, share)
    return found


def _shares(prices: _Prices, picked: Sequence[_Option]) -> list[float]:
    """The best shares of these cuts: they add up to 1 at most."""

    def pick(capacity: float) -> list[tuple[_Option, float]]:
        return [(one, prices.share(one.work, capacity)) for one in picked]

    shares = [share for _, share in pick(_price(prices, pick))]
    whole = sum(shares)
    return [share / whole for share in shares] if whole > 1.0 else shares


def _price(prices: _Prices, pick: Callable[[float], Sequence[tuple[_Option, float]]]) -> float:
    """The least price of capacity at which all shares fit; 0 where they fit anyway."""

    def used(capacity: float) -> float:
        return sum(share for _, share in pick(capacity))

    return 0.0 if used(0.0) <= 1.0 else least_that_fits(used, 0.0, 1.0)


OPEN = Planner("open", propose, together=drift_plus_penalty)
