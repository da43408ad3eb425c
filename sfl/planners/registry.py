"""The planners by name. A further one is a file, and a line here."""

from __future__ import annotations

from sfl.node.plugins import Registry
from sfl.planners.card import CARD
from sfl.planners.fixed import FIXED
from sfl.planners.fleet import FLEET
from sfl.planners.mincut import MINCUT
from sfl.planners.open import OPEN
from sfl.planners.pairing import PAIRING
from sfl.planners.planner import Planner
from sfl.planners.random import RANDOM
from sfl.planners.recorded import RECORDED
from sfl.planners.scan import SCAN
from sfl.planners.two_timescale import TWO_TIMESCALE
from sfl.planners.ucb import UCB

PLANNERS: Registry[Planner] = Registry(
    "sfl.planners",
    Planner,
    {
        planner.name: planner
        for planner in (
            FIXED,
            SCAN,
            MINCUT,
            FLEET,
            CARD,
            OPEN,
            TWO_TIMESCALE,
            UCB,
            PAIRING,
            RANDOM,
            RECORDED,
        )
    },
)
"""By name; packages may bring more."""
