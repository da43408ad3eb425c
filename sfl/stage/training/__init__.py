"""Sessions that train: one device's LoRA and optimizer over the shared base.

A further topology is one file and two lines here, and more elsewhere (docs/architecture.md).
"""

from typing import TypedDict

from sfl.stage.training.session import TrainingSession
from sfl.stage.training.u_shaped import UShapedSession
from sfl.stage.training.vanilla import VanillaSession


class Sessions(TypedDict):
    """One class for each `run.topology`."""

    vanilla: type[TrainingSession]
    u_shaped: type[TrainingSession]


SESSIONS: Sessions = {"vanilla": VanillaSession, "u_shaped": UShapedSession}

__all__ = ["SESSIONS", "TrainingSession", "UShapedSession", "VanillaSession"]
