"""Which positions of a batch have a target: those that a loss looks at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sfl.stage.layout import IGNORED


def following(lengths: Sequence[int], labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """What follows each real token of a batch, -100 where nothing does that counts: int32 [n]."""
    found = np.append(labels[1:], np.int32(IGNORED))
    found[np.cumsum(lengths) - 1] = IGNORED  # nothing follows a sequence's end
    return found


def scored_places(lengths: Sequence[int], labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """The real tokens that predict a scored one, by their number in the batch: int64 [m]."""
    return np.flatnonzero(following(lengths, labels) != IGNORED)
