"""Costs of one node and one link, from sums of what was timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sfl.cost.energy import NO_POWER, PowerModel
from sfl.cost.fit import Phase, fit_line, fit_link, fit_node, least_squares
from sfl.cost.queueing import Transfer
from sfl.cost.shown import Crossing, Part, Passes, PassKey, Purpose, Sums
from sfl.cost.values import NO_TIME, LineCost, LinkCost, NodeCost, PassCost, ValueBits

BITS = 32.0
"""Of a value of which nothing has crossed yet."""
UNKNOWN = NodeCost(PassCost())


@dataclass(frozen=True, slots=True)
class Reading:
    """Joules of a round, and the seconds of what a device did in it."""

    joules: float
    compute: float
    send: float
    receive: float
    waiting: float


def node_cost(passes: Passes, setting: tuple[int, str] = (0, "")) -> NodeCost | None:
    """Costs from sums of passes, of one thread count and dtype; None where no block is in them."""
    threads, dtype = setting
    phases = [phase for key, sums in passes.items() for phase in _phases(key, sums)]
    for_training = [phase for phase, purpose in phases if purpose != "evaluation"]
    known = for_training or [phase for phase, _ in phases]
    if not any(phase.blocks for phase in known):
        return None
    fitted = fit_node(known, UNKNOWN, threads=threads, dtype=dtype)
    step, each = _step_line(passes)
    return replace(
        fitted,
        encode=_code_line(passes, "encode"),
        decode=_code_line(passes, "decode"),
        step=LineCost(step + _mean_seconds(passes, "collate"), each),
    )


def link_cost(up: Sums, down: Sums) -> LinkCost | None:
    """Rates and latency from sums of messages; None where there were none."""
    transfers = [
        Transfer(seconds, size, way, weight)
        for way, sums in ((True, up), (False, down))
        for size, seconds, weight in sums.points()
        if seconds > 0.0
    ]
    rates = [sums.size / sums.seconds for sums in (up, down) if sums.seconds > 0.0 < sums.size]
    return fit_link(transfers, LinkCost(rates[0], rates[-1]), 1.0) if rates else None


def value_bits(known: Mapping[tuple[Crossing, int], float]) -> ValueBits:
    """By cut; a cut that nothing crossed has the bits of the nearest that something did."""
    return ValueBits(
        *(
            _by_index({index: bits for (which, index), bits in known.items() if which == role})
            for role in ("activation", "gradient", "hidden", "tail_gradient")
        )
    )


def power(readings: Sequence[Reading]) -> PowerModel:
    """Watts by what a device did, from what was measured; nothing where nothing was.

    What rounds do not tell apart has the mean power of all of them.
    """
    if not readings:
        return NO_POWER
    seconds = sum(r.compute + r.send + r.receive + r.waiting for r in readings)
    mean = sum(reading.joules for reading in readings) / seconds if seconds else 0.0
    rows = [((r.compute, r.send, r.receive, r.waiting), r.joules) for r in readings]
    told = least_squares(rows, (mean,) * 4) if len(rows) > 4 else (mean,) * 4
    compute, send, receive, idle = told
    return PowerModel(compute, send, receive, idle, "measured")


def _phases(key: PassKey, sums: Sums) -> list[tuple[Phase, Purpose]]:
    if key.part not in ("forward", "backward"):
        return []
    backward = key.part == "backward"
    return [
        (
            Phase(seconds, size, key.blocks, backward, key.embedding, key.head, weight),
            key.purpose,
        )
        for size, seconds, weight in sums.points()
        if seconds > 0.0 and size > 0.0
    ]


def _code_line(passes: Passes, part: Part) -> LineCost:
    """Of coding messages in training, by their tokens."""
    points = [
        point
        for key, sums in passes.items()
        if key.part == part and key.purpose != "evaluation"
        for point in sums.points()
    ]
    return fit_line(points, NO_TIME)


def _step_line(passes: Passes) -> tuple[float, float]:
    """Seconds a step: whatever is trained, and of each block that is."""
    points = [
        (float(key.blocks), sums.seconds / sums.passes, sums.passes)
        for key, sums in passes.items()
        if (key.part, key.purpose) == ("step", "training") and sums.passes > 0.0
    ]
    if len(points) == 1 and points[0][0]:
        blocks, seconds, _ = points[0]
        return 0.0, seconds / blocks  # most of it goes by what is trained
    line = fit_line(points, NO_TIME)
    return line.fixed, line.unit


def _mean_seconds(passes: Passes, part: Part) -> float:
    found = [
        sums
        for key, sums in passes.items()
        if (key.part, key.purpose) == (part, "training") and sums.passes > 0.0
    ]
    passed = sum(sums.passes for sums in found)
    return sum(sums.seconds for sums in found) / passed if passed else 0.0


def _by_index(bits: Mapping[int, float]) -> tuple[float, ...]:
    if not bits:
        return (BITS,)
    return tuple(
        bits[min(bits, key=lambda known: (abs(known - index), known))]
        for index in range(max(bits) + 1)
    )
