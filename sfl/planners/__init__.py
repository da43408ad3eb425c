"""What each device does next, chosen from what a run has shown: pure decisions.

A further planner is one file, and one line in `sfl.planners.registry`. Names of this package are
imported when they are first used: a run without a planner needs next to none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfl.planners.decision import Choice, Decision, Why
    from sfl.planners.planner import Planner, Proposal
    from sfl.planners.registry import PLANNERS
    from sfl.planners.state import Aims, DeviceState, EdgeState, State
    from sfl.planners.told import Cut

__all__ = [
    "PLANNERS",
    "Aims",
    "Choice",
    "Cut",
    "Decision",
    "DeviceState",
    "EdgeState",
    "Planner",
    "Proposal",
    "State",
    "Why",
]

_MODULES = {
    "registry": ("PLANNERS",),
    "decision": ("Choice", "Decision", "Why"),
    "planner": ("Planner", "Proposal"),
    "state": ("Aims", "DeviceState", "EdgeState", "State"),
    "told": ("Cut",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
