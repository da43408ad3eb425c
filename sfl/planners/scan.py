"""Each device alone: the legal cuts with the shortest round, found by looking at all of them.

For a chain of blocks this is the optimum of "Fast DAG model splitting" (2507.01041), since a cut
between blocks is all that a run can execute.
"""

from __future__ import annotations

from sfl.planners.decision import Choice
from sfl.planners.planner import Planner, Proposal
from sfl.planners.seconds import alone_seconds
from sfl.planners.state import DeviceState, State


def propose(state: State) -> Proposal:
    """The shortest round of each; of equal ones the one with the fewest blocks."""
    return Proposal({device.name: shortest(state, device) for device in state.able}, state.memory)


def shortest(state: State, device: DeviceState) -> Choice:
    """One device's."""
    choices = device.choices(state.workload.num_layers)
    return min(choices, key=lambda choice: alone_seconds(state, device, choice))


SCAN = Planner("scan", propose, alone=alone_seconds)
