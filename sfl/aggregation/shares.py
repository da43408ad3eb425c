"""How much of an average one device may be."""

from __future__ import annotations

from collections.abc import Mapping


def bounded(examples: Mapping[str, int], most: float) -> dict[str, int]:
    """The weights, the largest lowered until none is more than `most` of their sum.

    Where that cannot be, as `most` is less than one part of so many, all are lowered to the least.
    """
    if most >= 1.0 or not examples:
        return dict(examples)
    ordered = sorted(examples.values(), reverse=True)
    for count, largest in enumerate(ordered):
        # The `count` largest have the same weight c each: c = most (c count + all others).
        left = 1.0 - most * count
        cap = most * sum(ordered[count:]) / left if left > 0 else float(ordered[-1])
        if largest <= cap or left <= 0:
            break
    else:
        cap = float(ordered[-1])
    return {name: max(1, min(number, int(cap))) for name, number in examples.items()}
