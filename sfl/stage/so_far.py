"""What of a round is behind a device: to go on within it, and to report all of it at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any, Self

from sfl.rounds.values import NO_SCORE, Score


@dataclass(slots=True)
class SoFar:
    """The evaluation before a round's first step, and the loss and tokens of the steps taken."""

    score: Score = NO_SCORE
    sample: Score = NO_SCORE
    losses: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def mean_loss(self) -> float:
        """Over the steps; 0 without any."""
        return sum(self.losses) / len(self.losses) if self.losses else 0.0

    def took(self, loss: float, tokens: int) -> None:
        """Another step is taken."""
        self.losses.append(loss)
        self.tokens += tokens

    def facts(self) -> dict[str, Any]:
        """All of it as JSON can hold it, to the last bit."""
        return {
            "score": astuple(self.score),
            "sample": astuple(self.sample),
            "losses": list(self.losses),
            "tokens": self.tokens,
        }

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """What `facts` told."""
        score, sample = Score(*facts["score"]), Score(*facts["sample"])
        return cls(score, sample, list(facts["losses"]), facts["tokens"])
