"""Sessions that train: one device's LoRA and optimizer over the shared base.

There are two: where the model's end is, and anywhere before it. At the last stage devices may also
share one adapter.
"""

from sfl.plan import Span
from sfl.stage.training.middle import MiddleSession
from sfl.stage.training.session import TrainingSession
from sfl.stage.training.shared import SharedSession, new_team
from sfl.stage.training.team import Team
from sfl.stage.training.vanilla import VanillaSession


def session_of(span: Span) -> type[TrainingSession]:
    """What trains a span of a stage server: with the loss, or without."""
    return VanillaSession if span.head else MiddleSession


__all__ = [
    "MiddleSession",
    "SharedSession",
    "Team",
    "TrainingSession",
    "VanillaSession",
    "new_team",
    "session_of",
]
