"""From what a run showed to what a node and a link cost, each with its spread.

Least squares of relative errors, where no cost is below 0. Measurements that do not tell two costs
apart leave the second one as it was before. Links are followed by a running mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import sqrt

from sfl.cost.queueing import Transfer
from sfl.cost.values import LineCost, LinkCost, NodeCost, PassCost

SHARE = 0.3
"""How much of a running mean a new measurement is."""
SINGULAR = 1e-7
"""Of a column's own length: what is less is taken for a repetition of other columns."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One pass of a span that was timed: `tokens` through so many `blocks`, one way.

    `embedding` and `head`: whether the span has them. `weight`: how many passes it stands for.
    """

    seconds: float
    tokens: float
    blocks: float
    backward: bool = False
    embedding: bool = False
    head: bool = False
    weight: float = 1.0


def fit_node(
    phases: Iterable[Phase], before: NodeCost, *, threads: int = 0, dtype: str = ""
) -> NodeCost:
    """A node's costs; what the phases do not show stays as `before`.

    `spread` is the standard deviation of measured over fitted seconds. Phases of other thread
    counts or dtypes do not belong in here.
    """
    known = list(phases)
    ways = {way: [one for one in known if one.backward is way] for way in (False, True)}
    fitted = {way: _fit_way(ways[way], before, way) for way in (False, True)}
    both = [PassCost(*pair) for pair in zip(fitted[False], fitted[True], strict=True)]
    block, embedding, head, overhead, last = both
    fixed = [value for way, value in ((False, last.forward), (True, last.backward)) if ways[way]]
    cost = replace(
        before,
        block=block,
        embedding=embedding,
        head=head,
        overhead=overhead,
        fixed=sum(fixed) / len(fixed) if fixed else before.fixed,
        threads=threads or before.threads,
        dtype=dtype or before.dtype,
    )
    spread = _spread([(one.seconds, foretold(cost, one), one.weight) for one in known])
    return replace(cost, spread=before.spread if spread is None else spread)


def foretold(cost: NodeCost, phase: Phase) -> float:
    """Seconds of a pass."""
    parts = _of(cost, phase.backward)
    return sum(one * size for one, size in zip(parts, _sizes(phase), strict=True))


def fit_link(transfers: Iterable[Transfer], before: LinkCost, share: float = SHARE) -> LinkCost:
    """A link's rates and latency from the latest transfers, mixed into what was known.

    Messages of one size do not tell rate and latency apart; the latency then stays.
    """
    known = list(transfers)
    up, down = ([one for one in known if one.up is way] for way in (True, False))
    latency_up, rate_up = _fit_rate(up, before.latency, before.up)
    latency_down, rate_down = _fit_rate(down, before.latency, before.down)
    latencies = [value for value, some in ((latency_up, up), (latency_down, down)) if some]
    latency = sum(latencies) / len(latencies) if latencies else before.latency
    found = LinkCost(
        _mixed(before.up, rate_up, share),
        _mixed(before.down, rate_down, share),
        before.latency + share * (latency - before.latency),
    )
    pairs = [
        (
            one.seconds,
            (found.up_seconds if one.up else found.down_seconds)(one.num_bytes),
            one.weight,
        )
        for one in known
    ]
    spread = _spread(pairs)
    new = before.spread if spread is None else before.spread + share * (spread - before.spread)
    return replace(found, spread=new)


def _mixed(before: float, new: float, share: float) -> float:
    """Of rates: seconds are what is averaged."""
    return 1.0 / (1.0 / before + share * (1.0 / new - 1.0 / before))


def _fit_rate(transfers: Sequence[Transfer], latency: float, rate: float) -> tuple[float, float]:
    """Latency and bytes a second of one direction."""
    if not transfers:
        return latency, rate
    rows = [((one.num_bytes, 1.0), one.seconds, one.weight) for one in transfers]
    per_byte, found = least_squares(rows, (1.0 / rate, latency))
    return found, 1.0 / per_byte if per_byte > 0.0 else rate


def _fit_way(phases: Sequence[Phase], before: NodeCost, backward: bool) -> tuple[float, ...]:
    """Seconds a token of a block, the embedding and the head; those of a block, and fixed ones."""
    rows = [(_sizes(one), one.seconds, one.weight) for one in phases]
    return least_squares(rows, _of(before, backward))


def fit_line(points: Iterable[tuple[float, float, float]], before: LineCost) -> LineCost:
    """Seconds by size, of points of a size, seconds and a weight. Those of one size tell no slope.

    A line through nothing but one size is level, so that no other size is guessed.
    """
    rows = [((1.0, size), seconds, weight) for size, seconds, weight in points]
    return LineCost(*least_squares(rows, (before.fixed, before.unit)))


def _of(cost: NodeCost, backward: bool) -> tuple[float, ...]:
    parts = (cost.block, cost.embedding, cost.head, cost.overhead)
    return (*(part.backward if backward else part.forward for part in parts), cost.fixed)


def _sizes(phase: Phase) -> tuple[float, ...]:
    tokens = float(phase.tokens)
    return (
        tokens * phase.blocks,
        tokens * phase.embedding,
        tokens * phase.head,
        float(phase.blocks),
        float(phase.blocks > 0),  # the embedding or the head alone is no pass of a span
    )


def _spread(errors: Sequence[tuple[float, float, float]]) -> float | None:
    """The root of the mean square of relative errors, weighed; None without any."""
    known = [(seen / told - 1.0, weight) for seen, told, weight in errors if told > 0.0]
    total = sum(weight for _, weight in known)
    return sqrt(sum(weight * one * one for one, weight in known) / total) if total else None


Row = tuple[Sequence[float], float]
Weighed = tuple[Sequence[float], float, float]


def least_squares(rows: Sequence[Row | Weighed], before: Sequence[float]) -> tuple[float, ...]:
    """Factors, none below 0, that make each row's sum of products its value, relative to it.

    A row is its numbers, its value, and the weight that it has, 1 where it has none.

    Rows without a positive value are left out. A factor that no row tells stays as it was `before`.
    Columns that come first are told first, where rows do not tell all apart.
    """
    scaled = [_relative(*row) for row in rows if row[1] > 0.0]
    free = list(range(len(before)))
    found = list(before)
    while scaled and free:
        solution = _solve(scaled, free, found)
        negative = [number for number in solution if solution[number] < 0.0]
        if not negative:
            for number, value in solution.items():
                found[number] = value
            break
        worst = min(negative, key=lambda number: solution[number] * _length(scaled, number))
        found[worst] = 0.0
        free.remove(worst)
    return tuple(found)


def _relative(row: Sequence[float], value: float, weight: float = 1.0) -> Row:
    root = sqrt(weight)
    return [root * x / value for x in row], root


def _length(rows: Sequence[Row], number: int) -> float:
    return sqrt(sum(row[number] ** 2 for row, _ in rows))


def _solve(rows: Sequence[Row], free: Sequence[int], held: Sequence[float]) -> dict[int, float]:
    """The free factors that the rows tell, by Gram and Schmidt; the others keep what they have."""
    columns = {number: [row[number] for row, _ in rows] for number in free}
    basis: dict[int, list[float]] = {}
    for number, column in columns.items():
        left = _without(column, basis.values())
        if _norm(left) > SINGULAR * _norm(column):
            basis[number] = left
    rest = [
        value - sum(held[n] * x for n, x in enumerate(row) if n not in basis) for row, value in rows
    ]
    return _back(columns, basis, rest)


def _back(
    columns: dict[int, list[float]], basis: dict[int, list[float]], rest: list[float]
) -> dict[int, float]:
    """From the last to the first: each factor, with those that follow taken off."""
    solution: dict[int, float] = {}
    for number in reversed(list(basis)):
        axis = basis[number]
        factor = _dot(axis, rest) / _dot(axis, axis)
        solution[number] = factor
        rest = [value - factor * x for value, x in zip(rest, columns[number], strict=True)]
    return solution


def _without(column: list[float], basis: Iterable[list[float]]) -> list[float]:
    left = column
    for axis in basis:
        factor = _dot(axis, left) / _dot(axis, axis)
        left = [value - factor * x for value, x in zip(left, axis, strict=True)]
    return left


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def _norm(column: Sequence[float]) -> float:
    return sqrt(_dot(column, column))
