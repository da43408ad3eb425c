"""Nothing moves: each device keeps its present cut, or takes its first legal one."""

from __future__ import annotations

from sfl.planners.decision import Choice
from sfl.planners.planner import Planner, Proposal
from sfl.planners.state import DeviceState, State


def propose(state: State) -> Proposal:
    """The present cuts, where they are still legal."""
    return Proposal({device.name: present(device) for device in state.able}, state.memory)


def present(device: DeviceState) -> Choice:
    """Its present cut, or where that is not legal the one with the fewest blocks."""
    legal = device.legal
    return device.choice(next((cut for cut in legal if cut.at == device.at), legal[0]))


FIXED = Planner("fixed", propose)
