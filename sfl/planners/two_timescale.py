"""Two timescales (2501.09237): rarely cuts and codecs, in every round the shares of one band.

All devices share one band and train beside each other, each with an equal part of its edge. A
longer round needs less of the band from each device, so the shortest one is found by bisection: at
each length every device takes the cut that asks least of the band. This is exact for the model,
where the paper has an augmented Lagrangian and rounding. Delay falls with what a codec keeps, so
that the best keeps as little as accuracy allows (`Aims.keep`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, log2

from sfl.cost.step import exchange_seconds
from sfl.planners.decision import Choice
from sfl.planners.fitting import least_that_fits
from sfl.planners.planner import Planner, Proposal
from sfl.planners.seconds import alone_seconds, step_of
from sfl.planners.state import Aims, DeviceState, State, as_chosen
from sfl.planners.told import Cut

LEAST_SHARE = 1e-9
AGE = "age"
"""The table that counts decisions since cuts and codecs were last chosen."""


@dataclass(frozen=True, slots=True)
class _Option:
    """One cut: seconds of a round without the band, and with all of it for the band alone."""

    choice: Choice
    alone: float
    band: float

    def share(self, length: float) -> float:
        """Of the band, so that the round is no longer than that."""
        return self.band / (length - self.alone) if length > self.alone else inf


def propose(state: State) -> Proposal:
    """The shortest round; on the slow timescale with cuts chosen anew."""
    age = state.memory.get(AGE, {}).get("decisions", 0.0)
    slow = age % state.aims.slow_rounds == 0
    devices = state.able if slow else state.staying().able
    counts = Counter(device.edge for device in state.able)
    options = [_options(state, device, counts[device.edge]) for device in devices]
    length = _shortest(options)
    chosen = {}
    for device, own in zip(devices, options, strict=True):
        best = min(own, key=lambda one: one.share(length))
        share = min(1.0, max(LEAST_SHARE, best.share(length)))
        chosen[device.name] = replace(best.choice, share=share)
    note = "" if slow else "cuts stay until the slow timescale's turn"
    return Proposal(chosen, {AGE: {"decisions": age + 1.0}}, note)


def longest(state: State, choices: Mapping[str, Choice]) -> float:
    """What `two_timescale` makes small: seconds of the slowest device."""
    return max((alone_seconds(state, d, choices[d.name]) for d in state.able), default=0.0)


def sparse_bits(aims: Aims) -> float:
    """Of a value, where `keep` of all are kept: which ones, and what they are."""
    keep = aims.keep
    if not 0.0 < keep < 1.0:
        return float(aims.keep_bits)
    return -keep * log2(keep) - (1 - keep) * log2(1 - keep) + keep * aims.keep_bits


def _options(state: State, device: DeviceState, count: int) -> list[_Option]:
    """Cuts of one of `count` devices at its edge that no other one beats both ways."""
    every = [_option(state, device, cut, count) for cut in device.legal]
    every.sort(key=lambda one: (one.alone, one.band))
    useful: list[_Option] = []
    for one in every:
        if not useful or one.band < useful[-1].band:
            useful.append(one)
    return useful


def _option(state: State, device: DeviceState, cut: Cut, count: int) -> _Option:
    choice = replace(_coded(state, device, cut), edge_share=1.0 / count)
    whole = alone_seconds(state, device, choice)
    band = _band(state, device, choice)
    return _Option(choice, whole - band, band)


def _band(state: State, device: DeviceState, choice: Choice) -> float:
    """Seconds of a round for what crosses, with all of the band."""
    cost, step = as_chosen(device.cost, choice), step_of(state, device, choice)
    seconds = step.bytes_up / cost.link.up + step.bytes_down / cost.link.down
    return state.workload.steps * seconds + exchange_seconds(cost, *choice.at)


def _coded(state: State, device: DeviceState, cut: Cut) -> Choice:
    """With the sparse codec for what then takes fewer bits than it does now."""
    aims, bits = state.aims, device.cost.bits
    sparse, choice = sparse_bits(aims), device.choice(cut)
    codec = f"topk({aims.keep:g}) | stochastic({aims.keep_bits}) | zstd"
    if sparse < _bits(bits.activation, cut.cut_layer):
        choice = replace(choice, activation=codec, activation_bits=sparse)
    if sparse < _bits(bits.gradient, cut.cut_layer):
        choice = replace(choice, gradient=codec, gradient_bits=sparse)
    return choice


def _bits(every: tuple[float, ...], cut_layer: int) -> float:
    return every[min(cut_layer, len(every) - 1)]


def _shortest(options: Sequence[Sequence[_Option]]) -> float:
    """The length at which the least shares of all devices add up to the band."""

    def used(length: float) -> float:
        return sum(min(one.share(length) for one in own) for own in options)

    low = max((min(one.alone for one in own) for own in options), default=0.0)
    return least_that_fits(used, low, max(2.0 * low, 1e-9))


TWO_TIMESCALE = Planner("two_timescale", propose, together=longest)
