"""Moments of blocks that change sides, as a peer may send them: whole and sound, or refused."""

from __future__ import annotations

import numpy as np
import pytest

from sfl.errors import ProtocolError
from sfl.transport.device import checked

NAME = "base_model.model.layers.2.q.lora_A.weight"


def three(**own: object) -> dict[str, np.ndarray]:
    found: dict[str, object] = {
        "exp_avg": np.ones((2, 3), np.float32),
        "exp_avg_sq": np.ones((2, 3), np.float32),
        "step": np.full((), 4.0, np.float32),
        **own,
    }
    return {f"{NAME}:{kind}": array for kind, array in found.items() if array is not None}  # type: ignore[misc]


def test_what_an_optimizer_has_is_taken() -> None:
    taken = checked.moments(three(), {2})
    assert taken.keys() == three().keys() and float(taken[f"{NAME}:step"]) == 4.0
    assert checked.moments({}, {2}) == {}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (three(step=None), "step is missing"),
        (three(exp_avg_sq=None), "exp_avg_sq is missing"),
        (
            three(exp_avg_sq=np.ones((3, 5), np.float32)),
            r"exp_avg is \[2, 3\], exp_avg_sq \[3, 5\]",
        ),
        (three(exp_avg_sq=-np.ones((2, 3), np.float32)), "below 0"),
        (three(step=np.full((), -1.0, np.float32)), "whole number"),
        (three(step=np.full((), 1.5, np.float32)), "whole number"),
        (three(step=np.ones(2, np.float32)), "whole number"),
        (three(exp_avg=np.full((2, 3), np.nan, np.float32)), "finite"),
        (three(exp_avg=np.ones((2, 3), np.float64)), "float32"),
        (three(anchor=np.ones((2, 3), np.float32)), "not due"),
    ],
)
def test_what_no_optimizer_could_go_on_from_is_refused(
    arrays: dict[str, np.ndarray], words: str
) -> None:
    with pytest.raises(ProtocolError, match=words):
        checked.moments(arrays, {2})


def test_moments_of_other_blocks_are_refused() -> None:
    with pytest.raises(ProtocolError, match=r"of blocks \[3\]: not due"):
        checked.moments(three(), {3})
