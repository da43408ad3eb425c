"""How the next token is chosen, and the numbers that it is drawn by.

They depend on seed, conversation and position alone. So a conversation that goes on after
something has failed, or elsewhere, says what it would have said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sfl.keys import derive_seed

HOTTEST = 2.0
"""The highest temperature, as in OpenAI's interface."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Temperature 0 is greedy. `key` is the conversation's, or empty: then `seed` alone counts."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    key: str = ""

    def problem(self) -> str | None:
        """What is wrong with it, or None."""
        if not (math.isfinite(self.temperature) and 0.0 <= self.temperature <= HOTTEST):
            return f"temperature is {self.temperature}, not 0 to {HOTTEST:g}"
        if not (math.isfinite(self.top_p) and 0.0 < self.top_p <= 1.0):
            return f"top_p is {self.top_p}, not above 0 and at most 1"
        return None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature == 0.0

    def seed_of(self, position: int) -> int:
        """What the numbers come of that the token at `position` is drawn by."""
        return derive_seed(self.seed, self.key, position, "sampling")


GREEDY = Sampling()
