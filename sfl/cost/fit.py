"""From what a run showed to what a node and a link cost, each with its spread.

Least squares of relative errors, where no cost is below 0. Measurements that do not tell two costs
apart leave the second one as it was before. Links are followed by a running mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import sqrt

from sfl.cost.values import LinkCost, NodeCost, PassCost

SHARE = 0.3
"""How much of a running mean a new measurement is."""
SINGULAR = 1e-7
"""Of a column's own length: what is less is taken for a repetition of other columns."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One pass of a span that was timed: `tokens` through so many `blocks`, one way.

    `embedding` and `head`: whether the span has them.
    """

    seconds: float
    tokens: int
    blocks: float
    backward: bool = False
    embedding: bool = False
    head: bool = False


@dataclass(frozen=True, slots=True)
class Transfer:
    """A message that was timed on the link alone: without what a peer held it."""

    seconds: float
    num_bytes: int
    up: bool


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
    (block, embedding, head, first), (block_b, embedding_b, head_b, second) = (
        fitted[False],
        fitted[True],
    )
    fixed = [value for way, value in ((False, first), (True, second)) if ways[way]]
    cost = NodeCost(
        block=PassCost(block, block_b),
        embedding=PassCost(embedding, embedding_b),
        head=PassCost(head, head_b),
        fixed=sum(fixed) / len(fixed) if fixed else before.fixed,
        threads=threads or before.threads,
        dtype=dtype or before.dtype,
    )
    spread = _spread([(one.seconds, foretold(cost, one)) for one in known])
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
        (one.seconds, (found.up_seconds if one.up else found.down_seconds)(one.num_bytes))
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
    rows = [((float(one.num_bytes), 1.0), one.seconds) for one in transfers]
    per_byte, found = least_squares(rows, (1.0 / rate, latency))
    return found, 1.0 / per_byte if per_byte > 0.0 else rate


def _fit_way(phases: Sequence[Phase], before: NodeCost, backward: bool) -> tuple[float, ...]:
    """Seconds a token of a block, the embedding and the head, and fixed ones."""
    known = _of(before, backward)
    return least_squares([(_sizes(one), one.seconds) for one in phases], known)


def _of(cost: NodeCost, backward: bool) -> tuple[float, ...]:
    parts = (cost.block, cost.embedding, cost.head)
    return (*(part.backward if backward else part.forward for part in parts), cost.fixed)


def _sizes(phase: Phase) -> tuple[float, ...]:
    tokens = float(phase.tokens)
    return (tokens * phase.blocks, tokens * phase.embedding, tokens * phase.head, 1.0)


def _spread(pairs: Sequence[tuple[float, float]]) -> float | None:
    """The root of the mean square of relative errors; None without any."""
    errors = [(seen / told - 1.0) ** 2 for seen, told in pairs if told > 0.0]
    return sqrt(sum(errors) / len(errors)) if errors else None


Row = tuple[Sequence[float], float]


def least_squares(rows: Sequence[Row], before: Sequence[float]) -> tuple[float, ...]:
    """Factors, none below 0, that make each row's sum of products its value, relative to it.

    Rows without a positive value are left out. A factor that no row tells stays as it was `before`.
    Columns that come first are told first, where rows do not tell all apart.
    """
    scaled = [([x / value for x in row], 1.0) for row, value in rows if value > 0.0]
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
