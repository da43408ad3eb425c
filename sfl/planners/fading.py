"""Sums of rounds, in which each further round weighs less, and less still what it contradicts."""

from __future__ import annotations

from dataclasses import replace

from sfl.cost.shown import Passes, PassKey, Sums

KEEP = 0.7
"""Of what was known before a round: rounds count by 1, 0.7, 0.49, ..."""
DOUBT = 3.0
"""The power by which less is kept of what a round contradicts: half or twice the seconds, 1/8."""


def faded(before: Passes, new: Passes) -> dict[PassKey, Sums]:
    """What was known weighs less; what nothing like it was timed of again stays as it was."""
    found = {
        key: followed(known, new[key])
        if key in new
        else known.scaled(_kept_beside(key, before, new))
        for key, known in before.items()
    }
    return found | {key: sums for key, sums in new.items() if key not in found}


def _kept_beside(key: PassKey, before: Passes, new: Passes) -> float:
    """Of passes through other blocks than those that were timed: a device that was elsewhere."""
    known = _pace(before[key], key.blocks)
    kept = [
        _kept(_pace(before[other], other.blocks) if other in before else known, pace)
        for other, pace in ((one, _pace(sums, one.blocks)) for one, sums in new.items())
        if replace(other, blocks=key.blocks) == key
    ]
    return min(kept, default=1.0)


def followed(known: Sums, new: Sums) -> Sums:
    """After a round; as it was where nothing was timed in it."""
    if new.passes <= 0.0:
        return known
    return new.plus(known, _kept(_pace(known), _pace(new)))


def _kept(before: float, now: float) -> float:
    """Less, the more a round contradicts it: noise is averaged, and a change is seen at once."""
    alike = min(before, now) / max(before, now) if before > 0.0 < now else 1.0
    return float(KEEP * alike**DOUBT)


def _pace(sums: Sums, blocks: int = 1) -> float:
    """Seconds of a token or byte, or of a pass that has no size; in each of the blocks."""
    of = (sums.size or sums.passes) * max(1, blocks)
    return sums.seconds / of if of > 0.0 else 0.0


def difference(known: Passes, new: Passes) -> float | None:
    """The share by which passes differ from what is known of the same; None of what is new."""
    alike = [(known[key], sums) for key, sums in new.items() if key in known]
    told = sum(_pace(before) * (sums.size or sums.passes) for before, sums in alike)
    took = sum(sums.seconds for _, sums in alike)
    return abs(took / told - 1.0) if told > 0.0 < took else None
